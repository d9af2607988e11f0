"""What plans need and do under emulated cards, and what happens when memory goes away."""

import contextlib
import json
import pathlib
import statistics

from suite import NotRun, python, size_of


def tune(suite):
    """Rows that `plimsoll tune` measured, each with the name of its card: many plans of the smallest card, which has most of them that
    differ, and few of the others in one process, as each loads the model."""
    smallest, *others = suite.budgets()
    many, few = suite.scale.contenders
    return tune_under(suite, [smallest], many) + (tune_under(suite, others, few) if others else [])


def tune_under(suite, budgets, contenders):
    s = suite.scale
    cards = {suite.usable(budget): budget for budget in budgets}
    by_hand = [f"{suite.usable(budget)}:{micro}" for budget, micro in s.by_hand if budget in budgets]
    text, _ = suite.run([suite.program("plimsoll"), "tune", "--config", suite.configure("table"), "--budget", ",".join(map(str, cards)),
                         *(("--by-hand", ",".join(by_hand)) if by_hand else ()), "--json", "--contenders", contenders, "--steps", s.tune_steps,
                         "--out", suite.work / f"table-{budgets[0]}.toml"], f"tune under {', '.join(budgets)}", codes=(0, 3), partial=True)  # fmt: skip
    rows = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [{**row, "card": cards[row["budget"]]} for row in rows if "micro_batch" in row]


def shown(row, note=""):
    recompute = f"{row['recompute_blocks']} blocks{', offloaded' if row['offload'] else ''}" if row["recompute_blocks"] else "none"
    return {"card": row["card"], "micro-batch": row["micro_batch"], "recomputed": recompute, "accumulation": row.get("accumulation", ""),
            "predicted": row["predicted_peak"], "measured": row.get("measured_peak", "ran out"), "live": row.get("live", ""), "reserved": row.get("reserved", ""),
            "reserved, predicted": row.get("predicted_reserved", ""), "samples/s": row.get("samples_per_second", 0.0), "note": note}  # fmt: skip


def plan_of(row):
    return tuple(row[name] for name in ("micro_batch", "recompute_blocks", "recompute_vision", "recompute_expert", "offload", "resolution"))


def accuracy(section, rows):
    ran = [row for row in rows if not row["ran_out"]]
    if not ran:
        raise NotRun("no plan was measured")
    live = [row.get("predicted_live") or row["predicted_peak"] for row in ran]
    errors = [said / (row.get("live") or row["measured_peak"]) - 1 for said, row in zip(live, ran)]
    bounded = [row["predicted_peak"] / row["measured_peak"] - 1 for row in ran]
    section.figure("plans measured", len({plan_of(row) for row in ran}), "different ones", at_least=20)
    section.figure("plans that ran out of memory", len(rows) - len(ran), "", at_most=0)
    section.figure("live peak, predicted by measured, furthest off", max(map(abs, errors)), "relative", at_most=0.02)
    section.figure("live peak, furthest that one was under", max(0.0, -min(errors)), "relative")
    section.figure("peak that the budget bounds, predicted by measured, furthest off", max(map(abs, bounded)), "relative")
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
    rows = tune(suite)
    lines = []
    for budget in suite.budgets():
        own = [row for row in rows if row["card"] == budget and not row.get("by_hand")]
        best = max(own, key=lambda row: row.get("samples_per_second", 0.0), default=None)
        suite.known.setdefault("best", {})[budget] = best
        lines += [shown(row, "best" if row is best else "") for row in own]
    lines += [shown(row, "by hand") for row in rows if row.get("by_hand")]
    for budget, micro in s.by_hand:
        if budget in suite.budgets() and not any(row.get("by_hand") and row["card"] == budget and row["micro_batch"] == micro for row in rows):
            section.not_run(f"by hand, {micro} x {s.effective // micro} on {budget}", "no such plan fits there, or the time was up")
    accuracy(section, rows)
    section.table(f"Plans of {s.effective} samples a step", lines)
    smallest_card(suite, section, rows)


