"""A GPU that is lost in the middle of a step: the checkpoint is kept, and the run goes on from it. The GPU is made up
(lost_gpu.cpp)."""

import pytest

import runs

LOST_GPU = runs.PLIMSOLL.parent / "lost_gpu"


def losing(rank, step, *command):
    return ["env", f"PLIMSOLL_LOSE_GPU={rank} {step}", LOST_GPU, *command]


@pytest.mark.parametrize("ranks", [1, 2])
def test_launch_goes_on_from_the_checkpoint(tmp_path, model, short, ranks):
    config = runs.configure(tmp_path, model)
    lost = ranks - 1
    with runs.Run(losing(lost, 4, "launch", "-n", ranks, "--config", config), tmp_path) as run:
        assert run.end() == 0, run.output()
    text = run.output()
    said = f"rank {lost}: the GPU failed: CUDA error: unspecified launch failure; restart from the last checkpoint"
    assert said in text, text
    assert "restart 1 of" in text and "from step 2" in text and "restart 2 of" not in text
    assert runs.exit_record(tmp_path / "run")["attempt"] == 2
    runs.assert_same_training(tmp_path / "run", short.parent / "run", 8)


def test_a_rank_alone_ends_with_5_and_can_be_resumed(tmp_path, model, short):
    config = runs.configure(tmp_path, model)
    code, text = runs.finished(losing(0, 6, "train", "--config", config))
    assert code == 5, text
    assert "rank 0: the GPU failed" in text and "--resume" in text and "nvidia-smi" in text, text
    assert "internal error" not in text and "Exception raised from" not in text, text
    assert not (tmp_path / "run" / "exit.json").exists()
    assert max(runs.checkpoints(tmp_path / "run")) == 4
    runs.finish(config, 1, "--resume")
    runs.assert_same_training(tmp_path / "run", short.parent / "run", 8)


def test_a_run_that_may_not_restart_keeps_its_checkpoint(tmp_path, model):
    config = runs.configure(tmp_path, model)
    command = losing(1, 3, "launch", "-n", 2, "--config", config, "--set", "launch.max_restarts=0")
    with runs.Run(command, tmp_path) as run:
        assert run.end() == 5, run.output()
    assert "launch.max_restarts = 0 is used up" in run.output()
    assert max(runs.checkpoints(tmp_path / "run")) == 2
