"""Runs the training steps that reference_dump wrote, in plain PyTorch, and writes what came out.

    reference_step.py FOLDER [--out FILE] [--attention sdpa|eager]

FILE (default FOLDER/reference.safetensors): "losses" [steps, samples]; "gradient/<name>" of the first step; "trained/<name>" after
the last, by torch.optim.AdamW.
"""

import argparse
import pathlib

import torch
from safetensors.torch import save_file

from reference_model import Reference, collate, read_batches, read_options


def run(folder, attention="sdpa"):
    """Losses [steps, samples], the gradients of the first step, and the trained values after the last."""
    model = Reference(read_options(folder), attention)
    model.load(str(pathlib.Path(folder) / "trainable.safetensors"))
    optimizer = model.optimizer()
    losses, gradients = [], {}
    for samples in read_batches(folder):
        optimizer.zero_grad()
        loss = model.losses(collate(samples))
        loss.mean().backward()
        losses.append(loss.detach())
        if not gradients:
            gradients = {name: p.grad.clone() for name, p in model.trainable().items()}
        optimizer.step()
    return torch.stack(losses), gradients, {name: p.detach() for name, p in model.trainable().items()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--out")
    parser.add_argument("--attention", default="sdpa")
    args = parser.parse_args()
    losses, gradients, trained = run(args.folder, args.attention)
    tensors = {"losses": losses} | {f"gradient/{name}": g.contiguous() for name, g in gradients.items()}
    tensors |= {f"trained/{name}": p.contiguous() for name, p in trained.items()}
    save_file(tensors, args.out or str(pathlib.Path(args.folder) / "reference.safetensors"))


if __name__ == "__main__":
    main()
