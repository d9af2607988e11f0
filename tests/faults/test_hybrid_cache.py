"""cache.mode = "hybrid" in real runs: rebuilt by all ranks in the same step, and the same after whatever happened."""

import itertools
import random
import re
import shutil
import signal
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import runs
from test_feature_cache import stat

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


def looks(run):
    """Lines of cache.jsonl about the probe samples."""
    return [line for line in runs.lines(run / "cache.jsonl") if line["what"] == "drift"]


def assert_rebuilt_by_four_ranks(run, steps):
    """Every rank made its quarter after these steps and nothing after any other: stamps of evaluation mode are even."""
    made = records(run.parent / "cache")
    assert sorted(made) == [0, 1, 2, 3]
    assert {stamp for rank in made for _, stamp in made[rank] if stamp % 2 == 0} == {2 * step for step in steps}
    for step in steps:
        rebuilt = {rank: [sample for sample, stamp in made[rank] if stamp == 2 * step] for rank in made}
        assert all(len(samples) == 9 for samples in rebuilt.values()), rebuilt
        assert len(set(sum(rebuilt.values(), []))) == 36, "each sample by one rank"


# No dropout: what the features of the probe samples are away from fresh ones, the adapters have moved.
STEPS_OF_TEN_EPOCHS = 52  # of 7 samples of 36
MOVING = {"train": {"max_steps": STEPS_OF_TEN_EPOCHS, "checkpoint_every": STEPS_OF_TEN_EPOCHS, "vl_lr": 0.001, "warmup_steps": 0}, "lora": {"dropout": 0.0}}


def moving(folder, model, drift_bound):
    return hybrid(folder, model, STEPS_OF_TEN_EPOCHS, {"rebuild_epochs": 5, "drift_every": 4, "drift_bound": drift_bound}, **MOVING)


@pytest.fixture(scope="module")
def ten_epochs(tmp_path_factory, model):
    """Drift is looked at, but it is a reason for nothing."""
    return runs.finish(moving(tmp_path_factory.mktemp("ten-epochs"), model, 0.0), 4)


def test_ten_epochs_on_four_ranks_rebuild_at_the_fifth(ten_epochs):
    assert runs.metrics(ten_epochs)[-1]["epoch"] >= 10
    assert [(step, what) for step, what, _ in decisions(ten_epochs)] == [(26, "rebuild"), (26, "rebuilt")]  # 26 x 7 > 5 x 36
    assert_rebuilt_by_four_ranks(ten_epochs, [26])
    live = [line["live"] for line in runs.metrics(ten_epochs)]
    assert live[:5] == [7] * 5 and set(live[6:]) <= {1, 2}, live


def test_drift_rebuilds_earlier(tmp_path, model, ten_epochs):
    measured = [line for line in looks(ten_epochs) if line["step"] < 26]
    assert [line["step"] for line in measured] == [9, 13, 17, 21, 25], "looked at after the eighth: after the fourth nothing was known"
    assert all(line["probed"] == 8 for line in measured)
    drifts = [line["drift"] for line in measured]
    # The bound lies between two of them, where the largest so far grew most: that look must be the reason.
    rise, at = max((now - before, i) for i, (before, now) in enumerate(zip(itertools.accumulate(drifts, max), drifts[1:]), 1))
    assert rise > 1e-4, drifts
    bound, step = drifts[at] - rise / 2, measured[at]["step"]
    run = runs.finish(moving(tmp_path, model, bound), 4)
    found = decisions(run)
    assert [line[:2] for line in found[:2]] == [(step, "rebuild"), (step, "rebuilt")], (drifts, bound, found)
    assert "more than cache.drift_bound" in found[0][2]
    assert_rebuilt_by_four_ranks(run, [step for step, what, _ in found if what == "rebuilt"])
    until = [line for line in looks(run) if line["step"] <= step]
    for name in "drift", "cosine":
        assert [line[name] for line in until] == pytest.approx([line[name] for line in measured[:at + 1]], rel=0.01, abs=1e-5)
    lines = runs.lines(run / "decisions.jsonl")
    assert next(line["drift"] for line in lines if line.get("cache") == "rebuild") == pytest.approx(until[-1]["drift"], abs=2e-6)
    assert any(line["age"] and line["age"] > 0 for line in runs.lines(run / "cache.jsonl") if line["what"] == "use")


