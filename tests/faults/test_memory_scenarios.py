"""The predictive policy on real runs of two ranks under real budgets: it settles, stays settled, and nothing is lost.

A scenario gives each rank's budget, and what neighbours do to it, as multiples of what a plan of the run's own candidate table
needs: no number here depends on the size of a tensor. A phase lies between two disturbances.
"""

import json

import pytest

import runs

WINDOW = 4  # steps
PHASE = 6 * WINDOW
TARGET = 0.85
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


def fitting(bytes_needed, spare=1.02):
    """A budget whose target a plan just fits."""
    return int(bytes_needed / TARGET * spare)


# Name: budgets of the two ranks, phase by phase, as functions of the candidate table. None: as in the phase before.
SCENARIOS = {
    "everything fits": [(lambda t: 4 * need(t, 8),) * 2],
    "half the share fits": [(lambda t: fitting(need(t, 4)),) * 2],
    "two samples fit": [(lambda t: fitting(need(t, 2)),) * 2],
    "one sample fits": [(lambda t: fitting(need(t, 1)),) * 2],
    "one sample fits recomputed": [(lambda t: fitting(need(t, 1, 2)),) * 2],
    "hardly anything fits": [(lambda t: fitting(least(t), 1.0 + 1e-3),) * 2],
    "one rank is smaller": [(lambda t: 4 * need(t, 8), lambda t: fitting(need(t, 2)))],
    "the first rank is smaller": [(lambda t: fitting(need(t, 4)), lambda t: 4 * need(t, 8))],
    "one rank is much smaller": [(lambda t: 4 * need(t, 8), lambda t: fitting(need(t, 1, 2)))],
    "a neighbour takes half": [(lambda t: fitting(need(t, 8)),) * 2, (None, lambda t: fitting(need(t, 4)))],
    "a neighbour takes most": [(lambda t: fitting(need(t, 8)),) * 2, (None, lambda t: fitting(need(t, 1)))],
    "a neighbour leaves": [(lambda t: fitting(need(t, 8)), lambda t: fitting(need(t, 2))), (None, lambda t: fitting(need(t, 8)))],
    "a neighbour comes and goes": [(lambda t: fitting(need(t, 8)),) * 2, (None, lambda t: fitting(need(t, 3))), (None, lambda t: fitting(need(t, 8)))],
    "a neighbour on the first rank": [(lambda t: fitting(need(t, 4)),) * 2, (lambda t: fitting(need(t, 2)), None)],
    "neighbours on both ranks": [(lambda t: fitting(need(t, 8)),) * 2, (lambda t: fitting(need(t, 3)), lambda t: fitting(need(t, 2)))],
    "one neighbour after the other": [(lambda t: fitting(need(t, 8)),) * 2, (None, lambda t: fitting(need(t, 4))), (lambda t: fitting(need(t, 2)), None)],
    "a slow leak": [(lambda t: fitting(need(t, 8)),) * 2] + [(None, lambda t, part=part: int(fitting(need(t, 8)) * part)) for part in (0.9, 0.8, 0.7)],
    "budgets grow": [(lambda t: fitting(need(t, 1)),) * 2, (lambda t: fitting(need(t, 2)),) * 2, (lambda t: fitting(need(t, 8)),) * 2],
    "nothing but recompute is left": [(lambda t: fitting(need(t, 8)),) * 2, (None, lambda t: fitting(need(t, 1, 2)))],
    "out and back twice": [(lambda t: fitting(need(t, 4)),) * 2] + [(None, lambda t: fitting(need(t, 2))), (None, lambda t: fitting(need(t, 4)))] * 2,
    "the smaller rank changes": [(lambda t: fitting(need(t, 8)), lambda t: fitting(need(t, 3))), (lambda t: fitting(need(t, 2)), lambda t: fitting(need(t, 8)))],
}
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
        budgets.append([budgets[-1][rank] if size is None else int(size(table)) for rank, size in enumerate(phase)])
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
    return runs.finish(config, RANKS)


def plan_of(candidate):
    return tuple(candidate[key] for key in ("micro_batch", "resolution", "recompute_blocks", "recompute_vision", "recompute_expert", "offload"))


@pytest.mark.parametrize("name", SCENARIOS if runs.PROOFS else SLICE)
def test_settles_and_stays(tmp_path, model, table, name):
    budgets = budgets_of(SCENARIOS[name], table)
    folder = run_scenario(tmp_path, model, budgets)
    steps = runs.metrics(folder)
    decisions = [json.loads(line) for line in (folder / "decisions.jsonl").read_text().splitlines()]
    own = candidates(folder)
    assert [line["step"] for line in steps] == list(range(1, PHASE * len(budgets) + 1))
    assert not any(line["skipped"] for line in steps)
    below = [line["step"] for line in steps for rank in line["memory"] if rank["retries"] == 0 and rank["peak"] > rank["predicted"]]
    assert not below, f"{name}: predicted below what was measured in steps {below}"
    for phase, limits in enumerate(budgets):
        first, last = phase * PHASE + 1, (phase + 1) * PHASE
        within = [d for d in decisions if first <= d["step"] <= last]
        settled = [d["step"] for d in within if d["settled"]]
        where = f"{name}, phase {phase + 1}: " + "\n".join(d["reason"] for d in within)
        assert settled and settled[0] <= first + 2 * WINDOW, f"not settled within two windows: {where}"
        assert sum(d["changed"] for d in within) <= 1, f"more than one change for one disturbance: {where}"
        retries = [sum(rank["retries"] for rank in line["memory"]) for line in steps[first - 1:last]]
        assert sum(retries[WINDOW if phase == 0 else 0:]) <= 1, f"more than one replay: {where}"
        assert phase > 0 or sum(retries) == 0, f"out of memory under a budget that never changed: {where}"
        fits = [c for c in own if all(c["bytes"] <= TARGET * limit for limit in limits)]
        ran = next((c for c in own if plan_of(c) == plan_of(steps[last - 1]["plan"])), None)
        assert ran is not None, where
        if fits:
            assert all(ran["bytes"] <= TARGET * limit for limit in limits), f"above the target: {where}"
            missed = [c for c in fits if c["microseconds"] < 0.98 * ran["microseconds"]]
            assert not missed, f"{missed} would have been faster than {ran}: {where}"
