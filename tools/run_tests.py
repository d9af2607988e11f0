#!/usr/bin/env python3
"""Builds and runs the tests section by section and ends with one line: "N passed, N failed[, N skipped]".

A case is a GoogleTest case (per number of ranks), a pytest case, or one check of a tool (format, tidy per file). A
program that ends badly without naming a failed case counts as one failed case. Exit status 1 when anything failed.
PLIMSOLL_PROOFS=1 in the environment runs every section in full instead of the slice.
"""
import ast
import collections
import concurrent.futures
import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as xml

ROOT = pathlib.Path(__file__).resolve().parent.parent
ROOMS = ["core", "ddp", "memory", "memory/planning", "cache", "model", "data", "train", "report", "launcher"]
# The slice of clang-tidy: rooms whose files take a second or two. All rooms, and bench/, in full runs.
TIDY_SLICE = ["core", "ddp", "memory/planning"]
FULL = os.environ.get("PLIMSOLL_PROOFS", "") not in ("", "0")


class Tally:
    """What ran so far. Names are "section: case"."""

    def __init__(self):
        self.passed = 0
        self.failed = []
        self.skipped = []

    def add(self, name, failure="", skip=None):
        if failure:
            self.failed.append((name, failure))
        elif skip is not None:
            self.skipped.append((name, skip))
        else:
            self.passed += 1

    def add_results(self, section, files):
        """Adds the cases of JUnit files; a case that several ranks ran counts once, as the worst of them."""
        cases = {}
        for file in files:
            for case in xml.parse(file).getroot().iter("testcase"):
                name = f"{section}: {case.get('classname', '')}.{case.get('name')}"
                failure, skip = case_outcome(case)
                before = cases.get(name, ("", None))
                cases[name] = (before[0] or failure, before[1] if skip is None else skip)
        for name, (failure, skip) in cases.items():
            self.add(name, failure, skip)
        return bool(cases), any(failure for failure, _ in cases.values())

    def closing_line(self):
        line = f"{self.passed} passed, {len(self.failed)} failed"
        return line + (f", {len(self.skipped)} skipped" if self.skipped else "")

    def skips(self):
        """A line a reason, which tools/run_proofs.py reads: a proof says what it did not try."""
        counts = collections.Counter(reason for _, reason in self.skipped)
        return [f"SKIPPED {count} case{'' if count == 1 else 's'}: {reason}" for reason, count in counts.items()]


def case_outcome(case):
    for bad in list(case.iter("failure")) + list(case.iter("error")):
        return first_line(bad.get("message") or bad.text or "failed"), None
    for skip in case.iter("skipped"):
        return "", skip_reason(skip)
    if case.get("status") == "notrun":
        return "", "disabled"
    return "", None


def skip_reason(skip):
    """Why, without the place in the test's file: tests that are skipped for one reason are counted together."""
    text = skip.get("message") or skip.text or "no reason given"
    if text == "collection skipped":  # pytest's words for a whole module; behind them (file, line, "Skipped: reason")
        with contextlib.suppress(ValueError, SyntaxError, TypeError):
            module, _, reason = ast.literal_eval(skip.text)
            text = f"all of {module}: {reason.removeprefix('Skipped: ')}"
    lines = text.strip().splitlines()
    if len(lines) > 1 and re.fullmatch(r"\S+:\d+", lines[0].strip()):  # GoogleTest's
        lines = lines[1:]
    return first_line("\n".join(lines)).replace(f"{ROOT}/", "")


def first_line(text):
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    # GoogleTest's first line is file:line, the next ones say what was wrong.
    return " | ".join(lines[:4])


def run(command, **environment):
    """Runs a command with its output passed on; returns the exit status, negative when a signal ended it."""
    sys.stdout.flush()
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, stdin=subprocess.DEVNULL).returncode


def cores():
    return len(os.sched_getaffinity(0))


def build(tally, name, *options):
    if run(["tools/build.sh", name, *options]) == 0:
        return True
    tally.add(f"{name}: build", "does not build (see above)")
    return False


def show_figures(program):
    """What a program measured is worth reading also where it passed, and ctest shows nothing of that."""
    for output in program.iter("system-out"):
        for line in (output.text or "").splitlines():
            if line.startswith("FIGURE "):
                print(line, flush=True)


