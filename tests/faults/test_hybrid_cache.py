"""cache.mode = "hybrid" in real runs: rebuilt by all ranks in the same step, and the same after whatever happened."""

import random
import signal
import struct

import pytest

import runs

BATCH = 7
CACHE = {"mode": "hybrid", "live_fraction": 0.25, "rebuild_epochs": 2, "drift_every": 3, "drift_bound": 0, "probe_samples": 8}


def hybrid(folder, model, steps, cache=(), **changes):
    train = {"max_steps": steps, "checkpoint_every": 4}
    # Seven samples a step of 36: epochs end within steps.
    return runs.configure(folder, model, **{"train": train, "batch": {"effective": BATCH}, "cache": {**CACHE, "dir": str(folder / "cache"), **dict(cache)}, **changes})


def decisions(run):
    """(step, what, reason) of those about the cache."""
    return [(line["step"], line["cache"], line["reason"]) for line in runs.lines(run / "decisions.jsonl") if "cache" in line]


def records(folder):
    """{rank: [(sample, stamp)]} of all segments, by docs/cache-format.md."""
    found = {}
    for path in sorted(folder.rglob("*.segment")):
        rank = int(path.name.split("-rank")[1].split("-")[0])
        content, at = path.read_bytes(), 64
        while at + 64 <= len(content):
            magic, kept, sample, stamp, rows, width = struct.unpack_from("<4sI q q I I", content, at)
            assert magic == b"PLCF"
            found.setdefault(rank, []).append((sample, stamp))
            at += 64 + (rows * width * {1: 2, 2: 4}[kept] + 63) // 64 * 64
    return found


def test_ten_epochs_on_four_ranks_rebuild_at_the_fifth(tmp_path, model):
    config = hybrid(tmp_path, model, 51, {"rebuild_epochs": 5, "drift_every": 0}, train={"max_steps": 51, "checkpoint_every": 51})
    run = runs.finish(config, 4)
    assert [(step, what) for step, what, _ in decisions(run)] == [(26, "rebuild"), (26, "rebuilt")]  # 26 x 7 > 5 x 36
    made = records(tmp_path / "cache")
    assert sorted(made) == [0, 1, 2, 3]
    rebuilt = {rank: sorted(sample for sample, stamp in made[rank] if stamp == 52) for rank in made}
    assert all(len(samples) == 9 for samples in rebuilt.values()), rebuilt
    assert len(set(sum(rebuilt.values(), []))) == 36, "each sample by one rank"
    live = [line["live"] for line in runs.metrics(run)]
    assert live[:5] == [7] * 5 and set(live[6:]) <= {1, 2}, live


def test_drift_rebuilds_earlier(tmp_path, model):
    config = hybrid(tmp_path, model, 24, {"rebuild_epochs": 5, "drift_bound": 1e-6, "drift_every": 4}, train={"max_steps": 24, "checkpoint_every": 24, "vl_lr": 0.01, "warmup_steps": 0})
    run = runs.finish(config, 2)
    found = decisions(run)
    assert found and found[0][0] < 26, found
    lines = runs.lines(run / "cache.jsonl")
    drifts = [line for line in lines if line["what"] == "drift"]
    assert drifts[0]["step"] == 9 and drifts[0]["probed"] == 8, "looked at after the eighth: after the fourth nothing was known"
    assert all(0 <= line["drift"] <= 1 and -1 <= line["cosine"] <= 1 for line in drifts) and any(line["drift"] > 0 for line in drifts), drifts
    assert any(line["age"] and line["age"] > 0 for line in lines if line["what"] == "use"), lines
    assert "cache.drift_bound" in found[0][2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("whole")
    run = runs.finish(hybrid(folder, model, 32), 2)
    assert [what for _, what, _ in decisions(run)] == ["rebuild", "rebuilt"] * 3
    return run


def test_stopped_and_resumed_at_other_world_sizes(tmp_path, model, whole):
    config = hybrid(tmp_path, model, 32)
    folder = tmp_path / "run"
    for ranks, step in (1, 3), (3, 13), (2, 22):
        with runs.launch(config, ranks, *(["--resume"] if step > 3 else [])) as run:
            run.until(lambda at=step: runs.steps_done(folder) >= at, f"step {step}")
            run.process.send_signal(signal.SIGTERM)
            assert run.end() == 75, run.output()
    runs.finish(config, 4, "--resume")
    runs.assert_same_training(folder, whole, 32)
    assert [line[:2] for line in decisions(folder)] == [line[:2] for line in decisions(whole)]


@pytest.mark.parametrize("over, epochs, moments", [(0, 2, 15), (4, 2, 15), (5, 1, 50)], ids=["at once", "spread", "always rebuilding"])
def test_ranks_killed_at_any_moment(tmp_path, model, over, epochs, moments):
    cache = {"rebuild_over": over, "rebuild_epochs": epochs}
    expected = runs.finish(hybrid(tmp_path / "whole", model, 26, cache), 2)
    assert len(decisions(expected)) >= 4
    if epochs == 1:  # nearly every step is within a rebuild, and every epoch's end but the first
        steps = [step for step, _, _ in decisions(expected)]
        assert sum(end - begin for begin, end in zip(steps[::2], steps[1::2])) >= 13, steps
    moments = moments if runs.PROOFS else 3
    write = lambda number: hybrid(tmp_path / f"killed-{number}", model, 26, cache)

    def nothing_is_damaged(folder):
        if (folder.parent / "cache").exists():
            code, text = runs.finished([runs.PLIMSOLL, "cache", "verify", folder.parent / "cache"])
            assert code == 0, text

    for folder in runs.killed_at_random_moments(write, 2, 26, moments, random.Random(5 + over), 0.8, after=nothing_is_damaged):
        runs.assert_same_training(folder, expected, 26)
        assert [line[:2] for line in decisions(folder)] == [line[:2] for line in decisions(expected)]
