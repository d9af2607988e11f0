#!/usr/bin/env python3
"""`make example`: trains on the simulated table and a control beside it, then lets everybody act on the same unseen scenes.

Usage, from the repository's root: .venv/bin/python tools/example.py [--difficulty fixed|permuted|anywhere] [--steps N] [--episodes N]. The
control is trained alike, but each of its episodes has another one's instruction: what it reaches is what can be reached without reading.
Fails where the policy does not clearly beat all others: the 95 % intervals of success rates and of action errors must lie apart.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PLIMSOLL = pathlib.Path(os.environ.get("PLIMSOLL", ROOT / "build" / "plimsoll"))
FOLDER = ROOT / "demo" / "example"
ERROR = re.compile(r"held-out action error at the (start|end): ([0-9.]+) \(best constant action ([0-9.]+)\), .* \+- ([0-9.]+) and \+- ([0-9.]+)")


def program(*words):
    done = subprocess.run([PLIMSOLL, *map(str, words)], capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        sys.exit(done.stdout[-2000:] + done.stderr[-2000:])
    return done.stdout


def make_data(options):
    """The task and its control, of the same scenes."""
    if not (FOLDER / "model").exists():
        program("init-model", "--size", "tiny", "--out", FOLDER / "model")
    for name, words in ("data", []), ("shuffled", ["--shuffled-instructions"]):
        shutil.rmtree(FOLDER / name, ignore_errors=True)
        program("demo-data", "--out", FOLDER / name, "--difficulty", options.difficulty, "--episodes", options.scenes, "--heavy-fraction", options.heavy, *words)


def start_training(name, data, options):
    """One run in the background; its words go to a file."""
    run = FOLDER / name
    shutil.rmtree(run, ignore_errors=True)
    settings = {"run.dir": f'"{run}"', "data.path": f'["{FOLDER / data}"]', "train.max_steps": options.steps}
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    log = FOLDER / f"{name}.log"
    return log, subprocess.Popen([PLIMSOLL, "train", "--config", "configs/example.toml", *words], cwd=ROOT, stdout=log.open("w"), stderr=subprocess.STDOUT)


def errors_in(log):
    """{"start", "end", "constant": (held-out action error, half of its 95 % interval)}."""
    found = {}
    for when, error, constant, half, half_of_it in ERROR.findall(log.read_text()):
        found[when] = float(error), float(half)
        found["constant"] = float(constant), float(half_of_it)
    return found


def acted(options, *words):
    return json.loads(program("eval", "--episodes", options.episodes, "--json", *words))


def table(rows):
    lines = ["| who acts | success | of | 95 % | held-out action error | 95 % |", "|---|---:|---:|---:|---:|---:|"]
    for name, result, (error, half) in rows:
        low, high = (100 * bound for bound in result["interval"])
        lines.append(f"| {name} | {100 * result['success_rate']:.0f} % | {result['episodes']} | {low:.0f} to {high:.0f} % | {error:.4f} | +- {half:.4f} |")
    return "\n".join(lines)


def beaten(rows):
    """What the policy, the first row, does not clearly beat."""
    (_, ours, (error, half)), *others = rows
    weak = []
    for name, theirs, (other, other_half) in others:
        if ours["interval"][0] <= theirs["interval"][1]:
            weak.append(f"success rate of {name}")
        if error + half >= other - other_half:
            weak.append(f"action error of {name}")
    return weak


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--difficulty", default="permuted", choices=("fixed", "permuted", "anywhere"))
    parser.add_argument("--scenes", type=int, default=3000)
    parser.add_argument("--heavy", type=float, default=0.0)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--episodes", type=int, default=200)
    options = parser.parse_args()
    began = time.monotonic()
    FOLDER.mkdir(parents=True, exist_ok=True)
    print(f"the task (pads {options.difficulty}) and its control, {options.scenes} scenes each ...", flush=True)
    make_data(options)
    print(f"training both for {options.steps} steps; see {FOLDER.relative_to(ROOT)}/run.log ...", flush=True)
    trainings = [start_training("run", "data", options), start_training("control", "shuffled", options)]
    for log, training in trainings:
        if training.wait() != 0:
            for _, other in trainings:
                other.terminate()
            sys.exit(f"{log}: training failed\n{log.read_text()[-2000:]}")
    (errors, _), (of_control, _) = ((errors_in(log), log) for log, _ in trainings)
    print(f"acting on {options.episodes} scenes that nobody was trained on ...", flush=True)
    ours = ["--run", FOLDER / "run"]
    rows = [("the policy", acted(options, *ours, "--out", FOLDER / "eval"), errors["end"]),
            ("a control, trained with shuffled instructions", acted(options, "--config", FOLDER / "run" / "config.toml", "--checkpoint", newest(FOLDER / "control")), of_control["end"]),
            ("the untrained policy", acted(options, *ours, "--untrained"), errors["start"]),
            ("the best constant action", acted(options, *ours, "--constant"), errors["constant"])]
    print(table(rows))
    print(f"pictures and a video of the first episodes: {(FOLDER / 'eval').relative_to(ROOT)}; {(time.monotonic() - began) / 60:.0f} minutes")
    weak = beaten(rows)
    if weak:
        sys.exit("not clearly beaten: " + "; ".join(weak))


def newest(run):
    return max((run / "checkpoints").glob("step-*"), key=lambda folder: int(folder.name.removeprefix("step-")))


if __name__ == "__main__":
    main()
