"""Several ranks on one GPU: what they lose, with budgets of their own, and what happens when one is killed."""

import os
import re
import signal
import time

from suite import NotRun, Running, descendants

STEPS = 6
TIMEOUT = 10  # seconds that a rank waits for the others


def tables(suite, **more):
    """[...] of a training of the tiny model in fp32: what is shown does not depend on its size."""
    small = {
        "model": {"path": str(suite.work / "ranks" / "model"), "dtype": "fp32"},
        "expert": {"width": 64, "depth": 2, "heads": 4, "draws": 2, "chunk": 8},
        "data": {"synthetic_samples": 24, "synthetic_images": 1, "synthetic_side": 56, "synthetic_text": 12, "workers": 1, "prefetch": 1},
        "batch": {"effective": 6},
        "memory": {"budget": suite.scale.rank_budgets[0]},
        "train": {"max_steps": STEPS, "checkpoint_every": 2},
        "report": {"files": False},
    }  # fmt: skip
    for table, keys in more.items():
        small.setdefault(table, {}).update(keys)
    return small


def conformance(suite, section):
    """The communicators' own suite, in the GPU's memory."""
    words = [suite.program("device_conformance")]
    text, code = suite.run([*words, "--can-run"], "whether ranks can reduce on a GPU", codes=(0, 77))
    if code == 77:
        return section.not_run("the conformance suite in a GPU's memory", text.strip().splitlines()[-1])
    for count, name in (1, "1 rank, over NCCL"), (2, "2 ranks"):
        text, _ = suite.run(suite.ranks(count, *words), f"the conformance suite: {name}", codes=(0, 1))
        passed, failed = (re.search(rf"\[  {word}  \] (\d+) test", text) for word in ("PASSED", "FAILED"))
        section.figure(f"{name}: conformance, cases", int(passed[1]) if passed else 0, "passed", at_least=1)
        section.figure(f"{name}: conformance, cases that failed", int(failed[1]) if failed else 0, "", at_most=0)
    return None


def off(losses, alone):
    return max(abs(one / other - 1) for one, other in zip(losses, alone, strict=True))


def equal_losses(suite, section):
    """Runs of one, two and three ranks; the three with unequal budgets."""
    alone = [line["loss"] for line in suite.train("ranks-1", **tables(suite))[0]]
    rows = [{"ranks": 1, "budgets": suite.scale.rank_budgets[0], "losses": len(alone)}]
    for count in (2, 3):
        budgets = list(suite.scale.rank_budgets[:count]) if count == 3 else suite.scale.rank_budgets[0]
        metrics, _ = suite.train(f"ranks-{count}", ranks=count, **tables(suite, memory={"budget": budgets}))
        section.figure(f"{count} ranks: losses beside one rank's, worst", off([line["loss"] for line in metrics], alone), "relative", at_most=1e-4)
        own = [rank["budget"] for rank in metrics[-1]["memory"]]
        over = max(rank["peak"] / rank["budget"] for line in metrics for rank in line["memory"])
        section.figure(f"{count} ranks: largest peak by its rank's budget", over, "", at_most=1)
        if count == 3:
            section.figure("3 ranks: different budgets", len(set(own)), "", at_least=3)
        rows.append({"ranks": count, "budgets": ", ".join(map(str, own)), "losses": len(metrics)})
    section.table("Runs of the tiny model", rows)


def rank_processes(running):
    """Processes by rank."""
    found = {}
    for pid in descendants(running.process.pid):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                program = file.read().split(b"\0")[0]
            with open(f"/proc/{pid}/environ", "rb") as file:
                variables = file.read().split(b"\0")
        except OSError:
            continue
        rank = [int(value.split(b"=")[1]) for value in variables if value.startswith(b"OMPI_COMM_WORLD_RANK=")]
        if rank and program.endswith(b"plimsoll"):
            found[rank[0]] = pid
    return found


def killed(suite, section):
    """kill -9 of one of three ranks in the middle of a run, where mpirun does not end the others."""
    name = "ranks-killed"
    config = suite.configure(name, **tables(suite, train={"max_steps": 100000}, launch={"timeout": TIMEOUT}))
    words = suite.ranks(3, suite.program("plimsoll"), "train", "--config", config, options=("--enable-recovery",))
    running = Running(suite, words)
    try:
        while len(suite.metrics(name)) < 5:
            if running.wait(0.05) or suite.left() < 5:
                raise NotRun(f"three ranks did not come to step 5: {running.text().strip().splitlines()[-1:]}")
        begun = time.monotonic()
        os.kill(rank_processes(running)[1], signal.SIGKILL)
        ended = running.wait(min(suite.left(), 3 * TIMEOUT))
        section.figure("1 of 3 ranks killed: seconds until the others have left", time.monotonic() - begun if ended else 1e9, "s", at_most=TIMEOUT + 5)
    finally:
        text = running.stop()
    section.figure("1 of 3 ranks killed: the others say so", int("rank 1 (pid" in text), "", at_least=1)
    kept = list((suite.work / name / "checkpoints").glob("step-*/complete.json"))
    section.figure("1 of 3 ranks killed: checkpoints kept", len(kept), "", at_least=1)


def run(suite, section):
    suite.ranks(2, "true")  # or says that there is no mpirun
    suite.run([suite.program("plimsoll"), "init-model", "--size", "tiny", "--dtype", "fp32", "--out", suite.work / "ranks" / "model"], "a tiny model")
    conformance(suite, section)
    equal_losses(suite, section)
    killed(suite, section)
    section.not_run("NCCL", "one GPU: NCCL wants a GPU for every rank" if suite.device == "cuda" else "no GPU")


def agreement(suite, section):
    """What the ranks' reports add to a step, in the device's memory, beside a step of the full model."""
    step = suite.known.get("best", {}).get(suite.budgets()[-1])
    for count in (1, 2):
        words = [suite.program("reduction_bench"), "3", "5", suite.device]
        text, _ = suite.run(words if count == 1 else suite.ranks(count, *words), f"reports of {count} ranks")
        found = {line.split(" = ")[0].removeprefix("FIGURE "): float(line.split(" = ")[1].split()[0]) for line in text.splitlines() if line.startswith("FIGURE")}
        cost = found["report slots: pack, unpack, agree"] + max(0.0, found["report slots: what they add to the all-reduce"])
        section.figure(f"{count} ranks: reports and agreement", cost, "ms")
        if step and "samples_per_second" in step:
            whole = 1e3 * suite.scale.effective / step["samples_per_second"]
            section.figure(f"{count} ranks: share of a step of {whole:.0f} ms", cost / whole, "", at_most=1e-3)
        else:
            section.not_run(f"{count} ranks: share of a step", "the part `table` measured none")
