"""Python environments of the real lerobot library, one a version, in .venv-lerobot-<version> at the repository's root.

Each holds the wheels of tools/requirements-lerobot-<version>.txt and, behind them, sees those of the environment that the
tests run in: torch and its CUDA libraries are there already. They are made by the tests that need them and stay. FFmpeg is
PyAV's own in both, so that what lerobot decodes does not hang on the system's.
"""

import contextlib
import fcntl
import functools
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig

import av
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROOFS = os.environ.get("PLIMSOLL_PROOFS", "") not in ("", "0")
INSTALL_LIMIT = 1200  # seconds


def requirements(version):
    return ROOT / "tools" / f"requirements-lerobot-{version}.txt"


def wanted_stamp(version):
    """Of the wheels in the environment and of those behind them, to whose FFmpeg it has links."""
    lists = [requirements(version), *(ROOT / "tools" / f"requirements-{name}.txt" for name in ["build", "test"])]
    return hashlib.sha256(b"".join(path.read_bytes() for path in lists)).hexdigest()


def site_packages(folder):
    return folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


@contextlib.contextmanager
def locked(folder):
    """Two test runs at once must not both write the environment."""
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def ffmpeg_of_pyav():
    return pathlib.Path(av.__file__).resolve().parents[1] / "av.libs"


def link_ffmpeg(folder):
    """FFmpeg's libraries under the names that torchcodec loads; in PyAV's wheel each has a checksum in its name."""
    folder.mkdir()
    for library in ffmpeg_of_pyav().glob("lib[as][vw]*.so.*"):
        if renamed := re.match(r"(lib(?:av|sw)\w+)-[0-9a-f]+\.so\.(\d+)", library.name):
            (folder / f"{renamed[1]}.so.{renamed[2]}").symlink_to(library)


def make(version, folder):
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, capture_output=True, text=True)
    command = [folder / "bin/python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-input", "--no-deps"]
    subprocess.run([*command, "--only-binary", ":all:", "-r", requirements(version)], check=True, capture_output=True, text=True,
                   timeout=INSTALL_LIMIT)
    link_ffmpeg(folder / "ffmpeg")
    # Last, or pip would count the wheels behind as installed here.
    behind = os.path.relpath(sysconfig.get_paths()["purelib"], site_packages(folder))
    (site_packages(folder) / "wheels_behind.pth").write_text(behind + "\n")
    (folder / ".installed").write_text(wanted_stamp(version))


def last_line(error):
    text = getattr(error, "stderr", None) or str(error)
    return (text if isinstance(text, str) else text.decode(errors="replace")).strip().splitlines()[-1]


def folder_of(version):
    return ROOT / f".venv-lerobot-{version}"


def is_made(version):
    stamp = folder_of(version) / ".installed"
    return stamp.exists() and stamp.read_text() == wanted_stamp(version)


def how_to(version):
    return f"no environment of lerobot {version}; PLIMSOLL_PROOFS=1 installs {requirements(version).relative_to(ROOT)} into it"


def why_none(versions):
    """Why none of these versions can be used here, or nothing if one can."""
    versions = list(versions)
    return "" if PROOFS or any(map(is_made, versions)) else "; ".join(map(how_to, versions))


@functools.cache
def obstacle(version):
    """Why that environment cannot be used, once it was tried to make it where that is asked for; nothing if it can."""
    with locked(folder_of(version)):
        if is_made(version):
            return ""
        if not PROOFS:
            return how_to(version)
        try:
            make(version, folder_of(version))
        except (subprocess.SubprocessError, OSError) as error:
            return f"lerobot {version} cannot be installed: {last_line(error)}"
    return ""


def python_of(version):
    """The environment's interpreter; where there is none and none can be made, the test is skipped."""
    if reason := obstacle(version):
        pytest.skip(reason)
    return folder_of(version) / "bin/python"


def run(version, scratch, *arguments):
    """Standard output of the environment's Python with these arguments; an error of its own fails the test."""
    python = python_of(version)
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": f"{python.parents[1] / 'ffmpeg'}:{ffmpeg_of_pyav()}",
        "HF_HOME": str(scratch / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",  # by which lerobot numbers the tasks of an episode that has several
    }
    environment.pop("PYTHONPATH", None)
    done = subprocess.run([python, *map(str, arguments)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
