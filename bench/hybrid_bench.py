#!/usr/bin/env python3
"""cache.mode = "hybrid" on the demo's task: held-out action error and CPU time, by the part of samples that is live.

Usage, from the repository's root: bench/hybrid_bench.py [--seeds 5] [--steps 400] [--episodes 100]
[--fractions 0.25 ...] [--rebuilds 5 ...] [--few 2 --sure 0.25:5] [--frozen 5] [--plot docs/hybrid.svg]. A rebuild of 0
is none. Trains the same run with the cache off, and with each fraction and rebuild, once for every seed (with --few:
only --sure's and off for every seed, the others for so many), one rank and one thread each, two seeds at once where
there are two cores. The plan is fixed, so that what is learned hangs on the settings and the seed alone. Each seed
begins with another setting, and time is CPU time, user and system, of the whole run: what else the machine does hits
all alike. Prints a Markdown table and lines FIGURE name = value unit. Ratios are of the same seeds. The first epoch is
all live: features are made then. Beside the settings stand runs whose adapters are frozen from the start, for --frozen
seeds: what they reach, the task does not need LoRA for. The plot has the error of each fraction over its time, a line
for each rebuild.

A fraction of 1 keeps nothing and is run once: it must come to what off comes to. Exit code 1 where it does not, and
where the mean of a setting of --sure is above its bound.
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
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
PLIMSOLL = pathlib.Path(os.environ.get("PLIMSOLL_BUILD", ROOT / "build")) / "plimsoll"
# Two-sided 95 %, by degrees of freedom (Student 1908).
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
BOUND = 1.05  # of --sure's errors, as the mean of off's
SAME = 1e-3  # by which an error may differ from off's where everything is live: it is printed with four digits
ALL_LIVE, FROZEN = "hybrid 1", "off, adapters frozen from the start"


def program(*words):
    """(what it prints, its CPU seconds: user and system, of all its threads)"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(ROOT / "demo")}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen([PLIMSOLL, *map(str, words)], cwd=ROOT, env=environment,
                                   stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)  # of this one alone: another seed's runs beside it
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, words))}\n{text[-4000:]}")
    return text, used.ru_utime + used.ru_stime


def train(folder, name, options, seed, settings):
    """(held-out action error, CPU seconds, mean part of samples that was live) of one run."""
    run = folder / f"{name}-{seed}"
    fixed = {
        "run.dir": f'"{run}"', "run.seed": seed, "run.threads": 1, "model.path": f'"{folder}/model"',
        "data.path": f'["{folder}/data"]', "batch.micro": 16, "batch.accumulation": 1, "memory.budget": '"2GiB"',
        "memory.policy": '"fixed"', "memory.recompute": '"none"', "memory.budget_changes": "[]",
        "memory.calibration": '"off"', "train.max_steps": options.steps, "train.checkpoint_every": options.steps,
        "cache.dir": f'"{run}/cache"', "cache.drift_every": 0, "report.every": 1000}
    words = [word for key, value in {**fixed, **settings}.items() for word in ("--set", f"{key}={value}")]
    text, spent = program("train", "--config", ROOT / "configs" / "demo.toml", *words)
    error = float(re.findall(r"held-out action error at the end: ([0-9.]+)", text)[-1])
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    subprocess.run(["rm", "-rf", run], check=True)
    return error, spent, statistics.mean(step["live"] / step["samples"] for step in steps)


def interval(values):
    """Half of the 95 % confidence interval of the mean."""
    if len(values) < 2:
        return math.nan
    return STUDENT[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))


def with_interval(values, digits=3):
    """Their mean, with that where there is one."""
    spread = f" +- {interval(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


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
    x_axis = "CPU seconds of the whole run (user and system), of those with the cache off"
    out += [text(350, 366, x_axis, 'text-anchor="middle"'),
            text(70, 20, "held-out action error, of that with the cache off; bars: 95 %")]
    for number, (name, line) in enumerate(lines.items()):
        colour = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#8c564b")[number % 5]
        places = [place(x, y) for x, y, _, _ in line]
        out.append(f'<polyline fill="none" stroke="{colour}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>')
        for (x, y), (_, value, spread, label) in zip(places, line):
            (_, top), (_, bottom) = place(0, value + spread), place(0, value - spread)
            out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/><path d="M{x:.1f} {top:.1f}V{bottom:.1f}" stroke="{colour}"/>',
                    text(x + 6, y - 6, label, f'fill="{colour}"')]
        out.append(text(40 + 125 * number, 388, name, f'fill="{colour}"'))
    x, y = place(1, 1)
    out += [f'<path d="M{x - 5:.1f} {y:.1f}h10m-5 -5v10" stroke="black"/>', text(x + 8, y + 14, "off"), "</svg>"]
    return "\n".join(out) + "\n"


def parsed():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.25])
    parser.add_argument("--rebuilds", type=int, nargs="+", default=[5])
    parser.add_argument("--few", type=int, help="seeds of the settings that are not in --sure")
    parser.add_argument("--sure", nargs="+", default=[], help="fraction:rebuild of those that are trained for every seed")
    parser.add_argument("--frozen", type=int, default=0, help="seeds of runs whose adapters are frozen from the start")
    parser.add_argument("--plot", type=pathlib.Path)
    options = parser.parse_args()
    if not 1 <= options.seeds <= 10:
        parser.error(f"--seeds {options.seeds}: give 1 to 10")
    below = [fraction for fraction in options.fractions if fraction < 1]
    settings = {f"{fraction:g}:{rebuild}" for fraction in below for rebuild in options.rebuilds}
    if unknown := set(options.sure) - settings:
        parser.error(f"--sure {' '.join(unknown)}: none of --fractions below 1 and --rebuilds")
    return options


