"""Runs the training steps that reference_dump wrote, in plain PyTorch, and writes what came out.

    reference_step.py FOLDER [--out FILE] [--attention sdpa|eager]

FILE (default FOLDER/reference.safetensors): "losses" [steps, samples]; "gradient/<name>" of the first step; "norms" [steps] of the
gradient before it is clipped; "trained/<name>" after the last, by torch.optim.AdamW.
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


def run(folder, attention="sdpa"):
    """Losses [steps, samples], the gradients of the first step, the trained values after the last, and the norms [steps]."""
    model = Reference(read_options(folder), attention)
    model.load(str(pathlib.Path(folder) / "trainable.safetensors"))
    optimizer = model.optimizer()
    schedule = schedule_of(optimizer, model.options)
    losses, gradients, norms = [], {}, []
    for samples in read_batches(folder):
        optimizer.zero_grad()
        loss = model.losses(collate(samples))
        loss.mean().backward()
        losses.append(loss.detach())
        if not gradients:
            gradients = {name: p.grad.clone() for name, p in model.trainable().items()}
        norms.append(torch.nn.utils.clip_grad_norm_(model.trainable().values(), model.options["clip"] or float("inf")))
        optimizer.step()
        schedule.step()
    return torch.stack(losses), gradients, {name: p.detach() for name, p in model.trainable().items()}, torch.stack(norms)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--out")
    parser.add_argument("--attention", default="sdpa")
    args = parser.parse_args()
    losses, gradients, trained, norms = run(args.folder, args.attention)
    tensors = {"losses": losses, "norms": norms} | {f"gradient/{name}": g.contiguous() for name, g in gradients.items()}
    tensors |= {f"trained/{name}": p.contiguous() for name, p in trained.items()}
    save_file(tensors, args.out or str(pathlib.Path(args.folder) / "reference.safetensors"))


if __name__ == "__main__":
    main()