def run_ctest(tally, section, folder):
    results = ROOT / folder / "test-results"
    shutil.rmtree(results, ignore_errors=True)
    junit = ROOT / folder / "ctest.xml"
    junit.unlink(missing_ok=True)
    # By itself ctest keeps 1 KiB of what a program printed that passed, and the figures before that are lost.
    whole = str(16 << 20)
    run(["ctest", "--test-dir", folder, "-j", str(cores()), "--output-on-failure", "--no-tests=error", "--output-junit", str(junit),
         "--test-output-size-passed", whole, "--test-output-size-failed", whole])
    if not junit.exists():
        tally.add(f"{section}: ctest", "did not run")
        return
    for program in xml.parse(junit).getroot().iter("testcase"):
        name = program.get("name")
        files = [*results.glob(f"{name}.xml"), *results.glob(f"{name}.rank*.xml")]
        ran, failed = tally.add_results(f"{section} {name}", files)
        show_figures(program)
        bad, skip = case_outcome(program)
        if (bad and not failed) or not ran:
            tally.add(f"{section}: {name}", bad or "ran no case")


def units(tally):
    run_ctest(tally, "units", "build")


def sanitize(tally):
    if build(tally, "build-sanitize", "-DPLIMSOLL_SANITIZE=ON", "-DCMAKE_BUILD_TYPE=RelWithDebInfo"):
        run_ctest(tally, "sanitize", "build-sanitize")


