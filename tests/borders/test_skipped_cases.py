"""What the test runner says of cases that were skipped: how many, and why, whichever framework skipped them."""

import importlib.util
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]

GOOGLETEST = """<?xml version="1.0" encoding="UTF-8"?>
<testsuites><testsuite name="Gpu">
<testcase name="One" status="run" result="skipped" classname="Gpu"><skipped message="{root}/tests/a_test.cpp:23&#x0A;{root}/build/lib.so was not built&#x0A;"/></testcase>
<testcase name="Two" status="run" result="skipped" classname="Gpu"><skipped message="{root}/tests/b_test.cpp:7&#x0A;{root}/build/lib.so was not built&#x0A;"/></testcase>
<testcase name="Three" status="run" result="completed" classname="Gpu"/>
</testsuite></testsuites>
"""
MODULE = 'import pytest\n\npytest.skip("no wheels: none here", allow_module_level=True)\n'
TESTS = 'import pytest\n\n\ndef test_one():\n    pytest.skip("no server")\n\n\ndef test_two():\n    pass\n'


def runner():
    spec = importlib.util.spec_from_file_location("run_tests", ROOT / "tools" / "run_tests.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_googletests_are_counted_by_their_reason_and_not_by_their_place(tmp_path):
    results = tmp_path / "gpu.xml"
    results.write_text(GOOGLETEST.format(root=ROOT))
    tally = runner().Tally()
    tally.add_results("units", [results])
    assert tally.skips() == ["SKIPPED 2 cases: build/lib.so was not built"]
    assert tally.closing_line() == "1 passed, 0 failed, 2 skipped"


def test_pytests_say_why_a_test_and_a_whole_module_were_skipped(tmp_path):
    (tmp_path / "test_module.py").write_text(MODULE)
    (tmp_path / "test_some.py").write_text(TESTS)
    results = tmp_path / "results.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={results}", "."]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    tally = runner().Tally()
    tally.add_results("faults", [results])
    assert sorted(tally.skips()) == [f"SKIPPED 1 case: all of {tmp_path}/test_module.py: no wheels: none here",
                                     "SKIPPED 1 case: no server"]
    assert tally.closing_line() == "1 passed, 0 failed, 2 skipped"


def test_without_skips_nothing_is_said():
    tally = runner().Tally()
    tally.add("units: a case")
    assert tally.skips() == [] and tally.closing_line() == "1 passed, 0 failed"
