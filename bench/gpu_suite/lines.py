"""What was asked of the GPU side, line by line, and which part of the suite shows it. No line is left out of the report: what no part
shows says why, and tests/borders/test_gpu_suite.py holds the list and the parts together."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Line:
    about: str
    text: str
    parts: tuple = ()  # that show it
    why_not: str = ""  # what of it no part shows, and why


BUILD, NUMBERS, TROUBLE = "what is built", "numbers and proofs", "bad input"

# In the order in which they were asked for, which is that of the parts too.
LINES = (
    Line(BUILD, "meter, budgets by memory fraction, out-of-memory observer, snapshot, drain; offload on a stream of its own", ("own-tests",)),
    Line(BUILD, "kernels beside the CPU's, one by one and in whole steps; their scratch; the allocator model beside the allocator", ("own-tests",)),
    Line(BUILD, "several ranks on one GPU through pinned host memory, each with a budget of its own; the conformance suite there", ("ranks",)),
    Line(BUILD, "NCCL: conformance, asynchronous errors, a late or killed rank", ("ranks",),
         "more than one rank of it, and what ranks do to each other: NCCL wants a GPU for every rank"),
    Line(BUILD, "a model of full size: written without two copies, read with mmap", ("model",), "what a rank holds of the host's memory while it reads"),
    Line(BUILD, "one command of at most nine minutes without network or compiler", ("machine",)),
    Line(NUMBERS, "parity with the CPU and with transformers on CUDA: tiny, 20 losses; full size in bf16, distance from fp32", ("parity",),
         "full size beside the CPU: a step there takes minutes"),
    Line(NUMBERS, "prediction: live peak cold, reserved bytes, over at least 20 plans", ("table",)),
    Line(NUMBERS, "prediction, calibrated: within 1 %, never under", ("long",), "more plans than those that these runs come to"),
    Line(NUMBERS, "the allocator model's unit cases beside the real allocator's trace", ("own-tests",)),
    Line(NUMBERS, "emulated 24, 40 and 80 GB cards: the table, rows made by hand, the best plan; 24 GB holds micro-batch 2", ("table",)),
    Line(NUMBERS, "no failure in 200 steps under each card", ("long",), "40 and 80 GB at their limit: a step there has 2 samples, for the time"),
    Line(NUMBERS, "a neighbour that takes 20 % of the memory mid-run is survived", ("long",)),
    Line(NUMBERS, "real failures in forward and in backward: replayed, nothing lost, live bytes after the drain", ("failures",)),
    Line(NUMBERS, "beside transformers and peft at equal batch, checkpointing on and off: speed, memory, MFU by 4N", ("rivals",),
         "flash_attn is not asked for: SDPA, which has flash attention in it"),
    Line(NUMBERS, "beside transformers and peft at their best batch under each card", ("search",)),
    Line(NUMBERS, "what the agreement costs at world 1 and on several ranks", ("agreement",)),
    Line(NUMBERS, "where time goes: top kernels, gaps, achieved bandwidth and TFLOP/s beside the card's limits", ("profile",)),
    Line(NUMBERS, "cached features: prefix and all-cached steps beside off and beside transformers and peft: samples/s and peak", ("cached",)),
    Line(TROUBLE, "no driver", (), "there is one here; tests/train/cuda_library.cpp and tests/faults/test_bad_input.py show it where there is none"),
    Line(TROUBLE, "a driver too old, a GPU of an architecture that is not built", (), "this machine has neither; tests/train shows the checks"),
    Line(TROUBLE, "NCCL of another version", (), "the environment has the one that was built for"),
    Line(TROUBLE, "a card already full", ("full-card",)),
    Line(TROUBLE, "a GPU lost mid-run", (), "nothing here may lose its GPU; tests show it with a device that fails on purpose"),
    Line(TROUBLE, "a peer killed mid-reduction: the others leave within the timeout", ("ranks",), "over NCCL: one GPU"),
)  # fmt: skip


def outcome_of(line, sections):
    """One word or more on a line, from the parts that ran so far."""
    if not line.parts:
        return f"not run: {line.why_not}"
    found = {section.name: section for section in sections}
    said = []
    for name in line.parts:
        section = found.get(name)
        if section is None:
            said.append(f"{name}: not run: it was not asked for, or its turn did not come")
        elif section.outcome != "ran":
            said.append(f"{name}: {section.outcome}: {section.why}")
        else:
            missed = sum(figure["met"] is False for figure in section.figures)
            said.append(f"{name}: ran{f', {missed} bounds not met' if missed else ''}{f', {len(section.missing)} things not run' if section.missing else ''}")
    if line.why_not:
        said.append(f"not run: {line.why_not}")
    return "; ".join(said)


def outcomes(sections):
    return [{"about": line.about, "line": line.text, "parts": ", ".join(line.parts), "outcome": outcome_of(line, sections)} for line in LINES]


def markdown(rows):
    """The report's first table."""
    text = ["## What was asked for", "", "| about | line | outcome |", "|---|---|---|"]
    return text + [f"| {row['about']} | {row['line']} | {row['outcome']} |" for row in rows] + [""]
