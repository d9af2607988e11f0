"""What plans need and do under emulated cards, and what happens when memory goes away."""

import json
import statistics

from suite import NotRun, size_of


def tune(suite, name, budgets, contenders, **tables):
    """Rows that `plimsoll tune` measured."""
    path = suite.configure(name, **tables)
    text, _ = suite.run([suite.program("plimsoll"), "tune", "--config", path, "--budget", ",".join(budgets), "--json", "--contenders", contenders,
                         "--steps", suite.scale.tune_steps, "--out", suite.work / f"{name}-table.toml"], f"tune {name}", codes=(0, 3), partial=True)  # fmt: skip
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def shown(row, note=""):
    recompute = f"{row['recompute_blocks']} blocks{', offloaded' if row['offload'] else ''}" if row["recompute_blocks"] else "none"
    return {"card": f"{row['budget'] / 2**30:.3g} GiB", "micro-batch": row["micro_batch"], "recomputed": recompute, "accumulation": row.get("accumulation", ""),
            "predicted": row["predicted_peak"], "measured": row.get("measured_peak", "ran out"), "reserved": row.get("reserved", ""),
            "reserved, predicted": row.get("predicted_reserved", ""), "samples/s": row.get("samples_per_second", 0.0), "note": note}  # fmt: skip


def accuracy(section, rows):
    ran = [row for row in rows if not row["ran_out"]]
    if not ran:
        raise NotRun("no plan was measured")
    errors = [row["predicted_peak"] / row["measured_peak"] - 1 for row in ran]
    section.figure("plans measured", len(ran), "", at_least=20)
    section.figure("plans that ran out of memory", len(rows) - len(ran), "", at_most=0)
    section.figure("live peak, predicted by measured, furthest off", max(map(abs, errors)), "relative", at_most=0.02)
    section.figure("live peak, furthest that one was under", max(0.0, -min(errors)), "relative")
    reserved = [row["predicted_reserved"] / row["reserved"] - 1 for row in ran if row.get("reserved")]
    if reserved:
        section.figure("reserved bytes, predicted by measured, furthest off", max(map(abs, reserved)), "relative", at_most=0.05)
    else:
        section.not_run("reserved bytes", "the CPU's allocator keeps nothing that is not live")


def table(suite, section):
    """The plans that seem fastest under each card, and the rows that people use."""
    suite.need_model()
    s = suite.scale
    suite.list_larger_cards(section)
    rows = [row for row in tune(suite, "table", suite.budgets(), s.contenders) if "micro_batch" in row]
    lines = []
    for budget in suite.budgets():
        own = [row for row in rows if row["budget"] == size_of(budget)]
        best = max(own, key=lambda row: row.get("samples_per_second", 0.0), default=None)
        suite.known.setdefault("best", {})[budget] = best
        lines += [shown(row, "best" if row is best else "") for row in own]
    for micro in sorted({micro for _, micro in s.by_hand}):
        budgets = [budget for budget, m in s.by_hand if m == micro and budget in suite.budgets()]
        if not budgets:
            continue
        hand = [row for row in tune(suite, f"hand-{micro}", budgets, 1, batch={"min_micro": micro, "max_micro": micro}, memory={"recompute": "all"})
                if "micro_batch" in row]  # fmt: skip
        rows += hand
        lines += [shown(row, "by hand") for row in hand]
        for budget in budgets:
            if not any(row["budget"] == size_of(budget) for row in hand):
                section.not_run(f"by hand, {micro} x {s.effective // micro} on {budget}", "no such plan fits there")
    accuracy(section, rows)
    section.table(f"Plans of {s.effective} samples a step", lines)
    for row in rows:
        if row["budget"] == size_of(suite.budgets()[0]) and row["micro_batch"] == 2 and not row["ran_out"]:
            section.figure("smallest card, micro-batch 2", row["measured_peak"] / 1e9, "GB", at_most=17)


def rate(line):
    """Samples/s of whole steps, loading and update included."""
    return 1e3 * line["samples"] / line["wall_ms"]


def summary(metrics):
    return {"steps": sum(not line["skipped"] for line in metrics), "retries": sum(rank["retries"] for line in metrics for rank in line["memory"]),
            "peak": max(rank["peak"] for line in metrics for rank in line["memory"]),
            "samples/s": statistics.median(rate(line) for line in metrics)}  # fmt: skip


def long_runs(suite, section):
    """Real trainings under each card."""
    suite.need_model()
    s = suite.scale
    lines = []
    suite.list_larger_cards(section)
    for budget in suite.budgets():
        metrics, _ = suite.train(f"long-{budget}", batch={"effective": s.long_effective}, memory={"budget": budget}, train={"max_steps": s.long_steps})
        found = summary(metrics)
        section.figure(f"{budget}: steps", found["steps"], f"of {s.long_steps}", at_least=s.long_steps)
        section.figure(f"{budget}: failed allocations", found["retries"], "", at_most=0)
        section.figure(f"{budget}: peak by budget", found["peak"] / size_of(budget), "", at_most=1)
        lines.append({"card": budget, **found})
    section.table(f"{s.long_steps} steps of {s.long_effective} samples", lines)


def neighbour(suite, section):
    """A fifth of the memory goes away in mid-run."""
    suite.need_model()
    s = suite.scale
    budget = suite.budgets()[0]
    changes = [{"step": s.long_steps // 4 + 1, "rank": 0, "budget": int(0.8 * size_of(budget))}]
    metrics, _ = suite.train("neighbour", batch={"effective": s.long_effective}, memory={"budget": budget, "budget_changes": changes},
                             train={"max_steps": s.long_steps // 2})  # fmt: skip
    found = summary(metrics)
    section.figure("steps", found["steps"], f"of {s.long_steps // 2}", at_least=s.long_steps // 2)
    section.figure("failed allocations, all replayed", found["retries"])
    after = max(rank["peak"] for line in metrics[-max(1, s.long_steps // 8):] for rank in line["memory"])
    section.figure("peak at the end by the new budget", after / (0.8 * size_of(budget)), "", at_most=1)


def failures(suite, section):
    """The budget falls in the middle of a step: real failures, in forward and in backward."""
    suite.need_model()
    s = suite.scale
    high, low = s.lowered
    if size_of(high) > size_of(suite.budgets()[-1]):
        high = suite.budgets()[-1]
    tables = {"batch": {"effective": s.long_effective}, "train": {"max_steps": 6}}
    calm, _ = suite.train("calm", memory={"budget": high}, **tables)
    for after in s.allocations:
        # Two steps with the high budget, then the fall; the loss of every step is that of a run to which nothing happened.
        changes = [{"step": 3, "rank": 0, "budget": size_of(low), "after_allocations": after}]
        metrics, _ = suite.train(f"failure-{after}", memory={"budget": high, "budget_changes": changes}, **tables)
        found = summary(metrics)
        section.figure(f"after {after} allocations: failures replayed", found["retries"], "", at_least=1)
        section.figure(f"after {after} allocations: steps", found["steps"], "of 6", at_least=6)
        off = max(abs(one["loss"] / other["loss"] - 1) for one, other in zip(metrics, calm, strict=True))
        section.figure(f"after {after} allocations: losses beside an undisturbed run's, worst", off, "relative", at_most=1e-2)
