#!/usr/bin/env python3
"""cache.mode = "hybrid" on the demo's task: held-out action error and time, by the part of samples that is live.

Usage, from the repository's root: bench/hybrid_bench.py [--seeds 5] [--steps 400] [--episodes 100] [--fractions 0.25 ...]
[--rebuilds 5 ...] [--few 2 --sure 0.25:5] [--plot docs/hybrid.svg]. A rebuild of 0 is none. Trains the same run with the cache off,
and with each fraction and rebuild, once for every seed (with --few: only --sure's and off for every seed, the others for so many),
one rank and one thread each, the runs of a seed one after the other, so that what else the machine does hits all alike; two seeds
at once where there are two cores. Prints a Markdown table and lines FIGURE name = value unit. Ratios are of the same seeds. The
first epoch is all live: features are made then. The plot has the error of each fraction over its computing, a line for each rebuild.
"""
import argparse
import concurrent.futures
import json
import math
import os
import pathlib
import re
import statistics
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
PLIMSOLL = pathlib.Path(os.environ.get("PLIMSOLL_BUILD", ROOT / "build")) / "plimsoll"
# Two-sided 95 %, by degrees of freedom (Student 1908).
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def program(*words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(ROOT / "demo")}
    done = subprocess.run([PLIMSOLL, *map(str, words)], cwd=ROOT, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise SystemExit(done.stdout[-2000:] + done.stderr)
    return done.stdout


def train(folder, name, options, seed, settings):
    """(held-out action error, seconds of computing, mean part of samples that was live) of one run."""
    run = folder / f"{name}-{seed}"
    fixed = {
        "run.dir": f'"{run}"', "run.seed": seed, "run.threads": 1, "model.path": f'"{folder}/model"', "data.path": f'["{folder}/data"]',
        "batch.micro": '"auto"', "memory.budget": '"2GiB"', "memory.policy": '"predictive"', "memory.budget_changes": "[]",
        "memory.calibration": '"off"', "train.max_steps": options.steps, "train.checkpoint_every": options.steps, "cache.dir": f'"{run}/cache"',
        "cache.drift_every": 0, "report.every": 1000}
    words = [word for key, value in {**fixed, **settings}.items() for word in ("--set", f"{key}={value}")]
    text = program("train", "--config", ROOT / "configs" / "demo.toml", *words)
    error = float(re.findall(r"held-out action error at the end: ([0-9.]+)", text)[-1])
    lines = lambda name: [json.loads(line) for line in (run / name).read_text().splitlines()] if (run / name).exists() else []
    steps, uses = lines("metrics.jsonl"), [line for line in lines("cache.jsonl") if line["what"] == "use"]
    spent = sum(step["step_ms"] for step in steps) + sum(use["upkeep_ms"] for use in uses)
    subprocess.run(["rm", "-rf", run], check=True)
    return error, spent / 1000, statistics.mean(step["live"] / step["samples"] for step in steps)


def interval(values):
    """Half of the 95 % confidence interval of the mean."""
    if len(values) < 2:
        return math.nan
    return STUDENT[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))


