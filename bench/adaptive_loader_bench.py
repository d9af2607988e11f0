#!/usr/bin/env python3
"""The adaptive loader beside fixed settings, in real runs that wait for their samples; and with little memory.

Usage, from the repository's root: .venv/bin/python bench/adaptive_loader_bench.py [--rounds 5] [--workers 1 2 3 4] [--steps 110] [--rehearse]
Pictures are large in the files and small in the model (data.resolution), so that decoding is what a step waits for. The adaptive
run begins with one thread, may change every ten steps and five times in all (data.most_adjustments); the steps after that are
compared with those of every fixed number of threads, each run taking its turn in every round, in another order. At least 0.95 of
the best fixed setting's samples/s. No verdict, and exit status 77, where one thread does not keep steps waiting, or where the
runs differ by so much among themselves that 0.95 could not be told from 1. Then a run whose loader may hold little more than
a step's samples: it must back off, and never hold more than that and a step's samples, those in the making counted.
Exit status 1 where one of the two does not hold. --rehearse: that both run, and that memory is kept; no verdict on speed.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
PLIMSOLL = pathlib.Path(os.environ.get("PLIMSOLL_BUILD", ROOT / "build")) / "plimsoll"
UNTRIED = 77
EVERY, ADJUSTMENTS = 10, 5
SETTLED = EVERY * (ADJUSTMENTS + 1)  # steps: the last change, and an interval for its threads to get going
BOUND, LOAD_BOUND = 0.95, 0.3
MOST_ERROR = (1 - BOUND) / 2  # standard error of the ratio with which there is a verdict
ADAPTIVE = "adaptive, from 1 thread"


def program(folder, *words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder)}
    done = subprocess.run([PLIMSOLL, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    if done.returncode != 0:
        raise SystemExit(done.stdout[-4000:])
    return done.stdout


class Result:
    """What a run came to: samples/s and the part of the time that steps waited, both when it had settled; the bytes that its
    loader held at once, and those of its largest sample; and what it said."""

    def __init__(self, run, said):
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][SETTLED:]
        seconds = sum(line["wall_ms"] for line in lines) / 1000
        self.speed = sum(line["samples"] for line in lines) / seconds
        self.waited = sum(line["load_ms"] for line in lines) / 1000 / seconds
        told = re.search(r"At most (\d+) bytes were held at once.*, a sample being (\d+)", (run / "loader.toml").read_text())
        self.held, self.sample = map(int, told.groups())
        self.changes = re.findall(r"loader: (.* -> [^:]*):", said)
        self.said = said


def train(folder, options, **data):
    run = folder / "run"
    settings = {
        "run.dir": f'"{run}"', "run.threads": 1, "model.path": f'"{folder}/model"', "model.dtype": '"fp32"', "data.path": f'["{folder}/data"]',
        "data.resolution": 56, "data.adjust_every": EVERY, "data.most_adjustments": ADJUSTMENTS, "data.most_workers": 4, "expert.width": 32,
        "expert.depth": 1, "expert.heads": 2, "expert.chunk": 4, "expert.draws": 1, "batch.effective": options.batch, "memory.budget": '"1GiB"',
        "memory.policy": '"reactive"', "train.stage": 1, "train.max_steps": options.steps, "train.checkpoint_every": options.steps,
        "report.files": "false", "report.every": 1000, **{f"data.{key}": json.dumps(value) for key, value in data.items()}}
    config = folder / "config.toml"  # all of it is said behind it
    config.touch()
    said = program(folder, "train", "--config", config, *[word for key, value in settings.items() for word in ("--set", f"{key}={value}")])
    result = Result(run, said)
    subprocess.run(["rm", "-rf", run], check=True)
    return result


def race(folder, options):
    """Results by name, one a round."""
    settings = {ADAPTIVE: {"workers": 1, "adaptive": True}}
    for workers in options.workers:
        settings[f"fixed, {workers} thread{'s' if workers > 1 else ''}"] = {"workers": workers, "adaptive": False}
    found = {name: [] for name in settings}
    for number in range(options.rounds):
        names = list(settings)
        at = number % len(names)
        for name in names[at:] + names[:at]:
            found[name].append(train(folder, options, **settings[name]))
    return found


def speed(results):
    return statistics.median(result.speed for result in results)


def show(found, options):
    print(f"| batches of {options.batch}, two cameras of {options.side} px | samples/s | of the time waited for samples |\n|---|---:|---:|")
    for name, results in found.items():
        print(f"| {name} | {speed(results):.1f} | {statistics.median(result.waited for result in results):.2f} |")
    for change in found[ADAPTIVE][-1].changes:
        print(f"adaptive: {change}")


def bounded(bound, met):
    return f"(bound {bound}: {'met' if met else 'NOT met'})"


def verdict_on_speed(found):
    """(whether the bound is met, or nothing, and then why not)"""
    fixed = {name: results for name, results in found.items() if name != ADAPTIVE}
    waited = statistics.median(result.waited for result in fixed["fixed, 1 thread"])
    print(f"FIGURE adaptive loader: of its time, a step waits for samples with 1 thread = {waited:.2f} {bounded(LOAD_BOUND, waited >= LOAD_BOUND)}")
    if waited < LOAD_BOUND:
        return None, f"no verdict: with one thread steps wait {waited:.2f} of their time only, so that no loader can make them faster"
    best = max(fixed, key=lambda name: speed(fixed[name]))
    ratios = [mine.speed / theirs.speed for mine, theirs in zip(found[ADAPTIVE], fixed[best])]
    ratio = statistics.median(ratios)
    error = statistics.stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else float("inf")
    met = ratio >= BOUND
    print(f"FIGURE adaptive loader after {ADJUSTMENTS} adjustments: samples/s by {best} = {ratio:.3f} {bounded(BOUND, met)}")
    print(f"FIGURE adaptive loader: standard error of that = {error:.3f} (a verdict with {MOST_ERROR:.3f} at most)")
    if error > MOST_ERROR:
        return None, f"no verdict: the ratios of {len(ratios)} rounds have a standard error of {error:.3f}, more than {MOST_ERROR:.3f}"
    return met, ""


def keeps_within_memory(folder, options, sample):
    """The limit is a little more than a step's samples take, so that those alone are above the four fifths of it that it aims at."""
    limit = int(1.15 * options.batch * sample)
    result = train(folder, options, workers=4, prefetch=6, adaptive=True, loader_bytes=limit)
    over = (result.held - limit) / (options.batch * result.sample)
    print(f"FIGURE adaptive loader, memory scarce: held at most, beyond the limit = {over:.2f} batches {bounded(1, over <= 1)}")
    backed_off = bool(result.changes) and result.changes[-1].endswith("-> 1 thread, 1 step ahead") and "is above 80 %" in result.said
    print(f"FIGURE adaptive loader, memory scarce: backed off from 4 threads and 6 steps ahead = {'yes' if backed_off else 'no'} {bounded('yes', backed_off)}")
    if not backed_off:
        print("\n".join(result.changes) or "it changed nothing")
    return over <= 1 and backed_off


def parsed():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=110)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=448)
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    if options.steps <= SETTLED + EVERY:
        parser.error(f"--steps {options.steps}: give more than {SETTLED + EVERY}, or nothing is left to compare")
    if 1 not in options.workers:
        parser.error("--workers: 1 must be among them, by which it is seen whether steps wait for samples")
    return options


def main():
    options = parsed()
    with tempfile.TemporaryDirectory(prefix="plimsoll-adaptive-") as name:
        folder = pathlib.Path(name)
        program(folder, "init-model", "--size", "tiny", "--layers", 1, "--dtype", "fp32", "--out", folder / "model")
        frames = options.steps * options.batch
        program(folder, "demo-data", "--episodes", frames // 40 + 2, "--frames-per-episode", 40, "--heavy-fraction", 0, "--top-side", options.side,
                "--wrist-side", options.side, "--out", folder / "data")
        found = race(folder, options)
        show(found, options)
        fast, why_not = verdict_on_speed(found)
        kept = keeps_within_memory(folder, options, found[ADAPTIVE][0].sample)
    if not kept or (fast is False and not options.rehearse):
        sys.exit(1)
    if why_not and not options.rehearse:
        print(why_not)
        sys.exit(UNTRIED)


if __name__ == "__main__":
    main()
