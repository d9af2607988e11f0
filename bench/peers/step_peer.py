"""Our training step and the same in PyTorch, side by side: samples per second and bytes of a step.

    step_peer.py --build BUILD [--size tiny wide] [--batch 1 8] [--recompute none all] [--threads 2] [--steps 40]

Both sides run whole steps of stage 2 on the same weights and samples, without logits: ours is train::Step::run (packing, forward,
backward, commit, reduction of world 1, AdamW), theirs collation, forward, backward, optimizer.step() and
zero_grad(set_to_none=True), with AdamW fused, as transformers' Trainer has it. Each side is a process of its own with the same number
of threads. They take turns step by step, one waiting while the other runs, so that whatever else the machine does troubles both: the
speed is the median over pairs of steps, samples/s are the median of each side.

Activation bytes: the peak of one step above what is live between steps, counted by bench/peers/malloc_counter.c under both. Our
gradients live between steps in flat buffers. Theirs, freed by zero_grad(set_to_none=True), would count as activations; so the step
whose bytes are counted keeps them (set_to_none=False), and both sides count alike.

Prints one JSON line per setting. Ends with status 1 if the bytes, which do not depend on the machine's mood, are above their bound;
speeds are never asserted (tools/figures.py prints them with their bounds).
"""

import argparse
import contextlib
import ctypes
import json
import os
import pathlib
import select
import statistics
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


def counted_bytes(device):
    """(what is live, resetting the peak; the peak since) of the process: by torch's allocator on a GPU, else by the counter."""
    import torch

    if device == "cpu":
        return lambda: counter("malloc_counter_reset_peak"), lambda: counter("malloc_counter_peak")

    def live():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    return live, torch.cuda.max_memory_allocated


def peer(folder, device="cpu", served=False):
    """The PyTorch side, on what reference_dump wrote; answers as that does with --paced, or with --served."""
    import torch

    from reference_model import Reference, collate, read_batches, read_options

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    options = read_options(folder)
    model = Reference(options, device=device)
    model.load(str(pathlib.Path(folder) / "trainable.safetensors"))
    drawn = samples = read_batches(folder)[0]
    optimizer = model.optimizer(fused=True)

    def run(keep_gradients=False):
        model.losses(collate(samples, device)).mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=not keep_gradients)
        if device != "cpu":
            torch.cuda.synchronize()

    def count_bytes():
        for _ in range(2):
            run()
        run(keep_gradients=True)
        live_bytes, peak_bytes = counted_bytes(device)
        live = live_bytes()
        run(keep_gradients=True)
        peak = peak_bytes()
        optimizer.zero_grad(set_to_none=True)
        print(json.dumps({"step_bytes": peak - live, "live_bytes": live, "threads": torch.get_num_threads()}), flush=True)

    if served:
        print(json.dumps({"served": True}), flush=True)
    else:
        count_bytes()
    for line in sys.stdin:
        if line.strip():
            _, batch, _, blocks = line.split()
            samples = drawn[: int(batch)]
            model.set_recompute(int(blocks))
            count_bytes()
            continue
        start = time.perf_counter()
        run()
        print(time.perf_counter() - start, flush=True)


def build_counter(folder):
    library = pathlib.Path(folder) / "libmalloc_counter.so"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, HERE / "malloc_counter.c"], check=True)
    return str(library)


class SideFailed(Exception):
    """A side that ended, or gave no answer in time, with the end of what it said."""


class Side:
    """A process that makes a step when it is asked to. `patience`: seconds that an answer may take; None: any."""

    def __init__(self, command, environment, patience=None):
        self.patience = patience
        self.errors = tempfile.TemporaryFile(mode="w+")
        self.process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=self.errors, text=True)
        self.ready = json.loads(self.answer())
        self.seconds = []

    def answer(self):
        ready, _, _ = select.select([self.process.stdout], [], [], self.patience)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            self.process.kill()
            self.process.wait()
            self.errors.seek(0)
            why = "failed" if ready else f"gave no answer in {self.patience:.0f} s"
            raise SideFailed(f"{self.process.args[0]} {why}: {self.errors.read()[-2000:]}")
        return line

    def set_up(self, batch, recompute):
        """Of a side that is served: steps of the first `batch` samples from now on."""
        self.process.stdin.write(f"batch {batch} recompute {recompute}\n")
        self.process.stdin.flush()
        self.ready = json.loads(self.answer())
        self.seconds = []

    def step(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.seconds.append(float(self.answer()))

    def close(self):
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.process.wait()


def compare(args, folder, model, size, batch, recompute, environment):
    folder = pathlib.Path(folder) / f"{size}-{batch}-{recompute}"
    folder.mkdir()
    blocks = {"none": 0, "half": 2, "all": 4}[recompute]
    ours = [str(pathlib.Path(args.build) / "reference_dump"), "--model", str(model), "--out", str(folder), "--batch", str(batch),
            "--recompute", str(blocks), "--paced", "--width", "128", "--depth", "4", "--dtype", args.dtype]
    mine = Side(ours, environment)  # writes what the other side reads
    theirs = Side([sys.executable, __file__, "--peer", str(folder)], environment)
    for _ in range(args.steps):
        mine.step()
        theirs.step()
    for side in (mine, theirs):
        side.close()
    speed = statistics.median(other / own for own, other in zip(mine.seconds, theirs.seconds))
    line = {"size": size, "batch": batch, "recompute": recompute, "dtype": args.dtype, "threads": args.threads,
            "ours_samples_per_second": round(batch / statistics.median(mine.seconds), 2),
            "peer_samples_per_second": round(batch / statistics.median(theirs.seconds), 2),
            "speed": round(speed, 3),
            "ours_bytes": mine.ready["step_bytes"], "peer_bytes": theirs.ready["step_bytes"],
            "bytes": round(mine.ready["step_bytes"] / max(1, theirs.ready["step_bytes"]), 3)}
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
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--peer", help="internal: time the PyTorch side on this folder")
    parser.add_argument("--device", default="cpu", help="of the PyTorch side")
    parser.add_argument("--served", action="store_true", help="internal: no step of the PyTorch side before one is asked for")
    args = parser.parse_args()
    if args.peer:
        return peer(args.peer, args.device, args.served)
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
                    try:
                        within = compare(args, folder, model, size, batch, recompute, environment)
                    except SideFailed as failure:
                        raise SystemExit(str(failure)) from None
                    if not within:
                        above.append(f"{size}, batch {batch}")
    if above:
        raise SystemExit(f"activation bytes above {BYTES_BOUND} of PyTorch's: {'; '.join(above)}")


if __name__ == "__main__":
    main()
