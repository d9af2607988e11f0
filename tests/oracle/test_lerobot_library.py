"""The real lerobot library as oracle: every sample of datasets that it wrote itself, read by `dataset show`; and every sample
of what `demo-data` writes, read by the library.

lerobot runs in environments of its own (lerobot_environment.py), where lerobot_reference.py writes and reads. The program is
taken from the build folder (environment variable PLIMSOLL_BUILD, else build/).
"""

import json
import os
import pathlib
import subprocess
import types

import av
import lerobot_environment
import numpy as np
import pytest
from safetensors.numpy import load_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
PLIMSOLL = pathlib.Path(os.environ.get("PLIMSOLL_BUILD", ROOT / "build")) / "plimsoll"
REFERENCE = ROOT / "tests/oracle/lerobot_reference.py"
CHUNK = 4
FRONT, WRIST = "observation.images.front", "observation.images.wrist"
INDEX_COLUMNS = ["index", "frame_index", "episode_index", "task_index", "timestamp"]
FORMS = {
    "0.4.4": ["av1"],
}
ALL_FORMS = [pytest.param((version, form), id=f"{version}-{form}") for version, forms in FORMS.items() for form in forms]


class Written:
    """What one version of lerobot wrote, made when first asked for: all its forms in one process."""

    def __init__(self, factory):
        self.factory = factory
        self.folders = {}

    def folder(self, version):
        if version not in self.folders:
            lerobot_environment.python_of(version)  # skips before anything is made
            folder = self.factory.mktemp(f"lerobot-{version}")
            text = lerobot_environment.run(version, folder, REFERENCE, "write", folder, *FORMS[version])
            self.folders[version] = (folder, json.loads(text))
        return self.folders[version]

    def dataset(self, version, form):
        folder, wrong = self.folder(version)
        assert form not in wrong, f"lerobot {version} fails on its own dataset: {wrong[form]}"
        return folder / form


class Samples:
    """Every sample of a dataset as one reader gives it."""

    def __init__(self, tensors, tasks):
        self.tensors = tensors
        self.tasks = tasks

    def features(self):
        return {key.split("/", 1)[1] for key in self.tensors}

    def of(self, feature):
        """By sample, in order."""
        found = {key: self.tensors[key] for key in sorted(self.tensors) if key.split("/", 1)[1] == feature}
        assert found, feature
        return found


def shown(dataset, frames):
    out = dataset.with_name(dataset.name + "-shown.safetensors")
    command = [PLIMSOLL, "dataset", "show", dataset, "--indices", ",".join(map(str, range(frames))), "--chunk", str(CHUNK), "--out", out]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Samples(load_file(out), json.loads(out.with_suffix(".json").read_text()))


def read_by_lerobot(dataset):
    texts = json.loads(dataset.with_suffix(".json").read_text())
    return Samples(load_file(dataset.with_suffix(".safetensors")), texts["tasks"]), texts["statistics"]


def compared(dataset):
    expected, statistics = read_by_lerobot(dataset)
    info = json.loads((dataset / "meta/info.json").read_text())
    assert len(expected.tasks) == info["total_frames"], "lerobot does not give every sample"
    return types.SimpleNamespace(path=dataset, info=info, expected=expected, statistics=statistics,
                                 found=shown(dataset, info["total_frames"]))


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    return Written(tmp_path_factory)


@pytest.fixture(scope="session")
def pair_of(written):
    """Both readers' samples by version and form, each read once."""
    pairs = {}

    def get(version, form):
        if (version, form) not in pairs:
            pairs[version, form] = compared(written.dataset(version, form))
        return pairs[version, form]

    return get


@pytest.fixture
def pair(pair_of, request):
    return pair_of(*request.param)


def cameras(pair):
    return sorted(name for name, feature in pair.info["features"].items() if feature["dtype"] in ("image", "video"))


def numbers(pair):
    """Features that are neither pictures, text nor index columns."""
    return sorted(name for name, feature in pair.info["features"].items()
                  if feature["dtype"] not in ("image", "video", "string") and name not in INDEX_COLUMNS)


def assert_equal(pair, feature):
    expected, found = pair.expected.of(feature), pair.found.of(feature)
    assert list(found) == list(expected)
    for key, content in expected.items():
        kind = found[key].dtype
        assert found[key].shape == content.shape, (key, found[key].shape, content.shape)
        np.testing.assert_array_equal(found[key], content.astype(kind), err_msg=key)


def assert_same_pictures(pair):
    for camera in cameras(pair):
        expected, found = pair.expected.of(camera), pair.found.of(camera)
        assert list(found) == list(expected)
        before = None
        for key, picture in expected.items():
            assert found[key].shape == picture.shape, key
            assert np.abs(found[key].astype(int) - picture).max() <= 2, key
            if before is not None:
                assert np.abs(picture.astype(int) - before).max() > 40, f"{key} is the picture before it: it would show nothing"
            before = picture


@pytest.mark.parametrize("pair", ALL_FORMS, indirect=True)
class TestWrittenByLeRobot:
    def test_pictures(self, pair):
        assert cameras(pair) == [FRONT, WRIST]
        assert_same_pictures(pair)

    def test_numbers(self, pair):
        assert {"observation.state", "action"} <= set(numbers(pair))
        for feature in numbers(pair):
            assert_equal(pair, feature)

    def test_action_chunks(self, pair):
        assert {chunk.shape for chunk in pair.expected.of("action").values()} == {(CHUNK, 3)}
        assert_equal(pair, "action")

    def test_padding_masks(self, pair):
        padded = [int(mask.sum()) for mask in pair.expected.of("action_is_pad").values()]
        assert set(padded) == set(range(CHUNK)), "all amounts of padding should be there"
        assert_equal(pair, "action_is_pad")

    def test_index_columns(self, pair):
        for feature in INDEX_COLUMNS:
            assert_equal(pair, feature)

    def test_task_texts(self, pair):
        assert len(set(pair.expected.tasks.values())) == 3 and not all(map(str.isascii, pair.expected.tasks.values()))
        assert pair.found.tasks == pair.expected.tasks

    def test_no_feature_is_left_out(self, pair):
        assert pair.found.features() == pair.expected.features()
