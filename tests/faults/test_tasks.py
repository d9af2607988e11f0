"""[tasks] in real runs: the mixture that was asked for, equal training whatever the ranks, the plan and the interruptions."""

import signal

import numpy as np
import pytest

import runs

STEPS = 16
# Gradients of keys' adapters are nearly nothing (a softmax knows no common shift), and AdamW makes steps of a usual size of them.
EACH = 5e-5
TASKS = {"by": "task", "gradnorm": True, "normalise": True, "balance_lr": 0.1}


def typed(folder, model, tasks=(), **changes):
    data = {"synthetic_samples": 40, "synthetic_tasks": 3}
    train = {"max_steps": STEPS, "checkpoint_every": 4}
    return runs.configure(folder, model, **{"data": data, "train": train, "batch": {"effective": 7}, "tasks": {**TASKS, **dict(tasks)}, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model):
    return runs.finish(typed(tmp_path_factory.mktemp("whole"), model), 1)


def test_draws_have_the_target_and_weights_move(whole):
    lines = runs.metrics(whole)
    names = list(lines[0]["task_counts"])
    assert names == ["made-up task 0", "made-up task 1", "made-up task 2"]
    for number, line in enumerate(lines, 1):
        drawn = {name: sum(line["task_counts"][name] for line in lines[:number]) for name in names}
        for name, part in zip(names, (0.4, 0.3, 0.3)):
            assert abs(drawn[name] - part * 7 * number) < 3, (number, drawn)
        assert sum(line["task_weights"].values()) == pytest.approx(3)
        assert set(line["task_losses"]) == {name for name in names if line["task_counts"][name]}
        assert all(line["task_norms"][name] > 0 for name in line["task_losses"])
    assert set(lines[0]["task_weights"].values()) == {1.0}
    assert max(abs(weight - 1) for weight in lines[-1]["task_weights"].values()) > 0.01, "they were learned"


def test_equal_on_other_ranks_and_plans(tmp_path, model, whole):
    for ranks, micro in (2, 1), (3, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        run = runs.finish(typed(folder, model, batch={"effective": 7, "micro": micro}, memory={"policy": "fixed"}), ranks)
        runs.assert_same_training(run, whole, STEPS, EACH)
        for mine, theirs in zip(runs.metrics(run), runs.metrics(whole)):
            assert mine["task_counts"] == theirs["task_counts"]
            assert mine["task_weights"] == pytest.approx(theirs["task_weights"], rel=1e-3)


def test_stopped_and_resumed(tmp_path, model, whole):
    config = typed(tmp_path, model)
    with runs.launch(config, 2) as run:
        run.until(lambda: runs.steps_done(tmp_path / "run") >= 5, "step 5")
        run.process.send_signal(signal.SIGTERM)
        assert run.end() == 75, run.output()
    runs.finish(config, 3, "--resume")
    runs.assert_same_training(tmp_path / "run", whole, STEPS, EACH)


def test_with_a_feature_cache(tmp_path, model):
    """Samples of a small type come several times in an epoch, and in a step."""
    tasks = {"gradnorm": False, "target": [0.8, 0.1, 0.1]}
    off = runs.finish(typed(tmp_path, model, tasks, train={"max_steps": 24, "checkpoint_every": 24}), 1)
    for mode, more in (("prefix", {}), ("hybrid", {"live_fraction": 1.0}), ("prefix", {"host_bytes": "1MiB", "device_bytes": "20KiB"})):
        folder = tmp_path / f"{mode}-{len(more)}"
        folder.mkdir()
        cache = {"mode": mode, "dir": str(folder / "cache"), **more}
        run = runs.finish(typed(folder, model, tasks, train={"max_steps": 24, "checkpoint_every": 24}, cache=cache), 2)
        runs.assert_same_training(run, off, 24)


def test_packed_by_bytes_is_the_same_training_in_fewer_micro_batches(tmp_path, model, whole):
    """At the same peak: what the whole share needs at two samples a micro-batch, which is cut by counts in the one run."""
    counts = {"effective": 7, "micro": 2}
    (tmp_path / "count").mkdir()
    by_count = runs.finish(typed(tmp_path / "count", model, batch=counts, memory={"policy": "fixed"}), 1)
    peak = max(rank["peak"] for line in runs.metrics(by_count) for rank in line["memory"])
    for diversity in 0.0, 1.0:
        folder = tmp_path / f"bytes-{diversity}"
        folder.mkdir()
        batch = {**counts, "packing": "bytes", "max_memory": peak, "diversity": diversity}
        run = runs.finish(typed(folder, model, batch=batch, memory={"policy": "fixed"}), 1)
        runs.assert_same_training(run, whole, STEPS, EACH)
        lines = runs.metrics(run)
        assert max(rank["peak"] for line in lines for rank in line["memory"]) <= peak
        above = [line["step"] for line in lines for rank in line["memory"] if rank["peak"] > rank["predicted"]]
        assert not above, f"measured above what was predicted in steps {above}"
        assert sum(rank["retries"] for line in lines for rank in line["memory"]) == 0
        assert sum(line["micro_batches"] for line in lines) < sum(line["micro_batches"] for line in runs.metrics(by_count))


IN_PROOFS = pytest.mark.skipif(not runs.PROOFS, reason="one of the proofs")


@pytest.mark.parametrize("dtype, ranks", [("bf16", 1), ("fp32", 2), pytest.param("bf16", 2, marks=IN_PROOFS)])
def test_packs_need_no_more_than_predicted(tmp_path, model, dtype, ranks):
    """Whatever the dtype, and where each rank fills a budget of its own. GradNorm's gradients are kept, and its weights stay."""
    def lines_of(name, batch, memory):
        config = typed(tmp_path / name, model, {"balance_lr": 1e-9}, batch=batch, memory={"policy": "fixed", **memory})
        return runs.metrics(runs.finish(config, ranks, "--set", f'model.dtype="{dtype}"'))

    batch = {"effective": 7 * ranks, "micro": 1}
    alone = lines_of("alone", batch, {})
    peaks = [max(line["memory"][rank]["peak"] for line in alone) for rank in range(ranks)]
    # Of these the target is 0.85: half as much again as the heaviest sample alone takes, and hardly more than that.
    budgets = [int(peak * part / 0.85) for peak, part in zip(peaks, (1.5, 1.15))]
    packed = lines_of("packed", {**batch, "packing": "bytes"}, {"budget": budgets})
    assert len(packed) == STEPS
    for rank, budget in enumerate(budgets):
        used = [line["memory"][rank] for line in packed]
        above = [line["step"] for line, one in zip(packed, used) if one["peak"] > one["predicted"]]
        assert not above, f"rank {rank}: measured above what was predicted in steps {above}"
        assert sum(one["retries"] for one in used) == 0
        assert max(one["peak"] for one in used) <= 0.85 * budget
    assert sum(line["micro_batches"] for line in packed) < 7 * STEPS, "the first rank, whose they are, packed several samples"
    largest = [max(line["memory"][rank]["predicted"] for line in packed) for rank in range(ranks)]
    assert largest == sorted(largest, reverse=True), "the smaller budget was filled less"
    tolerance = 1e-5 if dtype == "fp32" else 1e-2
    np.testing.assert_allclose([line["loss"] for line in packed], [line["loss"] for line in alone], rtol=tolerance)


def test_bad_settings(tmp_path, model):
    for tasks, said in (
        ({"by": "colour"}, "tasks.by"),
        ({"target": [0.5, 0.5]}, "tasks.target"),
        ({"target": "most"}, "tasks.target"),
        ({"weights": [1.0]}, "tasks.weights"),
        ({"weights": [1.0, -1.0, 1.0]}, "tasks.weights"),
        ({"by": "off"}, "tasks.gradnorm"),
    ):
        config = typed(tmp_path, model, tasks)
        code, text = runs.finished([runs.PLIMSOLL, "train", "--config", config, "--max-steps", "1"])
        assert code == 2 and said in text, text


def test_a_rule_on_an_unknown_field(tmp_path, model):
    config = typed(tmp_path, model, {"by": "rules"})
    for field, said in ("colour", ["tasks.rules[0].field", "colour", '"task", "dataset", "images"']), ("dataset", ['field = "dataset"', "of no dataset"]):
        rules = f'tasks.rules=[{{name = "all", match = ".", field = "{field}"}}]'
        code, text = runs.finished([runs.PLIMSOLL, "train", "--config", config, "--set", rules])
        assert code == 2 and all(word in text for word in said), text