def kinds_of(options):
    """({kind: its settings}, {kind: how many seeds}, {(rebuild, fraction): kind} of those that keep features)."""
    kinds, seeds, names = {"off": {"cache.mode": '"off"'}}, {"off": options.seeds}, {}
    for rebuild in options.rebuilds:
        for fraction in (one for one in options.fractions if one < 1):
            kind = f"hybrid {fraction:g}, rebuilt {f'every {rebuild}' if rebuild else 'never'}"
            names[rebuild, fraction] = kind
            surely = options.few is None or f"{fraction:g}:{rebuild}" in options.sure
            seeds[kind] = options.seeds if surely else min(options.few, options.seeds)
            kinds[kind] = {
                "cache.mode": '"hybrid"', "cache.live_fraction": fraction, "cache.rebuild_epochs": rebuild,
                "cache.frozen_adapters": "true" if fraction == 0 else "false"}
    if 1 in options.fractions:
        kinds[ALL_LIVE], seeds[ALL_LIVE] = {"cache.mode": '"hybrid"', "cache.live_fraction": 1.0}, 1
    if options.frozen:
        # 0 is refused. AdamW moves a weight by about its learning rate in a step: so little, fp32 does not see.
        kinds[FROZEN] = {"cache.mode": '"off"', "train.vl_lr": "1e-12"}
        seeds[FROZEN] = min(options.frozen, options.seeds)
    return kinds, seeds, names


def trained(options, kinds, seeds):
    """{kind: what train() says, by seed}"""
    with tempfile.TemporaryDirectory(prefix="plimsoll-hybrid-") as name:
        folder = pathlib.Path(name)
        program("init-model", "--size", "tiny", "--out", folder / "model")
        program("demo-data", "--episodes", options.episodes, "--out", folder / "data")

        def of_seed(seed):
            wanted = [(number, kind) for number, kind in enumerate(kinds) if seed < seeds[kind]]
            first = seed % len(wanted)
            rotated = wanted[first:] + wanted[:first]
            return {kind: train(folder, f"run{number}", options, seed, kinds[kind]) for number, kind in rotated}

        with concurrent.futures.ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
            by_seed = list(pool.map(of_seed, range(options.seeds)))
    return {kind: [found[kind] for found in by_seed if kind in found] for kind in kinds}


def ratios(results, kind, what):
    """Of the same seeds with the cache off: errors (0) or CPU seconds (1)."""
    return [one[what] / base[what] for one, base in zip(results[kind], results["off"])]


def print_table(options, results):
    print(f"| {options.steps} steps of 16 samples, {options.episodes} episodes of 8 | seeds "
          "| held-out action error, mean | of off's | CPU seconds, of off's | live |\n|---|---|---|---|---|---|")
    for kind, found in results.items():
        errors, live = [one[0] for one in found], statistics.mean(one[2] for one in found)
        time = statistics.mean(ratios(results, kind, 1))
        print(f"| {kind} | {len(found)} | {with_interval(errors, 4)} | {with_interval(ratios(results, kind, 0))} "
              f"| {time:.3f} | {live:.3f} |", flush=True)


def verdict_of(kind, errors, sure):
    """(the bound of these ratios of errors, and whether they are within it), or nothing where there is none."""
    if kind == ALL_LIVE:
        return f"within {SAME:g} of 1", all(abs(one - 1) <= SAME for one in errors)
    return (f"{BOUND}", statistics.mean(errors) <= BOUND) if kind in sure else None


def print_figures(results, sure):
    """The kinds whose errors are not within their bounds, each with what is wrong."""
    wrong = []
    for kind in (kind for kind in results if kind != "off"):
        errors, times = ratios(results, kind, 0), ratios(results, kind, 1)
        of = f"{kind}, of off's, {len(errors)} seed{'s' if len(errors) > 1 else ''}"
        bound, met = verdict_of(kind, errors, sure) or ("", True)
        said = f" (bound {bound}: {'met' if met else 'NOT met'})" if bound else ""
        print(f"FIGURE held-out action error of {of} = {with_interval(errors)}{said}")
        print(f"FIGURE CPU seconds of {of} = {with_interval(times)}", flush=True)
        if not met:
            wrong.append(f"{kind}: the held-out action error is {statistics.mean(errors):.4f} of off's; bound {bound}")
    return wrong


def plot_of(results, names):
    def point(kind, label):
        errors = ratios(results, kind, 0)
        spread = interval(errors) if len(errors) > 2 else 0  # of two seeds it is wider than the plot
        return statistics.mean(ratios(results, kind, 1)), statistics.mean(errors), spread, label

    lines = {}
    for (rebuild, fraction), kind in names.items():
        name = f"rebuilt every {rebuild}" if rebuild else "never rebuilt"
        lines.setdefault(name, []).append(point(kind, f"{fraction:g}"))
    for name, kind, label in (("all live", ALL_LIVE, "1"), ("adapters frozen", FROZEN, "frozen")):
        if kind in results:
            lines[name] = [point(kind, label)]
    return plotted(lines)


def main():
    options = parsed()
    kinds, seeds, names = kinds_of(options)
    results = trained(options, kinds, seeds)
    print_table(options, results)
    sure = {kind for (rebuild, fraction), kind in names.items() if f"{fraction:g}:{rebuild}" in options.sure}
    wrong = print_figures(results, sure)
    if options.plot:
        options.plot.write_text(plot_of(results, names))
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
