"""What the parts of the suite share: the programs, how they are run, and what is written down.

A part adds figures and tables to its Section. What it cannot do it raises as NotRun, or lists by Section.not_run() and goes on: nothing
that did not run is left out of the report.
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import lines

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
        bounds = [bound for bound in (at_least, at_most) if bound is not None]
        met = None if not bounds else (at_most is None or value <= at_most) and (at_least is None or value >= at_least)
        bound = " to ".join(f"{bound:g}" for bound in bounds) if len(bounds) > 1 else (bounds or [None])[0]
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
                bound = "" if f["bound"] is None else f"{shown(f['bound'])}: {'met' if f['met'] else 'NOT met'}"
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


def descendants(pid):
    """Every living process below `pid`: mpirun gives its ranks groups of their own."""
    found = []
    with contextlib.suppress(OSError):
        for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


class Running:
    """A program, what it says, and all that it starts."""

    def __init__(self, suite, command):
        self.words = [str(word) for word in command]
        self.log = suite.out / "log.txt"
        handle, path = tempfile.mkstemp(dir=suite.work, prefix="said-")
        self.said = pathlib.Path(path)
        self.process = subprocess.Popen(self.words, env=suite.environment(self.words[0].startswith(str(suite.build))), stdin=subprocess.DEVNULL,
                                        stdout=handle, stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
        os.close(handle)

    def text(self):
        return self.said.read_text(errors="replace")

    def wait(self, seconds):
        """Whether it ends within so many."""
        try:
            self.process.wait(timeout=max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self, note=""):
        """Ends what is left of it, which would keep the card, and returns what it said."""
        for pid in [*descendants(self.process.pid), self.process.pid]:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        text = self.text()
        self.said.unlink()
        with self.log.open("a") as log:
            log.write(f"$ {' '.join(self.words)}\n{text}\n{note}")
        return text


class Suite:
    """Where programs and results lie, what was asked for, and how much time is left."""

    def __init__(self, scale, build, out, device, minutes):
        self.scale, self.device = scale, device
        self.blocked = ""  # why no part can use the GPU
        self.model_writer = None
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

    def begin_part(self, planned, behind):
        """Seconds that this part and those after it are planned to take. It may use what is left beside those, so that none starves those
        behind it and none loses what those before it did not need; and half as long again as planned in any case."""
        self.part_deadline = max(self.deadline - behind, time.monotonic() + 1.5 * planned)

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
        one = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}  # what is shown is one GPU's
        return {**os.environ, **threads, **libraries, **one, "XDG_CACHE_HOME": str(self.work / "cache"), "PLIMSOLL_PYTHON": python(), "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}  # fmt: skip

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
        running = Running(self, command)
        try:
            late = not running.wait(self.left())
        finally:
            text = running.stop()
        if late:
            with (self.out / "log.txt").open("a") as log:
                log.write("(its time was up)\n")
        process = running.process
        fine = not late and process.returncode in codes
        if fine or (partial and text):
            return text, process.returncode if fine else None
        if late:
            raise NotRun(f"the time was up while it ran: {what}")
        raise Broken(f"{what}: exit code {process.returncode}: {' | '.join(text.strip().splitlines()[-4:])}")

    @contextlib.contextmanager
    def beside(self, command):
        """Runs a program while the block does; yields it (Running)."""
        running = Running(self, command)
        try:
            yield running
        finally:
            running.stop()

    def open_mpi(self):
        """Words that start mpirun: the archive's own, or the machine's where it is Open MPI. None without."""
        own = self.build / "mpi" / "bin" / "mpirun"
        if own.exists():
            return ["env", f"LD_LIBRARY_PATH={self.library_path()}", f"OPAL_PREFIX={self.build / 'mpi'}", str(own)]
        if shutil.which("mpirun") and "Open MPI" in subprocess.run(["mpirun", "--version"], capture_output=True, text=True, check=False).stdout:
            return ["mpirun"]
        return None

    def ranks(self, count, *words, options=()):
        """Words that start our program as so many ranks. Ranks in a container may not be allowed to read each other's memory."""
        mpirun = self.open_mpi()
        if mpirun is None:
            raise NotRun("there is no mpirun of Open MPI, neither in the archive nor on this machine")
        return [*mpirun, "--oversubscribe", "--bind-to", "none", "--mca", "btl_vader_single_copy_mechanism", "none", *options, "-n", str(count),
                *self.ours_under_another(*words)]  # fmt: skip

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
        text = []
        for table, keys in base.items():
            text += [f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items() if not of_tables(value))]
            for key, value in keys.items():
                for entry in value if of_tables(value) else []:
                    text += [f"[[{table}.{key}]]", *(f"{k} = {json.dumps(v)}" for k, v in entry.items())]
        path = self.work / f"{name}.toml"
        path.write_text("\n".join(text) + "\n")
        return path

    def train(self, name, codes=(0,), ranks=1, **tables):
        """Runs a training; (lines of metrics.jsonl, exit code)."""
        words = [self.program("plimsoll"), "train", "--config", self.configure(name, **tables)]
        _, code = self.run(words if ranks == 1 else self.ranks(ranks, *words), f"training {name}", codes)
        return self.metrics(name), code

    def metrics(self, name):
        """Whole lines of a training's metrics.jsonl, which may be being written."""
        path = self.work / name / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] if path.exists() else []

    def card(self, name):
        """[memory] for a run on such a card: on a GPU what lies outside of the allocator is taken off it."""
        return {"budget": name} if self.device == "cpu" else {"card": name, "budget": "auto"}

    def usable(self, name):
        """Bytes that a measured plan may take of such a card: `plimsoll plan` takes as much off (--overhead)."""
        return size_of(name) - (0 if self.device == "cpu" else OVERHEAD)

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

    def start_model(self):
        """Begins to write the model, beside what the next parts do; need_model() waits for it."""
        words = [self.program("plimsoll"), "init-model", "--size", self.scale.size, "--out", self.model()]
        self.model_writer = Running(self, self.measured(words))
        self.model_begun = time.monotonic()

    def need_model(self):
        if self.model_writer is None:
            self.start_model()
        if "model" in self.known:
            return self.known["model"]
        if not self.model_writer.wait(self.left()):
            raise NotRun("the model was not written in time")
        seconds, text = time.monotonic() - self.model_begun, self.model_writer.stop()
        if self.model_writer.process.returncode != 0:
            raise Broken(f"init-model: exit code {self.model_writer.process.returncode}: {' | '.join(text.strip().splitlines()[-4:])}")
        self.known["model"] = {"peak": peak_in(text), "seconds": seconds}
        return self.known["model"]

    def close(self):
        if self.model_writer is not None and "model" not in self.known:
            with contextlib.suppress(OSError):
                self.model_writer.stop()

    def write(self):
        """The two reports, after every part, so that an end from outside loses none."""
        rows = lines.outcomes(self.sections)
        document = {"scale": self.scale.size, "device": self.device, "seconds": time.monotonic() - self.begun,
                    "parts": [vars(section) for section in self.sections], "lines": rows}  # fmt: skip
        (self.out / "gpu_suite.json").write_text(json.dumps(document, indent=1) + "\n")
        text = [f"# The suite on {self.device}, model of size {self.scale.size}", "", *lines.markdown(rows)]
        for section in self.sections:
            text += section.markdown()
        (self.out / "gpu_suite.md").write_text("\n".join(text))

    def measured(self, words):
        """Words that run our program and then print the most memory that it took."""
        measure = "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]); "
        measure += "print('PEAK', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
        return [python(), "-c", measure, *self.ours_under_another(*words)]


def peak_in(text):
    """Bytes, of what measured() printed."""
    return int(text.split("PEAK")[-1].split()[0]) * 1024


OVERHEAD = 1 << 30  # bytes of a card that no allocator has: context, kernels, libraries
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