def plotted(lines):
    """SVG of {name: [(x, y, half of y's interval, label)]}, all relative to the cache off, which is at (1, 1)."""
    points = [point for line in lines.values() for point in line]
    right = max(1.05, *(x for x, _, _, _ in points)) + 0.05
    low = min(0.9, *(y - spread for _, y, spread, _ in points)) - 0.05
    high = max(1.1, *(y + spread for _, y, spread, _ in points)) + 0.05
    place = lambda x, y: (70 + 560 * x / right, 330 - 300 * (y - low) / (high - low))
    text = lambda x, y, words, more="": f'<text x="{x:.1f}" y="{y:.1f}" {more}>{words}</text>'
    out = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 660 400" font-family="sans-serif" font-size="12">', '<rect width="660" height="400" fill="white"/>']
    for i in range(6):
        x, y = right * i / 5, low + (high - low) * i / 5
        (at, _), (_, up) = place(x, low), place(0, y)
        out += [f'<path d="M{at:.1f} 30V330M70 {up:.1f}H630" stroke="#ddd"/>', text(at, 346, f"{x:.2f}", 'text-anchor="middle"'), text(64, up + 4, f"{y:.2f}", 'text-anchor="end"')]
    out += [text(350, 366, "seconds of computing and rebuilding, of those with the cache off", 'text-anchor="middle"'), text(70, 20, "held-out action error, of that with the cache off; bars: 95 %")]
    for number, (name, line) in enumerate(lines.items()):
        colour = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")[number % 4]
        places = [place(x, y) for x, y, _, _ in line]
        out.append(f'<polyline fill="none" stroke="{colour}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>')
        for (x, y), (_, value, spread, label) in zip(places, line):
            (_, top), (_, bottom) = place(0, value + spread), place(0, value - spread)
            out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/><path d="M{x:.1f} {top:.1f}V{bottom:.1f}" stroke="{colour}"/>',
                    text(x + 6, y - 6, label, f'fill="{colour}"')]
        out.append(text(90 + 180 * number, 388, name, f'fill="{colour}"'))
    x, y = place(1, 1)
    out += [f'<path d="M{x - 5:.1f} {y:.1f}h10m-5 -5v10" stroke="black"/>', text(x + 8, y + 14, "off"), "</svg>"]
    return "\n".join(out) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.25])
    parser.add_argument("--rebuilds", type=int, nargs="+", default=[5])
    parser.add_argument("--few", type=int, help="seeds of the settings that are not in --sure")
    parser.add_argument("--sure", nargs="+", default=[], help="fraction:rebuild of those that are trained for every seed")
    parser.add_argument("--plot", type=pathlib.Path)
    options = parser.parse_args()
    if not 1 <= options.seeds <= 10:
        parser.error(f"--seeds {options.seeds}: give 1 to 10")
    with tempfile.TemporaryDirectory(prefix="plimsoll-hybrid-") as name:
        folder = pathlib.Path(name)
        program("init-model", "--size", "tiny", "--out", folder / "model")
        program("demo-data", "--episodes", options.episodes, "--out", folder / "data")
        kinds = {"off": {"cache.mode": '"off"'}}
        names = {}
        for rebuild in options.rebuilds:
            for fraction in options.fractions:
                names[rebuild, fraction] = f"hybrid {fraction:g}, rebuilt {f'every {rebuild}' if rebuild else 'never'}"
                kinds[names[rebuild, fraction]] = {
                    "cache.mode": '"hybrid"', "cache.live_fraction": fraction, "cache.rebuild_epochs": rebuild,
                    "cache.frozen_adapters": "true" if fraction == 0 else "false"}
        if unknown := set(options.sure) - {f"{fraction:g}:{rebuild}" for rebuild, fraction in names}:
            parser.error(f"--sure {' '.join(unknown)}: none of --fractions and --rebuilds")
        surely = {"off"} | {kind for (rebuild, fraction), kind in names.items() if f"{fraction:g}:{rebuild}" in options.sure}

        def of_seed(seed):
            wanted = [kind for kind in kinds if options.few is None or seed < options.few or kind in surely]
            return {kind: train(folder, f"run{list(kinds).index(kind)}", options, seed, kinds[kind]) for kind in wanted}

        with concurrent.futures.ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
            by_seed = list(pool.map(of_seed, range(options.seeds)))
        results = {kind: [found[kind] for found in by_seed if kind in found] for kind in kinds}
    print(f"| {options.steps} steps of 16 samples, {options.episodes} episodes of 8 | seeds | held-out action error, mean | of off's | seconds of computing, of off's | live |\n|---|---|---|---|---|---|")
    off = results["off"]
    for kind, found in results.items():
        errors = [one[0] for one in found]
        ratios = [one[0] / base[0] for one, base in zip(found, off)]
        times = [one[1] / base[1] for one, base in zip(found, off)]
        print(f"| {kind} | {len(found)} | {statistics.mean(errors):.4f} +- {interval(errors):.4f} | {statistics.mean(ratios):.3f} +- {interval(ratios):.3f} "
              f"| {statistics.mean(times):.3f} | {statistics.mean(one[2] for one in found):.3f} |", flush=True)
    for kind, found in results.items():
        if kind == "off":
            continue
        for what, i in (("held-out action error", 0), ("computing", 1)):
            ratios = [one[i] / base[i] for one, base in zip(found, off)]
            bounded = what != "computing" and kind in surely
            verdict = f" (bound 1.05: {'met' if statistics.mean(ratios) <= 1.05 else 'NOT met'})" if bounded else ""
            print(f"FIGURE {what} of {kind}, of off's, {len(ratios)} seeds = {statistics.mean(ratios):.3f} +- {interval(ratios):.3f}{verdict}")
    if options.plot:
        lines = {}
        for (rebuild, fraction), kind in names.items():
            ratios = lambda i: [one[i] / base[i] for one, base in zip(results[kind], off)]
            time, error = statistics.mean(ratios(1)), statistics.mean(ratios(0))
            spread = interval(ratios(0)) if len(results[kind]) > 2 else 0  # of two seeds it is wider than the plot
            lines.setdefault(f"rebuilt every {rebuild} epochs" if rebuild else "never rebuilt", []).append((time, error, spread, f"{fraction:g}"))
        options.plot.write_text(plotted(lines))


if __name__ == "__main__":
    main()
