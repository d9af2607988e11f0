"""What a run tells a real MLflow server, read back by the real MLflow client: all of it, once, whenever the server is there."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import time
import tomllib
import urllib.error
import urllib.request

import pytest

import runs

ENVIRONMENT = runs.ROOT / ".venv-mlflow"
PYTHON = ENVIRONMENT / "bin" / "python"
QUIET = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "GIT_PYTHON_REFRESH": "quiet"}
STEPS = 8  # of runs.CONFIGURATION
# All numbers of a step that both metrics.jsonl and the server hold under one name.
SHARED = ["loss", "grad_norm", "lr", "vl_lr", "epoch", "samples", "samples_per_second", "step_ms", "load_ms", "micro_batches", "live"]


@pytest.fixture(scope="module")
def mlflow():
    """The environment's Python."""
    if not ENVIRONMENT.exists() and not runs.PROOFS:
        pytest.skip("no .venv-mlflow: tools/setup_mlflow.sh makes it (850 MB), and so do the tests under PLIMSOLL_PROOFS=1")
    made = subprocess.run([runs.ROOT / "tools" / "setup_mlflow.sh"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"the wheels of MLflow cannot be installed: {(made.stdout + made.stderr).strip().splitlines()[-1:]}")
    return PYTHON


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A real MLflow server over one database, that comes and goes."""

    def __init__(self, python, folder):
        self.python, self.folder, self.port = python, folder, free_port()
        folder.mkdir(parents=True)
        self.address = f"http://127.0.0.1:{self.port}"
        self.process = None

    def healthy(self):
        with contextlib.suppress(OSError, urllib.error.URLError):
            return urllib.request.urlopen(f"{self.address}/health", timeout=5).status == 200
        return False

    def start(self):
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                [self.python, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1",
                 "--backend-store-uri", "sqlite:///mlflow.db", "--artifacts-destination", "./artifacts"],
                cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=QUIET, start_new_session=True)
        deadline = time.monotonic() + runs.LIMIT
        while not self.healthy():
            assert self.process.poll() is None and time.monotonic() < deadline, (self.folder / "server.log").read_text()
            time.sleep(0.2)

    def kill(self):
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def runs(self):
        """What the real client finds."""
        reader = pathlib.Path(__file__).with_name("mlflow_reader.py")
        found = subprocess.run([self.python, reader, self.address, "plimsoll"], stdin=subprocess.DEVNULL, capture_output=True,
                               text=True, timeout=runs.LIMIT, env=QUIET)
        assert found.returncode == 0, found.stderr
        return json.loads(found.stdout)


@pytest.fixture
def server(mlflow, tmp_path):
    server = Server(mlflow, tmp_path / "server")
    yield server
    server.kill()


def settings(run):
    """The resolved configuration as the server should hold it, but for lists and tables, which are TOML there."""
    return of_tables(tomllib.loads((run / "config.toml").read_text()))


def of_tables(tables):
    return {f"{table}.{key}": value for table, keys in tables.items() for key, value in keys.items()}


def as_param(value):
    return str(value).lower() if isinstance(value, bool) else str(value)


def assert_params(found, run):
    expected = settings(run)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, float):
            assert float(found[key]) == value, key
        elif isinstance(value, (list, dict)):
            assert tomllib.loads(f"v = {found[key]}")["v"] == value, key
        else:
            assert found[key] == as_param(value), key


def assert_recommended_loader(tags, run):
    """The loader setting for the next run: its file as it stands, and each key of it by itself."""
    text = (run / "loader.toml").read_text()
    assert tags["loader.toml"] == text
    found = {key.removeprefix("recommended."): value for key, value in tags.items() if key.startswith("recommended.")}
    assert found == {key: as_param(value) for key, value in of_tables(tomllib.loads(text)).items()}
    assert found.keys() == {"data.workers", "data.prefetch"} and all(int(value) >= 1 for value in found.values())


def spooled(run):
    """{step: metrics} as the run wrote them down to be sent; a step twice would be an error of ours."""
    steps = {}
    for line in runs.lines(run / "mlflow.jsonl"):
        if "metrics" in line:
            assert line["step"] not in steps
            steps[line["step"]] = (line["time"], line["metrics"])
    return steps


def assert_every_metric_once(found, run, steps):
    written = spooled(run)
    assert sorted(written) == list(range(1, steps + 1))
    expected = {}
    for step, (when, metrics) in sorted(written.items()):
        for key, value in metrics.items():
            expected.setdefault(key, []).append([step, when, value])
    assert {key: sorted(points) for key, points in found.items()} == expected


def assert_whole(server, run, steps=STEPS, status="FINISHED"):
    found = server.runs()
    assert len(found) == 1, [(one["name"], one["status"]) for one in found]
    assert found[0]["status"] == status
    assert found[0]["name"] == run.name
    assert_every_metric_once(found[0]["metrics"], run, steps)
    assert not (run / "mlflow-refused.jsonl").exists()
    return found[0]


def configure(folder, model, server, **report):
    # The end waits for the server for half of launch.timeout at most, and a real one takes its time to start.
    return runs.configure(folder, model, launch={"timeout": 300}, report={"mlflow_uri": server.address, "mlflow_flush": 120, **report})


def test_a_run_is_on_the_server_when_it_has_ended(tmp_path, model, server):
    server.start()
    run = runs.finish(configure(tmp_path / "a", model, server), 2)
    found = assert_whole(server, run)
    assert_params(found["params"], run)
    assert_recommended_loader(found["tags"], run)
    for line in runs.metrics(run):
        for key in SHARED:
            value = [point[2] for point in found["metrics"][key] if point[0] == line["step"]]
            assert value == [line[key]], (line["step"], key)
        for rank, memory in enumerate(line["memory"]):
            points = found["metrics"][f"memory/peak_bytes/rank_{rank}"]
            assert [point[2] for point in points if point[0] == line["step"]] == [memory["peak"]]
        assert [point[2] for point in found["metrics"]["micro_batch"] if point[0] == line["step"]] == [line["plan"]["micro_batch"]]


def test_a_run_without_a_server_trains_the_same_and_a_later_one_sends_it(tmp_path, model, server, short):
    config = configure(tmp_path / "a", model, server, mlflow_flush=0)
    run = runs.finish(config, 2)
    runs.assert_same_training(run, short.parent / "run", STEPS)
    assert "records wait in" in (tmp_path / "a" / "output.txt").read_text()
    server.start()
    runs.finish(configure(tmp_path / "a", model, server), 2, "--resume")
    found = assert_whole(server, run)
    assert float(found["params"]["report.mlflow_flush"]) == 0
    assert float(found["tags"]["resumed.report.mlflow_flush"]) == 120


def test_a_run_that_is_killed_and_resumed_is_one_run_without_a_gap(tmp_path, model, server):
    server.start()
    config = configure(tmp_path / "a", model, server)
    folder = tmp_path / "a" / "run"
    with runs.launch(config, 2, "--set", "launch.max_restarts=0") as run:
        # Between two checkpoints: what is done again must not be there twice.
        run.until(lambda: runs.steps_done(folder) >= 3, "step 3")
    assert runs.checkpoints(folder), "it was killed before its first checkpoint: resuming would begin anew"
    runs.finish(config, 2, "--resume")
    assert_whole(server, folder)


def test_a_server_that_is_killed_in_the_middle_and_comes_back_has_everything(tmp_path, model, server):
    server.start()
    config = configure(tmp_path / "a", model, server)
    folder = tmp_path / "a" / "run"
    with runs.launch(config, 2) as run:
        run.until(lambda: runs.steps_done(folder) >= 2, "step 2")
        server.kill()
        # Steps go on while there is none, and the end waits for it (mlflow_flush).
        run.until(lambda: runs.steps_done(folder) == STEPS, "the last step")
        server.start()
        assert run.end() == 0, run.output()
    assert_recommended_loader(assert_whole(server, folder)["tags"], folder)


def test_a_bad_address_is_said_before_anything_is_trained(tmp_path, model):
    config = runs.configure(tmp_path / "a", model, report={"mlflow_uri": "http://me:secret@host:5000"})
    code, text = runs.finished([runs.PLIMSOLL, "train", "--config", config])
    assert code == 2, text
    assert "report.mlflow_uri" in text and "MLFLOW_TRACKING_USERNAME" in text and "secret" not in text
    assert not (tmp_path / "a" / "run" / "metrics.jsonl").exists()
