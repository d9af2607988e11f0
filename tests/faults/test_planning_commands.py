"""`plan`, `tune`, `simulate --trace`, memory.table and memory.calibration: what they answer, and what they say to bad input."""

import json
import re
import shutil
import subprocess

import pytest

import runs
from test_bad_input import TRAIN, refused

PLAN = [runs.PLIMSOLL, "plan"]
TARGET = 0.98  # of the predictive policy, where nothing else is asked for


def planned(*words):
    code, text = runs.finished([*PLAN, *words, "--json"])
    assert code == 0, text
    return json.loads(text[text.index("{"):])


# --- plan ---

@pytest.mark.parametrize("words, said", [
    (["--budget", "24 parsecs"], ["--budget", "24 parsecs", "GiB"]),
    (["--budget", "-4GiB"], ["--budget", "-4GiB"]),
    (["--budget", "24GiB,,40GiB"], ["--budget"]),
    (["--budget", ""], ["--budget"]),
    (["--overhead", "much"], ["--overhead", "much"]),
    (["--size", "4b"], ["4b", "3b"]),
    (["--images", "-1"], ["--images", "-1"]),
    (["--side", "450"], ["--side", "450", "28"]),
    (["--task", "0"], ["--task", "data.path"]),
    (["--budget", "512MiB"], ["--budget 512.0 MiB", "--overhead"]),
    (["--set", "memory.target=1.5"], ["memory.target", "1.5"]),
    (["--set", "memory.target=0.97", "--set", "memory.margin=0.05"], ["memory.target", "memory.margin"]),
    (["--set", "batch.min_micro=9", "--set", "batch.max_micro=4"], ["min_micro", "9", "4"]),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_plan_refuses(words, said):
    size = [] if "--size" in words else ["--size", "tiny"]
    refused([*PLAN, *size, *words], 2, *said)


def test_plan_without_a_model():
    refused(PLAN, 2, "model.path", "--size")


def first_plan(config, *words, ranks=1):
    """(the plan's line, bytes of the parts in MiB, their sum in MiB) that `train --plan-only` prints."""
    command = [runs.PLIMSOLL, "train", "--config", config, "--plan-only", *words]
    code, text = runs.finished(command if ranks == 1 else [*runs.MPIRUN, "-n", ranks, *command])
    assert code == 0, text
    lines = text[text.index("plan: "):].splitlines()
    amounts = {line[:30].strip(): as_mib(line[30:].split()[:2]) for line in lines[2:] if line.startswith("  ")}
    total = amounts.pop("sum")
    return lines[0], amounts, total


def as_mib(words):
    return float(words[0]) * {"B": 2**-20, "KiB": 2**-10, "MiB": 1, "GiB": 2**10}[words[1]]


def test_the_first_plan_is_the_largest_micro_batch_that_fits_every_rank(tmp_path, model):
    """Between what two and three samples need, two are taken; on two ranks the smaller budget decides. The parts make the sum."""
    config = runs.configure(tmp_path, model, batch={"effective": 8}, memory={"recompute": "none"})
    for ranks in (1, 2):
        needs = {}
        for size in (2, 3):
            line, parts, needs[size] = first_plan(config, "--set", f"batch.micro={size}", ranks=ranks)
            assert f"micro-batch {size}" in line and len(parts) > 5
            assert sum(parts.values()) == pytest.approx(needs[size], abs=0.06 * len(parts))
        tight = f"{int((needs[2] + needs[3]) / 2 / 0.85 * 1024)}KiB"
        budget = tight if ranks == 1 else f'["300MiB","{tight}"]'
        line, _, total = first_plan(config, "--set", f"memory.budget={budget}", ranks=ranks)
        assert "micro-batch 2" in line and total == needs[2]
    assert "micro-batch 4" in first_plan(config, ranks=2)[0], "the whole share where the budget holds it"


@pytest.mark.parametrize("name", ["debug", "fixed", "reactive", "stage1", "stage2"])
def test_configurations_in_the_repository_make_a_plan(tmp_path, model, name):
    words = [f"model.path={model}", "data.path=", "data.synthetic_samples=64", "memory.budget=2GiB", f"run.dir={tmp_path}/run"]
    line, _, _ = first_plan(runs.ROOT / "configs" / f"{name}.toml", *[word for setting in words for word in ("--set", setting)])
    assert "micro-batch" in line


def test_plan_of_the_full_size_model_allocates_none_of_it():
    """The rows of the guides fit, larger cards take no smaller micro-batch, and nothing of 3 billion weights is there."""
    code, text = runs.finished(["/usr/bin/env", "bash", "-c", f"ulimit -v {6 << 20}; exec {runs.PLIMSOLL} plan --size 3b --json"])
    assert code == 0, text
    report = json.loads(text[text.index("{"):])
    assert [row["fits"] for row in report["rows"]] == [True] * 4, report["rows"]
    table = {(cell["card"], cell["lora_rank"]): cell["plan"]["micro_batch"] for cell in report["table"]}
    cards, ranks = sorted({card for card, _ in table}), sorted({rank for _, rank in table})
    assert len(cards) == 3 and ranks == [4, 8, 16, 32]
    for rank in ranks:
        sizes = [table[card, rank] for card in cards]
        assert sizes == sorted(sizes) and sizes[0] >= 1
    for card in report["cards"]:
        assert sum(card["best"]["breakdown"].values()) == card["best"]["peak"]
        assert all(other["plan"] != card["best"]["plan"] for other in card["runners_up"])
    assert any(card["runners_up"] for card in report["cards"])
    assert report["effective"] == 32
    for planned_for in [*report["table"], *(card["best"] for card in report["cards"])]:
        assert planned_for["accumulation"] == -(-32 // planned_for["plan"]["micro_batch"]), planned_for
    for card in report["cards"]:
        parts = card["best"]["breakdown"]
        assert {"weights", "adapters", "expert and sensor", "gradients", "staging", "optimiser", "workspace"} <= set(parts), sorted(parts)
        blocks = [name for name in parts if re.fullmatch(r"activations: language\.block \d+", name)]
        assert blocks or card["best"]["plan"]["offload"], f"no block holds anything at the peak: {sorted(parts)}"
        assert all(size > 0 for size in parts.values())
    rows = [(row["card"] >> 30, row["micro_batch"]) for row in report["rows"]]
    assert rows == [(24, 2), (24, 4), (40, 4), (80, 8)]
    assert all(row["peak"] < row["reserved"] < row["allowed"] and row["largest"] >= row["micro_batch"] for row in report["rows"])
    assert all(cell["peak"] < cell["reserved"] for cell in report["table"])
    figures = {figure["name"]: figure for figure in report["guide"]}
    assert set(figures) == {"model", "optimiser", "gradients", "activations, recomputed", "activations, all kept", "total",
                            "recompute saves", "bf16 saves"}
    assert all(figure["by_hand"] and figure["dry_run"] and figure["reason"] for figure in figures.values())
    # Two fp32 moments a trained parameter: the reason says of how many the dry run's figure is, and of how many the guide's would be.
    ours, theirs, adapters, rest = (float(number) for number in re.findall(r"([0-9.]+) million", figures["optimiser"]["reason"]))
    assert 8 * ours == pytest.approx(1000 * float(figures["optimiser"]["dry_run"].split()[0]), abs=6)
    assert 8 * theirs == pytest.approx(1000 * float(figures["optimiser"]["by_hand"].split()[0]), abs=0.5)
    assert adapters + rest == pytest.approx(ours, abs=0.11) and adapters > 0 and rest > 0
    # Two bytes a parameter of the model likewise, and all that the activations are made of.
    ours, theirs = (float(number) for number in re.findall(r"([0-9.]+) billion", figures["model"]["reason"]))
    gigabytes = lambda name: float(figures[name]["dry_run"].split()[0])
    assert 2 * ours == pytest.approx(gigabytes("model"), abs=0.02) and 2 * theirs == float(figures["model"]["by_hand"].split()[0])
    in_reason = lambda name: [float(number) for number in re.findall(r"([0-9.]+) GB", figures[name]["reason"])]
    for name in "activations, recomputed", "activations, all kept":
        assert sum(in_reason(name)) == pytest.approx(gigabytes(name), abs=0.03), figures[name]
    whole, left = in_reason("recompute saves")
    assert (whole, left) == (in_reason("activations, all kept")[0], in_reason("activations, recomputed")[0])


def test_plan_for_a_gpu_or_for_the_cpu():
    """What the CPU's kernels take as scratch is an arena, a GPU's comes from its allocator beside what its libraries hold."""
    gpu, cpu = planned("--size", "3b", "--budget", "24GiB"), planned("--size", "3b", "--budget", "24GiB", "--device", "cpu")
    assert (gpu["device"], cpu["device"]) == ("cuda", "cpu")
    peaks = [(one["peak"], other["peak"]) for one, other in zip(gpu["rows"], cpu["rows"])]  # of the same micro-batches
    assert len(peaks) == 4 and all(one != other and abs(one / other - 1) < 0.05 for one, other in peaks), peaks
    best, arena = gpu["cards"][0]["best"], cpu["cards"][0]["best"]
    assert best["breakdown"]["workspace"] == 66 << 20 and arena["breakdown"]["workspace"] != 66 << 20
    assert best["reserved"] > best["peak"] and arena["reserved"] == arena["peak"]
    refused([*PLAN, "--size", "3b", "--device", "tpu"], 2, "--device", "tpu", "cuda")


def test_plan_answers_with_one_number():
    code, text = runs.finished([*PLAN, "--size", "3b", "--budget", "24GiB", "--safe-batch"])
    assert code == 0, text
    assert re.fullmatch(r"\d+\n", text), text
    assert int(text) >= 4


def test_plan_of_several_ranks_plans_for_one_of_them():
    """The share is what each of them has to do: no micro-batch is larger, and accumulation is counted of it."""
    one, four = (planned("--size", "tiny", "--budget", "24GiB", "--set", "batch.effective=32", "--ranks", ranks) for ranks in (1, 4))
    assert (one["ranks"], four["ranks"]) == (1, 4)
    assert one["table"][0]["plan"]["micro_batch"] == 32 and four["table"][0]["plan"]["micro_batch"] == 8
    assert one["table"][0]["accumulation"] == four["table"][0]["accumulation"] == 1
    assert four["cards"][0]["best"]["plan"]["micro_batch"] <= 8
    by_setting = planned("--size", "tiny", "--budget", "24GiB", "--set", "batch.effective=32", "--set", "launch.ranks=4")
    assert by_setting["table"] == four["table"]
    refused([*PLAN, "--size", "tiny", "--ranks", "33", "--set", "batch.effective=32"], 2, "33 ranks", "batch.effective")


def test_plan_estimates_a_run(tmp_path, model):
    """Steps and time by arithmetic, the peak by the plan that `plan` itself names, types by what each weighs."""
    data = {"synthetic_samples": 40, "synthetic_tasks": 3}
    config = runs.configure(tmp_path, model, data=data, batch={"effective": 8}, tasks={"by": "task", "target": [0.5, 0.25, 0.25]})
    words = ["--config", str(config), "--budget", "1GiB,2GiB", "--overhead", "0", "--no-table"]
    estimate = planned(*words, "--estimate", "--samples", "1000", "--epochs", "3", "--rate", "50")
    assert (estimate["steps"], estimate["seconds"]) == (375, 60)
    assert [type["part"] for type in estimate["types"]] == [0.5, 0.25, 0.25]
    assert all(0 < type["sample_bytes"] <= type["batch_bytes"] for type in estimate["types"])
    best = [card["best"] for card in planned(*words)["cards"]]
    assert [card["peak"] for card in estimate["cards"]] == [one["peak"] for one in best]
    assert all(card["usual"] <= card["peak"] for card in estimate["cards"])
    code, text = runs.finished([*PLAN, *words, "--estimate"])
    assert code == 0 and "36 samples" in text and "give --rate" in text, text
    run = runs.finish(runs.configure(tmp_path, model), 1)
    by_run = planned(*words, "--estimate", "--run", run)
    assert by_run["samples_per_second"] > 0 and by_run["seconds"] > 0
    for wrong in (["--samples", "0"], ["--epochs", "0"], ["--rate", "-1"]):
        refused([*PLAN, *words, "--estimate", *wrong], 2, wrong[0][2:])


ON_THIS_CPU = ["--budget", "300MiB", "--overhead", "0", "--no-table", "--device", "cpu", "--estimate"]


def peak_of(run):
    return max(rank["peak"] for line in runs.metrics(run) for rank in line["memory"])


def test_an_estimate_is_what_a_run_comes_to(tmp_path, model):
    """36 samples three times, in batches of 8: the last four draws make no step. Samples that weigh the same leave the peak no room."""
    data = {"synthetic_samples": 40, "synthetic_tasks": 3, "synthetic_side": 56, "synthetic_text": 20}
    batch = {"effective": 8, "micro": 4, "min_micro": 4, "max_micro": 4}
    train = {"max_steps": 0, "epochs": 3, "checkpoint_every": 1000}
    memory = {"policy": "fixed", "recompute": "none"}
    config = runs.configure(tmp_path, model, data=data, batch=batch, train=train, tasks={"by": "task"}, memory=memory)
    estimate = planned("--config", config, *ON_THIS_CPU)
    run = runs.finish(config, 1)
    assert (estimate["samples"], estimate["epochs"], estimate["steps"]) == (36, 3, 13)
    assert runs.steps_done(run) == 13
    (card,) = estimate["cards"]
    assert card["micro_batch"] == 4 and {line["plan"]["micro_batch"] for line in runs.metrics(run)} == {4}
    assert peak_of(run) <= card["peak"] <= 1.005 * peak_of(run)
    by_steps = planned("--config", config, *ON_THIS_CPU, "--set", "train.max_steps=9")
    assert by_steps["steps"] == 9 and by_steps["epochs"] == pytest.approx(2)
    assert planned("--config", config, *ON_THIS_CPU, "--epochs", "0.1")["steps"] == 1, "a run makes one step at least"


def test_an_estimate_follows_micro_batches_that_are_cut_by_bytes(tmp_path, model):
    """Whatever the plan's number: by the bytes of two of the heaviest, and by a budget that holds the whole share."""
    counts = {"effective": 8, "micro": 2}
    changes = {"data": {"synthetic_samples": 40, "synthetic_tasks": 3}, "tasks": {"by": "task"},
               "memory": {"policy": "fixed", "recompute": "none", "knobs": ["recompute"]}}
    (by_count,) = planned("--config", runs.configure(tmp_path, model, batch=counts, **changes), *ON_THIS_CPU)["cards"]
    assert by_count["micro_batch"] == 2 and by_count["fill"] is None and by_count["usual_samples"] == 2
    peaks = []
    for name, most in ("tight", by_count["peak"]), ("budget", "budget"):
        config = runs.configure(tmp_path / name, model, batch={**counts, "packing": "bytes", "max_memory": most}, **changes)
        estimate = planned("--config", config, *ON_THIS_CPU)
        (card,) = estimate["cards"]
        assert card["fill"] > 0 and card["usual"] <= card["peak"] and card["usual_samples"] >= 2, card
        assert all(type["sample_bytes"] <= type["batch_bytes"] for type in estimate["types"])
        assert peak_of(runs.finish(config, 1)) <= card["peak"]
        peaks.append(card["peak"])
    assert peaks[0] == by_count["peak"] < peaks[1], (peaks, by_count)
    assert card["usual_samples"] == 8, "the whole share"
    code, text = runs.finished([*PLAN, "--config", config, *ON_THIS_CPU])
    assert code == 0 and "of activations, about 8 samples" in text, text


def test_an_estimate_takes_the_time_of_a_measured_row(tmp_path, model, tuned):
    """Of the table that `tune` wrote on such a device for this model and share; two ranks of that share take half of it."""
    config = runs.configure(tmp_path, model, memory={"policy": "predictive", "table": str(tuned)})
    words = ["--config", config, *ON_THIS_CPU, "--epochs", "2"]
    rate = int(re.findall(r"milli_samples_per_second\s*=\s*(\d+)", tuned.read_text())[-1]) / 1000
    estimate = planned(*words)
    (card,) = estimate["cards"]
    assert (card["samples_per_second"], card["table"], estimate["seconds"]) == (rate, str(tuned), None)
    assert card["seconds"] == pytest.approx(estimate["steps"] * 6 / rate)
    (doubled,) = planned(*words, "--ranks", "2", "--set", "batch.effective=12")["cards"]
    assert doubled["samples_per_second"] == pytest.approx(2 * rate)
    code, text = runs.finished([*PLAN, *words])
    assert code == 0 and str(tuned) in text and f"{rate:.4g} samples/s" in text, text
    for other in "batch.effective=7", "lora.rank=4", "memory.table=off":
        assert planned(*words, "--set", other)["cards"][0]["seconds"] is None, other
    (gpu,) = planned(*["cuda" if word == "cpu" else word for word in words])["cards"]
    assert gpu.get("seconds") is None, "the row is of a CPU"
    by_rate = planned(*words, "--rate", "50")
    assert by_rate["cards"][0]["samples_per_second"] == by_rate["samples_per_second"] == 50
    missing = str(tmp_path / "none.toml")
    refused([*PLAN, *words, "--set", f"memory.table={missing}"], 2, missing)


def test_plan_counts_what_gradnorm_holds(tmp_path, model):
    """Its gradients of each type's own, as a run of these samples has them (TypedRun.IsPredictedToTheByte)."""
    data, by_task = {"synthetic_samples": 40, "synthetic_tasks": 3}, {"by": "task"}
    plain, balanced = (
        planned("--config", str(runs.configure(tmp_path, model, data=data, tasks=tasks)), "--budget", "2GiB", "--overhead", "0", "--no-table")
        for tasks in (by_task, {**by_task, "gradnorm": True})
    )
    assert plain["static_bytes"] < balanced["static_bytes"]


def test_plan_on_a_dataset_and_on_one_of_its_tasks(tmp_path, model, dataset):
    """The heaviest sample is the dataset's; a task has no heavier one."""
    config = runs.configure(tmp_path, model, data={"synthetic_samples": 0, "path": [str(dataset)]})
    words = ["--config", str(config), "--budget", "4GiB", "--overhead", "0"]
    whole = planned(*words, "--no-table")["cards"][0]["best"]
    of_task = planned(*words, "--no-table", "--task", "0")["cards"][0]["best"]
    assert 0 < of_task["peak"] <= whole["peak"]
    code, text = runs.finished([*PLAN, *words, "--task", "0", "--safe-batch"])
    assert code == 0 and re.fullmatch(r"\d+\n", text), text
    refused([*PLAN, *words, "--task", "no such task"], 2, "--task", "no such task")


def test_a_card_that_holds_nothing_is_said_to():
    report = planned("--size", "3b", "--budget", "4GiB", "--no-table")
    assert report["cards"][0]["best"] is None


# --- simulate ---

def simulated(folder):
    """(decisions, the baseline first; the summary) of a run's own trace."""
    code, text = runs.finished([runs.PLIMSOLL, "simulate", "--trace", folder / "metrics.jsonl", "--json"])
    assert code == 0, text
    *decisions, summary = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return decisions, summary


def assert_replayed(folder):
    """`simulate` decides on the run's trace what the run decided, at the same steps and for the same reasons."""
    knobs = ("micro_batch", "resolution", "recompute_blocks", "recompute_vision", "recompute_expert", "offload")
    plan = lambda view: [view[knob] for knob in knobs]
    decisions, summary = simulated(folder)
    assert "the run's own" in summary["policy_of"] and str(folder / "config.toml") in summary["policy_of"], summary
    own = [(d["step"], plan(d["before"]), plan(d["after"]), d["reason"]) for d in runs.lines(folder / "decisions.jsonl")]
    assert [(d["step"], plan(d["before"]), plan(d["plan"]), d["reason"]) for d in decisions[1:]] == own


def test_a_run_is_replayed_by_its_own_policy(tmp_path, model):
    """A neighbour comes in the middle of a step. The second run starts with what the first one's peaks taught, which its trace alone
    does not say."""
    memory = {"policy": "predictive", "table": "off", "calibration": str(tmp_path / "calibration.json")}
    train = {"max_steps": 24, "checkpoint_every": 1000}
    needs = [first_plan(runs.configure(tmp_path, model, memory=memory, train=train), "--set", f"batch.micro={size}", ranks=2)[2] for size in (1, 3)]
    folders = []
    for name in ("first", "second"):
        config = runs.configure(tmp_path / name, model, memory=memory, train=train)
        with config.open("a") as file:
            file.write(f'\n[[memory.budget_changes]]\nstep = 10\nrank = 1\nafter_allocations = 60\nbudget = "{int(sum(needs) / 2 / TARGET * 1024)}KiB"\n')
        folders.append(runs.finish(config, 2))
        assert any(d["changed"] for d in runs.lines(folders[-1] / "decisions.jsonl"))
        assert_replayed(folders[-1])
    first, second = (json.loads((folder / "policy.json").read_text())["calibration"] for folder in folders)
    assert not first and second
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "metrics.jsonl").write_text((folders[0] / "metrics.jsonl").read_text())
    assert "the run's own is not known" in simulated(alone)[1]["policy_of"]
    (alone / "config.toml").write_text((folders[0] / "config.toml").read_text())
    refused([runs.PLIMSOLL, "simulate", "--trace", alone / "metrics.jsonl"], 4, "candidates.json", "--policy reactive")


# --- tune and memory.table ---

@pytest.fixture(scope="module")
def tuned(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("tuned")
    config = runs.configure(folder, model, memory={"policy": "predictive"})
    out = folder / "tables" / "mine.toml"
    code, text = runs.finished([runs.PLIMSOLL, "tune", "--config", config, "--budget", "26MiB,40MiB", "--steps", "1", "--contenders", "2", "--out", out])
    assert code == 0, text
    return out


def test_tune_writes_a_table_that_train_starts_from(tmp_path, model, tuned):
    assert "26.0 MiB" in tuned.with_suffix(".md").read_text()
    micro = re.findall(r"micro_batch\s*=\s*(\d+)", tuned.read_text())
    assert len(micro) == 2, "a row per budget"
    for budget, samples in zip(["30MiB", "40MiB"], micro):
        config = runs.configure(tmp_path, model, memory={"policy": "predictive", "table": str(tuned), "budget": budget})
        code, text = runs.finished([*TRAIN, "--config", config, "--plan-only"])
        assert code == 0, text
        assert f"plan: micro-batch {samples}" in text and f"row of {tuned}" in text, text


def test_a_table_in_the_usual_place_is_found(tmp_path, model):
    """`tune` writes it there by itself, `train` finds it; what else lies there is passed over."""
    config = runs.configure(tmp_path, model, memory={"policy": "predictive", "budget": "40MiB"})
    code, text = runs.finished([runs.PLIMSOLL, "tune", "--config", config, "--budget", "40MiB", "--steps", "1", "--contenders", "1"], cwd=tmp_path)
    assert code == 0, text
    tables = tmp_path / "configs" / "tables"
    assert (tables / "config.md").exists()
    own = (tables / "config.toml").read_text()
    (tables / "another.toml").write_text(re.sub(r"(?m)^key = .*$", 'key = "another model"', own))
    (tables / "broken.toml").write_text("not toml at all [")
    code, text = runs.finished([*TRAIN, "--config", config, "--plan-only"], cwd=tmp_path)
    assert code == 0, text
    assert "row of configs/tables/config.toml" in text and "broken.toml" in text and "passed over" in text, text
    code, text = runs.finished([*TRAIN, "--config", config, "--plan-only", "--set", "memory.table=off"], cwd=tmp_path)
    assert code == 0 and "configs/tables" not in text, text


@pytest.mark.parametrize("memory, batch", [({"policy": "reactive"}, {}), ({"policy": "predictive"}, {"micro": 1})], ids=["reactive", "micro"])
def test_a_table_that_is_not_read_is_said_to_be(tmp_path, model, tuned, memory, batch):
    config = runs.configure(tmp_path, model, memory={"table": str(tuned), **memory}, batch=batch)
    code, text = runs.finished([*TRAIN, "--config", config, "--plan-only"])
    assert code == 0 and f"{tuned}" in text and "is not read" in text, text


@pytest.mark.parametrize("spoil, said", [
    (lambda text: "not toml at all [", []),
    (lambda text: re.sub(r"micro_batch\s*=\s*\d+", "micro_batch = -3", text), ["micro_batch", "-3"]),
    (lambda text: re.sub(r'(?m)^key = .*$', 'key = "another model"', text), ["another model"]),
    (lambda text: "", []),
], ids=["no table", "negative", "another model", "empty"])
def test_a_table_that_does_not_serve(tmp_path, model, tuned, spoil, said):
    bad = tmp_path / "bad.toml"
    bad.write_text(spoil(tuned.read_text()))
    config = runs.configure(tmp_path, model, memory={"policy": "predictive", "table": str(bad)})
    refused([*TRAIN, "--config", config, "--plan-only"], 2, str(bad), *said)


def test_no_table_there(tmp_path, model):
    config = runs.configure(tmp_path, model, memory={"policy": "predictive", "table": str(tmp_path / "none.toml")})
    refused([*TRAIN, "--config", config, "--plan-only"], 2, "none.toml", "memory.table", "plimsoll tune", "off")


def test_tune_says_what_it_measured_as_json(tmp_path, model):
    """A line a plan; what does not fit is said in the same way, and the table is written as ever."""
    config = runs.configure(tmp_path, model, memory={"policy": "predictive"}, data={"synthetic_side": 56, "synthetic_text": 20})
    out = tmp_path / "table.toml"
    code, text = runs.finished([runs.PLIMSOLL, "tune", "--config", config, "--budget", "3MiB,60MiB", "--steps", "1", "--contenders", "2", "--json", "--out", out])
    assert code == 0, text
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert len(lines) == 3 and lines[0]["budget"] == 3 << 20 and "no plan fits" in lines[0]["nothing_fits"], lines
    for line in lines[1:]:
        assert line["budget"] == 60 << 20 and not line["ran_out"] and line["samples_per_second"] > 0
        assert line["measured_peak"] <= line["predicted_peak"] <= 1.005 * line["measured_peak"], "equal samples: nothing is rounded up"
        assert line["accumulation"] * line["micro_batch"] >= 6
        assert "reserved" not in line, "the CPU's allocator keeps nothing"
    assert out.exists()


@pytest.mark.parametrize("words, said", [
    (["--out", "x.toml"], ["--budget"]),
    (["--budget", "300MiB", "--out", "x.txt"], ["x.txt", ".toml"]),
    (["--budget", "300MiB", "--out", "x.toml", "--steps", "0"], ["--steps", "0"]),
    (["--budget", "lots", "--out", "x.toml"], ["--budget", "lots"]),
    (["--budget", "900TiB", "--out", "x.toml"], ["--budget 900", "this machine"]),
], ids=lambda value: " ".join(value))
def test_tune_refuses(tmp_path, model, words, said):
    config = runs.configure(tmp_path, model)
    refused([runs.PLIMSOLL, "tune", "--config", config, *words], 2, *said)


# --- budgets and calibration ---

@pytest.mark.parametrize("budget", ["-1GiB", "900TiB", "0"])
def test_a_budget_that_is_none(tmp_path, model, budget):
    config = runs.configure(tmp_path, model, memory={"budget": budget})
    refused([*TRAIN, "--config", config, "--plan-only"], 2, "memory.budget", budget)


@pytest.mark.parametrize("change, said", [
    ('rank = 7, budget = "1GiB"', ["rank 7", "1 ranks"]),
    ('rank = 0, budget = "900TiB"', ["900TiB", "this machine"]),
    ('rank = 0, budget = "-1GiB"', ["-1GiB"]),
])
def test_a_budget_change_that_cannot_be(tmp_path, model, change, said):
    config = runs.configure(tmp_path, model)
    config.write_text(config.read_text().replace("[memory]", f"[memory]\nbudget_changes = [{{step = 4, {change}}}]"))
    refused([*TRAIN, "--config", config, "--plan-only"], 2, "budget_changes", *said)


def test_a_micro_batch_that_does_not_fit_is_named(tmp_path, model):
    memory = {"policy": "predictive", "calibration": "off", "table": "off"}
    config = runs.configure(tmp_path, model, memory={**memory, "budget": "6MiB"})
    text = refused([*TRAIN, "--config", config, "--plan-only"], 3, "a micro-batch of 1 needs")
    assert "batch.micro" not in text
    needed = float(re.search(r"needs ([0-9.]+) MiB", text)[1])
    tight = {**memory, "budget": f"{int((needed + 0.3) * 1024)}KiB"}
    code, text = runs.finished([*TRAIN, "--config", runs.configure(tmp_path, model, memory=tight), "--plan-only"])
    assert code == 0, text
    config = runs.configure(tmp_path, model, memory=tight, batch={"micro": 6})
    refused([*TRAIN, "--config", config, "--plan-only"], 3, "a micro-batch of 6 needs", 'batch.micro = "auto"')


def test_the_safe_batch_is_of_the_configured_recompute():
    safe = lambda *words: int(subprocess.run([runs.PLIMSOLL, "plan", "--size", "3b", "--budget", "24GiB", "--safe-batch", *words],
                                             check=True, capture_output=True, text=True).stdout)
    everything, some, nothing = (safe("--set", f"memory.recompute={value}") for value in ("all", "18", "none"))
    assert everything == safe() and everything > some > nothing >= 1


def test_pictures_are_planned_as_the_run_would_resize_them():
    said = lambda *words: subprocess.run([runs.PLIMSOLL, "plan", "--size", "tiny", "--no-table", *words],
                                         check=True, capture_output=True, text=True).stdout
    assert "448 x 448" in said() and "224 x 224" in said("--set", "data.resolution=224")
    assert "112 x 112" in said("--set", "data.resolution=224", "--side", "112")


@pytest.mark.parametrize("damage", ["", "{", '{"format": 99}', '{"entries": "many"}'], ids=["empty", "cut", "other format", "no entries"])
def test_a_damaged_calibration_is_warned_of_and_rebuilt(tmp_path, model, damage):
    file = tmp_path / "calibration.json"
    file.write_text(damage)
    config = runs.configure(tmp_path, model, memory={"policy": "predictive", "calibration": str(file)})
    code, text = runs.finished([*TRAIN, "--config", config])
    assert code == 0, text
    assert str(file) in text and "ignored" in text, text
    assert json.loads(file.read_text())
    code, text = runs.finished([*TRAIN, "--config", runs.configure(tmp_path, model, run="second", memory={"policy": "predictive", "calibration": str(file)})])
    assert code == 0 and "ignored" not in text, text


def test_a_calibration_is_kept_for_the_machine_and_the_model(tmp_path, model):
    """By itself (memory.calibration = "auto"): the next run of the same model on this machine begins with it, another model does not."""
    kept = tmp_path / "cache" / "plimsoll"
    memory = {"policy": "predictive", "table": "off"}

    def train(name, **changes):
        config = runs.configure(tmp_path / name, model, memory=memory, **changes)
        code, text = runs.finished(["/usr/bin/env", f"XDG_CACHE_HOME={kept.parent}", *TRAIN, "--config", config])
        assert code == 0, text

    train("first")
    (file,) = kept.glob("calibration-*.json")
    known = json.loads(file.read_text())
    assert known["entries"]
    for entry in known["entries"]:
        entry["offset_bytes"] += 1 << 20
    file.write_text(json.dumps(known))
    of = lambda text: {(entry["rank"], entry["class"]): entry["offset_bytes"] for entry in json.loads(text)["entries"]}
    taught = of(file.read_text())
    train("second")
    later = of(file.read_text())
    assert all(later[key] == offset for key, offset in taught.items()), (later, taught)
    train("another", expert={"width": 48})
    (other,) = set(kept.glob("calibration-*.json")) - {file}
    assert max(of(other.read_text()).values()) < 1 << 20
    assert of(file.read_text()) == later


def test_a_loaded_calibration_shrinks_the_plan_and_outlives_a_resumption(tmp_path, model):
    """What peaks of earlier runs taught counts from the first plan on, and goes with the checkpoint from then."""
    file = tmp_path / "calibration.json"
    memory = {"policy": "predictive", "table": "off", "recompute": "none", "knobs": ["micro_batch"], "calibration": "off"}
    needs = {size: first_plan(runs.configure(tmp_path, model, memory=memory), "--set", f"batch.micro={size}")[2] for size in (3, 6)}
    memory["budget"] = f"{int(sum(needs.values()) / 2 / TARGET * 1024)}KiB"
    planned_with = lambda: first_plan(runs.configure(tmp_path / "plan", model, memory=memory))[0]
    # Which of them is a matter of timings, and now and then these say that one sample at a time is faster.
    plans_for_some = lambda: any(re.search("micro-batch [23],", planned_with()) for _ in range(5))
    assert plans_for_some(), "with calibration off"
    memory["calibration"] = str(file)
    runs.finish(runs.configure(tmp_path / "learns", model, memory=memory), 1)
    assert plans_for_some(), "predictions held: nothing to correct"
    known = json.loads(file.read_text())
    assert known["entries"]
    for entry in known["entries"]:
        entry["offset_bytes"] += 1 << 30
    file.write_text(json.dumps(known))
    assert "micro-batch 1," in planned_with(), "two and three samples are of the class that fell short"
    config = runs.configure(tmp_path / "uses", model, memory=memory)
    folder = runs.finish(config, 1)
    assert {line["plan"]["micro_batch"] for line in runs.metrics(folder)} == {1}
    file.unlink()
    shutil.rmtree(runs.checkpoints(folder)[8])
    runs.finish(config, 1, "--resume")
    assert {line["plan"]["micro_batch"] for line in runs.metrics(folder)} == {1} and runs.steps_done(folder) == 8
    kept = {(entry["rank"], entry["class"]): entry["offset_bytes"] for entry in json.loads(file.read_text())["entries"]}
    assert all(kept[entry["rank"], entry["class"]] == entry["offset_bytes"] for entry in known["entries"]), (kept, known)
