"""A policy in closed loop at the demo's table (`plimsoll eval`): by the program itself, trained for a moment."""

import json
import pathlib
import re
import shutil
import subprocess

import pytest

import runs
from test_bad_input import refused
from test_mixed_datasets import mixed

EVAL = [runs.PLIMSOLL, "eval"]
PNG = b"\x89PNG\r\n\x1a\n"


def train(config):
    """Its 8 steps. Returns the run's folder."""
    code, text = runs.finished([runs.PLIMSOLL, "train", "--config", config])
    assert code == 0, text
    return config.parent / "run"


def trained_as(kind, folder, model, dataset):
    """A run on the demo's data whose expert is of this kind: its configuration."""
    config = runs.configure(folder, model, data={"synthetic_samples": 0, "path": [str(dataset)]}, sensor={"feature": "observation.force"},
                            expert={"kind": kind, "sampling_steps": 4})
    train(config)
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory, model, dataset):
    return trained_as("flow", tmp_path_factory.mktemp("trained"), model, dataset)


@pytest.fixture(scope="module")
def denoising(tmp_path_factory, model, dataset):
    """The same with the diffusion head, which DDIM samples from."""
    return trained_as("ddpm", tmp_path_factory.mktemp("denoising"), model, dataset)


@pytest.fixture
def run(trained):
    return trained.parent / "run"


def evaluated(*options):
    """What `plimsoll eval --json` says: standard output is JSON and nothing else."""
    command = [str(word) for word in [*EVAL, *options, "--json"]]
    result = subprocess.run(command, capture_output=True, text=True, env=runs.ENVIRONMENT, timeout=runs.LIMIT)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def terms(report):
    return {key: value for key, value in report.items() if key != "seconds"}


def check_sums(report):
    outcomes = report["outcomes"]
    assert report["episodes"] == len(outcomes) == sum(task["episodes"] for task in report["tasks"].values())
    assert report["successes"] == sum(outcome["success"] for outcome in outcomes)
    assert report["success_rate"] == pytest.approx(report["successes"] / report["episodes"])
    assert report["mean_steps"] == pytest.approx(sum(outcome["steps"] for outcome in outcomes) / len(outcomes))
    low, high = report["interval"]
    assert 0 <= low <= report["success_rate"] <= high <= 1 and low < high


@pytest.mark.parametrize("head", ["trained", "denoising"], ids=["flow", "ddpm"])
def test_a_trained_policy(request, head):
    run = request.getfixturevalue(head).parent / "run"
    report = evaluated("--run", run, "--episodes", 6, "--max-steps", 6)
    assert report["policy"] == "checkpoint" and report["step"] == 8
    assert report["checkpoint"] == str(run / "checkpoints" / "step-8")
    assert report["chunk"] == 4 and report["replan"] == 2 and report["ensemble"] is None and report["difficulty"] == "fixed"
    check_sums(report)
    assert all(outcome["scene"] >= 2**32 for outcome in report["outcomes"]), "no scene of any dataset"
    assert terms(evaluated("--run", run, "--episodes", 6, "--max-steps", 6)) == terms(report), "the same again"
    one_by_one = evaluated("--run", run, "--episodes", 6, "--max-steps", 6, "--at-once", 1)
    assert one_by_one["outcomes"] == report["outcomes"]
    assert evaluated("--run", run, "--episodes", 2, "--max-steps", 4, "--sampling-steps", 7)["episodes"] == 2


@pytest.mark.parametrize("options", [[], ["--ensemble"], ["--replan", 4]], ids=["chunks", "ensemble", "whole-chunks"])
def test_outcomes_do_not_depend_on_how_many_run_at_once(run, options):
    reports = [evaluated("--run", run, "--episodes", 7, "--max-steps", 6, "--at-once", count, *options) for count in (1, 3, 16)]
    assert reports[0]["outcomes"] == reports[1]["outcomes"] == reports[2]["outcomes"]


