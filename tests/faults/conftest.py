"""Inputs that all tests share, made once by the program itself, and a time limit for every test."""

import signal

import pytest

import runs

TEST_LIMIT = 1800 if runs.PROOFS else 400


@pytest.fixture(autouse=True)
def nothing_hangs():
    def give_up(*_):
        raise AssertionError(f"the test took more than {TEST_LIMIT} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(TEST_LIMIT)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def made(command):
    code, text = runs.finished(command)
    assert code == 0, text


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    made([runs.PLIMSOLL, "init-model", "--size", "tiny", "--layers", 2, "--dtype", "fp32", "--out", folder])
    return folder


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "demo"
    made([runs.PLIMSOLL, "demo-data", "--episodes", 12, "--frames-per-episode", 4, "--out", folder])
    return folder


@pytest.fixture(scope="session")
def short(tmp_path_factory, model):
    """An uninterrupted run of 8 steps on two ranks: its configuration."""
    config = runs.configure(tmp_path_factory.mktemp("short"), model)
    runs.finish(config, 2)
    return config
