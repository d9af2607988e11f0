#!/usr/bin/env python3
"""Runs the scripts of tools/proofs.d/ and writes the figures they print to docs/benchmarks.md.

A proof is an executable script; its first comment line says what it shows. Lines `FIGURE name = value unit` in its
output are collected, and tables (lines that begin with a bar); everything else goes to its log. Exit status 0 passes; 77 means "could not be tried here", and the
last line of the output says why. Lines `SKIPPED n cases: reason` (tools/run_tests.py prints one a reason) say what was not tried of a
proof that passed: their sum is a part of its outcome, and the page lists the reasons. The page is also what a second call, in this clone or in another, goes on from: it
names the commit of every outcome, and what passed at this one is not run again. A proof's commit is the newest that
changed what it depends on: everything, but for the page, its plots, the other proofs and the patterns (git's pathspecs,
as *.md) of a comment line `# Does not depend on: ...` of its script. In a tree with uncommitted changes to that its outcomes belong to
"<commit>-changed" and are never trusted. What was not run at its commit yet is shown as it was before.
"""
import os
import pathlib
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".proofs"
PAGE = "docs/benchmarks.md"
PLOTS = "docs/hybrid.svg"  # what a proof draws for the page
BEGIN, END = "<!-- proofs:begin (written by make proofs) -->", "<!-- proofs:end -->"
FIGURE = re.compile(r"^FIGURE\s+(?P<name>.+?)\s*=\s*(?P<value>\S+)\s*(?P<unit>.*?)\s*$")
FIGURES_HEAD = ["| figure | value | unit |", "|---|---:|---|"]
SKIPPED = re.compile(r"^SKIPPED\s+(?P<count>\d+) cases?: (?P<reason>.+?)\s*$")
LISTED_SKIP = re.compile(r"^- (?P<count>\d+) skipped: (?P<reason>.+)$")
OUTCOME = re.compile(r": (?P<outcome>(?:passed in|FAILED after|not tried:) .*) \(commit `(?P<revision>[^`]+)`\)\.$", re.MULTILINE)
UNREAD = re.compile(r"^# Does not depend on: (?P<patterns>.+)$", re.MULTILINE)
UNTRIED = 77


def git(*arguments):
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def commit(unread=()):
    """The newest commit that changed more than the page of figures, its plots, which are ours to write, and `unread`; marked when the tree differs."""
    rest = ("--", ".", *(f":!{path}" for path in (PAGE, PLOTS, *unread)))
    changed = git("status", "--porcelain", "--untracked-files=no", *rest)
    return git("log", "-1", "--format=%h", "--abbrev=12", *rest) + ("-changed" if changed else "")


def title(script):
    for line in script.read_text().splitlines()[1:]:
        if line.startswith("# "):
            return line[2:].rstrip(".")
    return script.stem