def test_the_expert_is_the_upper_bound(run, dataset):
    report = evaluated("--run", run, "--expert", "--episodes", 100)
    check_sums(report)
    assert report["successes"] >= 98 and report["checkpoint"] is None and report["chunk"] == 1
    assert len(report["tasks"]) == 4
    assert all(task["episodes"] >= 10 for task in report["tasks"].values())
    harder = evaluated("--run", run, "--expert", "--episodes", 100, "--difficulty", "anywhere")
    assert harder["successes"] >= 98 and harder["difficulty"] == "anywhere"
    other = evaluated("--run", run, "--expert", "--episodes", 100, "--seed", 1)
    assert other["outcomes"] != report["outcomes"]


def test_all_policies_meet_the_same_scenes(trained, run):
    reports = [evaluated("--config", trained, "--episodes", 12, "--max-steps", 6, *policy)
               for policy in ([], ["--untrained"], ["--constant"], ["--expert"])]
    scenes = [[(outcome["scene"], outcome["task"]) for outcome in report["outcomes"]] for report in reports]
    assert scenes[0] == scenes[1] == scenes[2] == scenes[3]
    assert [report["policy"] for report in reports] == ["checkpoint", "untrained", "constant", "expert"]
    assert [report["step"] for report in reports] == [8, None, None, None]
    assert reports[2]["successes"] == 0, "the mean action never closes the gripper"


def test_the_newest_checkpoint_is_the_one_of_the_highest_step(trained, tmp_path):
    """By number: by name step-10 comes before step-8."""
    copy = runs.copy_run(trained, tmp_path / "copy").parent / "run"
    shutil.copytree(copy / "checkpoints" / "step-8", copy / "checkpoints" / "step-10")
    words = ["--episodes", 1, "--max-steps", 1]
    assert evaluated("--run", copy, *words)["checkpoint"].endswith("step-10")
    # As tools/example.py does with its control: one run's configuration, another one's weights.
    report = evaluated("--config", trained, "--set", f'run.dir="{copy}"', *words)
    assert report["checkpoint"] == str(copy / "checkpoints" / "step-10")


def test_a_constant_action(trained):
    """Slowly to one side with the gripper closed: over a pad now and then, and long enough on it."""
    words = ["--config", trained, "--episodes", 200, "--difficulty", "permuted"]
    mean = evaluated(*words, "--constant")
    assert mean["successes"] == 0 and mean["constant"] == evaluated(*words, "--constant=mean")["constant"]
    assert len(mean["constant"]) == 3 and 0 <= mean["constant"][2] < 0.5
    slow = evaluated(*words, "--constant=0.0,-0.3,1")
    check_sums(slow)
    assert slow["policy"] == "constant" and slow["constant"] == [0, -0.3, 1] and slow["chunk"] == 1
    assert 0 < slow["successes"] < 60, "a pad is a tenth of the table, and one of four is the named one"
    assert evaluated(*words, "--constant=0,-0.3,0")["successes"] == 0, "open"
    assert [outcome["scene"] for outcome in slow["outcomes"]] == [outcome["scene"] for outcome in mean["outcomes"]]


def test_the_action_error_is_that_of_training(trained, tmp_path):
    config = tmp_path / "config.toml"
    config.write_text(trained.read_text().replace("[train]", "[train]\neval_samples = 4"))
    run = tmp_path / "run"
    code, text = runs.finished([runs.PLIMSOLL, "train", "--config", config, "--set", f"run.dir={run}"])
    assert code == 0, text
    lines = re.findall(r"error at the (start|end): ([0-9.]+) \(best constant action ([0-9.]+)\)", text)
    printed = {when: (float(error), float(constant)) for when, error, constant in lines}
    for when, options in ("end", []), ("start", ["--untrained"]):
        error = evaluated("--run", run, "--episodes", 1, "--max-steps", 1, "--held-out", 4, *options)["action_error"]
        assert error["samples"] == 4 and error["episodes"] == 1 and error["margin"] == 0
        assert (error["error"], error["best_constant"]) == pytest.approx(printed[when], abs=2e-4)
    assert evaluated("--run", run, "--episodes", 1, "--max-steps", 1)["action_error"] is None


