"""Memory by type of samples: what was predicted for each, what it took, and what the report makes of it."""

import json
import subprocess

import pytest

import runs
from test_planning_commands import planned

BOUNDS = (0.05, 0.08, 0.10)  # of the mean relative error, for types of growing size
APART = 0.10  # of a type's bytes a sample in company, from those among its own: what does not grow with samples is shared
NAMES = ["1 image", "2 images", "3 images"]
WAYS = {
    "alone": {"batch": {"effective": 10, "micro": 1}, "memory": {"policy": "fixed"}},
    "mixed": {"batch": {"effective": 10, "micro": 4}, "memory": {"policy": "fixed"}},
    "packed": {"batch": {"effective": 10, "packing": "bytes"}, "memory": {"policy": "predictive"}},
}


def with_pictures(folder, model, dataset, counts=(1, 2, 3), steps=12, **changes):
    """The same recording for each of `counts`, of which as many pictures of a sample are used."""
    roles = ["a=observation.images.top", "b=observation.images.wrist", "c=observation.images.top"]
    data = {"synthetic_samples": 0, "cameras": ["a", "b", "c"]}
    train = {"max_steps": steps, "checkpoint_every": steps}
    changes = {"sensor": {"feature": "observation.force"}, "tasks": {"by": "images"}, "train": train, **changes}
    path = runs.configure(folder, model, data=data, **changes)
    with path.open("a") as file:
        for count in counts:
            missing = [role.split("=")[0] for role in roles[count:]]
            entry = {"path": str(dataset), "name": f"{count} pictures", "cameras": roles[:count], "missing_cameras": missing}
            file.write("\n[[data.mix]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in entry.items()))
    return path


def memory_by_type(run):
    """Of the report that `plimsoll report` makes, by type."""
    subprocess.run([runs.PLIMSOLL, "report", str(run)], check=True, capture_output=True)
    return {name: task["memory"] for name, task in json.loads((run / "training_report.json").read_text())["tasks"].items()}


@pytest.fixture(scope="module")
def cut(tmp_path_factory, model, dataset):
    """By way of cutting a step: the run, and what its report says of each type."""
    done = {}
    for way, changes in WAYS.items():
        run = runs.finish(with_pictures(tmp_path_factory.mktemp(way), model, dataset, **changes), 1)
        done[way] = run, memory_by_type(run)
    return done


@pytest.mark.parametrize("way", WAYS)
def test_predictions_by_type(cut, way):
    run, types = cut[way]
    assert list(types) == NAMES
    sizes = []
    for (name, memory), bound in zip(types.items(), BOUNDS):
        assert memory["samples"] >= 10, (name, memory)
        assert memory["mean_relative_error"] < bound, (name, memory)
        assert memory["predicted_a_sample"] == pytest.approx(memory["measured_a_sample"], rel=bound)
        sizes.append(memory["measured_a_sample"])
    assert sizes == sorted(sizes) and sizes[0] < sizes[2], sizes
    # A step's own peak is still the largest of its micro-batches'.
    for line in runs.metrics(run):
        measured = max((one["measured"] / one["micro_batches"] for one in line["task_memory"].values()), default=0)
        assert line["memory"][0]["peak"] > measured
    assert "activations a sample" in (run / "report.html").read_text()
    steps = json.loads((run / "batch_metrics.json").read_text())
    of = lambda entry: {name: (memory["samples"], memory["measured"]) for name, memory in entry["task_memory"].items()}
    assert [of(step) for step in steps] == [of(line) for line in runs.metrics(run)] and any(of(step) for step in steps)


def test_an_estimate_knows_a_sample_of_each_type(tmp_path, model, dataset):
    """`plan --estimate` says what the heaviest sample of a type needs alone: what was measured of the heaviest in steps of one sample,
    so many that every sample was in one."""
    steps = 160
    config = with_pictures(tmp_path, model, dataset, steps=steps, batch={"effective": 1, "micro": 1}, memory={"policy": "fixed"})
    words = ["--config", config, "--device", "cpu", "--budget", "300MiB", "--overhead", "0", "--no-table", "--estimate"]
    types = planned(*words)["types"]
    measured = {}
    for line in runs.metrics(runs.finish(config, 1)):
        for name, memory in line["task_memory"].items():
            measured.setdefault(name, []).extend([memory["measured"]] * memory["samples"])
    assert [type["name"] for type in types] == sorted(measured) == NAMES
    for type in types:
        assert len(measured[type["name"]]) >= type["samples"], "or the heaviest may be missing"
        assert max(measured[type["name"]]) == pytest.approx(type["sample_bytes"], rel=5e-3), type


def test_a_type_takes_in_company_what_it_takes_among_its_own(cut, tmp_path, model, dataset):
    """What a mixed micro-batch is split into is of the types themselves: predicted and measured for a type there are near what runs
    of nothing else measure, which no split by the wrong weight would be."""
    for count, name in enumerate(NAMES, 1):
        config = with_pictures(tmp_path / str(count), model, dataset, [count], steps=4, **WAYS["mixed"])
        own = memory_by_type(runs.finish(config, 1))[name]
        assert own["samples"] >= 10, own
        for way in "mixed", "packed":
            _, types = cut[way]
            for key in "predicted_a_sample", "measured_a_sample":
                assert types[name][key] == pytest.approx(own["measured_a_sample"], rel=APART), (way, name, types[name], own)


def test_memory_is_of_all_ranks(tmp_path, model, dataset):
    """Each of two ranks has half of a step's samples; more than that many were compared, and never more than there were."""
    run = runs.finish(with_pictures(tmp_path, model, dataset, **WAYS["mixed"]), 2)
    compared = []
    for line in runs.metrics(run):
        for name, memory in line["task_memory"].items():
            assert memory["samples"] <= line["task_counts"][name], (line["step"], name)
        compared.append(sum(memory["samples"] for memory in line["task_memory"].values()))
    assert max(compared) == 10, compared
    for (name, memory), bound in zip(memory_by_type(run).items(), BOUNDS):
        assert memory["mean_relative_error"] < bound, (name, memory)


def test_nothing_is_compared_without_types(tmp_path, model):
    run = runs.finish(runs.configure(tmp_path, model), 1)
    assert all(line["task_memory"] == {} for line in runs.metrics(run))
