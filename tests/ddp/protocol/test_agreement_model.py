"""The agreement of the ranks, searched by spin in every order of events (agreement.pml says what is modelled and how).

The right model must hold in its whole state space; each variant broken on purpose must be caught, and as what it is.
"""

import os
import pathlib
import re
import subprocess
import time

import pytest

MODEL = pathlib.Path(__file__).with_name("agreement.pml")
PROOFS = os.environ.get("PLIMSOLL_PROOFS", "") not in ("", "0")
MEMORY_MIB = 3500
LIMIT = 600.0  # seconds that one command may take

# How a run may end: the exit codes of agreement.pml. The others need something that goes wrong outside the protocol.
ORDERLY = {"DONE", "STOPPED", "DATA", "MEMORY"}
ALL_ENDS = ORDERLY | {"CHECKPOINT", "PEER", "ALONE"}

SAFETY = ["-DSAFETY", "-DNOCLAIM"]  # assertions and invalid end states, without the claim "ends"
ENDS = []  # the claim "ends"
FASTEST = "-O1" if PROOFS else "-O0"


def run(command, folder):
    done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=LIMIT)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: exit status {done.returncode}\n{done.stdout}"
    return done.stdout


def defined(sizes):
    return [f"-D{name}" if value is None else f"-D{name}={value}" for name, value in sizes.items()]


def build(folder, sizes, kind, optimise="-O0"):
    """-o3: pan lists every statement that it never reached. Small searches end before an optimised pan is compiled."""
    run(["spin", "-o3", *defined(sizes), "-a", MODEL], folder)
    run(["gcc", "-w", optimise, f"-DMEMLIM={MEMORY_MIB}", *kind, "-o", "pan", "pan.c"], folder)


def search(folder, *options):
    """What pan says after it has searched the model."""
    return run(["./pan", "-m100000", f"-w{24 if PROOFS else 20}", *options], folder)


def errors(text):
    return int(re.search(r"errors: (\d+)", text).group(1))


def unreached_ends(text):
    names = {value: name for name, value in re.findall(r"^#define ([A-Z]+) (\d+)", ends_of_the_model(), re.MULTILINE)}
    return {names[value] for value in re.findall(r'"exit_code\[me\] = (\d+)"', text)}


def ends_of_the_model():
    return MODEL.read_text().split("/* Exit codes.")[1].split("typedef")[0]


def require_complete(text):
    """Nothing was cut off: not the depth, not the memory, not the states (bitstate and hash-compact lose some)."""
    lower = text.lower()
    assert "full statespace search for" in lower, text
    for sign in ["not completed", "max search depth too small", "memlim", "bit statespace", "hash-compact", "aborting"]:
        assert sign not in lower, text


def require_right(text, name, seconds, capsys):
    assert errors(text) == 0, text
    require_complete(text)
    states = int(float(re.search(r"([0-9.e+]+) states, stored", text).group(1)))
    with capsys.disabled():
        print(f"\n{name}: {states} states, {seconds:.1f} s, 0 errors")


def world(ranks, **sizes):
    return {"WORLD": ranks, **sizes}


RIGHT = {
    "2_ranks": (world(2, STEPS=3), ORDERLY),
    "2_ranks_and_a_fault": (world(2, STEPS=2, SHARE=1, FAULTS=1), ALL_ENDS - {"DATA"}),
}
if PROOFS:
    RIGHT |= {
        "2_ranks_more_steps": (world(2, STEPS=5), ORDERLY),
        "2_ranks_more_steps_and_a_fault": (world(2, STEPS=3, FAULTS=1), ALL_ENDS),
        "3_ranks": (world(3, STEPS=3, SHARE=1), ORDERLY),
        "3_ranks_whole_shares": (world(3, STEPS=1), ORDERLY - {"DATA"}),
        "3_ranks_and_a_fault": (world(3, STEPS=1, SHARE=1, FAULTS=1), ALL_ENDS - {"DATA"}),
    }


@pytest.mark.parametrize("sizes, ends", RIGHT.values(), ids=RIGHT.keys())
def test_ranks_agree_and_nobody_waits_for_ever(tmp_path, capsys, sizes, ends):
    start = time.monotonic()
    build(tmp_path, sizes, SAFETY, FASTEST)
    text = search(tmp_path)
    require_right(text, f"safety {' '.join(defined(sizes))}", time.monotonic() - start, capsys)
    # A model in which nothing happens would be right as well.
    assert unreached_ends(text) == ALL_ENDS - ends


TO_THE_END = {"2_ranks": world(2, STEPS=3, SHARE=1)}
if PROOFS:
    TO_THE_END |= {
        "2_ranks_whole_shares": world(2, STEPS=4),
        "2_ranks_and_a_fault": world(2, STEPS=2, FAULTS=1),
        "3_ranks": world(3, STEPS=2, SHARE=1),
    }


@pytest.mark.parametrize("sizes", TO_THE_END.values(), ids=TO_THE_END.keys())
def test_every_run_comes_to_its_end(tmp_path, capsys, sizes):
    start = time.monotonic()
    build(tmp_path, sizes, ENDS, FASTEST)
    text = search(tmp_path, "-a")
    assert re.search(r"never claim\s+\+ \(ends\)", text), text
    require_right(text, f"ends {' '.join(defined(sizes))}", time.monotonic() - start, capsys)


# What pan must say when only assertions count, and when only invalid end states do (None: the ranks go on).
BROKEN = {
    "STOPS_ALONE": ("same_collective", "invalid end state"),
    "APPLIES_ALONE": ("weights_equal", None),
    "LEAVES_EARLY": ("nobody_waits_for_me", "invalid end state"),
    "PLANS_ALONE": ("plan_equal", None),
    "KEEPS_FAILED_PART": ("gradient_whole", None),
}
if PROOFS:
    BROKEN |= {
        "HEARS_NO_STOP": ("verdict_equal", None),
        "LEAVES_UNSAVED": ("saved_what_was_learned", None),
        "FORGETS_THE_CAUSE": ("end_equal", None),
    }
WORLDS = [2, 3] if PROOFS else [2]


@pytest.mark.parametrize("ranks", WORLDS)
@pytest.mark.parametrize("variant", BROKEN)
def test_a_broken_protocol_is_caught(tmp_path, variant, ranks):
    assertion, deadlock = BROKEN[variant]
    faults = {"FAULTS": 1} if variant == "FORGETS_THE_CAUSE" else {}
    build(tmp_path, world(ranks, STEPS=3, **faults, **{variant: None}), SAFETY)
    text = search(tmp_path, "-E")
    assert errors(text) == 1, text
    assert f"assertion violated {assertion}" in text, text
    if deadlock:
        text = search(tmp_path, "-A")
        assert errors(text) == 1, text
        assert deadlock in text, text


@pytest.mark.parametrize("ranks", WORLDS)
def test_replays_without_end_are_caught(tmp_path, ranks):
    build(tmp_path, world(ranks, STEPS=3, NEVER_ESCALATES=None), ENDS)
    text = search(tmp_path, "-a")
    assert errors(text) == 1, text
    assert "acceptance cycle" in text, text