def test_the_action_error_is_known_as_well_as_episodes_are_many(trained):
    """Of 24 samples of six episodes."""
    words = ["--config", trained, "--untrained", "--set", "data.eval_fraction=0.5", "--episodes", 1, "--max-steps", 1]
    some, all_of_them = (evaluated(*words, "--held-out", count)["action_error"] for count in (12, 1000))
    assert (some["samples"], some["episodes"]) == (12, 6) and (all_of_them["samples"], all_of_them["episodes"]) == (24, 6)
    for error in some, all_of_them:
        assert 0 < error["margin"] < error["error"] and 0 < error["best_constant_margin"] < error["best_constant"]
    code, text = runs.finished([*EVAL, *words, "--held-out", 12])
    assert code == 0 and "held-out action error: " in text and "12 samples of 6 episodes" in text, text


def test_it_needs_neither_model_nor_checkpoint_for_expert_and_constant(trained, tmp_path):
    for policy in ("--expert", "--constant"):
        report = evaluated("--config", trained, policy, "--episodes", 4, "--set", f"model.path={tmp_path}/none", "--set", f"run.dir={tmp_path}/none")
        assert report["episodes"] == 4


def test_the_difficulty_is_that_of_the_dataset(trained, tmp_path):
    code, text = runs.finished([runs.PLIMSOLL, "demo-data", "--episodes", 3, "--difficulty", "permuted", "--out", tmp_path / "data"])
    assert code == 0, text
    record = json.loads((tmp_path / "data" / "meta" / "tabletop.json").read_text())
    assert record["difficulty"] == "permuted" and record["heavy_fraction"] == 0.1
    set_path = ["--set", f'data.path=["{tmp_path}/data"]']
    assert evaluated("--config", trained, *set_path, "--expert", "--episodes", 3)["difficulty"] == "permuted"
    # A dataset of before the record was written.
    (tmp_path / "data" / "meta" / "tabletop.json").unlink()
    assert evaluated("--config", trained, *set_path, "--expert", "--episodes", 3)["difficulty"] == "fixed"


def test_of_several_datasets_the_first_one_counts(tmp_path, model, dataset):
    """They are of different difficulties, by which it shows whose table it is."""
    other = tmp_path / "other"
    code, text = runs.finished([runs.PLIMSOLL, "demo-data", "--episodes", 4, "--frames-per-episode", 3, "--seed", 5, "--difficulty", "permuted", "--out", other])
    assert code == 0, text
    config = mixed(tmp_path / "mix", model, dataset, other)
    report = evaluated("--run", train(config), "--episodes", 3, "--max-steps", 4)
    check_sums(report)
    assert report["policy"] == "checkpoint" and report["step"] == 8 and report["difficulty"] == "fixed"
    swapped = mixed(tmp_path / "swapped", model, other, dataset)
    for policy in ("--untrained", "--constant", "--expert"):
        assert evaluated("--config", swapped, policy, "--episodes", 2, "--max-steps", 4)["difficulty"] == "permuted"
    refused([*EVAL, "--config", swapped, "--set", f'data.path=["{dataset}"]', "--expert"], 2, "data.path", "data.mix", "one of them")
    text = swapped.read_text().replace(f'path = "{other}"', f'path = "{other}"\naction_dimensions = [1, 0, 2]')
    swapped.write_text(text)
    refused([*EVAL, "--config", swapped, "--constant"], 2, "data.mix[0].action_dimensions", "[1, 0, 2]", "all 3 dimensions")


def test_pictures_and_a_table(run, tmp_path):
    out = tmp_path / "new" / "out"
    code, text = runs.finished([*EVAL, "--run", run, "--episodes", 4, "--max-steps", 5, "--pictures", 2, "--out", out])
    assert code == 0, text
    assert "95 % confidence" in text and "move to the" in text and "step-8 (step 8)" in text and str(out) in text
    assert (out / "episodes.png").read_bytes().startswith(PNG)
    assert b"ftyp" in (out / "episodes.mp4").read_bytes()[:16]
    assert json.loads((out / "eval.json").read_text())["episodes"] == 4
    assert sorted(path.name for path in out.iterdir()) == ["episodes.mp4", "episodes.png", "eval.json"]


# --- bad input ---

