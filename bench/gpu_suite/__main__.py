"""Everything that is to be known of Plimsoll on one GPU, in one command.

    python3 bench/gpu_suite --build build --out results [--minutes 9] [--parts table rivals ...]
    python3 bench/gpu_suite --rehearse --build build --out results        on the CPU, in miniature: that it works

Needs the built files (tools/pack_gpu_suite.sh puts them into one archive) and a Python with torch 2.11, transformers and peft. Writes
gpu_suite.json, gpu_suite.md and log.txt. What could not be run is listed with its reason. Ends with status 1 when one of our programs
ended as it should not; figures that miss their bounds are marked and fail nothing.
"""

import argparse
import csv
import json
import pathlib
import shutil
import subprocess
import sys
import time
import traceback

import cached
import parity
import plans
import rivals
import scale
from suite import Broken, NotRun, Section, Suite, python


def machine(suite, section):
    """The device, and what the program says of the machine."""
    text, code = suite.run([suite.program("plimsoll"), "doctor", "--json"], "doctor", codes=(0, 2, 127))
    if code == 127:
        section.not_run("plimsoll doctor", "it asks FFmpeg, which the archive lacks")
    else:
        section.table("plimsoll doctor", [{"what": f["name"], "value": f["value"]} for f in json.loads(text[text.index("{"):])["findings"]])
    versions = "import torch, transformers, peft; print(torch.__version__, transformers.__version__, peft.__version__)"
    text, _ = suite.run([python(), "-c", versions], "versions of the peers")
    section.table("Peers", [{"torch": words[0], "transformers": words[1], "peft": words[2]} for words in [text.split()[-3:]]])
    if suite.device == "cpu":
        return section.not_run("the GPU", "this is a rehearsal on the CPU")
    ask = "import json, torch; p = torch.cuda.get_device_properties(0); print(json.dumps({'name': p.name, 'total': p.total_memory, 'free': torch.cuda.mem_get_info(0)[0]}))"
    text, _ = suite.run([python(), "-c", ask], "the GPU, by torch")
    found = json.loads(text.strip().splitlines()[-1])
    suite.known |= {"gpu": found["name"], "total": found["total"]}
    section.table("GPU", [found])
    if shutil.which("nvidia-smi"):
        text, _ = suite.run(["nvidia-smi", "--query-gpu=driver_version,clocks.sm,power.draw", "--format=csv,noheader"], "nvidia-smi", codes=range(256))
        section.table("nvidia-smi", [{"driver, clock, power": text.strip()}])


def model(suite, section):
    """A checkpoint with random weights: written without two copies of them in memory."""
    start = time.monotonic()
    peak = suite.peak_of([suite.program("plimsoll"), "init-model", "--size", suite.scale.size, "--out", suite.model()], "init-model")
    size = sum(path.stat().st_size for path in suite.model().iterdir())
    section.figure("size of the checkpoint", size / 1e9, "GB")
    section.figure("seconds", time.monotonic() - start, "s")
    section.figure("memory while writing, by the size", peak / size, "", at_most=0.5 if size > 1e9 else None)


def own_tests(suite, section):
    """tests/train/cuda_library.cpp and cuda_device.cpp."""
    report = suite.work / "own_tests.json"
    suite.run([suite.program("cuda_library"), f"--gtest_output=json:{report}"], "our own tests", codes=(0, 1))
    for group in json.loads(report.read_text())["testsuites"]:
        for case in group["testsuite"]:
            name = f"{group['name']}.{case['name']}"
            if case.get("result") == "SKIPPED":
                section.not_run(name, case["skipped"][0]["message"].strip().splitlines()[0] if case.get("skipped") else "skipped")
            else:
                section.figure(name, 0 if case.get("failures") else 1, "passed", at_least=1)


def has_open_mpi(suite):
    return shutil.which("mpirun") is not None and "Open MPI" in suite.run(["mpirun", "--version"], "mpirun", codes=range(256))[0]


def agreement(suite, section):
    """What the ranks' reports add to a step."""
    step = suite.known.get("best", {}).get(suite.budgets()[-1])
    for ranks in (1, 2, 4):
        words = [suite.program("reduction_bench"), "3", "5"]
        if ranks > 1:
            if not has_open_mpi(suite):
                section.not_run(f"{ranks} ranks", "no mpirun of Open MPI here")
                continue
            words = ["mpirun", "--oversubscribe", "-n", str(ranks), *suite.ours_under_another(*words)]
        text, _ = suite.run(words, f"reports of {ranks} ranks")
        found = {line.split(" = ")[0].removeprefix("FIGURE "): float(line.split(" = ")[1].split()[0]) for line in text.splitlines() if line.startswith("FIGURE")}
        cost = found["report slots: pack, unpack, agree"] + max(0.0, found["report slots: what they add to the all-reduce"])
        section.figure(f"{ranks} ranks: reports and agreement", cost, "ms (in host memory)")
        if step and "samples_per_second" in step:
            whole = 1e3 * suite.scale.effective / step["samples_per_second"]
            section.figure(f"{ranks} ranks: share of a step of {whole:.0f} ms", cost / whole, "", at_most=1e-3)