class Proof:
    """One script with its outcome, the commit of that, what it skipped, and its figures as they were printed."""

    def __init__(self, script):
        self.name = script.stem
        self.title = title(script)
        self.script = script
        unread = UNREAD.search(script.read_text())
        others = (str(other.relative_to(ROOT)) for other in script.parent.glob("*.sh") if other != script)
        self.revision, self.now = "", commit([*(unread["patterns"].split() if unread else ()), *others])
        self.log = FOLDER / "logs" / self.now / f"{self.name}.log"
        self.outcome, self.kept = "not run", []
        self.skipped = {}  # cases by reason
        self.ran = False   # by this call

    def run(self):
        self.log.parent.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        self.revision, self.kept, self.skipped, self.ran, last = self.now, [], {}, True, ""
        environment = {**os.environ, "PLIMSOLL_PROOFS": "1"}
        with self.log.open("w") as log, subprocess.Popen(
            [str(self.script)], cwd=ROOT, env=environment, text=True, errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as process:
            for line in process.stdout:
                log.write(line)
                log.flush()
                last = line.strip() or last
                if FIGURE.match(line) or line.startswith("|"):
                    self.kept.append(line.strip().replace(str(ROOT), "this folder"))  # where a clone lies is no result
                if skip := SKIPPED.match(line):
                    self.skipped[skip["reason"]] = self.skipped.get(skip["reason"], 0) + int(skip["count"])
        self.outcome = self.describe(process.returncode, time.monotonic() - start, last)

    @property
    def skips(self):
        return sum(self.skipped.values())

    def reasons(self):
        return [f"{count} skipped: {reason}" for reason, count in self.skipped.items()]

    def written(self):
        """Its section of the page; read_page is the way back."""
        if self.outcome == "not run":
            return [f"### {self.name}", "", f"{self.title}: {self.outcome}.", ""]
        rows = [f"### {self.name}", "", f"{self.title}: {self.outcome} (commit `{self.revision}`).", ""]
        if self.skipped:
            rows += [*(f"- {reason}" for reason in self.reasons()), ""]
        figures = [match for match in map(FIGURE.match, self.kept) if match]
        if figures:
            rows += [*FIGURES_HEAD, *(f"| {figure['name']} | {figure['value']} | {figure['unit']} |" for figure in figures), ""]
        columns = 0
        for line in (line for line in self.kept if line.startswith("|")):
            if columns not in (0, line.count("|")):
                rows.append("")
            columns = line.count("|")
            rows.append(line)
        return rows + [""] * (columns > 0)

    def describe(self, status, seconds, last):
        if status == 0:
            skips = f", {self.skips} case{'' if self.skips == 1 else 's'} skipped" if self.skips else ""
            return f"passed in {seconds:.0f} s{skips}"
        if status == UNTRIED:
            return f"not tried: {last}"
        return f"FAILED after {seconds:.0f} s: {last}"

    @property
    def holds(self):
        """Whether it passed at its commit, and nothing that it depends on was changed since."""
        return self.outcome.startswith("passed") and self.revision == self.now and not self.now.endswith("-changed")

    @property
    def failed(self):
        return self.outcome.startswith("FAILED")


def page_parts():
    text = (ROOT / PAGE).read_text()
    if BEGIN not in text or END not in text:
        sys.exit(f"{PAGE}: the lines `{BEGIN}` and `{END}` are missing; put them back")
    head, rest = text.split(BEGIN)
    return head, *rest.split(END)


def read_page(proofs):
    """Takes outcomes and figures from the page, so that another clone need not find them anew."""
    known = {proof.name: proof for proof in proofs}
    for section in page_parts()[1].split("\n### ")[1:]:
        name, *lines = [*section.splitlines(), ""]
        found = OUTCOME.search("\n".join(lines[:3]))
        if name not in known or not found:
            continue
        proof = known[name]
        proof.outcome, proof.revision = found["outcome"], found["revision"]
        proof.skipped = {skip["reason"]: int(skip["count"]) for skip in map(LISTED_SKIP.match, lines) if skip}
        kept = [line for line in lines if line.startswith("|")]
        if kept[:2] == FIGURES_HEAD:
            end = lines.index("", lines.index(FIGURES_HEAD[0]))
            count = sum(line.startswith("|") for line in lines[:end])
            cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in kept[2:count]]
            kept = [f"FIGURE {label} = {value} {unit}" for label, value, unit in cells] + kept[count:]
        proof.kept = kept


def write_page(revision, proofs):
    """Of proofs that did not run here what the page says now: another call may run others at the same time."""
    read_page([proof for proof in proofs if not proof.ran])
    head, _, tail = page_parts()
    rows = [f"Commit `{revision}`, {time.strftime('%Y-%m-%d')}, {machine()}.", ""]
    for proof in proofs:
        rows += proof.written()
    (ROOT / PAGE).write_text(head + BEGIN + "\n" + "\n".join(rows) + END + tail)


def machine():
    model = re.search(r"^model name\s*:\s*(.+)$", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = int(re.search(r"^MemTotal:\s*(\d+)", pathlib.Path("/proc/meminfo").read_text(), re.MULTILINE)[1]) / 2**20
    return f"{len(os.sched_getaffinity(0))} cores ({model[1] if model else 'unknown'}), {memory:.0f} GiB of memory"


def main():
    revision = commit()
    scripts = sorted((ROOT / "tools" / "proofs.d").glob("*.sh"))
    wanted = sys.argv[1:]
    unknown = [name for name in wanted if name not in [script.stem for script in scripts]]
    if unknown:
        sys.exit(f"no proof {unknown[0]}; there are: {' '.join(script.stem for script in scripts)}")
    force = bool(os.environ.get("FORCE"))
    proofs = [Proof(script) for script in scripts]
    read_page(proofs)
    for proof in proofs:
        if not force and proof.holds:
            print(f"{proof.name}: {proof.outcome} before", *proof.reasons(), sep="\n  ", flush=True)
            continue
        if wanted and proof.name not in wanted:
            continue
        print(f"{proof.name}: {proof.title} (log: {proof.log.relative_to(ROOT)})", flush=True)
        proof.run()
        print(f"{proof.name}: {proof.outcome}", *proof.reasons(), sep="\n  ", flush=True)
        write_page(revision, proofs)
    write_page(revision, proofs)
    asked = [proof for proof in proofs if not wanted or proof.name in wanted]
    here = [proof for proof in asked if proof.revision == proof.now]
    failed = [proof.name for proof in here if proof.failed]
    passed = sum(proof.outcome.startswith("passed") for proof in here)
    other = len(asked) - passed - len(failed)
    if skipping := [f"{proof.name} {proof.skips}" for proof in here if proof.skips]:
        print(f"cases that were skipped, by proof: {', '.join(skipping)} (reasons: {PAGE})")
    print(f"{passed} passed, {len(failed)} failed" + (f", {other} skipped" if other else ""))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
