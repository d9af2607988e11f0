"""What transformers and peft do under emulated cards at every batch, with and without gradient checkpointing.

    batch_search.py FOLDER --device cuda --effective 32 --batches 1 2 4 --budgets 24GiB 40GiB

FOLDER is what reference_dump wrote. A line of JSON for each try. A card is emulated by torch's memory fraction; on the CPU nothing bounds
the memory, and one budget is as good as another.
"""

import argparse
import gc
import json
import pathlib
import sys
import time

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "peers"))
from reference_model import Reference, collate, read_batches, read_options  # noqa: E402

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from suite import size_of  # noqa: E402


def step(model, optimizer, samples, batch, effective, device):
    """One update out of effective / batch micro-batches."""
    for _ in range(max(1, effective // batch)):
        (model.losses(collate(samples[:batch], device)).mean() * batch / effective).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if device != "cpu":
        torch.cuda.synchronize()


def attempt(model, optimizer, samples, batch, effective, device):
    """Seconds of a step after one to warm up, and bytes; None when memory ran out."""
    try:
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        step(model, optimizer, samples, batch, batch, device)
        start = time.perf_counter()
        step(model, optimizer, samples, batch, effective, device)
        return time.perf_counter() - start
    except RuntimeError as error:  # torch's own among them
        if not any(word in str(error) for word in ("out of memory", "ALLOC_FAILED", "not enough memory")):
            raise
        return None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--effective", type=int, required=True)
    parser.add_argument("--batches", type=int, nargs="+", required=True)
    parser.add_argument("--budgets", nargs="+", required=True)
    args = parser.parse_args()
    options = read_options(args.folder)
    samples = read_batches(args.folder)[0]
    for checkpointing in (False, True):
        options["recompute"] = 1 << 10 if checkpointing else 0
        model = Reference(options, device=args.device)
        optimizer = model.optimizer(fused=True)
        for budget in args.budgets:
            if args.device != "cpu":
                total = torch.cuda.get_device_properties(0).total_memory
                torch.cuda.empty_cache()
                torch.cuda.set_per_process_memory_fraction(min(1.0, size_of(budget) / total))
            for batch in args.batches:
                seconds = attempt(model, optimizer, samples, batch, args.effective, args.device)
                optimizer.zero_grad(set_to_none=True)
                gc.collect()
                line = {"budget": budget, "batch": batch, "checkpointing": checkpointing, "ran_out": seconds is None, "samples_per_second": 0.0, "peak": 0}
                if seconds is not None:
                    line["samples_per_second"] = args.effective / seconds
                    line["peak"] = torch.cuda.max_memory_allocated() if args.device != "cpu" else 0
                print(json.dumps(line), flush=True)
                if seconds is None:
                    if args.device != "cpu":
                        torch.cuda.empty_cache()
                    break
        del model, optimizer
        gc.collect()


if __name__ == "__main__":
    main()