def run_pytest(tally, section, folder):
    if not any((ROOT / folder).rglob("test_*.py")):
        print(f"{folder}: no tests yet")
        return
    results = ROOT / "build" / f"pytest-{section}.xml"
    results.unlink(missing_ok=True)
    status = run([sys.executable, "-m", "pytest", "-q", "-rfEs", "-p", "no:cacheprovider", f"--junitxml={results}", folder],
                 PLIMSOLL_BUILD=str(ROOT / "build"), PYTHONDONTWRITEBYTECODE="1", OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    ran, failed = tally.add_results(section, [results] if results.exists() else [])
    if (status != 0 and not failed) or not ran:
        tally.add(f"{section}: pytest", f"ended with status {status}")


def borders(tally):
    run_pytest(tally, "borders", "tests/borders")


def protocol(tally):
    run_pytest(tally, "protocol", "tests/ddp/protocol")


def oracle(tally):
    run_pytest(tally, "oracle", "tests/oracle")


def faults(tally):
    run_pytest(tally, "faults", "tests/faults")


def demo(tally):
    """What it promises it checks itself (tools/demo_run.sh)."""
    status = run(["tools/demo.sh"])
    tally.add("demo: make demo", "" if status == 0 else f"ended with status {status} (see above)")


def bench(tally):
    """A moment of each benchmark: that it runs, and that the bytes of a step, which do not depend on time, are within their bound."""
    two_ranks = ["mpirun", "--oversubscribe", "-n", "2"]
    for name, command in {
        "step_bench": ["build/step_bench", "--benchmark_filter=tiny_micro_8", "--benchmark_min_time=0.01"],
        "ops_bench": ["build/ops_bench", "--benchmark_filter=lora/.*width:128", "--benchmark_min_time=0.01"],
        "memory_bench": ["build/memory_bench", "--benchmark_filter=full_size_dry_run/36", "--benchmark_min_time=0.01"],
        "policy_bench": ["build/policy_bench"],
        "reduction_bench": [*two_ranks, "build/reduction_bench", "2", "2"],
        "rivals_bench": ["build/rivals_bench", "1", "1"],
        "cache_bench": ["build/cache_bench", "8", "1000"],
        "packing_bench": ["build/packing_bench", "2"],
        "loader_peer": [sys.executable, "bench/loader_peer.py", "--rehearse", "--rounds", "1", "--episodes", "2", "2", "2", "--frames", "20",
                        "--side", "112", "--workers", "1"],
        "adaptive_loader_bench": [sys.executable, "bench/adaptive_loader_bench.py", "--rehearse", "--rounds", "1", "--workers", "1",
                                  "--steps", "80", "--side", "112"],
        "search_bench": [*two_ranks, "build/search_bench", "1", "1"],
        "step_peer": [sys.executable, "bench/peers/step_peer.py", "--build", "build", "--size", "tiny", "--batch", "1",
                      "--recompute", "none", "--steps", "2"],
        "gpu_suite": ["tools/rehearse_gpu_suite.sh", "build"],
    }.items():
        status = run(command, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", PYTHONDONTWRITEBYTECODE="1")
        tally.add(f"bench: {name}", "" if status == 0 else f"ended with status {status} (see above)")


def check_format(tally):
    status = run(["tools/format.sh", "--check"])
    tally.add("format: clang-format", "" if status == 0 else "not as `make format` would have them (see above)")


def tidy_sources(rooms):
    """What clang-tidy is to read for these rooms: (name, file), a file being a batch of the room's sources (cmake/rooms.cmake)
    or a source that is compiled by itself."""
    folders = {room: f"plimsoll_{room.split('/')[-1]}.dir" for room in rooms}
    found = {}
    for entry in json.loads((ROOT / "build-tidy/compile_commands.json").read_text()):
        file = pathlib.Path(entry["file"])
        for room, folder in folders.items():
            if file.parent == ROOT / room:
                found[f"{room}/{file.name}"] = file
            elif file.parent.name == "Unity" and file.parent.parent.name == folder:
                found[f"{room}, {file.stem.removesuffix('_cxx')}"] = file
    return sorted(found.items())


def tidy(tally):
    """One case a batch of files. Compiled without precompiled headers, which are g++'s and which clang cannot read."""
    if run(["cmake", "-G", "Ninja", "-S", str(ROOT), "-B", "build-tidy", "-DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON",
            "-DCMAKE_CXX_COMPILER_LAUNCHER=", "-Wno-dev", "--log-level=ERROR"]) != 0:
        tally.add("tidy: configure", "failed (see above)")
        return
    sources = tidy_sources([*ROOMS, "bench"] if FULL else TIDY_SLICE)

    def check(source):
        # clang 14 cannot evaluate the consteval functions in the <chrono> of g++ 13 (Ubuntu 24.04).
        command = ["clang-tidy-14", "-p", "build-tidy", "--quiet", "--warnings-as-errors=*",
                   "--extra-arg=-Dconsteval=constexpr", str(source[1])]
        return subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)

    with concurrent.futures.ThreadPoolExecutor(cores()) as pool:
        for (name, _), result in zip(sources, pool.map(check, sources)):
            if result.returncode != 0:
                print(result.stdout)
            tally.add(f"tidy: {name}", "" if result.returncode == 0 else "clang-tidy complains (see above)")


SECTIONS = {"format": check_format, "borders": borders, "protocol": protocol, "units": units, "oracle": oracle,
            "faults": faults, "demo": demo, "bench": bench, "sanitize": sanitize, "tidy": tidy}
NEEDS_PROGRAM = {"units", "oracle", "faults", "demo", "bench"}


def main():
    wanted = sys.argv[1:] or list(SECTIONS)
    unknown = [name for name in wanted if name not in SECTIONS]
    if unknown:
        sys.exit(f"no section {unknown[0]}; there are: {' '.join(SECTIONS)}")
    tally = Tally()
    times = []
    for name in SECTIONS:
        if name not in wanted:
            continue
        if name in NEEDS_PROGRAM and not any(label == "build" for label, _ in times):
            print("== build", flush=True)
            start = time.monotonic()
            built = build(tally, "build")
            times.append(("build", time.monotonic() - start))
            if not built:
                break
        print(f"== {name}", flush=True)
        start = time.monotonic()
        SECTIONS[name](tally)
        times.append((name, time.monotonic() - start))
    print("== summary")
    print("time: " + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in times))
    for name, reason in tally.skipped:
        print(f"skipped: {name}: {reason}")
    for name, reason in tally.failed:
        print(f"failed: {name}: {reason}")
    for line in tally.skips():
        print(line)
    print(tally.closing_line(), flush=True)
    sys.exit(1 if tally.failed or not tally.passed else 0)


if __name__ == "__main__":
    main()
