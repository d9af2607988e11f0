"""The real lerobot library as oracle: every sample of datasets that it wrote itself, read by `dataset show`; and every sample
of what `demo-data` and our writer write, read by the library.

lerobot runs in environments of its own (lerobot_environment.py), where lerobot_reference.py writes and reads. The program is
taken from the build folder (environment variable PLIMSOLL_BUILD, else build/).
"""

import json
import os
import pathlib
import shutil
import subprocess
import types

import av
import lerobot_environment
import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("PLIMSOLL_BUILD", ROOT / "build"))
PLIMSOLL = BUILD / "plimsoll"
REFERENCE = ROOT / "tests/oracle/lerobot_reference.py"
CHUNK = 4
FRONT, WRIST = "observation.images.front", "observation.images.wrist"
INDEX_COLUMNS = ["index", "frame_index", "episode_index", "task_index", "timestamp"]
CONVERTED = "0.3.3-to-0.4.4"
AS_V20 = "0.3.3-as-v2.0"
# What is made of datasets that lerobot 0.3.3 wrote: by which version, and by which command of REFERENCE.
DERIVED = {CONVERTED: ("0.4.4", "convert"), AS_V20: ("0.3.3", "as-v2.0")}
FORMS = {
    "0.3.3": ["av1", "h264", "av1-and-h264", "images", "columns", "many-files", "late-frames"],
    "0.4.4": ["av1", "h264", "hevc", "images", "columns", "many-files", "streamed", "resumed", "merged", "episode-deleted",
              "features-changed", "tasks-changed", "videos-made", "long"],
    CONVERTED: ["av1-and-h264", "images", "many-files"],
    AS_V20: ["av1-and-h264", "columns", "many-files"],
}
ALL_FORMS = [pytest.param((version, form), id=f"{version}-{form}") for version, forms in FORMS.items() for form in forms]
CODECS = {
    ("0.3.3", "av1"): ("av1", "av1"),
    ("0.3.3", "h264"): ("h264", "h264"),
    ("0.3.3", "av1-and-h264"): ("av1", "h264"),
    ("0.4.4", "av1"): ("av1", "av1"),
    ("0.4.4", "h264"): ("h264", "h264"),
    ("0.4.4", "hevc"): ("hevc", "hevc"),
    ("0.4.4", "streamed"): ("av1", "av1"),
    (CONVERTED, "av1-and-h264"): ("av1", "h264"),
}

if reason := lerobot_environment.why_none(version for version in FORMS if version not in DERIVED):
    pytest.skip(reason, allow_module_level=True)  # once, and not for every test


class Written:
    """What each version of lerobot wrote, made when first asked for: all its forms in one process."""

    def __init__(self, factory):
        self.factory = factory
        self.folders = {}

    def folder(self, version):
        if version not in self.folders:
            self.folders[version] = self.derived(version) if version in DERIVED else self.written(version)
        return self.folders[version]

    def written(self, version):
        lerobot_environment.python_of(version)  # skips before anything is made
        folder = self.factory.mktemp(f"lerobot-{version}")
        text = lerobot_environment.run(version, folder, REFERENCE, "write", folder, *FORMS[version])
        return folder, json.loads(text.splitlines()[-1])

    def derived(self, version):
        library, command = DERIVED[version]
        lerobot_environment.python_of(library)
        source, wrong = self.folder("0.3.3")
        folder = self.factory.mktemp(f"lerobot-{version}")
        for form in FORMS[version]:
            if form not in wrong:
                shutil.copytree(source / form, folder / form)
                lerobot_environment.run(library, folder, REFERENCE, command, folder / form)
        return folder, wrong

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
    """In no order, so that each video is sought through and not decoded from end to end."""
    out = dataset.with_name(dataset.name + "-shown.safetensors")
    indices = ",".join(map(str, np.random.default_rng(0).permutation(frames)))
    command = [PLIMSOLL, "dataset", "show", dataset, "--indices", indices, "--chunk", str(CHUNK), "--out", out]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Samples(load_file(out), json.loads(out.with_suffix(".json").read_text()))


def shown_statistics(dataset):
    out = dataset.with_name(dataset.name + "-statistics.json")
    command = [PLIMSOLL, "dataset", "show", dataset, "--indices", "0", "--out", out.with_suffix(".safetensors"), "--statistics", out]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


def read_by_lerobot(dataset):
    texts = json.loads(dataset.with_suffix(".json").read_text())
    return Samples(load_file(dataset.with_suffix(".safetensors")), texts["tasks"]), texts


