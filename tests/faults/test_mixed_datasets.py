"""Runs over several datasets of different layouts, and what is refused about them."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import damage
import runs

TRAIN = [runs.PLIMSOLL, "train"]
EACH = 5e-5  # of tensors whose gradients are nearly nothing, as in test_tasks.py


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


def mixed(folder, model, first, second, data=None, tables=None, weights=(), **changes):
    """A configuration over both, with weights if there are some; `changes` replace keys of the second one's entry."""
    data = {"synthetic_samples": 0, "cameras": ["front", "wrist"], "action_space": "delta", "delta_dimensions": [0, 1], **(data or {})}
    path = runs.configure(folder, model, data=data, sensor={"feature": "observation.force"}, **(tables or {}))
    entries = [{"path": str(first), "cameras": ["front=observation.images.top", "wrist=observation.images.wrist"]},
               {"path": str(second), "cameras": ["front=observation.images.top"], "missing_cameras": ["wrist"], "state_dimensions": [1, 0, 2], **changes}]
    for entry, weight in zip(entries, weights):
        entry["weight"] = weight
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


def test_weights_of_datasets(tmp_path, model, dataset, other):
    """Whatever their sizes, at every moment; types come as the datasets have them."""
    config = mixed(tmp_path, model, dataset, other, weights=(1, 3), tables={"tasks": {"by": "dataset", "target": "natural"}})
    lines = runs.metrics(runs.finish(config, 2))
    drawn = {"demo": 0, "other": 0}
    for number, line in enumerate(lines, 1):
        for name, part in ("demo", 0.25), ("other", 0.75):
            drawn[name] += line["task_counts"][name]
            assert abs(drawn[name] - part * 6 * number) < 1, (number, drawn)
    assert len(lines) == 8


def weighted(folder, model, first, second):
    """Types that both datasets have, and weights of these."""
    config = mixed(folder, model, first, second, weights=(1, 3), tables={"tasks": {"by": "rules", "target": [0.5, 0.5], "normalise": True}})
    append_tables(config, "tasks.rules", [{"name": "early", "field": "episode", "match": "^[0-4]$"}, {"name": "late", "match": "."}])
    return config


def test_a_weighted_run_is_the_same_on_all_ranks_and_resumes_on_others(tmp_path, model, dataset, other):
    whole = runs.finish(weighted(tmp_path / "1", model, dataset, other), 1)
    for line in runs.metrics(whole):
        assert line["task_counts"] == {"early": 3, "late": 3}
    for ranks in 2, 3:
        run = runs.finish(weighted(tmp_path / str(ranks), model, dataset, other), ranks)
        runs.assert_same_training(run, whole, 8, EACH)
    config, run = runs.copy_run(tmp_path / "1" / "config.toml", tmp_path / "again"), tmp_path / "again" / "run"
    for ranks in 2, 3, 1:
        shutil.rmtree(runs.checkpoints(run)[8])
        runs.finish(config, ranks, "--resume")
        runs.assert_same_training(run, whole, 8, EACH)
    config.write_text(config.read_text().replace("weight = 3", "weight = 2"))
    code, said = runs.finished([*TRAIN, "--config", config, "--resume"])
    assert code == 2 and "learn something else" in said, said


def with_columns(folder, source):
    """A copy with a column of texts and one of booleans: of row 1, 5, 9, ... and of row 0, 3, 6, ... of the dataset."""
    copy = folder / source.name
    shutil.copytree(source, copy)
    file = damage.parquet_of(copy)
    table = pq.read_table(file)
    rows = range(table.num_rows)
    table = table.append_column("scene", pa.array(["dusk, \u00e9" if row % 4 == 1 else "day" for row in rows]))
    pq.write_table(table.append_column("success", pa.array([row % 3 == 0 for row in rows])), file)
    features = {name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in (("scene", "string"), ("success", "bool"))}
    damage.edit_json(copy / "meta" / "info.json", lambda info: info["features"].update(features))
    return copy


def on_columns(folder, model, first, second, fields):
    tables = {"tasks": {"by": "rules", "target": "natural"}, "batch": {"effective": 5}, "train": {"max_steps": 13}}
    config = mixed(folder, model, first, second, tables=tables)
    rules = [{"name": field, "field": f"column:{field}", "match": match} for field, match in fields]
    append_tables(config, "tasks.rules", [*rules, {"name": "rest", "match": "."}])
    return config


def test_types_by_columns(tmp_path, model, dataset, other):
    """Of one epoch: 44 rows of the one dataset and 21 of the other, without their last episodes."""
    copies = [with_columns(tmp_path / "data", source) for source in (dataset, other)]
    run = runs.finish(on_columns(tmp_path, model, *copies, [("success", "^true$"), ("scene", "^dusk, \u00e9$")]), 2)
    expected = {"success": 0, "scene": 0, "rest": 0}
    for row in [*range(44), *range(21)]:
        expected["success" if row % 3 == 0 else "scene" if row % 4 == 1 else "rest"] += 1
    lines = runs.metrics(run)
    assert {name: sum(line["task_counts"][name] for line in lines) for name in expected} == expected


def test_a_column_that_does_not_fit(tmp_path, model, dataset, other):
    copy = with_columns(tmp_path / "data", dataset)
    for number, (field, words) in enumerate([
        ("scene", [f"{other}/data/chunk-000/file-000.parquet: column scene: is missing"]),
        ("action", [str(copy), "column action: has", "values a row"]),
        ("observation.images.top", [str(copy), "column observation.images.top: is a video"]),
    ]):
        config = on_columns(tmp_path / str(number), model, copy, other, [(field, ".")])
        code, said = runs.finished([*TRAIN, "--config", config, "--plan-only"])
        assert code == 4, said
        for word in words:
            assert word in said, said


@pytest.mark.parametrize("weights, said", [
    ("[1.0]", "data.weights has 1 numbers and data.path 2 datasets"),
    ("[1.0, 0.0]", "data.weights[1]"),
    ("[-1.0, 1.0]", "data.weights[0]"),
    ("[1.0, nan]", "data.weights"),
    ("often", "data.weights"),
])
def test_weights_of_paths_that_do_not_fit(tmp_path, model, dataset, other, weights, said):
    data = {"synthetic_samples": 0, "path": [str(dataset), str(other)]}
    config = runs.configure(tmp_path, model, data=data, sensor={"feature": "observation.force"})
    code, text = runs.finished([*TRAIN, "--config", config, "--plan-only", "--set", f"data.weights={weights}"])
    assert code == 2 and said in text, text


def test_weights_that_decide_nothing(tmp_path, model, dataset, other):
    config = mixed(tmp_path, model, dataset, other, weights=(1, 3), tables={"tasks": {"by": "dataset"}})
    code, said = runs.finished([*TRAIN, "--config", config, "--plan-only"])
    assert code == 2 and "decide nothing" in said and 'tasks.target = "natural"' in said, said
    config = mixed(tmp_path, model, dataset, other, data={"weights": [1.0, 3.0]})
    code, said = runs.finished([*TRAIN, "--config", config, "--plan-only"])
    assert code == 2 and "belongs to data.path" in said, said


@pytest.mark.parametrize("changes, words", [
    ({"missing_cameras": []}, ["wrist", "missing_cameras"]),
    ({"weight": 2}, ["data.mix[1].weight", "data.mix[0].weight", "every dataset a number"]),
    ({"weight": 0}, ["data.mix[1].weight = 0", "above 0"]),
    ({"weight": -1.5}, ["data.mix[1].weight = -1.5", "above 0"]),
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
