"""What bench/gpu_suite asks of reference_dump beside the dumps: steps that fail, what a step calls, where its time goes. On the tiny model,
on the CPU."""

import json
import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("PLIMSOLL_BUILD", ROOT / "build"))
BATCH, TOKENS = 2, 16 // 4 + 12  # a picture of 56 x 56 is 16 patches
# Of the tiny model's language blocks: (in, out) of q, k, v, o, gate, up, down.
LINEAR = [(128, 128), (128, 64), (128, 64), (128, 128), (128, 256), (128, 256), (256, 128)]
BLOCKS, RANK = 4, 8


def lines_of(folder, *arguments, steps=""):
    words = [BUILD / "reference_dump", "--out", folder, "--model", folder / "model", "--init", "tiny", "--batch", BATCH, "--side", 56, "--text", 12, *arguments]
    done = subprocess.run(list(map(str, words)), input=steps, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("recompute", [0, BLOCKS])
def test_failures_in_forward_and_backward_lose_nothing(tmp_path, recompute):
    rows = lines_of(tmp_path, "--failures", "--recompute", recompute)
    assert [row["phase"] for row in rows] == ["forward", "forward", "backward"]
    for row in rows:
        assert row["retries"] >= 1 and row[row["phase"]] >= 1, row
        assert row["held"] == 0, row
        assert row["loss"] == pytest.approx(row["calm_loss"], rel=1e-5)
        assert row["norm"] == pytest.approx(row["calm_norm"], rel=1e-4)


def operators(found):
    return {row["name"]: row for row in found["operators"]}


def test_a_dry_run_counts_what_a_step_calls(tmp_path):
    plain, recomputed = (operators(lines_of(tmp_path, "--counts", "--recompute", blocks)[0]) for blocks in (0, BLOCKS))
    rows = BATCH * TOKENS
    forward = plain["lora_forward"]
    assert forward["calls"] == BLOCKS * len(LINEAR)
    assert forward["flops"] == BLOCKS * sum(2 * rows * (n * m + RANK * (n + m)) for n, m in LINEAR)
    backward = plain["lora_backward"]
    expert = backward["parts"] - forward["calls"]  # its layers have no adapter, and the same backward
    assert expert > 0 and backward["calls"] < backward["parts"], "layers that read one input are one call"
    assert 0.8 * forward["flops"] < backward["flops"] < 1.6 * forward["flops"], "gradients of inputs, and of the thin factors"
    assert 1.5 * forward["flops"] < recomputed["lora_forward"]["flops"] <= 2 * forward["flops"]
    assert recomputed["lora_backward"]["flops"] == pytest.approx(backward["flops"], rel=0.1)
    assert plain["attention_backward"]["flops"] == pytest.approx(2.5 * plain["attention_forward"]["flops"], rel=0.7), "the tower has no backward"
    assert all(row["bytes"] > 0 for row in plain.values())


def test_the_profiler_times_every_operator(tmp_path):
    found = lines_of(tmp_path, "--profile", 2)[0]
    timed = operators(found)
    assert {"lora_forward", "lora_backward", "attention_forward", "attention_backward", "product"} <= timed.keys()
    assert timed["lora_forward"]["calls"] == BLOCKS * len(LINEAR), "of one step"
    assert all(row["us"] > 0 for row in timed.values()), timed
    assert sum(row["us"] for row in timed.values()) < found["profiled_us"]
    assert found["samples"] == BATCH and "kernels" not in found, "a CPU has none"


def test_a_served_side_is_set_up_again_and_again(tmp_path):
    asked = "batch 1 recompute 0\n\nbatch 2 recompute 4\n\n\n"
    answers = lines_of(tmp_path, "--served", steps=asked)
    assert answers[0] == {"served": True}
    assert [isinstance(answer, dict) for answer in answers] == [True, True, False, True, False, False]
    assert all(answer > 0 for answer in answers if not isinstance(answer, dict))


def test_a_line_that_is_no_question_is_refused(tmp_path):
    words = [BUILD / "reference_dump", "--out", tmp_path, "--model", tmp_path / "model", "--init", "tiny", "--batch", 1, "--side", 56, "--served"]
    done = subprocess.run(list(map(str, words)), input="batch 7 recompute 0\n", capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "batch 7 recompute 0" in done.stderr and "--batch" in done.stderr