def test_what_does_not_move_is_not_rebuilt_for_its_age(tmp_path, model):
    still = {"train": {**MOVING["train"], "max_steps": 32, "vl_lr": 1e-9}, "lora": MOVING["lora"]}
    cache = {"rebuild_epochs": 5, "drift_every": 4, "drift_bound": 0.05}
    run = runs.finish(hybrid(tmp_path, model, 32, cache, **still), 2)
    found = decisions(run)
    assert [line[:2] for line in found] == [(26, "postponed"), (31, "postponed")], "where the fifth epoch ended, and the sixth"
    assert "less than a tenth of cache.drift_bound = 0.0500" in found[0][2]
    found = looks(run)
    assert [line["step"] for line in found] == [9, 13, 17, 21, 25, 29]
    assert all(line["drift"] < 1e-4 and line["cosine"] > 1 - 1e-4 for line in found), found
    ages = [line["age"] for line in runs.lines(run / "cache.jsonl") if line["what"] == "use"]
    assert max(age for age in ages if age) > 6, "steps: what was read had grown older than an epoch"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("whole")
    run = runs.finish(hybrid(folder, model, 32), 2)
    assert [what for _, what, _ in decisions(run)] == ["rebuild", "rebuilt"] * 3
    return run


def test_says_what_it_rebuilds_and_clears(whole):
    said = (whole.parent / "output.txt").read_text()
    rebuilds = [step for step, what, _ in decisions(whole) if what == "rebuild"]
    for step in rebuilds:
        assert f"feature cache: rebuilding the features of 36 samples after step {step}: the features are 2 epochs old (cache.rebuild_epochs = 2)" in said
        end = rf"feature cache: rebuilt after step {step}: (\d+) samples in \d+\.\d s; older features are read no more, and cleared after the next checkpoint"
        assert re.findall(end, said) == ["36"], said
    progress = re.findall(r"feature cache: rebuilding: features of (\d+) of 36 samples, (\d+) s left", said)
    assert [int(done) for done, _ in progress] == [8, 16, 24, 32, 36] * len(rebuilds), "eight at a time on two ranks"
    assert {left for done, left in progress if done == "36"} == {"0"}
    cleared = re.findall(r"feature cache: cleared (\d+) features that are read no more, [\d.]+ \w+ in (\d+) files, in \d+\.\d\d s", said)
    assert sum(int(features) for features, _ in cleared) >= 2 * 36, "of the first epoch and of the first rebuild"
    assert all(int(files) > 0 for _, files in cleared)
    code, text = runs.finished([runs.PLIMSOLL, "report", whole])
    assert code == 0, text
    page = (whole / "report.html").read_text()
    hits = re.search(r"<h2>Feature cache</h2>.*?<td>disk</td><td>(\d+)</td><td>([\d.]+) %</td>", page, re.DOTALL)
    uses = [line for line in runs.lines(whole / "cache.jsonl") if line["what"] == "use"]
    assert hits and int(hits[1]) == sum(line["from_disk"] for line in uses) > 0 and float(hits[2]) > 0, page
    assert page.count("<td>rebuilt</td>") == len(rebuilds)


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


