"""The borders between the rooms (docs/architecture.md), read from the sources: who may include whom."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
MIDDLE = ["ddp", "memory", "cache", "model", "data", "report"]
MAY_INCLUDE = {
    "core": set(),
    **{room: {"core"} for room in MIDDLE},
    "train": {"core", *MIDDLE},
    "launcher": {"core", "train", *MIDDLE},
}
# Compiled without torch, so that what decides is tested in seconds and without it.
TORCH_FREE = ["core", "ddp", "memory/planning", "cache", "data", "report"]
SOURCES = {".cpp", ".h", ".cu", ".cuh"}
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)


def sources(folder):
    return [path for path in sorted((ROOT / folder).rglob("*")) if path.suffix in SOURCES]


def includes(path):
    return INCLUDE.findall(path.read_text())


@pytest.mark.parametrize("room", MAY_INCLUDE)
def test_a_room_includes_only_the_rooms_below_it(room):
    allowed = MAY_INCLUDE[room] | {room}
    wrong = [
        f"{path.relative_to(ROOT)} includes {name}"
        for path in sources(room)
        for name in includes(path)
        if "/" in name and name.split("/")[0] in MAY_INCLUDE and name.split("/")[0] not in allowed
    ]
    assert not wrong


@pytest.mark.parametrize("folder", TORCH_FREE)
def test_what_decides_and_what_stores_does_without_torch(folder):
    torch = {"torch", "ATen", "c10"}
    wrong = [
        f"{path.relative_to(ROOT)} includes {name}"
        for path in sources(folder)
        for name in includes(path)
        if name.split("/")[0] in torch
    ]
    assert not wrong


@pytest.mark.parametrize("header", ["mpi.h", "nccl.h"])
def test_a_communication_library_is_included_in_one_file(header):
    users = [path.relative_to(ROOT) for room in MAY_INCLUDE for path in sources(room) if header in includes(path)]
    assert len(users) <= 1
    assert all(user.parts[0] == "ddp" and user.suffix == ".cpp" for user in users)


def test_the_includes_are_found_at_all():
    """Guards the tests above: a pattern that matches nothing would pass them."""
    assert "core/error.h" in {name for path in sources("core") for name in includes(path)}
