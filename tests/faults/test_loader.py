"""The loader that changes while a run goes on: what is trained stays the same, and what it came to is left for the next run."""

import re
import signal
import tomllib

import pytest

import runs


SHARE = 3  # samples of a step, six, by the ranks, two


def trained(folder, model, **data):
    """A run of 20 steps; (its folder, what it said)."""
    changes = {"data": {"synthetic_samples": 40, "synthetic_side": 112, **data}, "train": {"max_steps": 20, "checkpoint_every": 100}}
    config = runs.configure(folder, model, **changes)
    with runs.launch(config, 2) as run:
        assert run.end() == 0, run.output()
        return folder / "run", run.output()


def test_an_adaptive_loader_changes_nothing_that_is_learned(tmp_path, model):
    fixed, said = trained(tmp_path / "fixed", model, adaptive=False)
    assert "loader:" not in said
    adaptive, said = trained(tmp_path / "adaptive", model, adjust_every=2, most_workers=4)
    runs.assert_same_training(adaptive, fixed, 20)
    assert "loader: 1 thread, 2 steps ahead ->" in said, said
    assert "[loader] epoch ends in step" in said and "ahead | steps waited" in said, said
    memory = [int(percent) for percent in re.findall(r"host memory (\d+) %", said)]
    assert memory and all(0 <= percent <= 100 for percent in memory), "a share of the machine's"
    for folder in (fixed, adaptive):
        found = tomllib.loads((folder / "loader.toml").read_text())["data"]
        assert 1 <= found["workers"] <= 4 and found["prefetch"] >= 1


@pytest.mark.parametrize("size", [1 << 10, 4 << 20])
def test_a_loader_with_little_memory(tmp_path, model, size):
    """What a step needs is loaded whatever it takes; what is beyond waits for room, and the loader asks for less."""
    fixed, _ = trained(tmp_path / "fixed", model, adaptive=False)
    scarce, said = trained(tmp_path / "scarce", model, loader_bytes=f"{size >> 10}KiB", adjust_every=2, prefetch=6)
    runs.assert_same_training(scarce, fixed, 20)
    assert "memory" in said and "is above 80 %: less is loaded ahead" in said, said
    held, limit, sample = map(int, re.search(r"At most (\d+) bytes were held at once \(data.loader_bytes: (\d+)\), a sample being (\d+)",
                                             (scarce / "loader.toml").read_text()).groups())
    assert limit == size and sample > 0
    assert held <= limit + SHARE * sample, "no more than a step's samples above the limit, those in the making with them"


def test_a_loader_that_may_change_once(tmp_path, model):
    _, said = trained(tmp_path, model, loader_bytes="1KiB", adjust_every=2, prefetch=6, most_adjustments=1)
    assert "6 steps ahead -> 1 thread, 3 steps ahead" in said, said
    assert "-> 1 thread, 1 step ahead" not in said, said


def test_a_stopped_run_recommends_a_setting_too(tmp_path, model):
    """Its own, in place of what an earlier attempt left."""
    config = runs.configure(tmp_path, model, train={"max_steps": 400, "checkpoint_every": 1000})
    folder = tmp_path / "run"
    for more in ([], ["--resume"]):
        before = runs.steps_done(folder)
        with runs.launch(config, 2, *more) as run:
            run.until(lambda: runs.steps_done(folder) >= before + 2, "two steps more")
            run.process.send_signal(signal.SIGTERM)
            assert run.end() == 75, run.output()
        found = tomllib.loads((folder / "loader.toml").read_text())["data"]
        assert found["workers"] >= 1 and found["prefetch"] >= 1
        (folder / "loader.toml").write_text("of an earlier attempt")
