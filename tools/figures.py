#!/usr/bin/env python3
"""Turns results of benchmarks into lines `FIGURE name = value unit` for docs/benchmarks.md. Usage: figures.py FILE

FILE is either Google Benchmark's JSON or JSON lines of bench/peers/step_peer.py. A figure that has a bound carries it and whether it
is met, in place of a unit: "(bound 1.5: met)".
"""
import json
import sys

SPEED_BOUNDS = {"tiny": 1.5, "wide": 1.1}
BYTES_BOUND = 0.7
SHARE_BOUNDS = {"share_of_step": 0.02, "share_of_step_lost": 0.05}


def verdict(bound, met):
    return f"(bound {bound}: {'met' if met else 'NOT met'})"


def benchmark_figures(document):
    for row in document["benchmarks"]:
        if row.get("run_type") == "aggregate" or row.get("error_occurred"):
            continue
        yield row["name"], row["real_time"], row["time_unit"]
        for counter in ("bytes_per_second", "items_per_second"):
            if counter in row:
                yield f"{row['name']} {counter.split('_')[0]}", row[counter], "1/s"
        if "peak_GB" in row:
            yield f"{row['name']} peak", row["peak_GB"], "GB"
        for counter in (name for name in row if name.startswith("share_")):
            bound = SHARE_BOUNDS.get(counter)
            unit = verdict(bound, row[counter] < bound) if bound else ""
            yield f"{row['name']} {counter.replace('_', ' ')}", row[counter], unit


def peer_figures(rows):
    for row in rows:
        setting = f"{row['size']}, batch {row['batch']}, recompute {row['recompute']}, {row['dtype']}, {row['threads']} threads"
        yield f"step {setting}: ours", row["ours_samples_per_second"], "samples/s"
        yield f"step {setting}: PyTorch", row["peer_samples_per_second"], "samples/s"
        least = SPEED_BOUNDS.get(row["size"])
        unit = verdict(least, row["speed"] >= least) if least else ""
        yield f"step {setting}: speed, ours by PyTorch's", row["speed"], unit
        unit = verdict(BYTES_BOUND, row["bytes"] <= BYTES_BOUND) if row["recompute"] == "none" else ""
        yield f"step {setting}: activation bytes, ours by PyTorch's", row["bytes"], unit


def main():
    text = open(sys.argv[1]).read()
    if sys.argv[1].endswith(".jsonl"):
        figures = peer_figures(json.loads(line) for line in text.splitlines() if line)
    else:
        figures = benchmark_figures(json.loads(text))
    for name, value, unit in figures:
        print(f"FIGURE {name} = {value:.4g} {unit}".rstrip())


if __name__ == "__main__":
    main()