def test_two_runs_at_once_have_each_its_own(tmp_path, model, whole):
    cache = {"dir": str(tmp_path / "cache")}
    one, two = (hybrid(tmp_path / name, model, 32, cache) for name in ("one", "two"))
    with runs.launch(one, 2) as first, runs.launch(two, 3) as second:
        assert first.end() == 0, first.output()
        assert second.end() == 0, second.output()
    for config, each in (one, 1e-5), (two, 5e-5):  # three ranks sum in another order than two
        runs.assert_same_training(config.parent / "run", whole, 32, each)
        assert [line[:2] for line in decisions(config.parent / "run")] == [line[:2] for line in decisions(whole)]
    folders = stat(tmp_path / "cache", "verify")
    assert len({folder["fingerprint"]["run"] for folder in folders}) == 2, folders
    assert all(folder["samples"] == 36 and folder["damaged"] == [] for folder in folders), folders


# --- stage 1: nothing ages, and runs share what they make ---

def stage_1(folder, model, cache, mode="hybrid", **changes):
    train = {"stage": 1, "max_steps": 16, "checkpoint_every": 16}
    return runs.configure(folder, model, **{"train": train, "cache": {"mode": mode, "dir": str(cache)}, **changes})


def assert_same_losses(run, reference):
    found, expected = ([line["loss"] for line in runs.metrics(of)] for of in (run, reference))
    assert len(found) == 16
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def turn_instructions(dataset):
    """Every task gets the text of the next one, and nothing but words is changed."""
    file = dataset / "meta" / "tasks.parquet"
    table = pq.read_table(file)
    place = table.schema.get_field_index("__index_level_0__")
    texts = table.column(place).to_pylist()
    assert len(set(texts)) == len(texts) > 1
    turned = pa.array(texts[1:] + texts[:1], table.schema.field(place).type)
    pq.write_table(table.set_column(place, table.schema.field(place), turned), file)


def test_other_words_are_encoded_anew(tmp_path, model, dataset):
    """Hidden states depend on words, and what is made of pictures does not. Both lie in one folder."""
    other, cache = tmp_path / "other", tmp_path / "cache"
    shutil.copytree(dataset, other)
    turn_instructions(other)

    def trained(name, mode, data):
        changes = {"data": {"path": str(data), "synthetic_samples": 0}, "sensor": {"feature": "observation.force"}}
        return runs.finish(stage_1(tmp_path / name, model, cache, mode, **changes), 1)

    off = {data: trained(f"off-{data.name}", "off", data) for data in (dataset, other)}
    assert runs.metrics(off[dataset])[0]["loss"] != runs.metrics(off[other])[0]["loss"], "words matter"
    kept = []
    order = [("hybrid", dataset), ("hybrid", dataset), ("prefix", dataset), ("hybrid", other), ("prefix", other), ("hybrid", dataset)]
    for number, (mode, data) in enumerate(order):
        run = trained(f"{number}-{mode}", mode, data)
        assert_same_losses(run, off[data])
        kept.append(sum(line["kept"] for line in runs.lines(run / "cache.jsonl")))
    every = kept[0]
    assert every > 0 and kept == [every, 0, every, every, 0, 0]
    folders = stat(cache, "verify")
    assert all(folder["samples"] == folder["records"] == every and folder["damaged"] == [] for folder in folders), folders
    of = sorted(folder["fingerprint"]["features"] for folder in folders)
    assert of == ["last hidden states of the language model"] * 2 + ["vision tower and merger"], of


def test_two_runs_of_stage_1_at_once_share_a_folder(tmp_path, model):
    cache = tmp_path / "cache"
    off = runs.finish(stage_1(tmp_path / "off", model, cache, "off"), 2)
    with runs.launch(stage_1(tmp_path / "one", model, cache), 2) as one, runs.launch(stage_1(tmp_path / "two", model, cache), 1) as two:
        assert one.end() == 0, one.output()
        assert two.end() == 0, two.output()
    for name in "one", "two":
        assert_same_losses(tmp_path / name / "run", off)
    (folder,) = stat(cache, "verify")
    assert folder["samples"] == 36 and folder["damaged"] == [], folder
