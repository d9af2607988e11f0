"""The program needs no Python while it runs: none is linked, and none is found on its path."""

import os
import shutil
import subprocess

import runs


def test_no_python_is_linked():
    linked = subprocess.run(["ldd", runs.PLIMSOLL], capture_output=True, text=True, check=True).stdout
    assert "libtorch_cpu" in linked
    assert "python" not in " ".join(line.split("=>")[0] for line in linked.splitlines()).lower()


def test_two_ranks_train_without_python_on_the_path(tmp_path, model):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ["mpirun", "orted", "ssh", "env"]:  # mpirun asks for ssh even where it needs none
        os.symlink(shutil.which(name), tools / name)
    config = runs.configure(tmp_path, model)
    code, output = runs.finished(["env", f"PATH={tools}", runs.PLIMSOLL, "launch", "--config", config, "--set", "launch.ranks=2"])
    assert code == 0, output
    assert len(runs.metrics(tmp_path / "run")) >= 8