def compared(dataset):
    expected, texts = read_by_lerobot(dataset)
    info = json.loads((dataset / "meta/info.json").read_text())
    assert len(expected.tasks) == info["total_frames"], "lerobot does not give every sample"
    return types.SimpleNamespace(path=dataset, info=info, expected=expected, texts=texts,
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


def assert_same_pictures(pair, camera):
    expected, found = pair.expected.of(camera), pair.found.of(camera)
    assert list(found) == list(expected)
    before = None
    for key, picture in expected.items():
        assert found[key].shape == picture.shape, key
        assert np.abs(found[key].astype(int) - picture).max() <= 2, key
        if before is not None and before.shape == picture.shape:
            assert np.abs(picture.astype(int) - before).max() > 4, f"{key} is the picture before it: to mix them up would not be seen"
        before = picture


def codecs(dataset, camera):
    """Of all video files of the camera, in either version's folders."""
    found = set()
    for path in dataset.glob("videos/**/*.mp4"):
        if camera in path.parts:
            with av.open(str(path)) as video:
                found.add(video.streams.video[0].codec_context.codec.canonical_name)
    return found


@pytest.mark.parametrize("pair", ALL_FORMS, indirect=True)
class TestWrittenByLeRobot:
    def test_front_pictures(self, pair):
        assert cameras(pair) == [FRONT, WRIST]
        assert_same_pictures(pair, FRONT)

    def test_wrist_pictures(self, pair):
        assert_same_pictures(pair, WRIST)

    def test_numbers(self, pair):
        assert {"observation.state", "action"} <= set(numbers(pair))
        for feature in numbers(pair):
            if feature != "action":
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
        texts = set(pair.expected.tasks.values())
        assert len(texts) == 3 and not all(map(str.isascii, texts))
        assert pair.found.tasks == pair.expected.tasks

    def test_no_feature_is_left_out(self, pair):
        assert pair.found.features() == pair.expected.features()

    def test_statistics(self, pair):
        """As lerobot has them in memory: of format v2.1 those of the episodes taken together."""
        found = shown_statistics(pair.path)
        assert {"observation.state", "action"} <= set(found)  # of features that its tools add lerobot stores none
        assert set(found) == {*cameras(pair), *numbers(pair)} & set(pair.texts["stored"])
        for name, parts in found.items():
            stored = pair.texts["stored"][name]
            assert set(parts) == {"mean", "std", "min", "max", "q01", "q99"} & set(stored) and len(parts) >= 4, name
            shape = (3, 1, 1) if name in cameras(pair) else tuple(pair.info["features"][name]["shape"])
            for key, values in parts.items():
                # lerobot 0.4.4 has one value for all leading indices of a matrix, and broadcasts it.
                expected = np.broadcast_to(np.array(stored[key], np.float64), shape).ravel()
                np.testing.assert_allclose(values, expected, rtol=1e-6, atol=0, err_msg=f"{name} {key}")


# That the datasets are what they are called -----------------------------------------------------------------------------


@pytest.mark.parametrize("version, form", CODECS)
def test_codecs(written, version, form):
    dataset = written.dataset(version, form)
    assert (codecs(dataset, FRONT), codecs(dataset, WRIST)) == tuple({codec} for codec in CODECS[version, form])


@pytest.mark.parametrize("version, format_version", [("0.3.3", "v2.1"), ("0.4.4", "v3.0"), (CONVERTED, "v3.0"), (AS_V20, "v2.0")])
def test_format_versions(written, version, format_version):
    for form in FORMS[version]:
        meta = written.dataset(version, form) / "meta"
        assert json.loads((meta / "info.json").read_text())["codebase_version"] == format_version, form
        assert (meta / "episodes_stats.jsonl").exists() == (format_version == "v2.1"), form


@pytest.mark.parametrize("version", ["0.3.3", "0.4.4"])
def test_many_files(written, version):
    dataset = written.dataset(version, "many-files")
    data, videos = list(dataset.glob("data/*/*.parquet")), list(dataset.glob("videos/**/*.mp4"))
    assert len({path.parent for path in data}) > 1 and len({path.parent for path in videos}) > 1, "several chunk folders"
    if version == "0.4.4":
        (path,) = dataset.glob("meta/episodes/*/*.parquet")
        rows = pq.read_table(path).to_pylist()
        of_data, of_videos = ([(row[f"{kind}/chunk_index"], row[f"{kind}/file_index"]) for row in rows] for kind in ["data", f"videos/{FRONT}"])
        assert len(set(of_videos)) < len(set(of_data)), "numbers and pictures are divided unlike, and a video holds several episodes"


# What we write, read by lerobot -----------------------------------------------------------------------------------------

TOP = "observation.images.top"
DEMO_WRIST = "observation.images.wrist"
DEMO_FEATURES = ["observation.state", "observation.force", "action", *INDEX_COLUMNS]
OURS = {
    "uniform": ["--heavy-fraction", "0", "--difficulty", "permuted"],
    "heavy": ["--heavy-fraction", "0.4", "--difficulty", "permuted"],
    "shuffled": ["--heavy-fraction", "0", "--difficulty", "anywhere", "--shuffled-instructions"],
    "several-files": None,  # of dataset_writer.cpp: what the demo's datasets, small as they are, do not have
}


def write_ours(form, dataset):
    options = OURS[form]
    command = [PLIMSOLL, "demo-data", "--out", dataset, "--episodes", "8", "--frames-per-episode", "6", "--seed", "5", *(options or [])]
    done = subprocess.run(command if options else [BUILD / "dataset_writer", dataset], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def ours(tmp_path_factory):
    """Both readers' samples of what we write, by form, each written and read once."""
    pairs = {}

    def get(form):
        if form not in pairs:
            lerobot_environment.python_of("0.4.4")
            folder = tmp_path_factory.mktemp(f"ours-{form}")
            write_ours(form, folder / "set")
            lerobot_environment.run("0.4.4", folder, REFERENCE, "read", folder / "set")
            pairs[form] = compared(folder / "set")
        return pairs[form]

    return get


@pytest.fixture(params=OURS)
def demo(ours, request):
    return ours(request.param)


def listed_episodes(pair):
    (path,) = pair.path.glob("meta/episodes/*/*.parquet")
    return pq.read_table(path).to_pylist()


def test_lerobot_reads_our_several_files(ours):
    """Numbers and the pictures of either camera in files of their own, which hold several episodes and are cut at different ones."""
    several = ours("several-files")
    side = "observation.images.side"
    rows = listed_episodes(several)
    places = {kind: [(row[f"{kind}/chunk_index"], row[f"{kind}/file_index"]) for row in rows]
              for kind in ["data", f"videos/{TOP}", f"videos/{side}"]}
    assert len(set(places["data"])) == 4 and len(set(places[f"videos/{TOP}"])) == len(set(places[f"videos/{side}"])) == 3
    assert len(list(several.path.glob("data/*/*.parquet"))) == 4 and len(list(several.path.glob("videos/*/*/*.mp4"))) == 6
    assert any(row[f"videos/{TOP}/from_timestamp"] > 0 and row[f"videos/{TOP}/file_index"] > 0 for row in rows)
    assert_same_pictures(several, side)
    assert_equal(several, "observation.level")  # of one value


def test_lerobot_reads_our_episode_of_two_tasks(ours):
    several = ours("several-files")
    texts = [several.expected.tasks[f"{index:06d}"] for index in range(6, 12)]
    assert texts[0] == texts[1] == texts[4] == texts[5] != texts[2] == texts[3], "it goes to another and comes back"
    row = listed_episodes(several)[1]
    assert row["tasks"] == [texts[0], texts[2]], "each once, as the library lists them"
    assert several.found.tasks == several.expected.tasks


def test_lerobot_reads_our_shuffled_instructions(ours, tmp_path):
    """They are those of the scenes as they are, dealt to other episodes."""
    plain = [*OURS["shuffled"]]
    plain.remove("--shuffled-instructions")
    command = [PLIMSOLL, "demo-data", "--out", tmp_path / "set", "--episodes", "8", "--frames-per-episode", "6", "--seed", "5", *plain]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shuffled = [row["tasks"] for row in listed_episodes(ours("shuffled"))]
    as_they_are = [row["tasks"] for row in listed_episodes(types.SimpleNamespace(path=tmp_path / "set"))]
    assert sorted(shuffled) == sorted(as_they_are) and shuffled != as_they_are


@pytest.mark.parametrize("camera", [TOP, DEMO_WRIST])
def test_lerobot_decodes_our_pictures(demo, camera):
    assert_same_pictures(demo, camera)


@pytest.mark.parametrize("feature", [*DEMO_FEATURES, "action_is_pad"])
def test_lerobot_reads_our_numbers(demo, feature):
    assert_equal(demo, feature)


def test_lerobot_reads_our_tasks(demo):
    assert len(set(demo.expected.tasks.values())) > 1
    assert demo.found.tasks == demo.expected.tasks


def test_lerobot_finds_every_feature_of_ours(demo):
    assert demo.expected.features() == demo.found.features()


def assert_statistics(found, expected, name):
    for key in ["min", "max", "mean", "std", "count"]:
        np.testing.assert_allclose(found[key], expected[key], rtol=1e-6, atol=1e-7, err_msg=f"{name} {key}")


@pytest.mark.parametrize("feature", DEMO_FEATURES)
def test_our_statistics_are_what_lerobot_computes(demo, feature):
    stored = json.loads((demo.path / "meta/stats.json").read_text())
    assert demo.texts["stored"][feature] == stored[feature], "lerobot reads other statistics than are stored"
    assert_statistics(stored[feature], demo.texts["computed"][feature], feature)


@pytest.mark.parametrize("feature", [*DEMO_FEATURES, DEMO_WRIST])
def test_our_statistics_of_an_episode_are_what_lerobot_computes(demo, feature):
    rows = listed_episodes(demo)
    assert len(rows) == len(demo.texts["computed_by_episode"]) == 8
    for row, expected in zip(rows, demo.texts["computed_by_episode"]):
        assert_statistics({key: row[f"stats/{feature}/{key}"] for key in expected[feature]}, expected[feature], feature)
