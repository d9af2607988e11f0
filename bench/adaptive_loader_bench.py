#!/usr/bin/env python3
"""The adaptive loader beside fixed settings, in real runs that wait for their samples.

Usage, from the repository's root: .venv/bin/python bench/adaptive_loader_bench.py [--rounds 3] [--workers 1 2 3] [--steps 120]. Pictures
are large in the files and small in the model (data.resolution), so that decoding is what a step waits for. The adaptive run begins
with one thread and may adjust every ten steps; what it reaches after five adjustments is compared with every fixed number of
threads, each run taking its turn in every round. At least 0.95 of the best fixed setting's samples/s.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
PLIMSOLL = pathlib.Path(os.environ.get("PLIMSOLL_BUILD", ROOT / "build")) / "plimsoll"
EVERY, ADJUSTMENTS = 10, 5


def program(folder, *words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder)}
    done = subprocess.run([PLIMSOLL, *map(str, words)], capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
    return done.stdout


def train(folder, name, options, **data):
    """(samples/s after the adjustments, seconds that a step waited for samples, the threads that it ended with)."""
    run = folder / name
    settings = {
        "run.dir": f'"{run}"', "run.threads": 1, "model.path": f'"{folder}/model"', "model.dtype": '"fp32"', "data.path": f'["{folder}/data"]',
        "data.resolution": 56, "data.adjust_every": EVERY, "data.most_workers": 4, "expert.width": 32, "expert.depth": 1, "expert.heads": 2,
        "expert.chunk": 4, "expert.draws": 1, "batch.effective": options.batch, "memory.budget": '"1GiB"', "memory.policy": '"reactive"',
        "train.stage": 1, "train.max_steps": options.steps, "train.checkpoint_every": options.steps, "report.files": "false", "report.every": 1000,
        **{f"data.{key}": json.dumps(value) for key, value in data.items()}}
    program(folder, "train", *[word for key, value in settings.items() for word in ("--set", f"{key}={value}")])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][EVERY * (ADJUSTMENTS + 1):]
    seconds = sum(line["wall_ms"] for line in lines) / 1000
    waited = sum(line["load_ms"] for line in lines) / 1000
    table = run / "loader.toml"
    threads = table.read_text() if table.exists() else ""
    subprocess.run(["rm", "-rf", run], check=True)
    return sum(line["samples"] for line in lines) / seconds, waited / seconds, threads


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=448)
    options = parser.parse_args()
    if options.steps <= EVERY * (ADJUSTMENTS + 2):
        parser.error(f"--steps {options.steps}: give more than {EVERY * (ADJUSTMENTS + 2)}, or nothing is left to compare")
    with tempfile.TemporaryDirectory(prefix="plimsoll-adaptive-") as name:
        folder = pathlib.Path(name)
        program(folder, "init-model", "--size", "tiny", "--layers", 1, "--dtype", "fp32", "--out", folder / "model")
        frames = options.steps * options.batch
        program(folder, "demo-data", "--episodes", frames // 40 + 2, "--frames-per-episode", 40, "--heavy-fraction", 0, "--top-side", options.side,
                "--wrist-side", options.side, "--out", folder / "data")
        found = {}
        for _ in range(options.rounds):
            found.setdefault("adaptive, from 1 thread", []).append(train(folder, "adaptive", options, workers=1, adaptive=True))
            for workers in options.workers:
                name = f"fixed, {workers} thread{'s' if workers > 1 else ''}"
                found.setdefault(name, []).append(train(folder, "fixed", options, workers=workers, adaptive=False))
    speed = {name: statistics.median(one[0] for one in results) for name, results in found.items()}
    print(f"| batches of {options.batch}, two cameras of {options.side} px | samples/s | of the time waited for samples |\n|---|---:|---:|")
    for name, results in found.items():
        print(f"| {name} | {speed[name]:.1f} | {statistics.median(one[1] for one in results):.2f} |")
    adaptive = speed.pop("adaptive, from 1 thread")
    best = max(speed, key=speed.get)
    ratio = adaptive / speed[best]
    print(f"FIGURE adaptive loader after {ADJUSTMENTS} adjustments, samples/s beside {best} = {ratio:.3f} (bound 0.95: {'met' if ratio >= 0.95 else 'NOT met'})")


if __name__ == "__main__":
    main()
