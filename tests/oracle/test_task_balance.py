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
    """Weights after one step, of types that were all present."""
    w = torch.tensor(weights, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.SGD([w], lr=RATE)
    gradients = w * (torch.tensor(norms, dtype=torch.float64) / torch.tensor(weights, dtype=torch.float64))
    progress = torch.tensor(losses, dtype=torch.float64) / torch.tensor(first_losses, dtype=torch.float64)
    target = (gradients.mean() * (progress / progress.mean()) ** ALPHA).detach()
    torch.nn.functional.l1_loss(gradients, target, reduction="sum").backward()
    optimiser.step()
    return (w.detach() * len(weights) / w.detach().sum()).tolist()


def test_weights_of_a_run_are_pytorchs(tmp_path):
    model = tmp_path / "model"
    subprocess.run([PLIMSOLL, "init-model", "--size", "tiny", "--layers", "1", "--dtype", "fp32", "--out", model], check=True, capture_output=True)
    settings = {
        "run.dir": f'"{tmp_path}/run"', "model.path": f'"{model}"', "model.dtype": '"fp32"', "data.synthetic_samples": 30, "data.synthetic_tasks": 3,
        "expert.width": 32, "expert.depth": 1, "expert.heads": 2, "expert.chunk": 4, "expert.draws": 1, "batch.effective": 9, "memory.budget": '"600MiB"',
        "memory.policy": '"reactive"', "train.max_steps": 12, "train.lr": 0.01, "tasks.by": '"task"', "tasks.gradnorm": "true", "tasks.alpha": ALPHA,
        "tasks.balance_lr": RATE, "report.files": "false"}
    (tmp_path / "empty.toml").write_text("")
    words = ["--config", tmp_path / "empty.toml", *(word for key, value in settings.items() for word in ("--set", f"{key}={value}"))]
    done = subprocess.run([PLIMSOLL, "train", *words], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path)})
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 12
    for now, then in zip(lines, lines[1:]):
        assert all(count > 0 for count in now["task_counts"].values())
        weights, norms, losses = (list(now[key].values()) for key in ("task_weights", "task_norms", "task_losses"))
        first = lines[0]["task_losses"].values()
        expected = stepped(weights, *([coarse(value) for value in values] for values in (norms, losses, first)))
        assert list(then["task_weights"].values()) == pytest.approx(expected, rel=1e-6)