def profile(suite, section):
    """Where a step's time goes."""
    suite.need_model()
    if suite.device == "cpu":
        raise NotRun("there is no GPU to look into")
    if shutil.which("nsys") is None:
        raise NotRun("nsys is not installed here")
    report = suite.work / "profile"
    path = suite.configure("profile", train={"max_steps": 4})
    suite.run(["nsys", "profile", "-o", report, "--force-overwrite=true", *suite.ours_under_another(suite.program("plimsoll"), "train", "--config", path)], "a profile")
    text, _ = suite.run(["nsys", "stats", "--report", "cuda_gpu_kern_sum", "--format", "csv", f"{report}.nsys-rep"], "the profile's kernels")
    rows = [row for row in csv.reader(text.splitlines()) if row and row[0][:1].isdigit()]
    section.table("Kernels, by their time", [{"%": row[0], "ns": row[1], "calls": row[2], "name": row[-1][:90]} for row in rows[:25]])


PARTS = {
    "machine": (machine, "The machine"),
    "model": (model, "A model of full size is made"),
    "own-tests": (own_tests, "Our own tests of the device"),
    "parity": (parity.run, "The same numbers as on the CPU and in PyTorch"),
    "table": (plans.table, "Plans under emulated cards: predicted, measured"),
    "rivals": (rivals.equal_batch, "Beside transformers and peft at equal batch"),
    "cached": (cached.run, "Steps with cached features"),
    "failures": (plans.failures, "Failures in the middle of a step"),
    "search": (rivals.search, "Beside the best batch of transformers and peft"),
    "neighbour": (plans.neighbour, "A neighbour takes a fifth of the memory"),
    "long": (plans.long_runs, "Many steps under each card"),
    "agreement": (agreement, "What the agreement costs"),
    "profile": (profile, "Where time goes"),
}
# Of the whole time, at most: none may starve those behind it.
SHARES = {"parity": 0.25, "table": 0.3, "rivals": 0.25, "cached": 0.2, "search": 0.2, "long": 0.3}


def run_part(suite, name):
    function, title = PARTS[name]
    section = Section(name, title)
    suite.sections.append(section)
    start = time.monotonic()
    suite.begin_part(SHARES.get(name, 0.15))
    try:
        if suite.left() < 10:
            raise NotRun("the time is up")
        function(suite, section)
        section.outcome = "ran"
    except NotRun as why:
        section.why = str(why)
    except (Broken, Exception) as error:  # one part's end must not be the others'
        section.outcome, section.why = "FAILED", f"{type(error).__name__}: {error}"
        with (suite.out / "log.txt").open("a") as log:
            log.write(traceback.format_exc())
    section.seconds = time.monotonic() - start
    suite.write()
    print("\n".join(section.markdown()), flush=True)


def bad(section, rehearsal):
    """Whether one of our programs ended as it should not. In a rehearsal everything but a profile must run, and what does not depend on
    the machine be as it should."""
    if section.outcome == "FAILED" or not rehearsal:
        return section.outcome == "FAILED"
    fixed = ("parity", "failures", "long", "neighbour")
    missed = [figure for figure in section.figures if figure["met"] is False] if section.name in fixed else []
    return bool(missed) or (section.outcome != "ran" and section.name != "profile")


def make_room(out):
    """Results of an earlier call make room; nothing else does."""
    if out.exists() and any(out.iterdir()) and not (out / "gpu_suite.json").exists():
        raise SystemExit(f"--out {out}: there is something else in it; give a folder that is empty or not there")
    shutil.rmtree(out, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(prog="gpu_suite")
    parser.add_argument("--build", default="build")
    parser.add_argument("--out", required=True)
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, in miniature")
    args = parser.parse_args()
    size = scale.REHEARSAL if args.rehearse else scale.FULL
    make_room(pathlib.Path(args.out))
    suite = Suite(size, args.build, args.out, "cpu" if args.rehearse else "cuda", args.minutes)
    try:
        for name in PARTS:
            if name in args.parts:
                run_part(suite, name)
    finally:
        suite.write()
        shutil.rmtree(suite.work, ignore_errors=True)
    return 1 if any(bad(section, args.rehearse) for section in suite.sections) else 0


if __name__ == "__main__":
    sys.exit(main())