@pytest.mark.parametrize("options, words", [
    (["--episodes", "0"], ["--episodes", "0"]),
    (["--difficulty", "hard"], ["difficulty", "hard", "anywhere"]),
    (["--replan", "5"], ["--replan 5", "4 actions", "expert.chunk"]),
    (["--ensemble=-1"], ["--ensemble", "-1"]),
    (["--untrained", "--expert"], ["--untrained", "--expert"]),
    (["--expert", "--replan", "2"], ["--replan", "--expert"]),
    (["--constant", "--ensemble"], ["--ensemble", "--constant"]),
    (["--constant=0.1,0.2"], ["--constant", "0.1,0.2", "three numbers"]),
    (["--constant=0.1,0.2,1,0"], ["--constant", "0.1,0.2,1,0", "three numbers"]),
    (["--constant=0.1,fast,1"], ["--constant", "0.1,fast,1", "three numbers"]),
    (["--constant=0.1,nan,1"], ["--constant", "0.1,nan,1", "from -1 to 1"]),
    (["--constant=0.1,-2,1"], ["--constant", "0.1,-2,1", "from -1 to 1"]),
    (["--constant=0.1,0.2,-1"], ["--constant", "0.1,0.2,-1", "CLOSE from 0 to 1"]),
    (["--constant=0.1,0.2,"], ["--constant", "three numbers"]),
    (["--held-out=-1"], ["--held-out", "-1"]),
    (["--constant", "--held-out", "4"], ["--held-out", "--constant"]),
    (["--untrained", "--set", "data.eval_fraction=0.0", "--held-out", "4"], ["--held-out 4", "data.eval_fraction"]),
    (["--set", "train.max_step=3"], ["train.max_step"]),
    (["--set", "data.path=[]"], ["data.path", "data.mix"]),
], ids=lambda value: " ".join(value))
def test_options(run, options, words):
    refused([*EVAL, "--run", run, *options], 2, *words)


def test_neither_run_nor_configuration():
    refused(EVAL, 2, "--run", "--config")


def test_both_run_and_configuration(trained, run):
    refused([*EVAL, "--run", run, "--config", trained], 2, "--run", "--config", "one of them")


def test_a_folder_that_is_no_run(tmp_path):
    refused([*EVAL, "--run", tmp_path], 2, str(tmp_path / "config.toml"))


def test_a_run_without_a_checkpoint(trained, tmp_path):
    refused([*EVAL, "--config", trained, "--set", f"run.dir={tmp_path}"], 6, str(tmp_path / "checkpoints"), "no complete checkpoint")


def test_a_checkpoint_that_is_not_there(run, tmp_path):
    refused([*EVAL, "--run", run, "--checkpoint", tmp_path / "none"], 6, str(tmp_path / "none"))


def test_a_checkpoint_of_other_settings(run):
    refused([*EVAL, "--run", run, "--set", "train.lr=0.5"], 2, "step-8", "learn something else")


def test_a_checkpoint_of_another_model(run):
    refused([*EVAL, "--run", run, "--set", "expert.width=64"], 6, "trainable.safetensors", "another model")


def test_a_damaged_checkpoint(trained, tmp_path):
    copy = runs.copy_run(trained, tmp_path / "copy").parent / "run"
    with (copy / "checkpoints" / "step-8" / "trainable.safetensors").open("ab") as file:
        file.write(b"\0")
    refused([*EVAL, "--run", copy], 6, "trainable.safetensors", "changed since it was written")


def test_made_up_samples(trained):
    refused([*EVAL, "--config", trained, "--set", "data.synthetic_samples=8"], 2, "data.synthetic_samples")


def test_a_dataset_of_another_robot(trained, dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "data")
    info = pathlib.Path(tmp_path / "data" / "meta" / "info.json")
    text = json.loads(info.read_text())
    text["features"]["action"]["shape"] = [7]
    info.write_text(json.dumps(text))
    for policy in ([], ["--expert"]):
        refused([*EVAL, "--config", trained, "--set", f'data.path=["{tmp_path}/data"]', *policy], 4, str(info), '"action"', "[7]")


def test_a_folder_that_cannot_be_made(run, tmp_path):
    (tmp_path / "file").write_text("in the way")
    refused([*EVAL, "--run", run, "--expert", "--episodes", 2, "--out", tmp_path / "file" / "out"], 2, "--out")
