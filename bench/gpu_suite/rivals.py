"""Our step beside the same in transformers and peft, on the same weights and samples, on the same device in one run."""

import json
import os
import pathlib
import statistics
import sys

import costs
from suite import PEERS, Broken, python

sys.path.insert(0, str(PEERS))
import step_peer  # noqa: E402

PARAMETERS = {"3b": {"language": 36 * (2 * 2048 * 2048 + 2 * 256 * 2048 + 3 * 2048 * 11008), "vision": 32 * (4 * 1280**2 + 3 * 1280 * 3420)}}


def samples(suite):
    """Folder of the samples that both sides train on; ours writes it."""
    return suite.work / "rivals"


class Pair:
    """Ours and PyTorch's, each a process that holds its model. One that failed is begun anew when it is next asked."""

    def __init__(self, suite):
        self.suite = suite
        self.counter = {"LD_PRELOAD": step_peer.build_counter(suite.work)} if suite.device == "cpu" else {}
        self.mine = self.theirs = None

    def begin(self, command, ours):
        suite = self.suite
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 2) // 2))}
        patience = max(1.0, min(120.0, suite.left()))
        return step_peer.Side([str(word) for word in command], {**threads, **suite.environment(ours), **self.counter}, patience)

    def set_up(self, batch, recompute):
        suite = self.suite
        if self.mine is None:
            self.mine = self.begin([suite.program("reference_dump"), *suite.sample_words(), "--out", samples(suite), "--batch", max(suite.scale.search),
                                    "--micro", 1, "--served"], True)  # fmt: skip
        self.mine.set_up(batch, recompute)
        if self.theirs is None:
            self.theirs = self.begin([python(), PEERS / "step_peer.py", "--peer", samples(suite), "--device", suite.device, "--served"], False)
        try:
            self.theirs.set_up(batch, recompute)
        except step_peer.SideFailed:
            self.theirs = None
            raise

    def close(self):
        for side in (self.mine, self.theirs):
            if side is not None:
                side.close()


def compare(pair, section, batch, recompute):
    suite = pair.suite
    pair.set_up(batch, 0 if recompute == "none" else suite.scale.depth_of_language)
    mine, theirs = pair.mine, pair.theirs
    for _ in range(suite.scale.turns):
        mine.step()
        theirs.step()
    speed = statistics.median(other / own for own, other in zip(mine.seconds, theirs.seconds))
    whole = [side.ready["live_bytes"] + side.ready["step_bytes"] for side in (mine, theirs)]
    name = f"batch {batch}, recompute {recompute}"
    section.figure(f"{name}: samples/s, ours by PyTorch's", speed, "ratio", at_least=1.5)
    section.figure(f"{name}: memory, ours by PyTorch's", whole[0] / max(1, whole[1]), "ratio", at_most=0.7)
    return {"batch": batch, "recompute": recompute, "ours, samples/s": batch / statistics.median(mine.seconds),
            "PyTorch's, samples/s": batch / statistics.median(theirs.seconds), "ours, bytes": whole[0], "PyTorch's, bytes": whole[1],
            "ours, above what stays": mine.ready["step_bytes"], "PyTorch's, above what stays": theirs.ready["step_bytes"]}  # fmt: skip


def equal_batch(suite, section):
    """Whole steps in turns, at the same batch."""
    suite.need_model()
    rows, pair = [], Pair(suite)
    try:
        for recompute in ("none", "all"):
            for batch in suite.scale.batches:
                if suite.left() < 15:
                    section.not_run(f"batch {batch}, recompute {recompute}", "the time is up")
                    continue
                try:
                    rows.append(compare(pair, section, batch, recompute))
                except step_peer.SideFailed as failure:
                    if "reference_dump" in str(failure).split(" ")[0]:
                        raise Broken(str(failure)) from None
                    section.not_run(f"batch {batch}, recompute {recompute}", f"PyTorch's side: {str(failure).strip().splitlines()[-1][:200]}")
    finally:
        pair.close()
    section.table("Steps", rows)
    suite.known["equal"] = rows
    utilisation(suite, section, rows)


def utilisation(suite, section, rows):
    """Model FLOPs of what must be computed, by the card's dense bf16 peak. Per token and parameter of the language model: 2 forward and 2 to
    the inputs (4N: frozen weights have no gradient); the frozen tower in front: 2 forward. Attention and expert are left out."""
    counts, name = PARAMETERS.get(suite.scale.size), suite.known.get("gpu", "")
    peak, _ = costs.limits(name)
    if counts is None or peak is None:
        return section.not_run("MFU", f"no peak is known of {name or 'this device'}, or no count of the model's parameters")
    s = suite.scale
    patches = s.images * (s.side // 14) ** 2
    flops = 4 * counts["language"] * (patches // 4 + s.text) + 2 * counts["vision"] * patches
    best = max((row["ours, samples/s"] for row in rows if row["recompute"] == "none"), default=None)
    if best is None:
        return section.not_run("MFU", "no step without recompute was measured")
    section.figure(f"model FLOPs of a sample (4N of {counts['language'] / 1e9:.2f} G, 2N of {counts['vision'] / 1e9:.2f} G)", flops / 1e12, "TFLOP")
    section.figure(f"MFU by 4N, no recompute, of {peak / 1e12:.0f} TFLOP/s", flops * best / peak, "", at_least=0.45)


def search(suite, section):
    """The best that PyTorch does under each card, batch and checkpointing searched, beside our best plan there."""
    suite.need_model()
    s = suite.scale
    if not (samples(suite) / "batches.safetensors").exists():
        # Its steps are only on the way to the samples.
        suite.run([suite.program("reference_dump"), *suite.sample_words(), "--out", samples(suite), "--batch", max(s.search), "--micro", 1, "--served"],
                  "samples for the search")  # fmt: skip
    text, _ = suite.run([python(), pathlib.Path(__file__).with_name("batch_search.py"), samples(suite), "--device", suite.device, "--effective", s.effective,
                         "--batches", *s.search, "--budgets", *suite.budgets()], "PyTorch's best batch", partial=True)  # fmt: skip
    rows = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    section.table("PyTorch, by batch and gradient checkpointing", rows)
    suite.known["searched"] = rows
    suite.list_larger_cards(section)
    for budget in suite.budgets():
        within = [row["samples_per_second"] for row in rows if row["budget"] == budget and not row["ran_out"]]
        best = suite.known.get("best", {}).get(budget)
        if not within or best is None or "samples_per_second" not in best:
            section.not_run(f"{budget}, best beside best", "one of the two has no plan that fits" if within or best else "the table was not measured")
            continue
        section.figure(f"{budget}: best samples/s, ours by PyTorch's", best["samples_per_second"] / max(within), "ratio", at_least=1.5)
