"""Steps that read features beside steps that make them: cache.mode "prefix", and "hybrid" with all samples cached."""

import statistics

from plans import rate


def steady(metrics, live=None):
    """Lines of the later epochs, when every sample that is drawn has its features."""
    last = metrics[-1]["epoch"]
    return [line for line in metrics if line["epoch"] > last - 1.5 and (live is None or line["live"] == live)]


def measure(suite, name, **cache):
    s = suite.scale
    steps = max(6, s.cache_epochs * (s.samples - s.samples // 10) // s.effective)
    metrics, _ = suite.train(name, cache={"dir": str(suite.work / f"{name}-features"), **cache}, train={"max_steps": steps})
    lines = steady(metrics, live=0 if cache.get("mode") == "hybrid" else None)
    if not lines:
        return None
    return {"cache": name, "samples/s": statistics.median(rate(line) for line in lines),
            "peak": max(rank["peak"] for line in lines for rank in line["memory"]), "steps": len(lines)}  # fmt: skip


def run(suite, section):
    suite.need_model()
    off = measure(suite, "off", mode="off")
    prefix = measure(suite, "prefix", mode="prefix")
    cached = measure(suite, "all-cached", mode="hybrid", live_fraction=0.0, frozen_adapters=True, rebuild_epochs=0, drift_every=0)
    rows = [row for row in (off, prefix, cached) if row]
    section.table("Steps of the last epochs", rows)
    if prefix:
        section.figure("prefix: samples/s by off's", prefix["samples/s"] / off["samples/s"], "ratio")
        section.figure("prefix: bytes less than off", (off["peak"] - prefix["peak"]) / 1e9, "GB")
    if not cached:
        return section.not_run("all cached", "no step came whose samples were all cached")
    section.figure("all cached: samples/s by off's", cached["samples/s"] / off["samples/s"], "ratio", at_least=10)
    section.figure("all cached: bytes less than off", (off["peak"] - cached["peak"]) / 1e9, "GB", at_least=10)
    equal = suite.known.get("equal", [])
    theirs = [row["PyTorch's, samples/s"] for row in equal]
    if theirs:
        section.figure("all cached: samples/s by PyTorch's best at equal batch", cached["samples/s"] / max(theirs), "ratio")
        section.figure("prefix: samples/s by PyTorch's best at equal batch", prefix["samples/s"] / max(theirs) if prefix else 0.0, "ratio")
        least = min(row["PyTorch's, bytes"] for row in equal)
        section.figure("all cached: bytes less than PyTorch's least at equal batch", (least - cached["peak"]) / 1e9, "GB")
        if prefix:
            section.figure("prefix: bytes less than PyTorch's least at equal batch", (least - prefix["peak"]) / 1e9, "GB")
    else:
        section.not_run("beside transformers and peft", "the comparison at equal batch did not run")
