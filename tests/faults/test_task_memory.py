"""Memory by type of samples: what was predicted for each, what it took, and what the report makes of it."""

import json
import subprocess

import pytest

import runs

BOUNDS = (0.05, 0.08, 0.10)  # of the mean relative error, for types of growing size


def with_one_two_three_pictures(folder, model, dataset, **changes):
    """The same recording three times, of which one, two and three pictures of a sample are used."""
    roles = ["a=observation.images.top", "b=observation.images.wrist", "c=observation.images.top"]
    data = {"synthetic_samples": 0, "cameras": ["a", "b", "c"]}
    path = runs.configure(folder, model, **{"data": data, "sensor": {"feature": "observation.force"}, "tasks": {"by": "images"}, "batch": {"effective": 10}, **changes})
    with path.open("a") as file:
        for count in 1, 2, 3:
            missing = [role.split("=")[0] for role in roles[count:]]
            entry = {"path": str(dataset), "name": f"{count} pictures", "cameras": roles[:count], "missing_cameras": missing}
            file.write("\n[[data.mix]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in entry.items()))
    return path


@pytest.mark.parametrize("changes", [
    {"batch": {"effective": 10, "micro": 1}, "memory": {"policy": "fixed"}},
    {"batch": {"effective": 10, "micro": 4}, "memory": {"policy": "fixed"}},
    {"batch": {"effective": 10, "packing": "bytes"}, "memory": {"policy": "predictive"}},
], ids=["alone", "mixed", "packed"])
def test_predictions_by_type(tmp_path, model, dataset, changes):
    config = with_one_two_three_pictures(tmp_path, model, dataset, train={"max_steps": 12, "checkpoint_every": 12}, **changes)
    run = runs.finish(config, 1)
    subprocess.run([runs.PLIMSOLL, "report", str(run)], check=True, capture_output=True)
    tasks = json.loads((run / "training_report.json").read_text())["tasks"]
    assert list(tasks) == ["1 image", "2 images", "3 images"]
    sizes = []
    for (name, task), bound in zip(tasks.items(), BOUNDS):
        memory = task["memory"]
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


def test_nothing_is_compared_without_types(tmp_path, model):
    run = runs.finish(runs.configure(tmp_path, model), 1)
    assert all(line["task_memory"] == {} for line in runs.metrics(run))