def smallest_card(suite, section, rows):
    """What the smallest card holds two samples in, at the least."""
    peaks = [row["measured_peak"] for row in rows if row["card"] == suite.budgets()[0] and row["micro_batch"] == 2 and not row["ran_out"]]
    if peaks:
        section.figure("smallest card, micro-batch 2", min(peaks) / 1e9, "GB", at_most=17)
    else:
        section.not_run("smallest card, micro-batch 2", "no plan with two samples was measured there")


def rate(line):
    """Samples/s of whole steps, loading and update included."""
    return 1e3 * line["samples"] / line["wall_ms"]


def summary(metrics):
    return {"steps": sum(not line["skipped"] for line in metrics), "retries": sum(rank["retries"] for line in metrics for rank in line["memory"]),
            "peak": max(rank["peak"] for line in metrics for rank in line["memory"]), "budget": metrics[-1]["memory"][0]["budget"],
            "samples/s": statistics.median(rate(line) for line in metrics)}  # fmt: skip


def calibrated(metrics, window):
    """Of the steps after the first window: predicted by measured peak, less 1, where a plan's prediction is raised by the largest
    shortfall that it had before (memory/planning/calibration.h)."""
    short, errors = {}, []
    for number, line in enumerate(metrics, start=1):
        plan = json.dumps(line["plan"], sort_keys=True)
        for rank in line["memory"]:
            if rank["retries"] > 0 or rank["other_way"]:
                continue
            if plan in short and number > window:
                errors.append((rank["predicted"] + short[plan]) / rank["peak"] - 1)
            short[plan] = max(short.get(plan, 0), rank["peak"] - rank["predicted"], 0)
    return errors


@contextlib.contextmanager
def another_program(suite, name):
    """On a GPU: another process holds all but the smallest card, and takes a fifth of that one too once its budget has fallen. Yields what it
    said, as a function; None on the CPU, where a smaller budget is all that there is."""
    s, card = suite.scale, suite.budgets()[0]
    if suite.device == "cpu":
        yield None
        return
    fifth = int(0.2 * size_of(card))
    rest = max(0, suite.known["total"] - size_of(card) - (1 << 30))
    metrics = suite.work / name / "metrics.jsonl"
    with suite.beside([python(), pathlib.Path(__file__).with_name("neighbour.py"), "--hold", rest, "--more", fifth,
                       "--when", metrics, s.long_steps + 1]) as running:  # fmt: skip
        while "holds" not in running.text():
            if running.wait(0.1) or suite.left() < 10:
                raise NotRun(f"the other process did not get its memory: {running.text().strip()[-200:]}")
        yield running.text


