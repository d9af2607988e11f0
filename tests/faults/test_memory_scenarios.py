"""The predictive policy on real runs of two ranks under real budgets: it settles, stays settled, and nothing is lost.

A scenario gives each rank's budget, and what neighbours do to it, as multiples of what a plan of the run's own candidate table
needs: no number here depends on the size of a tensor. A phase lies between two disturbances.
"""

import json

import numpy as np
import pytest

import runs
from test_planning_commands import assert_replayed

WINDOW = 4  # steps
PHASE = 6 * WINDOW
TARGET = 0.98  # of the predictive policy, where nothing else is asked for
PART = 0.85  # of a budget holds the plan that it is named after
RANKS = 2


def need(table, micro_batch, recompute=0):
    """Bytes of a plan of the table, with nothing else recomputed or offloaded."""
    for candidate in table:
        plain = candidate["recompute_expert"] == 0 and not candidate["offload"]
        if plain and candidate["micro_batch"] == micro_batch and candidate["recompute_blocks"] == recompute:
            return candidate["bytes"]
    raise AssertionError(f"no candidate of micro-batch {micro_batch} that recomputes {recompute}")


def least(table):
    return min(candidate["bytes"] for candidate in table)


def size(budget, table):
    """A budget of bench/memory_scenarios.json in bytes."""
    if "least" in budget:
        return int(least(table) / PART * budget["least"])
    if "times" in budget:
        return budget["times"] * need(table, *budget["needs"])
    return int(int(need(table, *budget["fits"]) / PART * SPARE) * budget.get("part", 1.0))


SPARE = 1.02
# Name: budgets of the two ranks, phase by phase. None: as in the phase before.
SCENARIOS = {scenario["name"]: scenario["budgets"] for scenario in json.loads((runs.ROOT / "bench" / "memory_scenarios.json").read_text())["scenarios"]}
SLICE = ["one rank is smaller", "a neighbour comes and goes", "one sample fits recomputed"]

BASE = {
    "batch": {"effective": 16},
    "expert": {"width": 32, "depth": 1, "heads": 2, "chunk": 4, "draws": 1},
    "memory": {"policy": "predictive", "adjustment_frequency": WINDOW, "calibration": "off"},
}


def configuration(folder, model, memory, steps):
    return runs.configure(folder, model, batch=BASE["batch"], expert=BASE["expert"], memory={**BASE["memory"], **memory},
                          train={"max_steps": steps, "checkpoint_every": 1000})


