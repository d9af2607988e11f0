"""What the parts of the suite share: the programs, how they are run, and what is written down.

A part adds figures and tables to its Section. What it cannot do it raises as NotRun, or lists by Section.not_run() and goes on: nothing
that did not run is left out of the report.
"""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
PEERS = HERE.parent / "peers"


class NotRun(Exception):
    """A part that could not be tried here, and why."""


class Broken(Exception):
    """A program of ours that ended otherwise than it should."""


class Section:
    """What one part found out."""

    def __init__(self, name, title):
        self.name, self.title = name, title
        self.outcome, self.why, self.seconds = "not run", "", 0.0
        self.figures, self.tables, self.missing = [], [], []

    def figure(self, name, value, unit="", at_most=None, at_least=None):
        met = None
        if at_most is not None:
            met = value <= at_most
        if at_least is not None:
            met = value >= at_least
        bound = at_most if at_most is not None else at_least
        self.figures.append({"name": name, "value": value, "unit": unit, "bound": bound, "met": met})

    def table(self, title, rows):
        """rows: dictionaries with the same keys."""
        self.tables.append({"title": title, "rows": rows})

    def not_run(self, what, why):
        self.missing.append({"what": what, "why": why})

    def markdown(self):
        lines = [f"## {self.name}", "", f"{self.title}: {self.outcome}{f' ({self.why})' if self.why else ''}, {self.seconds:.0f} s.", ""]
        if self.figures:
            lines += ["| figure | value | unit | bound |", "|---|---:|---|---|"]
            for f in self.figures:
                bound = "" if f["bound"] is None else f"{f['bound']:g}: {'met' if f['met'] else 'NOT met'}"
                lines.append(f"| {f['name']} | {shown(f['value'])} | {f['unit']} | {bound} |")
            lines.append("")
        for table in self.tables:
            if not table["rows"]:
                continue
            names = list(table["rows"][0])
            lines += [f"{table['title']}:", "", f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
            lines += [f"| {' | '.join(shown(row.get(name, '')) for name in names)} |" for row in table["rows"]]
            lines.append("")
        lines += [f"- not run: {entry['what']}: {entry['why']}" for entry in self.missing]
        return lines + ([""] if self.missing else [])


def shown(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Suite:
    """Where programs and results lie, what was asked for, and how much time is left."""

    def __init__(self, scale, build, out, device, minutes):
        self.scale, self.device = scale, device
        self.build = pathlib.Path(build).resolve()
        self.out = pathlib.Path(out).resolve()
        self.work = self.out / "work"
        self.work.mkdir(parents=True, exist_ok=True)
        self.begun = time.monotonic()
        self.deadline = self.part_deadline = self.begun + 60 * minutes
        self.sections = []
        self.known = {}  # what a part leaves for later ones
        self.write()  # the folder is a suite's from now on

    def left(self):
        """Seconds of the part that runs now."""
        return min(self.deadline, self.part_deadline) - time.monotonic()

    def begin_part(self, share):
        """At most this share of the whole time, so that no part starves those behind it."""
        self.part_deadline = time.monotonic() + share * (self.deadline - self.begun)

    def library_path(self):
        """Of our programs, which find libtorch in the Python environment when it is not where they were built. Of no other program:
        a foreign mpirun must not load our Open MPI."""
        found = os.environ.get("LD_LIBRARY_PATH", "")
        return ":".join([str(self.build / "lib"), *map(str, torch_libraries()), *([found] if found else [])])

    def ours_under_another(self, *words):
        """Our program as another one's child."""
        return ["env", f"LD_LIBRARY_PATH={self.library_path()}", *words]

    def environment(self, ours=True):
        # Ranks and caches of other runs on this machine must not meddle.
        threads = {"OMP_NUM_THREADS": "1"} if self.device == "cpu" else {}  # a rehearsal beside whatever else runs
        libraries = {"LD_LIBRARY_PATH": self.library_path()} if ours else {}
        return {**os.environ, **threads, **libraries, "XDG_CACHE_HOME": str(self.work / "cache"), "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}  # fmt: skip

    def program(self, name):
        path = self.build / name
        if not path.exists():
            raise NotRun(f"{name} is not in {self.build}")
        return str(path)

    def run(self, command, what, codes=(0,), partial=False):
        """Output of a program, with its errors in it; (text, exit code). It ends when the part's time does, with all that it started.
        `partial`: what it had said by then, or before it failed, is given back too, with exit code None."""
        if self.left() < 5:
            raise NotRun("the time is up")
        words = [str(word) for word in command]
        with tempfile.TemporaryFile(mode="w+", errors="replace") as output:
            process = subprocess.Popen(words, env=self.environment(words[0].startswith(str(self.build))), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                                       start_new_session=True)  # fmt: skip
            late = False
            try:
                process.wait(timeout=self.left())
            except subprocess.TimeoutExpired:
                late = True
            finally:
                with contextlib.suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)  # what it left running would keep the card
                process.wait()
            output.seek(0)
            text = output.read()
        with (self.out / "log.txt").open("a") as log:
            log.write(f"$ {' '.join(words)}\n{text}\n{'(its time was up)' if late else ''}")
        fine = not late and process.returncode in codes
        if fine or (partial and text):
            return text, process.returncode if fine else None
        if late:
            raise NotRun(f"the time was up while it ran: {what}")
        raise Broken(f"{what}: exit code {process.returncode}: {' | '.join(text.strip().splitlines()[-4:])}")

    def configure(self, name, **tables):
        """A configuration of the scale's model and samples; `tables` replace single keys. Returns its path."""
        s = self.scale
        threads = max(1, min(12, (os.cpu_count() or 1) - 2))
        base = {
            "run": {"dir": str(self.work / name), "device": self.device, "seed": 7, "threads": 1 if self.device == "cpu" else 0},
            "model": {"path": str(self.model()), "dtype": s.dtype},
            "lora": {"rank": 8, "alpha": 16},
            "expert": {"width": s.width, "depth": s.depth, "heads": s.heads, "draws": 4, "chunk": 16},
            "sensor": {"window": 16},
            "data": {"synthetic_samples": s.samples, "synthetic_images": s.images, "synthetic_side": s.side,
                     "synthetic_text": s.text, "workers": threads, "prefetch": 3},
            "batch": {"effective": s.effective},
            "memory": {"budget": self.budgets()[-1], "calibration": "off", "table": "off"},
            "train": {"max_steps": 20, "checkpoint_every": 100000},
        }  # fmt: skip
        for table, keys in tables.items():
            base.setdefault(table, {}).update(keys)
        lines = []
        for table, keys in base.items():
            lines += [f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items() if not of_tables(value))]
            for key, value in keys.items():
                for entry in value if of_tables(value) else []:
                    lines += [f"[[{table}.{key}]]", *(f"{k} = {json.dumps(v)}" for k, v in entry.items())]
        path = self.work / f"{name}.toml"
        path.write_text("\n".join(lines) + "\n")
        return path

    def train(self, name, codes=(0,), **tables):
        """Runs a training; (lines of metrics.jsonl, exit code)."""
        path = self.configure(name, **tables)
        _, code = self.run([self.program("plimsoll"), "train", "--config", path], f"training {name}", codes)
        metrics = self.work / name / "metrics.jsonl"
        return [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else [], code

    def budgets(self):
        """Emulated cards that the real one holds: a card of nominally 80 GB has somewhat less than 80 GiB."""
        total = self.known.get("total")
        fit = tuple(budget for budget in self.scale.budgets if total is None or size_of(budget) <= total)
        if not fit:
            raise NotRun(f"the card is smaller than {self.scale.budgets[0]}")
        return fit

    def list_larger_cards(self, section):
        for budget in self.scale.budgets:
            if budget not in self.budgets():
                section.not_run(budget, f"this card has {self.known['total'] / 2**30:.1f} GiB")

    def sample_words(self):
        """Arguments of reference_dump for the scale's model and samples."""
        s = self.scale
        return ["--device", self.device, "--model", self.model(), "--dtype", s.dtype, "--images", s.images, "--side", s.side, "--text", s.text,
                "--width", s.width, "--depth", s.depth, "--heads", s.heads, "--max-context", 1024]  # fmt: skip

    def model(self):
        return self.work / "model"

    def need_model(self):
        if not (self.model() / "config.json").exists():
            raise NotRun("there is no model: the part `model` did not run")

    def write(self):
        """The two reports, after every part, so that an end from outside loses none."""
        document = {"scale": self.scale.size, "device": self.device, "seconds": time.monotonic() - self.begun,
                    "parts": [vars(section) for section in self.sections]}  # fmt: skip
        (self.out / "gpu_suite.json").write_text(json.dumps(document, indent=1) + "\n")
        lines = [f"# The suite on {self.device}, model of size {self.scale.size}", ""]
        for section in self.sections:
            lines += section.markdown()
        (self.out / "gpu_suite.md").write_text("\n".join(lines))

    def peak_of(self, command, what):
        """Runs it and returns the most memory, in bytes, that it took."""
        measure = "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]); "
        measure += "print('PEAK', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
        text, _ = self.run([python(), "-c", measure, *command], what)
        return int(text.split("PEAK")[-1]) * 1024


SIZES = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def size_of(text):
    """Bytes of "24GiB"."""
    return int(text[:-3]) * SIZES[text[-3:]]


def of_tables(value):
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def torch_libraries():
    """Folders of libtorch and of the CUDA libraries beside it, without importing torch."""
    import importlib.util

    root = pathlib.Path(importlib.util.find_spec("torch").origin).parent
    return [root / "lib", *sorted(folder for folder in root.parent.glob("nvidia/*/lib") if folder.is_dir())]


def python():
    return sys.executable
