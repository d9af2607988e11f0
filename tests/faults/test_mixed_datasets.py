"""Runs over several datasets of different layouts, and what is refused about them."""

import json
import shutil

import pytest

import runs

TRAIN = [runs.PLIMSOLL, "train"]


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another recording of the demo's robot, of which the tests use one camera, and the state in another order."""
    folder = tmp_path_factory.mktemp("data") / "other"
    code, text = runs.finished([runs.PLIMSOLL, "demo-data", "--episodes", 8, "--frames-per-episode", 3, "--seed", 5, "--out", folder])
    assert code == 0, text
    return folder


def append_tables(path, name, entries):
    with path.open("a") as file:
        for entry in entries:
            file.write(f"\n[[{name}]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in entry.items()))


def mixed(folder, model, first, second, data=None, tables=None, **changes):
    """A configuration over both; `changes` replace keys of the second one's entry."""
    data = {"synthetic_samples": 0, "cameras": ["front", "wrist"], "action_space": "delta", "delta_dimensions": [0, 1], **(data or {})}
    path = runs.configure(folder, model, data=data, sensor={"feature": "observation.force"}, **(tables or {}))
    entries = [{"path": str(first), "cameras": ["front=observation.images.top", "wrist=observation.images.wrist"]},
               {"path": str(second), "cameras": ["front=observation.images.top"], "missing_cameras": ["wrist"], "state_dimensions": [1, 0, 2], **changes}]
    append_tables(path, "data.mix", entries)
    return path


def test_a_run_over_two_datasets_resumes(tmp_path, model, dataset, other):
    whole = runs.finish(mixed(tmp_path / "whole", model, dataset, other), 2)
    config = mixed(tmp_path / "parts", model, dataset, other)
    runs.finish(config, 2)
    runs.assert_same_training(tmp_path / "parts" / "run", whole, 8)
    shutil.rmtree(runs.checkpoints(tmp_path / "parts" / "run")[8])
    moved = tmp_path / "moved"
    shutil.copytree(other, moved)
    text = config.read_text()
    config.write_text(text.replace(str(other), str(moved)))
    runs.finish(config, 2, "--resume")
    runs.assert_same_training(tmp_path / "parts" / "run", whole, 8)
    config.write_text(text.replace('action_space = "delta"', 'action_space = "absolute"'))
    code, said = runs.finished([*TRAIN, "--config", config, "--resume"])
    assert code == 2 and "learn something else" in said, said


@pytest.mark.parametrize("by, names, target", [
    ("dataset", ["demo", "other"], [0.7, 0.3]),
    ("images", ["1 image", "2 images"], [0.3, 0.7]),
    ("rules", ["second", "rest"], [0.3, 0.7]),
])
def test_types_of_samples(tmp_path, model, dataset, other, by, names, target):
    """Each dataset's samples have their part of the draws, also by how many pictures they have and by a rule on the dataset's name."""
    config = mixed(tmp_path, model, dataset, other, tables={"tasks": {"by": by, "target": target, "weights": [1.0, 0.5]}})
    if by == "rules":
        append_tables(config, "tasks.rules", [{"name": "second", "field": "dataset", "match": "^other$"}, {"name": "rest", "match": ".*"}])
    lines = runs.metrics(runs.finish(config, 2))
    assert len(lines) == 8
    drawn = dict.fromkeys(names, 0)
    for number, line in enumerate(lines, 1):
        counts, losses = line["task_counts"], line["task_losses"]
        assert list(counts) == names and sum(counts.values()) == 6
        assert list(losses) == [name for name in names if counts[name] > 0]
        assert sum(losses[name] * counts[name] for name in losses) / 6 == pytest.approx(line["loss"], rel=1e-5), "whatever they weigh"
        for name, part in zip(names, target):
            drawn[name] += counts[name]
            assert abs(drawn[name] - part * 6 * number) < 1, (number, drawn)


@pytest.mark.parametrize("changes, words", [
    ({"missing_cameras": []}, ["wrist", "missing_cameras"]),
    ({"cameras": ["side=observation.images.top"]}, ["side=", "front, wrist"]),
    ({"state_dimensions": [0, 1, 7]}, ["state_dimensions has 7", "0 to 2"]),
    ({"path": ""}, ["data.mix[1].path"]),
    ({"camera": []}, ["data.mix[1].camera", "data.mix[1].cameras"]),
])
def test_a_mapping_that_does_not_fit(tmp_path, model, dataset, other, changes, words):
    code, said = runs.finished([*TRAIN, "--config", mixed(tmp_path, model, dataset, other, **changes), "--plan-only"])
    assert code == 2, said
    for word in ["data.mix[1]", *words]:
        assert word in said, said


def test_datasets_that_differ_in_width(tmp_path, model, dataset, other):
    code, said = runs.finished([*TRAIN, "--config", mixed(tmp_path, model, dataset, other, state_dimensions=[0, 1]), "--plan-only"])
    assert code == 4, said
    assert "state has 2 values, but 3" in said and str(other) in said, said


def test_a_path_beside_a_mix(tmp_path, model, dataset, other):
    config = mixed(tmp_path, model, dataset, other, data={"path": str(dataset)})
    code, said = runs.finished([*TRAIN, "--config", config, "--plan-only"])
    assert code == 2 and "data.path" in said and "data.mix" in said, said
