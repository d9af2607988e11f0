"""bench/gpu_suite: every line of what was asked for has a part or a reason, the parts fit into nine minutes, and what the suite makes of
programs' output is right. Nothing is run here."""

import importlib.util
import pathlib
import sys
import time
import types

import pytest

SUITE = pathlib.Path(__file__).resolve().parents[2] / "bench" / "gpu_suite"
sys.path.insert(0, str(SUITE))

import costs  # noqa: E402
import libraries  # noqa: E402
import lines  # noqa: E402
import plans  # noqa: E402
import suite  # noqa: E402


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("gpu_suite", SUITE / "__main__.py")
    module = sys.modules["gpu_suite"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_line_has_a_part_or_a_reason(program):
    for line in lines.LINES:
        assert line.parts or line.why_not, line.text
        assert set(line.parts) <= set(program.PARTS), line.text
    shown = {name for line in lines.LINES for name in line.parts}
    assert set(program.PARTS) == shown


def test_parts_come_in_the_order_of_the_lines(program):
    first = {name: min(i for i, line in enumerate(lines.LINES) if name in line.parts) for name in program.PARTS if name != "cached"}
    names = [name for name in program.PARTS if name not in ("machine", "cached")]  # the others need the one, nobody the other
    assert names == sorted(names, key=first.get)
    assert list(program.PARTS)[0] == "machine" and list(program.PARTS)[-1] == "cached"


def test_parts_fit_into_nine_minutes(program):
    planned = {name: part.seconds for name, part in program.PARTS.items()}
    assert sum(planned.values()) <= program.MOST_SECONDS == 540
    assert all(seconds > 0 for name, seconds in planned.items() if name != "cached")
    assert all(part.estimate for part in program.PARTS.values())


def test_a_part_leaves_the_time_of_those_behind_it():
    one = suite.Suite.__new__(suite.Suite)
    one.deadline = time.monotonic() + 100
    one.begin_part(planned=10, behind=70)
    assert 29 < one.left() <= 30, "what the others do not need"
    one.begin_part(planned=10, behind=95)
    assert 14 < one.left() <= 15, "half as long again as planned"
    one.begin_part(planned=200, behind=0)
    assert one.left() <= 100, "never more than there is"


def section(name, outcome="ran", why="", **figure):
    made = suite.Section(name, name)
    made.outcome, made.why = outcome, why
    if figure:
        made.figure("a figure", **figure)
    return made


def outcome(part, *sections):
    return next(row["outcome"] for row in lines.outcomes(sections) if row["parts"] == part)


def test_outcomes_hide_nothing():
    assert outcome("rivals").startswith("rivals: not run:")
    assert "FAILED: it broke" in outcome("rivals", section("rivals", "FAILED", "it broke"))
    assert "the time is up" in outcome("rivals", section("rivals", "not run", "the time is up"))
    assert outcome("search", section("search", value=2, at_least=1)) == "search: ran"
    assert outcome("search", section("search", value=0, at_least=1)) == "search: ran, 1 bounds not met"
    partly = section("search")
    partly.not_run("80GiB", "a smaller card")
    assert outcome("search", partly) == "search: ran, 1 things not run"
    assert [row for row in lines.outcomes([]) if "a GPU lost" in row["line"]][0]["outcome"].startswith("not run: nothing here may")


def test_figures_have_one_bound_or_two():
    both = section("x")
    for value in (1, 2, 3, 4):
        both.figure("between", value, at_least=2, at_most=3)
    assert [figure["met"] for figure in both.figures] == [False, True, True, False]
    assert "2 to 3: NOT met" in "\n".join(both.markdown())


def test_a_library_of_another_folder_is_found():
    text = """\tlinux-vdso.so.1 (0x1)
\tlibmpi.so.40 => /pack/lib/libmpi.so.40 (0x2)
\tlibtorch_cpu.so => /site/torch/lib/libtorch_cpu.so (0x3)
\tlibcupti.so.13 => /site/torch/lib/../../nvidia/cu13/lib/libcupti.so.13 (0x4)
\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x5)
\tlibstdc++.so.6 => /lib/x86_64-linux-gnu/libstdc++.so.6 (0x5)
\tlibgcc_s.so.1 => /lib/x86_64-linux-gnu/libgcc_s.so.1 (0x5)
\tlibcurl.so.4 => /usr/lib/x86_64-linux-gnu/libcurl.so.4 (0x6)
\tlibarrow.so => /packed/lib/libarrow.so (0x7)
\tlibgone.so.1 => not found
\t/lib64/ld-linux-x86-64.so.2 (0x8)
"""
    assert [wrong.split()[0] for wrong in libraries.stray(text, ("/pack", "/site"))] == ["libcurl.so.4", "libarrow.so", "libgone.so.1"]


def test_reasons_of_skipped_cases(program):
    text = """[ RUN      ] A.Runs
[       OK ] A.Runs (1 ms)
[ RUN      ] A.Skips
file.cpp:23: Skipped
no GPU: nothing ran on one
[  SKIPPED ] A.Skips (0 ms)
"""
    assert program.reasons(text) == {"A.Skips": "no GPU: nothing ran on one"}


def test_a_torch_for_another_cuda_is_the_reason(program, tmp_path):
    one = types.SimpleNamespace(build=tmp_path)
    assert "libplimsoll_cuda.so" in program.why_no_gpu(one, {"cuda": "13.0", "name": "H200"})
    (tmp_path / "libplimsoll_cuda.so").touch()
    assert "CUDA 12.8" in program.why_no_gpu(one, {"cuda": "12.8", "name": "H200"})
    assert "CUDA None" in program.why_no_gpu(one, {"cuda": None})
    assert program.why_no_gpu(one, {"cuda": "13.0"}) == "torch finds no GPU"
    assert program.why_no_gpu(one, {"cuda": "13.0", "name": "H200"}) == ""


def step(predicted, peak, plan="a", retries=0):
    return {"plan": {"name": plan}, "memory": [{"predicted": predicted, "peak": peak, "retries": retries, "other_way": False}]}


def test_calibrated_predictions_are_raised_by_the_largest_shortfall_before():
    metrics = [step(100, 104), step(100, 102), step(100, 104), step(100, 106), step(100, 106, retries=1), step(100, 100, "b"), step(100, 106)]
    assert plans.calibrated(metrics, window=2) == pytest.approx([104 / 104 - 1, 104 / 106 - 1, 106 / 106 - 1])


def test_what_an_operator_achieves():
    flops, bandwidth = costs.limits("NVIDIA H200")
    row = {"name": "product", "calls": 2, "parts": 2, "us": 100.0, "flops": flops * 5e-5, "bytes": bandwidth * 1e-5}
    line = costs.achieved(row, flops, bandwidth)
    assert line["bound by"] == "operations" and line["share of that limit"] == pytest.approx(0.5)
    assert line["TFLOP/s"] == pytest.approx(flops / 2e12) and line["GB/s"] == pytest.approx(bandwidth / 1e10)
    assert costs.limits("NVIDIA H100 PCIe") != costs.limits("NVIDIA H100 80GB HBM3") == costs.CARDS["H100"]
    assert costs.limits("some other card") == (None, None)
    assert costs.launches({"name": "lora_backward", "calls": 1, "parts": 3}) == 19
    assert costs.launches({"name": "cast", "calls": 4, "parts": 4}) == 4
