"""What a run leaves for people: written at its end, and by `plimsoll report` for any run, whole, running or killed."""

import base64
import json
import shutil
import signal
import subprocess

import numpy as np
import pytest
from PIL import Image

import runs
from test_bad_input import refused

REPORT = [runs.PLIMSOLL, "report"]
JSON = ["batch_metrics.json", "epoch_metrics.json", "training_report.json"]
PNG = b"\x89PNG\r\n\x1a\n"


def reported(run, **options):
    """What `plimsoll report` says, and its training_report.json."""
    code, text = runs.finished([*REPORT, run], **options)
    assert code == 0, text
    return text, json.loads((run / "training_report.json").read_text())


@pytest.fixture
def copy(tmp_path, short):
    """The streams of a whole run of 8 steps on two ranks."""
    return runs.copy_run(short, tmp_path / "copy").parent / "run"


def test_the_report_is_that_of_the_streams(copy):
    assert not any((copy / name).exists() for name in [*JSON, "report.html"]), "report.files = false"
    text, report = reported(copy)
    steps, decisions = runs.metrics(copy), runs.lines(copy / "decisions.jsonl")
    batches = json.loads((copy / "batch_metrics.json").read_text())
    assert [entry["step"] for entry in batches] == list(range(1, 9))
    assert [entry["loss"] for entry in batches] == [line["loss"] for line in steps]
    for entry, line in zip(batches, steps):
        fractions = [rank["peak"] / rank["budget"] for rank in line["memory"]]
        assert entry["peak"] / entry["budget"] == max(fractions)
    epochs = json.loads((copy / "epoch_metrics.json").read_text())
    # 40 samples less those held out, 6 a step: the border lies within the eight steps.
    assert [epoch["epoch"] for epoch in epochs] == [1, 2]
    assert sum(epoch["samples"] for epoch in epochs) == report["samples"] == 48
    assert report["outcome"]["reason"] == "done" and report["attempts"] == 1
    assert report["last_loss"] == steps[-1]["loss"]
    assert report["seconds_computing"] == pytest.approx(sum(line["step_ms"] for line in steps) / 1000)
    assert report["decisions"] == len(decisions)
    assert len(report["plan_changes"]) == sum(line["changed"] for line in decisions)
    assert [rank["peak"] for rank in report["ranks"]] == [max(line["memory"][rank]["peak"] for line in steps) for rank in (0, 1)]
    assert "8 (1 to 8), 48 samples" in text and "done (exit code 0)" in text
    page = (copy / "report.html").read_text()
    assert "<script" not in page and "http" not in page.split("<body>")[0]


def test_json_is_what_was_written(copy):
    result = subprocess.run([*REPORT, copy, "--json"], check=True, capture_output=True, text=True, env=runs.ENVIRONMENT)
    assert json.loads(result.stdout) == json.loads((copy / "training_report.json").read_text())


def test_a_run_writes_it_at_its_end(tmp_path, model):
    run = runs.finish(runs.configure(tmp_path, model, report={"files": True}), 2)
    report = json.loads((run / "training_report.json").read_text())
    assert report["steps"] == 8 and report["outcome"]["exit_code"] == 0
    assert all((run / name).exists() for name in [*JSON, "report.html"])
    assert not list(run.glob("*.part-*"))


def test_plots_where_gnuplot_is(copy):
    if not shutil.which("gnuplot"):
        pytest.skip("gnuplot is not installed")
    text, _ = reported(copy)
    assert (copy / "training_curves.png").read_bytes().startswith(PNG)
    assert "data:image/png;base64," in (copy / "report.html").read_text() and "no plot" not in text
    assert not (copy / "task_comparison.png").exists(), "it has no tasks"


def test_types_are_compared_in_a_picture(tmp_path, model):
    """Of a run on two ranks: their losses over the steps and at the end, samples and bytes a sample, each in a panel with something in it."""
    if not shutil.which("gnuplot"):
        pytest.skip("gnuplot is not installed")
    data = {"synthetic_samples": 40, "synthetic_tasks": 3}
    run = runs.finish(runs.configure(tmp_path, model, data=data, tasks={"by": "task"}, report={"files": True}), 2)
    file = run / "task_comparison.png"
    picture = np.asarray(Image.open(file).convert("RGB")).astype(int)
    height, width, _ = picture.shape
    assert (width, height) == (1000, 4 * 260)
    coloured = picture.max(axis=2) - picture.min(axis=2) > 40  # curves and bars; text, grid and border are grey
    panels = [int(panel.sum()) for panel in np.split(coloured, 4)]
    assert min(panels) > 500, panels
    tasks = json.loads((run / "training_report.json").read_text())["tasks"]
    assert len(tasks) == 3 and all(task["memory"]["measured_a_sample"] > 0 and task["samples"] > 0 for task in tasks.values())
    assert base64.b64encode(file.read_bytes()).decode() in (run / "report.html").read_text()


