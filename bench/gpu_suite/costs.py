"""What a step costs before anybody runs it: launches, bytes and floating-point operations of our operators, by a dry run for a GPU, and the
least time that a card can take for them.

    python3 bench/gpu_suite/costs.py --build build [--size 3b] [--batches 1 4 8] [--card H200]      tables for docs/performance.md

An operator's least time is the longer of its operations by the card's dense bf16 peak and its bytes by the card's bandwidth; the bound of a
step is their sum, as one operator waits for the other. Frozen weights have no gradients: a language model of N parameters costs 4N operations a
token, the tower in front 2N, and what is counted here has the low-rank products, attention and the expert in it too.
"""

import argparse
import json
import pathlib
import subprocess
import tempfile

# Dense bf16 floating-point operations and bytes per second, from the makers' data sheets.
CARDS = {"H200": (989e12, 4.8e12), "H100 PCIe": (756e12, 2.0e12), "H100 NVL": (835e12, 3.9e12), "H100": (989e12, 3.35e12), "A100": (312e12, 2.0e12)}
LAUNCH_US = 5.0  # that the host takes for one, about

# Kernels that a call of an operator launches, and each part of it, from reading model/cuda/: what depends on sizes as it is at full size,
# flash attention with the starts of its segments, the transposed sums and the copies out. Any other call launches one.
LAUNCHES = {"lora_forward": (0, 4), "lora_backward": (1, 6), "sum_rows": (0, 2), "attention_forward": (0, 4), "attention_backward": (0, 9),
            "modulated_norm_backward": (0, 2), "embed_rows_backward": (0, 3), "embed_context_forward": (0, 2), "embed_context_backward": (0, 3)}  # fmt: skip


def limits(name):
    """(floating-point operations, bytes) per second of a card of that name, or (None, None)."""
    return next((card for known, card in CARDS.items() if all(word in name for word in known.split())), (None, None))


def least_us(row, flops, bandwidth):
    return 1e6 * max(row["flops"] / flops, row["bytes"] / bandwidth)


def achieved(row, flops, bandwidth):
    """A line on an operator that took row["us"]; shares of the card's limits where they are known."""
    seconds = max(row["us"], 1e-9) / 1e6
    line = {"operator": row["name"], "calls": row["calls"], "us": row["us"], "TFLOP/s": row["flops"] / seconds / 1e12, "GB/s": row["bytes"] / seconds / 1e9}
    if flops is None:
        return line
    bound_by = "operations" if row["flops"] / flops > row["bytes"] / bandwidth else "bytes"
    return {**line, "bound by": bound_by, "share of that limit": least_us(row, flops, bandwidth) / max(row["us"], 1e-9)}


def launches(row):
    of_call, of_part = LAUNCHES.get(row["name"], (1, 0))
    return row["calls"] * of_call + row["parts"] * of_part


def counted(program, size, batch, recompute, sample_words, folder):
    """Operators of a micro-batch, by a dry run."""
    words = [program, "--counts", "--init", size, "--out", folder, "--batch", batch, "--recompute", recompute, *sample_words]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{program}: {done.stderr.strip()}")
    return json.loads(done.stdout)["operators"]


def summary(rows, batch, recompute, card):
    flops, bandwidth = limits(card)
    least = sum(least_us(row, flops, bandwidth) for row in rows)
    started = sum(map(launches, rows))
    return {"batch": batch, "recomputed": recompute, "calls": sum(row["calls"] for row in rows), "launches": started,
            "TFLOP": sum(row["flops"] for row in rows) / 1e12, "GB moved": sum(row["bytes"] for row in rows) / 1e9, "least time, ms": least / 1e3,
            f"launches x {LAUNCH_US:g} us, ms": started * LAUNCH_US / 1e3, "samples/s at most": batch / least * 1e6}  # fmt: skip


def printed(rows):
    names = list(rows[0])
    shown = [[f"{row[name]:.4g}" if isinstance(row[name], float) else str(row[name]) for name in names] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [names, ["---"] * len(names), *shown])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", default="build")
    parser.add_argument("--size", default="3b")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--card", default="H200", choices=list(CARDS))
    args = parser.parse_args()
    words = ["--dtype", "bf16", "--images", 2, "--side", 448, "--text", 84, "--width", 384, "--depth", 8, "--heads", 6, "--max-context", 1024]
    blocks = 36 if args.size == "3b" else 4
    lines, operators = [], []
    with tempfile.TemporaryDirectory() as folder:
        for recompute in (0, blocks):
            for batch in args.batches:
                rows = counted(pathlib.Path(args.build) / "reference_dump", args.size, batch, recompute, words, folder)
                lines.append(summary(rows, batch, recompute, args.card))
                if recompute == 0 and batch == args.batches[-1]:
                    operators = rows
    print(f"Forward and backward of a micro-batch, {args.size}, on one {args.card} by its data sheet:\n\n{printed(lines)}\n")
    flops, bandwidth = limits(args.card)
    operators.sort(key=lambda row: -least_us(row, flops, bandwidth))
    print(f"Its operators at batch {args.batches[-1]}, nothing recomputed:\n")
    print(printed([{"operator": row["name"], "calls": row["calls"], "launches": launches(row), "TFLOP": row["flops"] / 1e12,
                    "GB": row["bytes"] / 1e9, "least time, ms": least_us(row, flops, bandwidth) / 1e3} for row in operators]))  # fmt: skip


if __name__ == "__main__":
    main()
