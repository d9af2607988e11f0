"""GradNorm's weights in a real run beside PyTorch's autograd and SGD on the loss of the paper (Chen et al. 2018, algorithm 1)."""

import json
import math
import os
import pathlib
import subprocess

import pytest
import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
PLIMSOLL = pathlib.Path(os.environ.get("PLIMSOLL_BUILD", ROOT / "build")) / "plimsoll"
ALPHA, RATE = 1.5, 0.05


def coarse(value):
    mantissa, exponent = math.frexp(value)
    return math.ldexp(round(math.ldexp(mantissa, 12)), exponent - 12)


def stepped(weights, norms, losses, first_losses):
    """Weights after one step, by type. `losses` has the types that were present: they alone take part, and their weights take up what the others
    leave of the sum."""
    present = list(losses)
    values = [weights[name] for name in present]
    w = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.SGD([w], lr=RATE)
    gradients = w * (torch.tensor([norms[name] for name in present], dtype=torch.float64) / torch.tensor(values, dtype=torch.float64))
    progress = torch.tensor([losses[name] / first_losses[name] for name in present], dtype=torch.float64)
    target = (gradients.mean() * (progress / progress.mean()) ** ALPHA).detach()
    torch.nn.functional.l1_loss(gradients, target, reduction="sum").backward()
    optimiser.step()
    left = len(weights) - sum(weight for name, weight in weights.items() if name not in losses)
    return {**weights, **dict(zip(present, (w.detach() * left / w.detach().sum()).tolist()))}


def trained(folder, batch, steps):
    """The lines of metrics.jsonl of a run on three types."""
    model = folder / "model"
    subprocess.run([PLIMSOLL, "init-model", "--size", "tiny", "--layers", "1", "--dtype", "fp32", "--out", model], check=True, capture_output=True)
    settings = {
        "run.dir": f'"{folder}/run"', "model.path": f'"{model}"', "model.dtype": '"fp32"', "data.synthetic_samples": 30, "data.synthetic_tasks": 3,
        "expert.width": 32, "expert.depth": 1, "expert.heads": 2, "expert.chunk": 4, "expert.draws": 1, "batch.effective": batch, "memory.budget": '"600MiB"',
        "memory.policy": '"reactive"', "train.max_steps": steps, "train.lr": 0.01, "tasks.by": '"task"', "tasks.gradnorm": "true", "tasks.alpha": ALPHA,
        "tasks.balance_lr": RATE, "report.files": "false"}
    (folder / "empty.toml").write_text("")
    words = ["--config", folder / "empty.toml", *(word for key, value in settings.items() for word in ("--set", f"{key}={value}"))]
    done = subprocess.run([PLIMSOLL, "train", *words], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder)})
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == steps
    return lines


def check_weights(lines):
    """Each step's against those of the step before."""
    first = {}
    for now, then in zip(lines, lines[1:]):
        losses = {name: coarse(loss) for name, loss in now["task_losses"].items()}
        norms = {name: coarse(now["task_norms"][name]) for name in losses}
        first = {**losses, **first}
        assert then["task_weights"] == pytest.approx(stepped(now["task_weights"], norms, losses, first), rel=1e-6)


def test_weights_of_a_run_are_pytorchs(tmp_path):
    lines = trained(tmp_path, batch=9, steps=12)
    assert all(count > 0 for line in lines for count in line["task_counts"].values())
    check_weights(lines)


def test_types_that_are_absent_from_a_step_take_no_part_in_it(tmp_path):
    """Steps of two samples, of three types."""
    lines = trained(tmp_path, batch=2, steps=16)
    assert all(sum(count > 0 for count in line["task_counts"].values()) < 3 for line in lines)
    assert all(any(line["task_counts"][name] > 0 for line in lines) for name in lines[0]["task_counts"])
    check_weights(lines)
    for now, then in zip(lines, lines[1:]):
        for name, count in now["task_counts"].items():
            if count == 0:
                assert then["task_weights"][name] == now["task_weights"][name]
    assert max(abs(weight - 1) for weight in lines[-1]["task_weights"].values()) > 0.01, "they were learned"
