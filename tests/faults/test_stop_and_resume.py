"""Requests to stop: exit code 75, a complete checkpoint, and a run that goes on from it at any world size."""

import signal
import time

import pytest

import runs

LONG = {"train": {"max_steps": 400, "checkpoint_every": 1000}}
STEPS = 20
ALONE = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1] if runs.PROOFS else [signal.SIGINT]


def assert_stopped(run, folder):
    record = runs.exit_record(folder)
    assert record["exit_code"] == 75
    step = runs.steps_done(folder)
    assert record["step"] == step
    assert list(runs.checkpoints(folder)) == [step]
    assert record["checkpoint"] == str(folder / "checkpoints" / f"step-{step}")
    assert not list((folder / "checkpoints").glob(".*"))
    return step


def stop_after(config, ranks, step, *more):
    """Launches, sends SIGTERM once `step` is done, and demands exit code 75."""
    folder = config.parent / "run"
    with runs.launch(config, ranks, *more) as run:
        run.until(lambda: runs.steps_done(folder) >= step, f"step {step}")
        run.process.send_signal(signal.SIGTERM)
        assert run.end() == 75, run.output()
    return folder


def test_sigterm_stops_and_another_world_size_goes_on(tmp_path, model):
    changes = {"train": {"max_steps": STEPS, "checkpoint_every": 100}}
    whole = runs.finish(runs.configure(tmp_path / "whole", model, **changes), 2)
    config = runs.configure(tmp_path / "stopped", model, **changes)
    folder = stop_after(config, 2, 2)
    first = runs.steps_done(folder)
    stop_after(config, 3, first + 1, "--resume")
    second = runs.steps_done(folder)
    assert first < second < STEPS, "the machine was too fast to be stopped between two steps"
    runs.finish(config, 1, "--resume")
    runs.assert_same_training(folder, whole, STEPS)


def test_sigusr1_to_mpirun(tmp_path, model):
    config = runs.configure(tmp_path, model, **LONG)
    with runs.Run([*runs.MPIRUN, "-n", 2, runs.PLIMSOLL, "train", "--config", config], tmp_path) as run:
        run.until(lambda: runs.steps_done(tmp_path / "run") >= 2, "two steps")
        run.process.send_signal(signal.SIGUSR1)
        assert run.end() == 75, run.output()
    step = assert_stopped(run, tmp_path / "run")
    code, text = runs.finished([runs.PLIMSOLL, "train", "--config", config, "--resume", "--max-steps", 400, "--plan-only"])
    assert code == 0 and f"at step {step}" in text, text


@pytest.mark.parametrize("number", ALONE, ids=lambda number: number.name)
def test_a_signal_to_one_rank_alone(tmp_path, model, number):
    config = runs.configure(tmp_path, model, **LONG)
    with runs.Run([runs.PLIMSOLL, "train", "--config", config], tmp_path) as run:
        run.until(lambda: runs.steps_done(tmp_path / "run") >= 2, "two steps")
        run.process.send_signal(number)
        assert run.end() == 75, run.output()
    assert_stopped(run, tmp_path / "run")


def test_the_time_limit_stops(tmp_path, model):
    changes = {"train": {"max_steps": 100000, "checkpoint_every": 100000}, "launch": {"time_limit": 1.0}}
    config = runs.configure(tmp_path, model, **changes)
    with runs.launch(config, 2) as run:
        assert run.end() == 75, run.output()
    assert "the time limit is reached" in run.output()
    assert_stopped(run, tmp_path / "run")


def test_a_request_before_the_first_step_is_heard(tmp_path, model):
    config = runs.configure(tmp_path, model, **LONG)
    with runs.launch(config, 2) as run:
        run.until(run.ranks, "a rank")
        time.sleep(0.1)
        run.process.send_signal(signal.SIGTERM)
        assert run.end() == 75, run.output()
    assert_stopped(run, tmp_path / "run")
