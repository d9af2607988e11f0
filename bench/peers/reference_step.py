"""Runs the training steps that reference_dump wrote, in plain PyTorch, and writes what came out.

    reference_step.py FOLDER [--out FILE] [--attention sdpa|eager] [--device cpu|cuda] [--dtype fp32|bf16] [--again DTYPE FILE]

FILE (default FOLDER/reference.safetensors): "losses" [steps, samples]; "hidden" [tokens, width] of the VLM for the samples of the first
step, before it; "gradient/<name>" of that step; "norms" [steps] of the gradient before it is clipped; "trained/<name>" after the last,
by torch.optim.AdamW. --dtype: another than the dump's. --again: the same in that dtype, in the same process.
"""

import argparse
import pathlib

import torch
from safetensors.torch import save_file

from reference_model import Reference, collate, read_batches, read_options


def schedule_of(optimizer, options):
    """Linear warm-up from the first step's 1 / warmup, then a cosine to nothing, by torch's own schedulers."""
    warmup = options["warmup"]
    if warmup == 0:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    rise = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup, 1.0, max(1, warmup - 1))
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options["steps"] - warmup)
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [rise, fall], [warmup])


def hidden_states(model, batch):
    """Last hidden states of all tokens, without padding."""
    with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=model.options["bf16"]):
        states = model.features(batch)
    return torch.cat([row[:length] for row, length in zip(states, batch["lengths"].tolist())]).float().cpu()


def steps(folder, attention="sdpa", device="cpu", dtype=None):
    """What main() writes, by name; tensors on the CPU."""
    options = read_options(folder)
    if dtype:
        options["bf16"] = dtype == "bf16"
    model = Reference(options, attention, device)
    model.load(str(pathlib.Path(folder) / "trainable.safetensors"))
    optimizer = model.optimizer()
    schedule = schedule_of(optimizer, options)
    losses, norms, found = [], [], {}
    for samples in read_batches(folder):
        batch = collate(samples, device)
        if not found:
            found["hidden"] = hidden_states(model, batch)
        optimizer.zero_grad()
        loss = model.losses(batch)
        loss.mean().backward()
        losses.append(loss.detach().cpu())
        if len(losses) == 1:
            found |= {f"gradient/{name}": p.grad.cpu().clone() for name, p in model.trainable().items()}
        norms.append(torch.nn.utils.clip_grad_norm_(model.trainable().values(), options["clip"] or float("inf")).cpu())
        optimizer.step()
        schedule.step()
    found |= {f"trained/{name}": p.detach().cpu() for name, p in model.trainable().items()}
    return found | {"losses": torch.stack(losses), "norms": torch.stack(norms)}


def run(folder, attention="sdpa"):
    """Losses [steps, samples], the gradients of the first step, the trained values after the last, and the norms [steps]."""
    found = steps(folder, attention)
    named = [{name.removeprefix(kind): t for name, t in found.items() if name.startswith(kind)} for kind in ("gradient/", "trained/")]
    return found["losses"], *named, found["norms"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--out")
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("fp32", "bf16"))
    parser.add_argument("--again", nargs=2, action="append", default=[], metavar=("DTYPE", "FILE"))
    args = parser.parse_args()
    first = (args.dtype, args.out or str(pathlib.Path(args.folder) / "reference.safetensors"))
    for dtype, out in (first, *args.again):
        found = steps(args.folder, args.attention, args.device, dtype)
        save_file({name: tensor.contiguous() for name, tensor in found.items()}, out)


if __name__ == "__main__":
    main()
