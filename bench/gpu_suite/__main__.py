"""Everything that is to be known of Plimsoll on one GPU, in one command.

    python3 bench/gpu_suite --build build --out results [--minutes 9] [--parts table rivals ...]
    python3 bench/gpu_suite --rehearse --build build --out results        on the CPU, in miniature: that it works

Needs the built files (tools/pack_gpu_suite.sh puts them into one archive) and a Python with torch 2.11, transformers and peft. Writes
gpu_suite.json, gpu_suite.md and log.txt. What could not be run is listed with its reason. Ends with status 1 when one of our programs
ended as it should not; figures that miss their bounds are marked and fail nothing.
"""

import argparse
import dataclasses
import json
import pathlib
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable

import cached
import libraries
import lines
import parity
import plans
import ranks
import rivals
import scale
import time_profile
from suite import Broken, NotRun, Section, Suite, python

ASK_TORCH = """
import json, torch, transformers, peft
found = {'torch': torch.__version__, 'cuda': torch.version.cuda, 'transformers': transformers.__version__, 'peft': peft.__version__}
if torch.cuda.is_available():
    p = torch.cuda.get_device_properties(0)
    found |= {'name': p.name, 'capability': f'{p.major}.{p.minor}', 'total': p.total_memory, 'free': torch.cuda.mem_get_info(0)[0]}
print(json.dumps(found))
"""


def why_no_gpu(suite, torch):
    """Why our programs cannot use a GPU here, empty where they can."""
    if not (suite.build / "libplimsoll_cuda.so").exists():
        return f"libplimsoll_cuda.so is not in {suite.build}: it is built where nvcc is"
    if (torch["cuda"] or "").split(".")[0] != "13":
        return f"torch is built for CUDA {torch['cuda']}, and libplimsoll_cuda.so needs the libraries of CUDA 13: install torch's wheel for it"
    if "name" not in torch:
        return "torch finds no GPU"
    return ""


def machine(suite, section):
    """The device, and what the program says of the machine. The model is written meanwhile."""
    libraries.check(suite, section)
    suite.start_model()
    text, code = suite.run([suite.program("plimsoll"), "doctor", "--json"], "doctor", codes=(0, 2, 127))
    if code == 127:
        section.not_run("plimsoll doctor", "it asks FFmpeg, which the archive lacks")
    else:
        section.table("plimsoll doctor", [{"what": f["name"], "value": f["value"]} for f in json.loads(text[text.index("{"):])["findings"]])
    text, _ = suite.run([python(), "-c", ASK_TORCH], "torch and the peers")
    torch = json.loads(text.strip().splitlines()[-1])
    section.table("torch and the peers", [torch])
    if suite.device == "cpu":
        return section.not_run("the GPU", "this is a rehearsal on the CPU")
    suite.blocked = why_no_gpu(suite, torch)
    if suite.blocked:
        raise NotRun(suite.blocked)
    suite.known |= {"gpu": torch["name"], "total": torch["total"]}
    if shutil.which("nvidia-smi"):
        text, _ = suite.run(["nvidia-smi", "--query-gpu=driver_version,clocks.sm,power.draw", "--format=csv,noheader"], "nvidia-smi", codes=range(256))
        section.table("nvidia-smi", [{"driver, clock, power": text.strip()}])
    return None


def model(suite, section):
    """A checkpoint with random weights, written beside the parts before: without two copies of them in memory."""
    written = suite.need_model()
    size = sum(path.stat().st_size for path in suite.model().iterdir())
    section.figure("size of the checkpoint", size / 1e9, "GB")
    section.figure("seconds, at most", written["seconds"], "s")
    section.figure("memory while writing, by the size", written["peak"] / size, "", at_most=0.5 if size > 1e9 else None)


def reasons(text):
    """Why each skipped case of GoogleTest's output was: its last line before it says so."""
    found = re.findall(r"\[ RUN      \] (\S+)\n((?:(?!\[ RUN ).)*?)\[  SKIPPED \]", text, re.DOTALL)
    return {name: said.strip().splitlines()[-1] for name, said in found if said.strip()}


def own_tests(suite, section):
    """What tests/ has for a machine with a GPU."""
    for program in ("cuda_library", "cuda_kernels_on_a_gpu"):
        try:
            cases_of(suite, section, program)
        except NotRun as why:
            section.not_run(program, str(why))


