"""Another program on the same GPU: holds memory of it, and takes more when a training has come so far.

    neighbour.py --hold BYTES [--more BYTES --when METRICS STEP]

Prints `holds BYTES` when it has them, `took BYTES` of `--more` at its end or when all is there. It waits for what is not free yet, and
ends when it is killed. Bytes are taken in pieces, as a program's tensors are.
"""

import argparse
import pathlib
import time

import torch

PIECE = 256 << 20


def take(wanted, kept):
    """Bytes that could be had, up to `wanted`."""
    got = 0
    while got < wanted:
        try:
            kept.append(torch.empty(min(PIECE, wanted - got), dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            return got
        got += kept[-1].numel()
    return got


def reached(metrics, step):
    return metrics.exists() and metrics.read_text(errors="replace").count("\n") >= step


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--hold", type=int, required=True)
    parser.add_argument("--more", type=int, default=0)
    parser.add_argument("--when", nargs=2, metavar=("METRICS", "STEP"))
    args = parser.parse_args()
    kept = []
    print("holds", take(args.hold, kept), flush=True)
    if args.when:
        metrics, step = pathlib.Path(args.when[0]), int(args.when[1])
        while not reached(metrics, step):
            time.sleep(0.05)
        got = 0
        while got < args.more:
            before = got
            got += take(args.more - got, kept)
            if got > before:
                print("took", got, flush=True)
            time.sleep(0.05)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main()
