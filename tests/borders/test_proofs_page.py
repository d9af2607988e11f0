"""The page of figures says what passed where: what run_proofs.py writes there it reads again, whatever scripts print."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
RUNNER = "run_proofs.py"

SCRIPTS = {
    "10-figures": "echo 'FIGURE speed, 2 ranks = 1.5 x (bound 1.1: met)'; echo 'FIGURE share = 0.02'; echo noise",
    "20-tables": "echo 'FIGURE bytes = 7 B'; printf '| a | b |\\n|---|---|\\n| 1 | 2 |\\n'; printf '| c |\\n|---|\\n| 3 |\\n'",
    "30-plain": "true",
    "35-skips": "echo 'SKIPPED 2 cases: no lerobot: it | broke'; echo 'SKIPPED 1 case: no GPU'; echo 'SKIPPED 1 case: no GPU'; echo '9 passed, 0 failed, 4 skipped'",
    "40-fails": "echo it broke; exit 1",
    "50-untried": "echo nothing is here; exit 77",
    "60-last": "printf '| z |\\n|---|\\n'",
}


def git(folder, *arguments):
    subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@localhost", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    (tmp_path / "tools" / "proofs.d").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    (tmp_path / "tools" / RUNNER).write_text((ROOT / "tools" / RUNNER).read_text())
    page = "# Figures\n\n<!-- proofs:begin (written by make proofs) -->\nNot run yet.\n<!-- proofs:end -->\n\nThe end.\n"
    (tmp_path / "docs" / "benchmarks.md").write_text(page)
    for name, body in SCRIPTS.items():
        script = tmp_path / "tools" / "proofs.d" / f"{name}.sh"
        script.write_text(f"#!/bin/sh\n# What {name} shows.\necho {name} >> ran\n{body}\n")
        script.chmod(0o755)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "tools", "docs")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def prove(repository, *names):
    done = subprocess.run([sys.executable, f"tools/{RUNNER}", *names], cwd=repository, capture_output=True, text=True)
    ran = repository / "ran"
    started = ran.read_text().split() if ran.exists() else []
    ran.unlink(missing_ok=True)
    return done.returncode, started, (repository / "docs" / "benchmarks.md").read_text(), done.stdout


def without_times(page):
    return re.sub(r"\b\d+ s\b|\d{4}-\d\d-\d\d", "", page)


def test_what_passed_is_read_back_and_not_run_again(repository):
    status, started, page, said = prove(repository)
    assert status == 1 and started == list(SCRIPTS), said
    assert page.startswith("# Figures\n") and page.endswith("\n\nThe end.\n")
    assert "| speed, 2 ranks | 1.5 | x (bound 1.1: met) |" in page and "noise" not in page
    git(repository, "commit", "-qam", "the page alone changes no outcome")
    assert prove(repository, "30-plain")[0] == 0, "the status is of what was asked for"
    again = prove(repository)
    assert again[1] == ["40-fails", "50-untried"], "what failed or was not tried is run again, and nothing else"
    assert without_times(again[2]) == without_times(page)


def test_another_commit_runs_all_and_keeps_what_it_has_not_run(repository):
    page = prove(repository)[2]
    (repository / "program").write_text("new\n")
    git(repository, "add", "program")
    git(repository, "commit", "-qm", "second")
    status, started, after, said = prove(repository, "30-plain")
    assert status == 0 and started == ["30-plain"], said
    tables = page[page.index("### 20-tables"):page.index("### 30-plain")]
    assert tables in after, "an older commit's figures stay, with its name"
    assert prove(repository, "20-tables")[1] == ["20-tables"]


def test_a_proof_that_skipped_cases_says_so(repository):
    _, _, page, said = prove(repository)
    section = page[page.index("### 35-skips"):page.index("### 40-fails")]
    assert re.search(r": passed in \d+ s, 4 cases skipped \(commit", section), section
    reasons = ["2 skipped: no lerobot: it | broke", "2 skipped: no GPU"]
    for reason in reasons:
        assert f"\n- {reason}\n" in section and f"\n  {reason}\n" in said
    assert "by proof: 35-skips 4" in said
    assert "skipped" not in page[page.index("### 30-plain"):page.index("### 35-skips")]
    git(repository, "commit", "-qam", "the page alone changes no outcome")
    again = prove(repository, "30-plain")
    assert section in again[2] and reasons[0] in again[3], "what was read from the page says it too"


def test_a_tree_with_changes_is_never_trusted(repository):
    (repository / "tools" / "proofs.d" / "30-plain.sh").open("a").write("# more\n")
    for _ in range(2):
        assert prove(repository, "30-plain")[1] == ["30-plain"]


def test_what_a_proof_does_not_depend_on_leaves_its_outcome(repository):
    script = repository / "tools" / "proofs.d" / "30-plain.sh"
    script.write_text(script.read_text() + "# Does not depend on: docs *.md\n")
    (repository / "docs" / "page").write_text("old\n")
    git(repository, "add", "docs")
    git(repository, "commit", "-qam", "it says so")
    prove(repository, "20-tables", "30-plain")
    (repository / "docs" / "page").write_text("new\n")
    assert prove(repository, "30-plain")[1] == [], "the tree differs in what it does not depend on"
    git(repository, "commit", "-qam", "in docs/ only")
    assert prove(repository, "20-tables", "30-plain")[1] == ["20-tables"]
    (repository / "docs" / "program").write_text("new\n")
    (repository / "program.md").write_text("new\n")
    git(repository, "add", "docs", "program.md")
    git(repository, "commit", "-qm", "more of that")
    assert prove(repository, "30-plain")[1] == []
    (repository / "program").write_text("new\n")
    git(repository, "add", "program")
    git(repository, "commit", "-qm", "a program")
    assert prove(repository, "30-plain")[1] == ["30-plain"]


def test_two_calls_at_once_both_write_what_they_ran(repository):
    script = repository / "tools" / "proofs.d" / "30-plain.sh"
    script.write_text(script.read_text() + f"{sys.executable} tools/{RUNNER} 10-figures >/dev/null\n")
    git(repository, "commit", "-qam", "one runs another")
    status, started, page, said = prove(repository, "30-plain")
    assert status == 0 and started == ["30-plain", "10-figures"], said
    assert "| share | 0.02 |" in page and re.search(r"What 30-plain shows: passed", page)