def cases_of(suite, section, program):
    report = suite.work / f"{program}.json"
    text, _ = suite.run([suite.program(program), f"--gtest_output=json:{report}"], program, codes=(0, 1))
    if not report.exists():
        raise Broken(f"{program} named no case: {text.strip()[-300:]}")
    why = reasons(text)
    for group in json.loads(report.read_text())["testsuites"]:
        for case in group["testsuite"]:
            name = f"{group['name']}.{case['name']}"
            if case.get("result") == "SKIPPED":
                section.not_run(name, why.get(name, "skipped"))
            else:
                section.figure(name, 0 if case.get("failures") else 1, "passed", at_least=1)


@dataclasses.dataclass(frozen=True)
class Part:
    run: Callable
    title: str
    seconds: int  # that it is planned to take on an H200
    estimate: str  # what these are made of


# In the order of what was asked for (lines.py). None was timed on a GPU yet.
PARTS = {
    "machine": Part(machine, "The machine", 20, "importing torch, transformers and peft"),
    "own-tests": Part(own_tests, "Our own tests of the device", 30, "2 programs, some 100 cases of small models and tensors"),
    "ranks": Part(ranks.run, "Several ranks on one GPU", 40, "7 starts of up to 3 ranks at 6 s"),
    "model": Part(model, "A model of full size is made", 2, "45 s for 7.5 GB, beside the parts before"),
    "parity": Part(parity.run, "The same numbers as on the CPU and in PyTorch", 52, "6 starts at 6 s, 2 of them with imports, 7.5 GB loaded 3 times"),
    "table": Part(plans.table, "Plans under emulated cards: predicted, measured", 80, "2 starts at 8 s, 24 plans of 2 steps of 32 samples at 25 samples/s"),
    "long": Part(plans.long_runs, "Many steps under each card, a neighbour at the end of the first", 122, "3 starts at 12 s, 225 steps of 8 samples and 400 of 2 at 30 samples/s"),
    "failures": Part(plans.failures, "Memory runs out in the middle of a step", 24, "a start of 12 s, 5 steps and 3 failures"),
    "rivals": Part(rivals.equal_batch, "Beside transformers and peft at equal batch", 60, "2 starts of 12 and 22 s, 4 settings of 12 steps"),
    "search": Part(rivals.search, "Beside the best batch of transformers and peft", 52, "a start of 22 s, some 12 tries at 2.5 s"),
    "agreement": Part(ranks.agreement, "What the agreement costs", 14, "2 starts at 6 s"),
    "profile": Part(time_profile.run, "Where time goes", 28, "2 starts at 9 s, 9 steps of 8 samples and 9 of one, reading the traces"),
    "full-card": Part(plans.full_card, "A card that is full already", 16, "another process of 8 s, a start that is refused"),
    "cached": Part(cached.run, "Steps with cached features", 0, "in the time that is left"),
}
MOST_SECONDS = 9 * 60


def behind(name, wanted):
    """Seconds that the wanted parts after this one are planned to take."""
    names = [other for other in PARTS if other in wanted]
    return sum(PARTS[other].seconds for other in names[names.index(name) + 1:])


def print_plan(wanted, minutes):
    for name in (name for name in PARTS if name in wanted):
        print(f"{name}: planned {PARTS[name].seconds} s on an H200 ({PARTS[name].estimate})")
    print(f"planned: {sum(PARTS[name].seconds for name in wanted)} s of {60 * minutes:g} s", flush=True)


def run_part(suite, name, wanted, minutes):
    part = PARTS[name]
    section = Section(name, part.title)
    suite.sections.append(section)
    start = time.monotonic()
    share = 60 * minutes / MOST_SECONDS
    suite.begin_part(part.seconds * share, behind(name, wanted) * share)
    try:
        if suite.blocked:
            raise NotRun(suite.blocked)
        if suite.left() < 10:
            raise NotRun("the time is up")
        part.run(suite, section)
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
    """Whether one of our programs ended as it should not. In a rehearsal everything must run, and what does not depend on the machine be as
    it should."""
    if section.outcome == "FAILED" or not rehearsal:
        return section.outcome == "FAILED"
    fixed = ("own-tests", "ranks", "parity", "long", "failures", "profile", "full-card")
    missed = [figure for figure in section.figures if figure["met"] is False] if section.name in fixed else []
    return bool(missed) or section.outcome != "ran"


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
    print_plan(args.parts, args.minutes)
    try:
        for name in PARTS:
            if name in args.parts:
                run_part(suite, name, args.parts, args.minutes)
    finally:
        suite.close()
        suite.write()
        print("\n".join(lines.markdown(lines.outcomes(suite.sections))), flush=True)
        shutil.rmtree(suite.work, ignore_errors=True)
    return 1 if any(bad(section, args.rehearse) for section in suite.sections) else 0


if __name__ == "__main__":
    sys.exit(main())