def neighbour(suite, section, metrics, said):
    """The last steps of the run under the smallest card, in which a fifth of its memory has gone away."""
    s = suite.scale
    before, after = metrics[:s.long_steps], metrics[s.long_steps:]
    found = summary(after)
    section.figure("a neighbour takes a fifth: steps", found["steps"], f"of {s.neighbour_steps}", at_least=s.neighbour_steps)
    section.figure("a neighbour takes a fifth: failed allocations, all replayed", found["retries"])
    section.figure("a neighbour takes a fifth: budget by that before", found["budget"] / before[-1]["memory"][0]["budget"], "", at_most=0.81)
    settled = max(rank["peak"] / rank["budget"] for line in after[-max(1, s.neighbour_steps // 4):] for rank in line["memory"])
    section.figure("a neighbour takes a fifth: peak at the end by the new budget", settled, "", at_most=1)
    if said is None:
        return section.not_run("a neighbour of flesh and blood", "no GPU: the budget falls, and nobody takes what it gives up")
    took = [int(line.split()[1]) for line in said.splitlines() if line.startswith("took")]
    section.figure("a neighbour takes a fifth: what the other process got of it", (took[-1] if took else 0) / (0.2 * size_of(suite.budgets()[0])), "", at_least=1)
    return None


def long_run(suite, section, card, steps, memory):
    s = suite.scale
    name = f"long-{card}"
    samples = s.long_effective[card != suite.budgets()[0]]
    metrics, _ = suite.train(name, batch={"effective": samples}, memory={**suite.card(card), "adjustment_frequency": s.window,
                             "calibration": str(suite.work / "calibration.json"), **memory}, train={"max_steps": steps})  # fmt: skip
    calm = metrics[:s.long_steps]
    found = summary(calm)
    section.figure(f"{card}: steps", found["steps"], f"of {s.long_steps}", at_least=s.long_steps)
    section.figure(f"{card}: failed allocations", found["retries"], "", at_most=0)
    section.figure(f"{card}: peak by budget", found["peak"] / found["budget"], "", at_most=1)
    errors = calibrated(calm, s.window)
    if errors:
        section.figure(f"{card}: calibrated peak, predicted by measured, furthest off", max(map(abs, errors)), "relative", at_most=0.01)
        section.figure(f"{card}: calibrated peak, times that it was under", sum(error < 0 for error in errors), f"of {len(errors)}", at_most=0)
    else:
        section.not_run(f"{card}: calibrated peaks", "no plan was run again after the first window")
    return metrics, {"card": card, "samples a step": samples, **found}


def long_runs(suite, section):
    """Real trainings under each card; a neighbour comes at the end of the first."""
    suite.need_model()
    s = suite.scale
    suite.list_larger_cards(section)
    smallest, *others = suite.budgets()
    changes = [{"step": s.long_steps + 1, "rank": 0, "budget": 0.8}]
    with another_program(suite, f"long-{smallest}") as said:
        metrics, line = long_run(suite, section, smallest, s.long_steps + s.neighbour_steps, {"budget_changes": changes})
        neighbour(suite, section, metrics, said() if said else None)
    lines = [line]
    for card in others:
        if suite.left() < 20:
            section.not_run(f"{card}: {s.long_steps} steps", "the time is up")
            continue
        lines.append(long_run(suite, section, card, s.long_steps, {})[1])
    section.table(f"{s.long_steps} steps under each card", lines)


def failures(suite, section):
    """Memory goes away in the middle of a step, in forward and in backward (reference_dump --failures): the same samples lose the same, and
    nothing of the failed attempt stays."""
    suite.need_model()
    s = suite.scale
    text, _ = suite.run([suite.program("reference_dump"), *suite.sample_words(), "--out", suite.work / "failures", "--batch", s.failing_batch,
                         "--recompute", s.depth_of_language, "--failures"], "steps that fail")  # fmt: skip
    rows = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    section.figure("failures in forward", sum(row["forward"] for row in rows), "", at_least=2)
    section.figure("failures in backward", sum(row["backward"] for row in rows), "", at_least=1)
    for row in rows:
        where = f"{row['phase']}, {row['place']}"
        section.figure(f"{where}: failed there, and was replayed", min(row["retries"], row[row["phase"]]), "", at_least=1)
        section.figure(f"{where}: bytes still held after the drain", row["held"], "B", at_most=0)
        section.figure(f"{where}: waited for that", row["waited_ms"], "ms", at_most=1000)
        section.figure(f"{where}: loss beside an undisturbed step's", abs(row["loss"] / row["calm_loss"] - 1), "relative", at_most=1e-2)
        section.figure(f"{where}: gradient norm beside an undisturbed step's", abs(row["norm"] / row["calm_norm"] - 1), "relative", at_most=2e-2)


def full_card(suite, section):
    """A training that is asked to run where others have left nothing."""
    suite.need_model()
    if suite.device == "cpu":
        return refused(suite, section, {"budget": suite.scale.too_little})
    rest = max(0, suite.known["total"] - size_of(suite.scale.too_little))
    with suite.beside([python(), pathlib.Path(__file__).with_name("neighbour.py"), "--hold", rest]) as running:
        while "holds" not in running.text():
            if running.wait(0.1) or suite.left() < 10:
                raise NotRun(f"the other process did not get its memory: {running.text().strip()[-200:]}")
        return refused(suite, section, {"budget": "auto"})


def refused(suite, section, memory):
    path = suite.configure("full-card", memory=memory, train={"max_steps": 1})
    text, code = suite.run([suite.program("plimsoll"), "train", "--config", path], "a training on a full card", codes=range(1, 128))
    section.figure("exit code", code, "of 3 (memory) or 2 (the GPU cannot be used)", at_least=2, at_most=3)
    section.figure("it says why", int(any(word in text for word in ("memory.budget", "memory.card", "out of memory"))), "", at_least=1)
    section.table("Last line", [{"said": text.strip().splitlines()[-1].replace("|", "/")[:300]}])
