#!/usr/bin/env python3
"""`make example`: trains on the simulated table and a control beside it, then lets all act in the same unseen scenes.

Usage, from the repository's root: .venv/bin/python tools/example.py [--difficulty fixed|permuted|anywhere ...]
[--steps N] [--scenes N] [--episodes N] [--set table.key=value ...]. Several difficulties are tried one after another.
Prints lines FIGURE name = value unit and a Markdown table.

Beside the policy act
- a control that is trained alike, but each episode of its data has another one's instruction: what it reaches is what
  can be reached without reading. Where it is measured it is given the right instructions, as all others are;
- the same model with its initial weights;
- the best of many constant actions, chosen in the very scenes that it is shown for, which can only flatter it. Its
  action error is that of the constant which is best for that: the mean of the held-out actions.

Action errors are of the same samples of the same held-out episodes. "Clearly beaten" means that the 95 % intervals of
both, success rate and action error, lie apart. Exit status 1 where the policy does not clearly beat all others at the
one difficulty that was asked for; of several, at the example's own, and the table says how the others went.
"""

import argparse
import concurrent.futures
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
PLIMSOLL = pathlib.Path(os.environ.get("PLIMSOLL", ROOT / "build" / "plimsoll"))
FOLDER = ROOT / "demo" / "example"
# Steps of 16 samples that a difficulty gets: about a tenth of a second each where two runs have a core each.
STEPS = {"fixed": 1500, "permuted": 6000, "anywhere": 6000}
GOAL = 20  # minutes of `make example` on two cores
USUAL = "fixed"  # the hardest that is learned in the 20 minutes of `make example`: see docs/benchmarks.md
HELD_OUT = 1200  # samples at most, of the episodes that data.eval_fraction keeps out
# Of constant actions. Longer ones are hardly ever on a pad for three steps in a row.
DIRECTIONS, LENGTHS = 16, (0.1, 0.2, 0.3, 0.4)
POLICY, CONTROL = "the policy", "the control with shuffled instructions"
UNTRAINED, CONSTANT = "the untrained policy", "the best constant action"


def shown(path):
    return os.path.relpath(path, ROOT)


