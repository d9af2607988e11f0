#!/usr/bin/env python3
"""Random access to a LeRobot dataset: our loader beside lerobot's DataLoader, on the same files, cores and batch.

Usage, from the repository's root: PLIMSOLL_PROOFS=1 .venv/bin/python bench/loader_peer.py [--rounds 3] [--episodes 24]
[--frames 50] [--side 448] [--batch 8] [--workers 0 1 2] [--backends pyav torchcodec]. Writes a dataset with two cameras whose frames
are more than any cache of decoded frames holds, and draws every frame once. Ours hands out what the model reads (patches,
tokens, normalised numbers), theirs pictures as tensors. All settings take their turns in every round. Ours must be 3 times
theirs at its best setting; 1.3 times where decoding alone is more than 0.6 of theirs.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = pathlib.Path(os.environ.get("PLIMSOLL_BUILD", ROOT / "build"))
sys.path.insert(0, str(ROOT / "tests" / "oracle"))
VERSION = "0.4.4"


def program(*words):
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode != 0:
        raise SystemExit(f"{words[0]}: {done.stderr[-2000:]}")
    return done.stdout


def last_json(text):
    return json.loads([line for line in text.splitlines() if line.startswith("{")][-1])


def main():
    import lerobot_environment as lerobot

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=24)
    parser.add_argument("--frames", type=int, default=50)
    parser.add_argument("--side", type=int, default=448)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--backends", nargs="+", default=["pyav", "torchcodec"])
    options = parser.parse_args()
    if reason := lerobot.obstacle(VERSION):
        raise SystemExit(reason)
    with tempfile.TemporaryDirectory(prefix="plimsoll-loader-") as name:
        folder = pathlib.Path(name)
        program(BUILD / "plimsoll", "init-model", "--size", "tiny", "--out", folder / "model")
        program(BUILD / "plimsoll", "demo-data", "--episodes", options.episodes, "--frames-per-episode", options.frames, "--heavy-fraction", 0,
                "--top-side", options.side, "--wrist-side", options.side, "--out", folder / "data")
        ours, theirs, failed = {}, {}, {}
        for _ in range(options.rounds):
            for workers in sorted({max(1, count) for count in options.workers}):
                ours.setdefault(workers, []).append(last_json(program(BUILD / "loader_bench", folder / "data", folder / "model", workers, options.batch)))
            for backend in options.backends:
                for workers in options.workers:
                    if (workers, backend) in failed:
                        continue
                    try:
                        text = lerobot.run(VERSION, folder, ROOT / "bench/peers/lerobot_loader.py", folder / "data", workers, options.batch, backend)
                    except AssertionError as error:
                        failed[workers, backend] = str(error).strip().splitlines()[-1]
                        continue
                    theirs.setdefault((workers, backend), []).append(last_json(text))
    speed = lambda found: statistics.median(one["samples_per_second"] for one in found)
    print(f"| {options.episodes * options.frames} frames, two cameras of {options.side} px, batches of {options.batch} | samples/s, median of {options.rounds} | decoding |\n|---|---:|---:|")
    for workers, found in ours.items():
        print(f"| ours, {workers} threads | {speed(found):.2f} | |")
    for (workers, backend), found in theirs.items():
        share = f"{statistics.median(one['decode_share'] for one in found):.2f}" if "decode_share" in found[0] else ""
        print(f"| lerobot {VERSION}, {workers} workers, {backend} | {speed(found):.2f} | {share} |")
    for (workers, backend), reason in failed.items():
        print(f"| lerobot {VERSION}, {workers} workers, {backend} | did not run: {reason[:120]} | |")
    if not theirs:
        raise SystemExit("lerobot's loader ran in no setting")
    best = max(theirs, key=lambda setting: speed(theirs[setting]))
    mine = max(ours, key=lambda workers: speed(ours[workers]))
    alone = theirs.get((0, best[1]), [{}])
    share = statistics.median(one.get("decode_share", 0) for one in alone)
    bound = 1.3 if share > 0.6 else 3.0
    ratio = speed(ours[mine]) / speed(theirs[best])
    print(f"FIGURE loader, samples/s of {mine} threads beside lerobot's best ({best[0]} workers, {best[1]}) = {ratio:.2f} (bound {bound}: {'met' if ratio >= bound else 'NOT met'})")
    print(f"FIGURE loader, part of lerobot's time that decoding takes there = {share:.2f}")
    growth = max(one["resident_mib"][1] - one["resident_mib"][0] for one in ours[mine])
    print(f"FIGURE loader, resident memory after all frames less than after a tenth of them = {growth:.1f} MiB")


if __name__ == "__main__":
    main()