@pytest.mark.parametrize("gnuplot", [None, "exit 1", "echo no picture"], ids=["missing", "failing", "mute"])
def test_a_run_does_without_gnuplot(tmp_path, model, monkeypatch, gnuplot):
    """One rank, without mpirun: nothing else is needed from PATH then."""
    (tmp_path / "bin").mkdir()
    if gnuplot:
        (tmp_path / "bin" / "gnuplot").write_text(f"#!/bin/sh\n{gnuplot}\n")
        (tmp_path / "bin" / "gnuplot").chmod(0o755)
    monkeypatch.setitem(runs.ENVIRONMENT, "PATH", str(tmp_path / "bin"))
    config = runs.configure(tmp_path, model, report={"files": True}, train={"max_steps": 2})
    code, text = runs.finished([runs.PLIMSOLL, "train", "--config", config])
    assert code == 0, text
    run = tmp_path / "run"
    assert runs.exit_record(run)["exit_code"] == 0
    assert not (run / "training_curves.png").exists()
    report = json.loads((run / "training_report.json").read_text())
    assert sum("gnuplot" in note for note in report["notes"]) == 1
    assert reported(run)[0].count("no plot") == 1


def test_a_report_that_cannot_be_written_changes_no_outcome(tmp_path, model):
    config = runs.configure(tmp_path, model, report={"files": True}, train={"max_steps": 2})
    (tmp_path / "run" / "batch_metrics.json").mkdir(parents=True)  # in the way of the file
    code, text = runs.finished([runs.PLIMSOLL, "train", "--config", config])
    assert code == 0 and "no report was written" in text and "batch_metrics.json" in text, text
    assert runs.exit_record(tmp_path / "run")["reason"] == "done"


def test_of_a_run_that_is_at_work_and_of_one_that_was_killed(tmp_path, model):
    config = runs.configure(tmp_path, model, train={"max_steps": 4000, "checkpoint_every": 1000})
    run = tmp_path / "run"
    with runs.launch(config, 1) as work:
        work.until(lambda: runs.steps_done(run) >= 3, "three steps")
        text, report = reported(run)
        assert work.process.poll() is None
        assert report["outcome"] is None and report["steps"] >= 3 and "still running, or killed" in text
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"step":99999,"lo')  # as a kill in the writing would leave it
    text, report = reported(run)
    assert report["torn_lines"] == 1 and report["last_step"] == runs.steps_done(run)
    assert "has no end" in text


def test_a_run_that_goes_on_is_not_reported_as_ended(tmp_path, model):
    """`train --resume` without `launch`, after an error: exit.json of the attempt before is gone."""
    run = tmp_path / "run"
    config = runs.configure(tmp_path, model, train={"max_steps": 4000, "checkpoint_every": 1000})
    with runs.Run([runs.PLIMSOLL, "train", "--config", config], tmp_path) as work:
        work.until(lambda: runs.steps_done(run) >= 2, "two steps")
        work.process.send_signal(signal.SIGINT)
        assert work.end() == 75, work.output()
    before = runs.steps_done(run)
    record = json.loads((run / "exit.json").read_text())
    (run / "exit.json").write_text(json.dumps({**record, "exit_code": 4, "reason": "sample 3: file.parquet is damaged"}))
    with runs.Run([runs.PLIMSOLL, "train", "--config", config, "--resume"], tmp_path) as work:
        work.until(lambda: runs.steps_done(run) >= before + 2, "two steps more")
        text, report = reported(run)
        assert report["outcome"] is None and "damaged" not in text, text


# --- bad input ---

def test_no_folder_given():
    refused(REPORT, 2, "folder of the run")


def test_a_folder_that_is_not_there(tmp_path):
    refused([*REPORT, tmp_path / "none"], 4, str(tmp_path / "none"), "no such folder")


def test_a_folder_of_no_run(tmp_path):
    refused([*REPORT, tmp_path], 4, "metrics.jsonl", "is not there")


@pytest.mark.parametrize("stream", ["metrics.jsonl", "decisions.jsonl"])
@pytest.mark.parametrize("line, said", [
    ("nonsense", "is no JSON object"),
    ('{"loss":1}', 'has no "step"'),
    ('{"step":"2"}', '"step" is "2"'),
    ('{"step":2,"memory":[{"peak":-5}]}', '"peak" is -5'),
])
def test_a_damaged_line_is_named(copy, stream, line, said):
    file = copy / stream
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], line, *lines[2:]]) + "\n")
    refused([*REPORT, copy], 4, f"{file}:2: ", said)
    assert not (copy / "training_report.json").exists()


def test_a_file_that_cannot_be_written(copy):
    (copy / "report.html").mkdir()
    refused([*REPORT, copy], 4, "report.html")
