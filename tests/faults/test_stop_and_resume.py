"""Requests to stop: exit code 75, a complete checkpoint, and a run that goes on from it at any world size."""

import shutil
import signal
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

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


def test_another_plan_goes_on_with_the_same_training(tmp_path, model):
    changes = {"train": {"max_steps": STEPS, "checkpoint_every": 100}}
    whole = runs.finish(runs.configure(tmp_path / "whole", model, **changes), 2)
    config = runs.configure(tmp_path / "stopped", model, **changes)
    folder = stop_after(config, 2, 2)
    first = runs.steps_done(folder)
    plan = runs.metrics(folder)[-1]["plan"]
    assert plan["micro_batch"] == 3 and plan["recompute_blocks"] == 0
    stop_after(config, 2, first + 1, "--resume", "--set", "batch.micro=1", "--set", "memory.recompute=all", "--set", "memory.policy=fixed")
    second = runs.steps_done(folder)
    assert first < second < STEPS, "the machine was too fast to be stopped between two steps"
    assert {(line["plan"]["micro_batch"], line["plan"]["recompute_blocks"]) for line in runs.metrics(folder)[first:]} == {(1, 2)}
    runs.finish(config, 2, "--resume", "--set", "batch.max_micro=2", "--set", "memory.recompute=1")
    assert {(line["plan"]["micro_batch"], line["plan"]["recompute_blocks"]) for line in runs.metrics(folder)[second:]} == {(2, 1)}
    runs.assert_same_training(folder, whole, STEPS)


def test_the_resolution_grows_first_where_it_is_a_knob(tmp_path, model, dataset):
    """Knob order is configuration; what the policy chooses reaches the pictures that are loaded."""
    data = {"path": str(dataset), "synthetic_samples": 0, "resolution": 28, "min_resolution": 28, "max_resolution": 84}
    memory = {"knobs": ["resolution", "micro_batch"], "adjustment_frequency": 2}
    config = runs.configure(tmp_path, model, data=data, memory=memory, batch={"micro": 1}, sensor={"feature": "observation.force"},
                            train={"max_steps": 10, "checkpoint_every": 10})
    folder = runs.finish(config, 2)
    plans = [line["plan"] for line in runs.metrics(folder)]
    assert [plan["resolution"] for plan in plans] == [28] * 2 + [84] * 8, "two windows: full, then the cooldown of one"
    assert [plan["micro_batch"] for plan in plans] == [1] * 6 + [3] * 4
    peaks = [max(rank["peak"] for rank in line["memory"]) for line in runs.metrics(folder)]
    assert max(peaks[2:6]) > max(peaks[:2]), "larger pictures take more memory"


def test_stage_2_starts_from_stage_1(tmp_path, model):
    first = runs.configure(tmp_path / "first", model, train={"stage": 1, "max_steps": 4, "checkpoint_every": 4})
    runs.finish(first, 2)
    checkpoint = max(runs.checkpoints(tmp_path / "first" / "run").items())[1]
    assert not (checkpoint / "adapter").exists()
    train = {"max_steps": 3, "lr": 1e-15, "vl_lr": 1e-15, "stage1_checkpoint": str(checkpoint)}
    second = runs.finish(runs.configure(tmp_path / "second", model, train=train), 2)
    learned, kept = load_file(checkpoint / "trainable.safetensors"), runs.trained(second)
    assert learned and all(np.allclose(learned[name], kept[name], rtol=0, atol=1e-12) for name in learned)
    assert set(kept) - set(learned), "stage 2 adds adapters"


def test_training_starts_from_an_adapter(tmp_path, model, short):
    """model.adapter gives the values to begin with."""
    adapter = runs.checkpoints(short.parent / "run")[8] / "adapter"
    first = load_file(adapter / "adapter_model.safetensors")
    assert any(np.abs(values).max() > 0 for name, values in first.items() if "lora_B" in name), "an adapter that learned"
    config = runs.configure(tmp_path, model, train={"max_steps": 2, "lr": 1e-15, "vl_lr": 1e-15, "checkpoint_every": 1})
    folder = runs.finish(config, 2, "--set", f"model.adapter={adapter}")
    kept = load_file(runs.checkpoints(folder)[2] / "adapter" / "adapter_model.safetensors")
    assert kept.keys() == first.keys()
    assert all(np.allclose(first[name], kept[name], rtol=0, atol=1e-12) for name in first)


def test_a_resumption_takes_its_own_adapter(tmp_path, model, short):
    """Not the one of model.adapter, which would undo what was learned."""
    adapter = runs.checkpoints(short.parent / "run")[8] / "adapter"
    config = runs.configure(tmp_path / "whole", model, train={"max_steps": 8, "checkpoint_every": 4})
    given = ["--set", f"model.adapter={adapter}"]
    whole = runs.finish(config, 2, *given)
    part = runs.copy_run(config, tmp_path / "part")
    shutil.rmtree(runs.checkpoints(part.parent / "run")[8])
    lines = (part.parent / "run" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (part.parent / "run" / "metrics.jsonl").write_text("".join(lines[:4]))
    runs.finish(part, 2, "--resume", *given)
    runs.assert_same_training(part.parent / "run", whole, 8)


@pytest.mark.parametrize("damage", ["other sizes", "truncated", "missing"])
def test_a_stage_1_checkpoint_that_does_not_serve(tmp_path, model, damage):
    first = runs.configure(tmp_path / "first", model, train={"stage": 1, "max_steps": 2, "checkpoint_every": 2})
    runs.finish(first, 1)
    checkpoint = max(runs.checkpoints(tmp_path / "first" / "run").items())[1]
    changes = {"train": {"max_steps": 2, "stage1_checkpoint": str(checkpoint)}}
    if damage == "other sizes":
        changes["expert"] = {"width": 48}
    if damage == "truncated":
        weights = checkpoint / "trainable.safetensors"
        weights.write_bytes(weights.read_bytes()[:-8])
    if damage == "missing":
        (checkpoint / "trainable.safetensors").unlink()
    with runs.launch(runs.configure(tmp_path / "second", model, **changes), 2) as run:
        assert run.end() == 6, run.output()
        assert "trainable.safetensors" in run.output()


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
