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


def ran_out(error):
    return any(word in str(error) for word in ("out of memory", "ALLOC_FAILED", "not enough memory"))


def attempt(model, optimizer, samples, batch, effective, device):
    """(seconds of a step after one to warm up, bytes live, bytes reserved); None when memory ran out."""
    try:
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        step(model, optimizer, samples, batch, batch, device)
        start = time.perf_counter()
        step(model, optimizer, samples, batch, effective, device)
        seconds = time.perf_counter() - start
        return (seconds, 0, 0) if device == "cpu" else (seconds, torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved())
    except RuntimeError as error:  # torch's own among them
        if not ran_out(error):
            raise
        return None
    finally:
        optimizer.zero_grad(set_to_none=True)
        gc.collect()
        if device != "cpu":
            torch.cuda.empty_cache()


def known_before(found, budget):
    """What a larger card says of a smaller one: the same where all that it reserved fits, that memory runs out where what was live does not;
    nothing in between, and then it is tried."""
    if found is None or found[1] > budget:
        return True, None
    return found[2] <= budget, found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--effective", type=int, required=True)
    parser.add_argument("--batches", type=int, nargs="+", required=True)
    parser.add_argument("--budgets", nargs="+", required=True, help="ascending")
    args = parser.parse_args()
    samples = read_batches(args.folder)[0]
    model = Reference(read_options(args.folder), device=args.device)
    optimizer = model.optimizer(fused=True)
    for blocks in (0, 1 << 10):
        model.set_recompute(blocks)
        found = {}  # by batch, under the card before, which was larger
        for budget in reversed(args.budgets):
            if args.device != "cpu":
                total = torch.cuda.get_device_properties(0).total_memory
                torch.cuda.set_per_process_memory_fraction(min(1.0, size_of(budget) / total))
            for batch in args.batches:
                sure, known = known_before(found[batch], size_of(budget)) if batch in found else (False, None)
                found[batch] = known if sure else attempt(model, optimizer, samples, batch, args.effective, args.device)
                seconds, peak = found[batch][:2] if found[batch] else (None, 0)
                print(json.dumps({"budget": budget, "batch": batch, "checkpointing": blocks > 0, "ran_out": seconds is None, "peak": peak,
                                  "samples_per_second": args.effective / seconds if seconds else 0.0}), flush=True)  # fmt: skip
                if seconds is None:  # larger batches will too, here and under smaller cards
                    found |= {larger: None for larger in args.batches if larger > batch}
                    break


if __name__ == "__main__":
    main()
