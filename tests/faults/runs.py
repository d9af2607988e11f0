"""Runs of the real program under mpirun, watched and disturbed from outside. Nothing here waits without a limit."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
PLIMSOLL = pathlib.Path(os.environ.get("PLIMSOLL_BUILD", ROOT / "build")) / "plimsoll"
PROOFS = os.environ.get("PLIMSOLL_PROOFS", "") not in ("", "0")
# What a run keeps for later ones must not pass from one test to another.
CACHE = tempfile.TemporaryDirectory(prefix="plimsoll-tests-")
ENVIRONMENT = {**os.environ, "XDG_CACHE_HOME": CACHE.name, "OMP_NUM_THREADS": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
MPIRUN = ["mpirun", "--oversubscribe", "--bind-to", "none"]
LIMIT = 180.0  # seconds that one run, or one thing waited for, may take

CONFIGURATION = """
[run]
dir = "{run}"
threads = 1
[model]
path = "{model}"
dtype = "fp32"
[expert]
width = 32
depth = 1
heads = 2
chunk = 4
draws = 1
[sensor]
window = 8
width = 16
[data]
synthetic_samples = 40
[batch]
effective = 6
[memory]
budget = "300MiB"
policy = "reactive"
adjustment_frequency = 4
[train]
max_steps = 8
checkpoint_every = 2
[launch]
timeout = 60
[report]
files = false
"""


def configure(folder, model, run="run", **changes):
    """Writes a configuration; `changes` are tables of replaced or added keys. Returns its path."""
    lines = CONFIGURATION.format(run=folder / run, model=model).splitlines()
    for table, keys in changes.items():
        if f"[{table}]" not in lines:
            lines.append(f"[{table}]")
        for key, value in keys.items():
            begin = lines.index(f"[{table}]")
            end = next((i for i in range(begin + 1, len(lines)) if lines[i].startswith("[")), len(lines))
            old = [i for i in range(begin, end) if lines[i].split(" = ")[0] == key]
            lines[begin + 1:begin + 1] = [f"{key} = {json.dumps(value)}"]
            for i in old:
                del lines[i + 1]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def descendants(pid):
    """Every living process below `pid`, children before their own children."""
    found = []
    with contextlib.suppress(OSError):
        for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


def rank_of(pid):
    """The rank that process `pid` is, None when it is not one (mpirun, a shell, or not yet the program)."""
    try:
        words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        variables = pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    if len(words) < 2 or not words[0].endswith(b"plimsoll") or words[1] != b"train":
        return None
    own = [value for value in variables if value.startswith(b"OMPI_COMM_WORLD_RANK=")]
    return int(own[0].split(b"=")[1]) if own else None


class Run:
    """A started command. Leaving the `with` block kills what is left of it."""

    def __init__(self, command, folder, **options):
        folder.mkdir(parents=True, exist_ok=True)
        self.text = folder / "output.txt"
        with self.text.open("a") as output:
            self.process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                                            env=ENVIRONMENT, start_new_session=True, **options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        while self.process.poll() is None:
            for pid in [*descendants(self.process.pid), self.process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    def output(self):
        return self.text.read_text(errors="replace")

    def ranks(self):
        """{rank: process id} of the ranks that are alive now."""
        found = {rank_of(pid): pid for pid in descendants(self.process.pid)}
        found.pop(None, None)
        return found

    def until(self, condition, what, pause=0.01):
        """Waits until condition() is true and returns what it gave; fails when the run ends first."""
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            value = condition()
            if value:
                return value
            assert self.process.poll() is None, f"ended with {self.process.returncode} before {what}:\n{self.output()}"
            time.sleep(pause)
        raise AssertionError(f"waited {LIMIT:.0f} s for {what}:\n{self.output()}")

    def end(self, limit=LIMIT):
        """The exit code."""
        try:
            return self.process.wait(limit)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {limit:.0f} s:\n{self.output()}") from None


def launch(config, ranks, *more):
    return Run([PLIMSOLL, "launch", "-n", ranks, "--config", config, *more], config.parent)


def finish(config, ranks, *more, limit=LIMIT):
    """Launches, waits, and demands success."""
    with launch(config, ranks, *more) as run:
        assert run.end(limit) == 0, run.output()
    return config.parent / "run"


def finished(command, **options):
    """(exit code, standard output and error) of a command that should soon end by itself."""
    result = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT,
                            env=ENVIRONMENT, **options)
    return result.returncode, result.stdout + result.stderr


def lines(file):
    """Of JSON, whole ones only: the last may be in the writing."""
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text[:text.rfind("\n") + 1].splitlines()]


def metrics(run):
    return lines(run / "metrics.jsonl")


def steps_done(run):
    lines = metrics(run)
    return lines[-1]["step"] if lines else 0


def killed_at_random_moments(config_of, ranks, steps, moments, draw, longest, progress=steps_done, after=lambda folder: None):
    """Kills runs `moments` times, up to `longest` seconds after their `progress` changed, and resumes them; `after` each kill looks
    at what is left. A run that gets through is followed by another one. Yields the folder of each run, finished: config_of(number)
    writes its configuration."""
    killed = number = 0
    while killed < moments:
        number += 1
        config = config_of(number)
        folder = config.parent / "run"
        over = False
        while killed < moments and not over:
            before = progress(folder)
            with launch(config, ranks, *(["--resume"] if folder.exists() else []), "--set", "launch.max_restarts=0") as run:
                run.until(lambda: progress(folder) != before or run.process.poll() is not None, "progress")
                time.sleep(draw.uniform(0, longest))
                over = run.process.poll() is not None
            if over:
                assert run.process.returncode == 0, run.output()
            killed += not over
            after(folder)
        finish(config, ranks, "--resume")
        assert steps_done(folder) == steps
        yield folder


@contextlib.contextmanager
def small_file_system(folder, size):
    """A file system of its own at `folder`; the test is skipped where it cannot be mounted."""
    folder.mkdir(exist_ok=True)
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True)
    if mount.returncode != 0:
        pytest.skip(f"cannot mount a small file system: {mount.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def exit_record(run):
    return json.loads((run / "exit.json").read_text())


def checkpoints(run):
    """{step: folder} of the complete ones."""
    return {int(folder.parent.name.split("-")[1]): folder.parent for folder in (run / "checkpoints").glob("step-*/complete.json")}


def trained(run):
    """All trained tensors of the newest checkpoint: the program's own file, and the adapter in PEFT's format."""
    folder = max(checkpoints(run).items())[1]
    return load_file(folder / "trainable.safetensors") | load_file(folder / "adapter" / "adapter_model.safetensors")


def relative_l2(found, expected):
    norm = np.linalg.norm(expected.astype(np.float64))
    distance = np.linalg.norm(found.astype(np.float64) - expected.astype(np.float64))
    return distance / norm if norm > 0 else distance


def assert_same_training(run, reference, steps, each=1e-5):
    """No step missing or doubled, the same samples, losses within 1e-5 and all trained tensors together within
    relative L2 1e-5, each within `each`."""
    found, expected = metrics(run), metrics(reference)
    assert [line["step"] for line in found] == list(range(1, steps + 1))
    assert [line["first_sample"] for line in found] == [line["first_sample"] for line in expected]
    np.testing.assert_allclose([line["loss"] for line in found], [line["loss"] for line in expected], rtol=1e-5)
    ours, theirs = trained(run), trained(reference)
    assert ours.keys() == theirs.keys()
    whole = [np.concatenate([tensors[name].ravel() for name in sorted(theirs)]) for tensors in (ours, theirs)]
    assert relative_l2(*whole) < 1e-5
    moved = {name: relative_l2(ours[name], theirs[name]) for name in theirs}
    worst = max(moved, key=moved.get)
    assert moved[worst] < each, f"{worst}: {moved[worst]}"


def copy_run(config, folder):
    """A configuration and its run in another place; returns the new configuration."""
    shutil.copytree(config.parent, folder, ignore=shutil.ignore_patterns("output.txt"))
    copy = folder / config.name
    copy.write_text(copy.read_text().replace(str(config.parent), str(folder)))
    return copy