def program(*words):
    done = subprocess.run([PLIMSOLL, *map(str, words)], capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        raise SystemExit(f"plimsoll {' '.join(map(str, words))}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def make(folder, *words):
    """Anew. Under another name until it is whole, so that what an interruption leaves is never taken for it."""
    partial = folder.with_name(folder.name + ".partial")
    for old in partial, folder:
        shutil.rmtree(old, ignore_errors=True)
    program(*words, "--out", partial)
    partial.rename(folder)


def make_inputs(folder, difficulty, options, pool):
    """The model, the task and its control, of the same scenes."""
    data = ["demo-data", "--difficulty", difficulty, "--episodes", options.scenes, "--heavy-fraction", options.heavy]
    making = [pool.submit(make, folder / "model", "init-model", "--size", "tiny"),
              pool.submit(make, folder / "data", *data),
              pool.submit(make, folder / "shuffled", *data, "--shuffled-instructions")]
    for one in making:
        one.result()


def start_training(folder, name, data, steps, options):
    """One run in the background; its words go to a file."""
    run = folder / name
    shutil.rmtree(run, ignore_errors=True)
    settings = [f'run.dir="{run}"', f'model.path="{folder}/model"', f'data.path=["{folder}/{data}"]',
                f"train.max_steps={steps}", *options.set]
    words = [word for setting in settings for word in ("--set", setting)]
    command = [PLIMSOLL, "train", "--config", ROOT / "configs" / "example.toml", *words]
    log = folder / f"{name}.log"
    with log.open("w") as file:
        training = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)
    return log, training


def train(folder, steps, options, pool):
    """The policy and its control, side by side. Returns the minutes that it took."""
    began = time.monotonic()
    trainings = [start_training(folder, "run", "data", steps, options),
                 start_training(folder, "control", "shuffled", steps, options)]
    try:
        waiting = {pool.submit(training.wait): log for log, training in trainings}
        for ended in concurrent.futures.as_completed(waiting):
            if ended.result() != 0:
                log = waiting[ended]
                raise SystemExit(f"{shown(log)}: training failed\n{log.read_text()[-2000:]}")
    finally:
        for _, training in trainings:
            if training.poll() is None:
                training.terminate()
                training.wait()
    return (time.monotonic() - began) / 60


def constants():
    """Standing still and moving to all sides at several speeds, the gripper closed or open; and the data's mean."""
    moves = {(0.0, 0.0)}
    for number in range(DIRECTIONS):
        angle = 2 * math.pi * number / DIRECTIONS
        x, y = math.cos(angle), math.sin(angle)
        moves |= {(round(length * x, 4), round(length * y, 4)) for length in LENGTHS}
    return ["mean", *(f"{x + 0.0:g},{y + 0.0:g},{close}" for x, y in sorted(moves) for close in (1, 0))]


def row(difficulty, who, report, error, margin):
    """`rates` and `errors` are the 95 % intervals."""
    return {"difficulty": difficulty, "who": who, "episodes": report["episodes"], "rate": report["success_rate"],
            "rates": tuple(report["interval"]), "error": error, "errors": (error - margin, error + margin)}


def measured(folder, difficulty, options, pool):
    """A row for each who acts, the policy's first: all in the same scenes, their action errors on the same data."""
    words = ["eval", "--json", "--episodes", options.episodes, "--config", folder / "run" / "config.toml"]
    models = {POLICY: ["--out", folder / "eval"], CONTROL: ["--set", f'run.dir="{folder}/control"'],
              UNTRAINED: ["--untrained"]}
    asked = {who: pool.submit(program, *words, "--held-out", HELD_OUT, *more) for who, more in models.items()}
    stubborn = list(pool.map(lambda action: json.loads(program(*words, f"--constant={action}")), constants()))
    rows = []
    for who, answer in asked.items():
        report = json.loads(answer.result())
        error = report["action_error"]
        rows.append(row(difficulty, who, report, error["error"], error["margin"]))
    # The best constant's error is the same in all reports: they are of the same samples.
    best = max(stubborn, key=lambda report: report["successes"])
    return [*rows, row(difficulty, CONSTANT, best, error["best_constant"], error["best_constant_margin"])]


def not_beaten(policy, other):
    """What of the other row is not clearly worse than the policy's."""
    weak = []
    if policy["rates"][0] <= other["rates"][1]:
        weak.append("success rate")
    if policy["errors"][1] >= other["errors"][0]:
        weak.append("action error")
    return weak


def verdict(policy, other):
    if other is policy:
        return ""
    weak = not_beaten(policy, other)
    return f"no: {', '.join(weak)}" if weak else "yes"


def in_per_cent(fraction):
    return f"{100 * fraction:.1f}"


def margin_of(one):
    return (one["errors"][1] - one["errors"][0]) / 2


def table(tables):
    """Markdown, of the rows of all difficulties."""
    lines = ["| difficulty | who acts | success rate, 95 % interval | held-out action error, 95 % interval "
             "| clearly beaten by the policy |", "|---|---|---|---|---|"]
    for rows in tables:
        for one in rows:
            low, high = map(in_per_cent, one["rates"])
            lines.append(f"| {one['difficulty']} | {one['who']} "
                         f"| {in_per_cent(one['rate'])} %, {low} to {high} % of {one['episodes']} scenes "
                         f"| {one['error']:.4f} +- {margin_of(one):.4f} | {verdict(rows[0], one)} |")
    return "\n".join(lines)


def figures(rows, steps, training, minutes):
    """Lines of one difficulty."""
    name = f"example, pads {rows[0]['difficulty']}"
    for one in rows:
        low, high = map(in_per_cent, one["rates"])
        spread = f"% (95 %: {low} to {high}; {one['episodes']} unseen scenes)"
        yield f"FIGURE {name}: success rate of {one['who']} = {in_per_cent(one['rate'])} {spread}"
        yield f"FIGURE {name}: held-out action error of {one['who']} = {one['error']:.4f} +- {margin_of(one):.4f}"
    beaten = sum(not not_beaten(rows[0], other) for other in rows[1:])
    yield f"FIGURE {name}: others that the policy clearly beats = {beaten} of {len(rows) - 1}"
    yield f"FIGURE {name}: steps of training = {steps}"
    yield f"FIGURE {name}: training of policy and control, side by side = {training:.1f} minutes"
    goal = f" (goal {GOAL}: {'met' if minutes <= GOAL else 'NOT met'})" if rows[0]["difficulty"] == USUAL else ""
    yield f"FIGURE {name}: all in all = {minutes:.1f} minutes{goal}"


def tried(difficulty, options, pool):
    """Trains and measures at one difficulty, and says what came of it. Returns the table's rows."""
    began = time.monotonic()
    folder = FOLDER / difficulty
    folder.mkdir(parents=True, exist_ok=True)
    steps = options.steps or STEPS[difficulty]
    print(f"pads {difficulty}: making {options.scenes} scenes, for the policy and for its control ...", flush=True)
    make_inputs(folder, difficulty, options, pool)
    print(f"pads {difficulty}: training both for {steps} steps; see {shown(folder / 'run.log')} ...", flush=True)
    training = train(folder, steps, options, pool)
    print(f"pads {difficulty}: acting in {options.episodes} scenes that nobody was trained on ...", flush=True)
    rows = measured(folder, difficulty, options, pool)
    print("\n".join(figures(rows, steps, training, (time.monotonic() - began) / 60)), flush=True)
    print(f"pictures and a video of the policy's first episodes: {shown(folder / 'eval')}", flush=True)
    return rows


def failures(tables):
    """What the policy had to beat and did not."""
    due = USUAL if len(tables) > 1 else tables[0][0]["difficulty"]
    return [f"pads {due}: not clearly beaten: {', '.join(weak)} of {other['who']}"
            for rows in tables if rows[0]["difficulty"] == due
            for other in rows[1:] if (weak := not_beaten(rows[0], other))]


def parsed(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--difficulty", nargs="+", default=[USUAL], choices=list(STEPS))
    parser.add_argument("--steps", type=int, help=f"of 16 samples; without it, by difficulty: {STEPS}")
    parser.add_argument("--scenes", type=int, default=3000, help="of the data, an episode each")
    parser.add_argument("--heavy", type=float, default=0.0, help="part of them, of larger pictures and longer words")
    parser.add_argument("--episodes", type=int, default=400, help="unseen scenes in which everybody acts")
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE",
                        help="of both trainings, as `plimsoll train` takes it")
    options = parser.parse_args(arguments)
    if options.steps is not None and options.steps < 1:
        parser.error(f"--steps {options.steps}: give at least 1")
    if len(set(options.difficulty)) < len(options.difficulty):
        parser.error(f"--difficulty {' '.join(options.difficulty)}: name each once")
    return options


def main(arguments=None):
    options = parsed(arguments)
    with concurrent.futures.ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        tables = [tried(difficulty, options, pool) for difficulty in options.difficulty]
    print(table(tables))
    if wrong := failures(tables):
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
