"""The whole stage-1 and stage-2 step against the same step in PyTorch (bench/peers/reference_model.py)."""

import os
import pathlib
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("PLIMSOLL_BUILD", ROOT / "build"))
sys.path.insert(0, str(ROOT / "bench" / "peers"))


def dump(folder, *arguments):
    model = folder / "model"
    program = [str(BUILD / "reference_dump"), "--out", str(folder), "--model", str(model)]
    made = subprocess.run(program + ["--init", "tiny"] + list(arguments), capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return load_file(str(folder / "ours.safetensors"))


def distance(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30))


@pytest.mark.parametrize("arguments", [(), ("--kind", "flow", "--recompute", "2"), ("--stage", "1"), ("--micro", "2")])
def test_losses_and_gradients_of_a_step(tmp_path, arguments):
    from reference_step import run

    ours = dump(tmp_path, "--batch", "3", *arguments)
    losses, gradients, _, _ = run(tmp_path)
    for sample in range(3):
        assert distance(ours["sample_losses"][0, sample], losses[0, sample]) < 1e-4
    assert distance(ours["losses"][0], losses[0].mean()) < 1e-4
    assert set(gradients) == {name.removeprefix("gradient/") for name in ours if name.startswith("gradient/")}
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0, name
        assert distance(ours[f"gradient/{name}"], gradient) < 1e-4, name


@pytest.mark.parametrize("arguments", [(), ("--clip", "0.5", "--warmup", "5")], ids=["plain", "clipped_and_scheduled"])
def test_losses_of_twenty_steps(tmp_path, arguments):
    """Our whole step (flat buffers, two commits a step, AdamW with two learning rates) against torch.optim.AdamW; clipping and the
    schedule against torch's own."""
    from reference_step import run

    # Rates far above the usual ones, so that weights that were not updated alike would show.
    ours = dump(tmp_path, "--batch", "3", "--micro", "2", "--steps", "20", "--lr", "1e-3", "--vl-lr", "3e-4", *arguments)
    losses, _, trained, norms = run(tmp_path)
    assert ours["sample_losses"].shape == (20, 3) and ours["losses"].shape == (20,)
    worst = ((ours["sample_losses"] - losses).abs() / losses.abs()).max()
    assert worst < 1e-3, worst
    worst = ((ours["losses"] - losses.mean(1)).abs() / losses.mean(1)).max()
    assert worst < 1e-3, worst
    assert ((ours["norms"] - norms).abs() / norms).max() < 1e-3
    assert not arguments or (norms > 0.5).any(), f"nothing was clipped: {norms}"
    start = load_file(str(tmp_path / "trainable.safetensors"))
    for name, value in trained.items():
        moved = distance(ours[f"trained/{name}"] - start[name], value - start[name])
        assert moved < 3e-4, (name, moved)


def test_a_step_in_bf16_is_that_of_autocast(tmp_path):
    """The precision policy: each operator in the type that torch.autocast gives it."""
    from reference_step import run

    ours = dump(tmp_path, "--batch", "3", "--dtype", "bf16")
    losses, gradients, _, _ = run(tmp_path)
    assert ((ours["sample_losses"] - losses).abs() / losses.abs()).max() < 2e-2
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0, name
        assert distance(ours[f"gradient/{name}"], gradient) < 0.1, name
    whole = [torch.cat([side[name].flatten() for name in sorted(gradients)])
             for side in ({name: ours[f"gradient/{name}"] for name in gradients}, gradients)]  # fmt: skip
    assert distance(*whole) < 2e-2, distance(*whole)
