"""Where a step's time goes, by libtorch's own profiler in our program (reference_dump --profile): kernels, gaps, and what each operator
achieves beside what the card can."""

import json

import costs
from suite import Broken


def profiled(suite, batch, recompute):
    s = suite.scale
    folder = suite.work / f"profile-{batch}-{recompute}"
    text, _ = suite.run([suite.program("reference_dump"), *suite.sample_words(), "--out", folder, "--batch", batch, "--recompute", recompute,
                         "--profile", s.profiled_steps], f"a profile at batch {batch}, {recompute} blocks recomputed")  # fmt: skip
    found = [line for line in text.splitlines() if line.startswith("{")]
    if not found:
        raise Broken(f"reference_dump --profile said nothing of its steps: {text.strip()[-300:]}")
    return json.loads(found[-1])


def describe(section, name, found, card):
    flops, bandwidth = costs.limits(card)
    rows = [row for row in found["operators"] if row["us"] > 0]
    section.figure(f"{name}: a step", found["wall_us"] / 1e3, "ms")
    section.figure(f"{name}: the same under the profiler", found["profiled_us"] / 1e3, "ms")
    section.figure(f"{name}: operators that were timed", len(rows), "", at_least=1)
    section.table(f"{name}: operators, by their time", [costs.achieved(row, flops, bandwidth) for row in rows[:20]])
    if "span_us" in found:
        section.figure(f"{name}: the GPU works in a step", found["busy_us"] / 1e3, "ms")
        section.figure(f"{name}: it does nothing between first and last kernel", (found["span_us"] - found["busy_us"]) / found["span_us"], "of that time")
        section.figure(f"{name}: gaps", found["gaps"], "a step")
        section.figure(f"{name}: longest gap", found["longest_gap_us"] / 1e3, "ms")
        section.figure(f"{name}: kernels and copies", sum(row["calls"] for row in found["kernels"]), "a step")
        section.figure(f"{name}: kernels that no operator of ours launched", found["outside_us"] / 1e3, "ms a step")
        section.table(f"{name}: kernels, by their time", [{"us": row["us"], "calls": row["calls"], "kernel": row["name"].replace("|", "/")[:100]}
                                                         for row in found["kernels"][:25]])  # fmt: skip
    else:
        section.not_run(f"{name}: kernels and gaps", "a CPU has none")
    if flops is None:
        return section.not_run(f"{name}: shares of the card's limits", f"none are known of {card or 'this device'}")
    section.figure(f"{name}: least time of its operators by the card's limits", sum(costs.least_us(row, flops, bandwidth) for row in found["operators"]) / 1e3, "ms")
    return None


def run(suite, section):
    suite.need_model()
    s = suite.scale
    for batch, recompute in s.profiles:
        found = profiled(suite, batch, recompute)
        describe(section, f"batch {batch}, {recompute} blocks recomputed", found, suite.known.get("gpu", ""))
