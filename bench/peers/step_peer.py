"""Our training step and the same in PyTorch, side by side: samples per second and bytes of a step.

    step_peer.py --build BUILD [--size tiny wide] [--batch 1 8] [--recompute none all] [--threads 2] [--steps 20] [--rounds 3]

Both sides run whole steps of stage 2 on the same weights and samples, without logits: ours is train::Step::run (packing, forward,
backward, commit, reduction of world 1, AdamW), theirs collation, forward, backward, optimizer.step() and
zero_grad(set_to_none=True), with AdamW fused, as transformers' Trainer has it. Each side is a process of its own with the same number
of threads, in turns (ours, peer, ours, ...) so that a busy machine troubles both; the best round of each counts.

Activation bytes: the peak of one step above what is live between steps, counted by bench/peers/malloc_counter.c under both. Our
gradients live between steps in flat buffers. Theirs, freed by zero_grad(set_to_none=True), would count as activations; so the step
whose bytes are counted keeps them (set_to_none=False), and both sides count alike.

Prints one JSON line per setting. Ends with status 1 if the bytes, which do not depend on the machine's mood, are above their bound;
speeds are never asserted (tools/figures.py prints them with their bounds).
"""

import argparse
import ctypes
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

BYTES_BOUND = 0.7  # ours by theirs, where nothing is recomputed

HERE = pathlib.Path(__file__).resolve().parent


def counter(name):
    function = getattr(ctypes.CDLL(None), name, None)
    if function is None:
        return 0
    function.restype = ctypes.c_int64
    return function()


def peer(folder, steps):
    """Times the PyTorch side on what reference_dump wrote; prints one JSON line."""
    import torch

    from reference_model import Reference, collate, read_batches, read_options

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    options = read_options(folder)
    model = Reference(options)
    model.load(str(pathlib.Path(folder) / "trainable.safetensors"))
    samples = read_batches(folder)[0]
    optimizer = model.optimizer(fused=True)

    def run(keep_gradients=False):
        model.losses(collate(samples)).mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=not keep_gradients)

    for _ in range(2):
        run()
    run(keep_gradients=True)
    live = counter("malloc_counter_reset_peak")
    run(keep_gradients=True)
    peak = counter("malloc_counter_peak")
    optimizer.zero_grad(set_to_none=True)
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    median = sorted(seconds)[len(seconds) // 2]
    batch = options["batch"]
    print(json.dumps({"side": "peer", "batch": batch, "recompute": options["recompute"], "seconds": median,
                      "samples_per_second": batch / median, "step_bytes": peak - live, "threads": torch.get_num_threads()}))


def build_counter(folder):
    library = pathlib.Path(folder) / "libmalloc_counter.so"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, HERE / "malloc_counter.c"], check=True)
    return str(library)


def last_line(command, environment):
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{command[0]} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(args, folder, model, size, batch, recompute, environment):
    folder = pathlib.Path(folder) / f"{size}-{batch}-{recompute}"
    folder.mkdir()
    blocks = {"none": 0, "half": 2, "all": 4}[recompute]
    ours = [str(pathlib.Path(args.build) / "reference_dump"), "--model", str(model), "--out", str(folder), "--batch", str(batch),
            "--recompute", str(blocks), "--time", str(args.steps), "--width", "128", "--depth", "4", "--dtype", args.dtype]
    theirs = [sys.executable, __file__, "--peer", str(folder), "--steps", str(args.steps)]
    results = [(last_line(ours, environment), last_line(theirs, environment)) for _ in range(args.rounds)]
    best = [max((pair[side] for pair in results), key=lambda r: r["samples_per_second"]) for side in (0, 1)]
    line = {"size": size, "batch": batch, "recompute": recompute, "dtype": args.dtype, "threads": args.threads,
            "ours_samples_per_second": round(best[0]["samples_per_second"], 2),
            "peer_samples_per_second": round(best[1]["samples_per_second"], 2),
            "speed": round(best[0]["samples_per_second"] / best[1]["samples_per_second"], 3),
            "ours_bytes": best[0]["step_bytes"], "peer_bytes": best[1]["step_bytes"],
            "bytes": round(best[0]["step_bytes"] / max(1, best[1]["step_bytes"]), 3)}
    print(json.dumps(line), flush=True)
    return recompute != "none" or line["bytes"] <= BYTES_BOUND


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", default="build")
    parser.add_argument("--size", nargs="+", default=["tiny", "wide"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--recompute", nargs="+", default=["none", "all"])
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", help="internal: time the PyTorch side on this folder")
    args = parser.parse_args()
    if args.peer:
        return peer(args.peer, args.steps)
    above = []
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"OMP_NUM_THREADS": str(args.threads), "LD_PRELOAD": build_counter(folder)}
        for size in args.size:
            model = pathlib.Path(folder) / size
            made = subprocess.run([str(pathlib.Path(args.build) / "reference_dump"), "--init", size, "--model", str(model), "--out",
                                   str(pathlib.Path(folder) / f"init-{size}"), "--batch", "1"], capture_output=True, text=True)
            if made.returncode != 0:
                raise SystemExit(f"no {size} model: {made.stderr}")
            for batch in args.batch:
                for recompute in args.recompute:
                    if not compare(args, folder, model, size, batch, recompute, environment):
                        above.append(f"{size}, batch {batch}")
    if above:
        raise SystemExit(f"activation bytes above {BYTES_BOUND} of PyTorch's: {'; '.join(above)}")


if __name__ == "__main__":
    main()