@pytest.fixture(scope="session")
def table(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("table")
    steps = PHASE * max(len(phases) for phases in SCENARIOS.values())  # a table looks at the micro-batches of a run's steps
    runs.finish(configuration(folder, model, {"budget": "2GiB"}, steps), RANKS)
    return candidates(folder / "run")


def candidates(folder):
    return json.loads((folder / "candidates.json").read_text())["candidates"]


def budgets_of(phases, table):
    """[phase][rank] in bytes."""
    budgets = []
    for phase in phases:
        budgets.append([budgets[-1][rank] if budget is None else size(budget, table) for rank, budget in enumerate(phase)])
    return budgets


def run_scenario(folder, model, budgets):
    """Changes come in the middle of the first step of a phase, as a neighbour's would."""
    changes = [{"step": phase * PHASE + 1, "rank": rank, "budget": f"{budgets[phase][rank]}", "after_allocations": 60}
               for phase in range(1, len(budgets)) for rank in range(RANKS) if budgets[phase][rank] != budgets[phase - 1][rank]]
    memory = {"budget": [f"{size}" for size in budgets[0]]}
    config = configuration(folder, model, memory, PHASE * len(budgets))
    with config.open("a") as file:
        for change in changes:
            file.write("\n[[memory.budget_changes]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in change.items()))
    with runs.launch(config, RANKS) as run:
        assert run.end() == 0, run.output()
        return folder / "run", run.output()


def plan_of(candidate):
    return tuple(candidate[key] for key in ("micro_batch", "resolution", "recompute_blocks", "recompute_vision", "recompute_expert", "offload"))


@pytest.mark.parametrize("name", SCENARIOS if runs.PROOFS else SLICE)
def test_settles_and_stays(tmp_path, model, table, name):
    """The only disturbance of a phase comes in its first step: within two windows of it a decision says that the plan is settled, and
    so does every later one of the phase, each at a window's end and none a change. Before that, one change at most."""
    budgets = budgets_of(SCENARIOS[name], table)
    folder, text = run_scenario(tmp_path, model, budgets)
    steps = runs.metrics(folder)
    decisions = [json.loads(line) for line in (folder / "decisions.jsonl").read_text().splitlines()]
    own = candidates(folder)
    assert [line["step"] for line in steps] == list(range(1, PHASE * len(budgets) + 1))
    assert not any(line["skipped"] for line in steps)
    below = [line["step"] for line in steps for rank in line["memory"] if rank["retries"] == 0 and rank["peak"] > rank["predicted"]]
    assert not below, f"{name}: predicted below what was measured in steps {below}"
    assert "predictions: 0 of " in text, f"{name}: a violation was counted"
    for phase, limits in enumerate(budgets):
        first, last = phase * PHASE + 1, (phase + 1) * PHASE
        within = [d for d in decisions if first <= d["step"] <= last]
        settled = [d["step"] for d in within if d["settled"]]
        where = f"{name}, phase {phase + 1}: " + "\n".join(d["reason"] for d in within)
        assert settled and settled[0] <= first + 2 * WINDOW, f"not settled within two windows: {where}"
        after = [d for d in within if d["step"] > settled[0]]
        assert all(d["settled"] and not d["changed"] for d in after), f"did not stay settled after step {settled[0]}: {where}"
        assert after and len(after) >= (last - settled[0]) // WINDOW, f"a window's end without a decision: {where}"
        assert sum(d["changed"] for d in within) <= 1, f"more than one change for one disturbance: {where}"
        retries = [sum(rank["retries"] for rank in line["memory"]) for line in steps[first - 1:last]]
        # Each rank that loses memory in the middle of a step may have to replay once.
        fell = phase > 0 and sum(now < before for now, before in zip(limits, budgets[phase - 1]))
        assert sum(retries) <= fell, f"a replay where no budget fell, or more than one: {where}"
        fits = [c for c in own if all(c["bytes"] <= TARGET * limit for limit in limits)]
        ran = next((c for c in own if plan_of(c) == plan_of(steps[last - 1]["plan"])), None)
        assert ran is not None, where
        if fits:
            assert all(ran["bytes"] <= TARGET * limit for limit in limits), f"above the target: {where}"
            missed = [c for c in fits if c["microseconds"] < 0.98 * ran["microseconds"]]
            assert not missed, f"{missed} would have been faster than {ran}: {where}"


def test_a_falling_budget_escalates_in_order(tmp_path, model, dataset):
    """A single sample does not fit any more, three times on both ranks: first everything is recomputed, then offloaded, then pictures
    become smaller, and the same samples are tried again. Under the fixed policy nothing else changes a plan; the predictive one, which
    has a table, goes straight to the plan that fits."""
    side, lower, phase = 84, 56, 2 * WINDOW  # steps; more than two epochs, so that the heaviest sample is among them
    tables = {"data": {"path": str(dataset), "synthetic_samples": 0, "resolution": side, "min_resolution": lower},
              "sensor": {"feature": "observation.force"}, "batch": BASE["batch"], "expert": BASE["expert"],
              "train": {"max_steps": 4 * phase, "checkpoint_every": 1000}}
    memory = {**BASE["memory"], "budget": "2GiB", "knobs": ["micro_batch", "recompute", "offload", "resolution"]}
    ample = runs.finish(runs.configure(tmp_path / "ample", model, memory=memory, **tables), RANKS)
    needs = {plan_of(candidate): candidate["bytes"] for candidate in candidates(ample)}
    language, expert = (max(c[key] for c in candidates(ample)) for key in ("recompute_blocks", "recompute_expert"))
    assert language > 0 and expert > 0
    order = [(1, side, language, 0, expert, False), (1, side, language, 0, expert, True), (1, lower, language, 0, expert, True)]
    steps_down = [needs[plan] for plan in [(1, side, 0, 0, 0, False), *order]]
    assert steps_down == sorted(set(steps_down), reverse=True), steps_down
    config = runs.configure(tmp_path / "falling", model, memory={**memory, "policy": "fixed"}, **tables)
    with config.open("a") as file:
        for number, (now, after) in enumerate(zip(steps_down, steps_down[1:]), 1):
            for rank in range(RANKS):
                file.write(f'\n[[memory.budget_changes]]\nstep = {number * phase + 1}\nrank = {rank}\nbudget = "{(now + after) // 2}"\n')
    falling = runs.finish(config, RANKS)
    changes = [d for d in runs.lines(falling / "decisions.jsonl") if d["changed"]]
    assert [plan_of(d["after"]) for d in changes] == order, [d["reason"] for d in changes]
    assert [(d["step"] - 1) // phase for d in changes] == [1, 2, 3], "each by the budget that fell"
    assert all("is replayed with" in d["reason"] for d in changes)
    lines, expected = runs.metrics(falling), runs.metrics(ample)
    assert [line["step"] for line in lines] == list(range(1, 4 * phase + 1)) and not any(line["skipped"] for line in lines)
    assert [(line["first_sample"], line["samples"]) for line in lines] == [(line["first_sample"], line["samples"]) for line in expected]
    same = changes[2]["step"] - 1  # after that the pictures differ
    np.testing.assert_allclose([line["loss"] for line in lines[:same]], [line["loss"] for line in expected[:same]], rtol=1e-5)
    failed = [attempt for line in lines for attempt in line["failed_attempts"]]
    assert len(failed) == 3 and all(any(rank["failed"] and rank["failed_request"] > 0 for rank in attempt["memory"]) for attempt in failed)
    assert_replayed(falling)


def test_pictures_become_smaller_only_while_nothing_else_fits(tmp_path, model, dataset):
    """The resolution as a knob: lowered under a budget in which nothing fits otherwise, raised again when that has grown."""
    tables = {"data": {"path": str(dataset), "synthetic_samples": 0, "resolution": 112, "min_resolution": 56},
              "sensor": {"feature": "observation.force"}, "batch": BASE["batch"], "expert": BASE["expert"],
              "train": {"max_steps": 5 * WINDOW, "checkpoint_every": 1000}}
    memory = {**BASE["memory"], "budget": "2GiB", "knobs": ["micro_batch", "recompute", "offload", "resolution"]}
    ample = runs.finish(runs.configure(tmp_path / "ample", model, memory=memory, **tables), RANKS)
    table = candidates(ample)
    assert {line["plan"]["resolution"] for line in runs.metrics(ample)} == {112}
    full = [c["bytes"] for c in table if c["resolution"] == 112]
    lower = {c["resolution"]: c["bytes"] for c in table}
    assert len(lower) > 1 and min(lower.values()) < 0.97 * min(full), lower
    budget = int(0.98 * min(full) / TARGET)
    memory["budget"] = f"{budget}"
    config = runs.configure(tmp_path / "tight", model, memory=memory, **tables)
    with config.open("a") as file:
        file.write(f'\n[[memory.budget_changes]]\nstep = {2 * WINDOW + 1}\nrank = 0\nbudget = "2GiB"\n'
                   f'\n[[memory.budget_changes]]\nstep = {2 * WINDOW + 1}\nrank = 1\nbudget = "2GiB"\n')
    tight = runs.finish(config, RANKS)
    sizes = [line["plan"]["resolution"] for line in runs.metrics(tight)]
    assert len(sizes) == 5 * WINDOW and max(sizes[:2 * WINDOW]) < 112 and sizes[-1] == 112, sizes
    reasons = [json.loads(line)["reason"] for line in (tight / "decisions.jsonl").read_text().splitlines()]
    assert any("shows larger pictures" in reason for reason in reasons), reasons
    assert sum(rank["retries"] for line in runs.metrics(tight) for rank in line["memory"]) == 0
    without = {**memory, "knobs": ["micro_batch", "recompute", "offload"]}
    code, text = runs.finished([runs.PLIMSOLL, "train", "--config", runs.configure(tmp_path / "without", model, memory=without, **tables), "--plan-only"])
    assert code == 0 and "plan: resolution 112 px" in text, "without the knob it stays, above the target if need be"
