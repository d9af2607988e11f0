"""Ranks that are killed or stop answering: the run goes on as if nothing had happened, or ends and says why."""

import os
import random
import signal
import time

import pytest

import runs

KILLS = 20 if runs.PROOFS else 3
SEED = 20


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


class Killer:
    """Kills one rank per call, each time at another kind of moment."""

    def __init__(self, run, folder, ranks):
        self.run, self.folder, self.ranks = run, folder, ranks
        self.random = random.Random(SEED)
        self.attempts = 1
        self.broken_writes = 0  # checkpoints that were being written when their writer died

    def newest(self):
        return max(runs.checkpoints(self.folder), default=0)

    def being_written(self):
        return list((self.folder / "checkpoints").glob(".step-*"))

    def wait_for_ranks(self):
        return self.run.until(lambda: len(self.run.ranks()) == self.ranks, "all ranks to be there")

    def strike(self, moment):
        """True when a rank was killed. Each time after a new checkpoint, so that three fruitless restarts cannot end the run."""
        self.wait_for_ranks()
        if moment != "start":
            before = self.newest()
            self.run.until(lambda: self.newest() > before, "a new checkpoint")
        if moment == "writing":
            alive, victim = self.run.ranks(), 0  # the writer; looked up before, since a write takes milliseconds
            self.run.until(self.being_written, "a checkpoint being written", pause=0.0005)
            time.sleep(self.random.uniform(0, 0.005))
        else:
            time.sleep(self.random.uniform(0, 0.5))
            alive, victim = self.run.ranks(), self.random.randrange(self.ranks)
        if victim not in alive or not kill(alive[victim]):
            return False
        # The next attempt makes the same name anew, and not before it has loaded its model.
        self.broken_writes += bool(self.being_written())
        self.attempts += 1
        self.run.until(lambda: alive[victim] not in self.run.ranks().values(), "the killed rank to be gone")
        self.run.until(lambda: f"restart {self.attempts - 1} of" in self.run.output(), "the restart")
        return True


def test_killed_ranks_leave_no_trace(tmp_path, model):
    steps = 30 * KILLS  # enough that a quick machine is not done before the last blow
    changes = {"train": {"max_steps": steps, "checkpoint_every": 1}, "launch": {"max_restarts": 100}, "memory": {"policy": "predictive"}}
    reference = runs.finish(runs.configure(tmp_path / "whole", model, **changes), 2, limit=runs.LIMIT + 30 * KILLS)
    config = runs.configure(tmp_path / "killed", model, **changes)
    folder = config.parent / "run"
    with runs.launch(config, 2) as run:
        killer = Killer(run, folder, 2)
        moments = ["writing", "start", "any"]
        for strike in range(KILLS):
            assert killer.strike(moments[strike % 3]), run.output()
        assert run.end(runs.LIMIT + 30 * KILLS) == 0, run.output()
    assert runs.exit_record(folder)["attempt"] == KILLS + 1
    assert killer.broken_writes > 0, "no kill met a checkpoint being written"
    runs.assert_same_training(folder, reference, steps)


def test_three_restarts_without_a_checkpoint_end_the_run(tmp_path, model):
    config = runs.configure(tmp_path, model, train={"max_steps": 5000, "checkpoint_every": 5000})
    with runs.launch(config, 2) as run:
        for attempt in range(4):
            if attempt > 0:
                run.until(lambda: f"restart {attempt} of" in run.output(), f"restart {attempt}")
            alive = run.until(run.ranks, f"a rank of attempt {attempt + 1}")
            assert kill(alive[min(alive)])
        assert run.end() == 5, run.output()
        assert "3 restarts in a row wrote no new checkpoint" in run.output()


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_stops_answering_is_named(tmp_path, model, victim):
    config = runs.configure(tmp_path, model, train={"max_steps": 5000, "checkpoint_every": 5000}, launch={"timeout": 3.0, "max_restarts": 0})
    with runs.launch(config, 2) as run:
        run.until(lambda: runs.steps_done(tmp_path / "run") >= 3, "three steps")
        os.kill(run.ranks()[victim], signal.SIGSTOP)
        assert run.end() == 5, run.output()
        assert f"behind: rank {victim} (pid " in run.output()
        assert "launch.max_restarts = 0 is used up" in run.output()
        assert not run.ranks()
