"""LeRobot v3.0 on disk: what `demo-data` writes, opened by pyarrow; what pyarrow writes in other forms, read by `dataset show`.

The program is taken from the build folder (environment variable PLIMSOLL_BUILD, else build/).
"""

import io
import json
import os
import pathlib
import shutil
import subprocess

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import load_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
PLIMSOLL = pathlib.Path(os.environ.get("PLIMSOLL_BUILD", ROOT / "build")) / "plimsoll"
TOP, WRIST = "observation.images.top", "observation.images.wrist"
STATISTICS = ["min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99"]


def plimsoll(*arguments):
    return subprocess.run([PLIMSOLL, *map(str, arguments)], capture_output=True, text=True)


def show(dataset, indices, out, chunk=1):
    done = plimsoll("dataset", "show", dataset, "--indices", ",".join(map(str, indices)), "--chunk", chunk, "--out", out)
    assert done.returncode == 0, done.stderr
    return load_file(out), json.loads(out.with_suffix(".json").read_text())


def refusal(dataset, tmp_path):
    done = plimsoll("dataset", "show", dataset, "--indices", "0", "--out", tmp_path / "refused.safetensors")
    assert done.returncode == 4, (done.returncode, done.stderr)
    assert not (tmp_path / "refused.safetensors").exists()
    return done.stderr


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "set"
    done = plimsoll("demo-data", "--out", folder, "--episodes", 40, "--frames-per-episode", 5, "--heavy-fraction", 0.3, "--difficulty", "permuted", "--seed", 3)
    assert done.returncode == 0, done.stderr
    return folder


def data_table(dataset):
    return pa.concat_tables([pq.read_table(path) for path in sorted(dataset.glob("data/*/*.parquet"))])


# What demo-data writes ------------------------------------------------------------------------------------------------


def test_info_json(demo):
    info = json.loads((demo / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert (info["total_episodes"], info["total_frames"], info["fps"]) == (40, 200, 10)
    assert info["splits"] == {"train": "0:40"}
    assert info["chunks_size"] == 1000 and info["data_files_size_in_mb"] == 100 and info["video_files_size_in_mb"] == 200
    assert info["features"][TOP]["dtype"] == "video" and info["features"][TOP]["info"]["video.codec"] == "h264"
    assert info["features"][WRIST]["dtype"] == "image"
    for name in ["timestamp", "frame_index", "episode_index", "index", "task_index"]:
        assert info["features"][name]["shape"] == [1]
    assert (demo / info["data_path"].format(chunk_index=0, file_index=0)).exists()
    assert (demo / info["video_path"].format(video_key=TOP, chunk_index=0, file_index=0)).exists()


def test_data_columns_are_the_features_without_videos(demo):
    info = json.loads((demo / "meta/info.json").read_text())
    table = data_table(demo)
    assert set(table.column_names) == {name for name, feature in info["features"].items() if feature["dtype"] != "video"}
    for name in ["observation.state", "observation.force", "action"]:
        assert table.schema.field(name).type == pa.list_(pa.field("element", pa.float32()), 3)
    assert table.schema.field(WRIST).type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    assert table.schema.field("timestamp").type == pa.float32()
    for name in ["frame_index", "episode_index", "index", "task_index"]:
        assert table.schema.field(name).type == pa.int64()
    assert table["index"].to_pylist() == list(range(200))
    assert table["episode_index"].to_pylist() == [i // 5 for i in range(200)]
    assert table["frame_index"].to_pylist() == [i % 5 for i in range(200)]
    np.testing.assert_array_equal(table["timestamp"].to_numpy(), np.float32(np.arange(200) % 5 / 10))
    column = pq.ParquetFile(demo / "data/chunk-000/file-000.parquet").metadata.row_group(0).column(0)
    assert column.compression == "SNAPPY"
    types = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert list(types) == table.column_names
    assert types[WRIST] == {"_type": "Image"}
    assert types["action"] == {"feature": {"dtype": "float32", "_type": "Value"}, "length": 3, "_type": "List"}
    assert types["index"] == {"dtype": "int64", "_type": "Value"}


def test_tasks_have_the_index_of_pandas(demo):
    table = pq.read_table(demo / "meta/tasks.parquet")
    assert table["task_index"].to_pylist() == list(range(table.num_rows))
    pandas = json.loads(table.schema.metadata[b"pandas"])
    assert pandas["index_columns"] == ["__index_level_0__"]
    assert [column["field_name"] for column in pandas["columns"]] == ["task_index", "__index_level_0__"]
    texts = table["__index_level_0__"].to_pylist()
    assert len(set(texts)) == len(texts) == json.loads((demo / "meta/info.json").read_text())["total_tasks"]
    assert any(len(text) > 100 for text in texts) and any(len(text) < 40 for text in texts)


def test_episodes(demo):
    table = pq.read_table(demo / "meta/episodes/chunk-000/file-000.parquet")
    tasks = pq.read_table(demo / "meta/tasks.parquet")["__index_level_0__"].to_pylist()
    data = data_table(demo)
    for e, row in enumerate(table.to_pylist()):
        assert row["episode_index"] == e and row["length"] == 5
        assert (row["dataset_from_index"], row["dataset_to_index"]) == (5 * e, 5 * e + 5)
        assert row["tasks"] == [tasks[data["task_index"][5 * e].as_py()]]
        assert row[f"videos/{TOP}/from_timestamp"] == pytest.approx(e / 2) and row[f"videos/{TOP}/to_timestamp"] == pytest.approx(e / 2 + 0.5)
        assert row["meta/episodes/chunk_index"] == row["meta/episodes/file_index"] == 0
        actions = np.array(data["action"][5 * e : 5 * e + 5].to_pylist())
        np.testing.assert_allclose(row["stats/action/mean"], actions.mean(0), atol=1e-6)
        np.testing.assert_allclose(row["stats/action/std"], actions.std(0), atol=1e-6)
        np.testing.assert_allclose(row["stats/action/q10"], np.quantile(actions, 0.1, axis=0), atol=1e-6)
        assert row["stats/action/count"] == [5]
        assert np.shape(row[f"stats/{TOP}/mean"]) == (3, 1, 1)
    info = json.loads((demo / "meta/info.json").read_text())
    for name in info["features"]:
        assert all(f"stats/{name}/{statistic}" in table.column_names for statistic in STATISTICS), name


def test_statistics(demo):
    stats = json.loads((demo / "meta/stats.json").read_text())
    data = data_table(demo)
    for name in ["observation.state", "observation.force", "action"]:
        values = np.array(data[name].to_pylist())
        assert stats[name]["count"] == [200]
        for key, expected in {"mean": values.mean(0), "std": values.std(0), "min": values.min(0), "max": values.max(0), "q01": np.quantile(values, 0.01, axis=0), "q99": np.quantile(values, 0.99, axis=0)}.items():
            np.testing.assert_allclose(stats[name][key], expected, atol=1e-6, err_msg=f"{name} {key}")
    pictures = [np.asarray(Image.open(io.BytesIO(cell["bytes"]))).reshape(-1, 3) / 255 for cell in data[WRIST].to_pylist()]
    pixels = np.concatenate(pictures)
    np.testing.assert_allclose(np.squeeze(stats[WRIST]["mean"]), pixels.mean(0), atol=1e-6)
    np.testing.assert_allclose(np.squeeze(stats[WRIST]["std"]), pixels.std(0), atol=1e-6)
    assert set(stats) == set(json.loads((demo / "meta/info.json").read_text())["features"])


def test_heavy_episodes_have_larger_pictures(demo):
    data = data_table(demo)
    sizes = [Image.open(io.BytesIO(cell["bytes"])).size for cell in data[WRIST].to_pylist()]
    assert set(sizes) == {(56, 56), (168, 168)}
    assert all(len(set(sizes[5 * e : 5 * e + 5])) == 1 for e in range(40))


def test_same_seed_same_files(demo, tmp_path):
    plimsoll("demo-data", "--out", tmp_path / "again", "--episodes", 40, "--frames-per-episode", 5, "--heavy-fraction", 0.3, "--difficulty", "permuted", "--seed", 3)
    for path in filter(pathlib.Path.is_file, demo.rglob("*")):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(demo)).read_bytes(), path


@pytest.mark.parametrize(
    "arguments, name",
    [
        (["--episodes", "0"], "episodes"),
        (["--frames-per-episode", "0"], "frames"),
        (["--difficulty", "hard"], "hard"),
        (["--heavy-fraction", "2"], "heavy"),
        (["--top-side", "57"], "57"),
        (["--fps", "0"], "fps"),
        (["--seed", "-1"], "seed"),
        (["--episodes", "many"], "many"),
    ],
)
def test_demo_data_refuses(arguments, name, tmp_path):
    done = plimsoll("demo-data", "--out", tmp_path / "set", *arguments)
    assert done.returncode == 2 and name in done.stderr, done.stderr


def test_demo_data_overwrites_nothing(demo):
    done = plimsoll("demo-data", "--out", demo)
    assert done.returncode == 2 and str(demo) in done.stderr
    assert plimsoll("demo-data").returncode == 2


# dataset show ---------------------------------------------------------------------------------------------------------


def test_show_equals_the_parquet(demo, tmp_path):
    indices = [0, 17, 199, 3]
    tensors, texts = show(demo, indices, tmp_path / "shown.safetensors", chunk=4)
    data = data_table(demo)
    tasks = pq.read_table(demo / "meta/tasks.parquet")["__index_level_0__"].to_pylist()
    for index in indices:
        key = f"{index:06d}/"
        row = data.slice(index, 1).to_pylist()[0]
        for name in ["observation.state", "observation.force"]:
            assert tensors[key + name].dtype == np.float32
            np.testing.assert_array_equal(tensors[key + name], np.float32(row[name]))
        rows = [min(index + i, index // 5 * 5 + 4) for i in range(4)]
        np.testing.assert_array_equal(tensors[key + "action"], np.float32(data["action"].take(rows).to_pylist()))
        np.testing.assert_array_equal(tensors[key + "action_is_pad"], np.uint8([index + i > index // 5 * 5 + 4 for i in range(4)]))
        for name in ["index", "frame_index", "episode_index", "task_index"]:
            assert tensors[key + name].dtype == np.int64 and tensors[key + name] == row[name]
        assert tensors[key + "timestamp"].dtype == np.float32 and tensors[key + "timestamp"] == np.float32(row["timestamp"])
        np.testing.assert_array_equal(tensors[key + WRIST], np.asarray(Image.open(io.BytesIO(row[WRIST]["bytes"]))))
        assert tensors[key + TOP].shape == (84, 84, 3) and tensors[key + TOP].dtype == np.uint8
        assert texts[f"{index:06d}"] == tasks[row["task_index"]]
    assert len(tensors) == 4 * 11


def decoded(path):
    """All frames as FFmpeg's own conversion gives them through PyAV, the decoder that lerobot falls back to."""
    with av.open(str(path)) as video:
        return [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]


def video_of(dataset, camera):
    (path,) = (dataset / "videos" / camera).glob("*/*.mp4")
    return path


def assert_same_pictures(dataset, frames, tmp_path):
    indices = [0, 1, 4, 5, 99, 131, 199]
    tensors, _ = show(dataset, indices, tmp_path / "pictures.safetensors")
    for index in indices:
        shown = tensors[f"{index:06d}/{TOP}"].astype(int)
        assert np.ptp(shown.reshape(-1, 3), axis=0).min() > 50, "a picture without colours would show nothing"
        assert np.abs(shown - frames[index]).max() <= 2, index


def test_h264_frames_equal_pyav(demo, tmp_path):
    assert_same_pictures(demo, decoded(video_of(demo, TOP)), tmp_path)


@pytest.mark.parametrize("codec, options", [("libsvtav1", {"preset": "12", "crf": "30"}), ("libx265", {"crf": "20", "x265-params": "log-level=none"})])
def test_other_codecs_equal_pyav(demo, tmp_path, codec, options):
    """The demo's video encoded anew as lerobot does it by default (AV1, a key frame every two frames), and as HEVC."""
    copy = shutil.copytree(demo, tmp_path / "set")
    path = video_of(copy, TOP)
    frames = decoded(path)
    fps = json.loads((copy / "meta/info.json").read_text())["fps"]
    with av.open(str(path), "w") as video:
        stream = video.add_stream(codec, fps, options={"g": "2", **options})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            video.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        video.mux(stream.encode())
    assert_same_pictures(copy, decoded(path), tmp_path)


@pytest.mark.parametrize("indices", ["200", "-1", "1,,2", "x", "", "1,"])
def test_show_refuses_indices(demo, indices, tmp_path):
    done = plimsoll("dataset", "show", demo, f"--indices={indices}", "--out", tmp_path / "x.safetensors")
    assert done.returncode == 2 and "indices" in done.stderr, done.stderr


def test_show_refuses_other_arguments(demo, tmp_path):
    out = tmp_path / "x.safetensors"
    assert plimsoll("dataset", "show", demo, "--indices", 0, "--out", tmp_path / "x.bin").returncode == 2
    assert plimsoll("dataset", "show", demo, "--indices", 0, "--chunk", 0, "--out", out).returncode == 2
    assert plimsoll("dataset", "list", demo, "--indices", 0, "--out", out).returncode == 2
    assert plimsoll("dataset", "show", "--indices", 0, "--out", out).returncode == 2
    assert plimsoll("dataset", "show", tmp_path / "nowhere", "--indices", 0, "--out", out).returncode == 4


# dataset check --------------------------------------------------------------------------------------------------------


def test_check_finds_nothing_in_the_demo(demo):
    done = plimsoll("dataset", "check", demo, "--json")
    assert done.returncode == 0, done.stdout
    report = json.loads(done.stdout)
    assert report["faults"] == [] and (report["episodes"], report["frames"]) == (40, 200)


def test_check_lists_all_faults_at_once(demo, tmp_path):
    copy = shutil.copytree(demo, tmp_path / "set")
    (copy / "meta/stats.json").write_text("{")
    (data_file,) = copy.glob("data/*/*.parquet")
    table = pq.read_table(data_file)
    states = [[float("nan")] * len(row) if i == 7 else row for i, row in enumerate(table["observation.state"].to_pylist())]
    where = table.schema.get_field_index("observation.state")
    table = table.set_column(where, table.schema.field(where), pa.array(states, table.schema.field(where).type))
    pq.write_table(table.drop_columns(["action"]), data_file)
    video_of(copy, TOP).write_bytes(b"no video")
    done = plimsoll("dataset", "check", copy)
    assert done.returncode == 4, done.stdout
    faults = [line for line in done.stdout.splitlines() if line.startswith("fault")]
    for words in [("stats.json",), (data_file.name, "observation.state", "row 7", "nan"), (data_file.name, "action", "missing"), (".mp4",)]:
        assert any(all(word in line for word in words) for line in faults), (words, done.stdout)


# Forms that other writers give the same data --------------------------------------------------------------------------


@pytest.fixture
def copied(demo, tmp_path):
    return shutil.copytree(demo, tmp_path / "copied")


def rewrite(dataset, change, **options):
    """Replaces the data file's table by change(table), without schema metadata, as other writers leave it."""
    path = dataset / "data/chunk-000/file-000.parquet"
    table = change(pq.read_table(path)).replace_schema_metadata(None)
    pq.write_table(table, path, **options)


def with_column(table, name, values):
    return table.set_column(table.column_names.index(name), name, values)


def cast_lists(kind):
    def change(table):
        for name in ["observation.state", "observation.force", "action"]:
            table = with_column(table, name, pa.array(table[name].to_pylist(), kind))
        return table

    return change


def cast(name, kind):
    return lambda table: with_column(table, name, table[name].cast(kind))


def split_state(table):
    return table.select(list(reversed(table.column_names)))


VARIANTS = {
    "list": (cast_lists(pa.list_(pa.float32())), {}),
    "large_list": (cast_lists(pa.large_list(pa.float32())), {}),
    "list of float64": (cast_lists(pa.list_(pa.float64())), {}),
    "fixed_size_list of float64": (cast_lists(pa.list_(pa.float64(), 3)), {}),
    "fixed_size_list of float16": (cast_lists(pa.list_(pa.float16(), 3)), {}),
    "timestamp float64": (cast("timestamp", pa.float64()), {}),
    "index int32": (cast("index", pa.int32()), {}),
    "task_index uint8": (cast("task_index", pa.uint8()), {}),
    "other column order": (split_state, {}),
    "small row groups": (lambda table: table, {"row_group_size": 7}),
    "one row group": (lambda table: table, {"row_group_size": 1000}),
    "small pages": (lambda table: table, {"data_page_size": 1024, "write_batch_size": 2}),
    "zstd": (lambda table: table, {"compression": "zstd"}),
    "no dictionary": (lambda table: table, {"use_dictionary": False}),
    "data page 2.0": (lambda table: table, {"data_page_version": "2.0"}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_other_forms_are_read_equally(demo, copied, variant, tmp_path):
    change, options = VARIANTS[variant]
    rewrite(copied, change, **options)
    indices = [0, 8, 63, 130, 199]
    expected, texts = show(demo, indices, tmp_path / "expected.safetensors", chunk=3)
    found, found_texts = show(copied, indices, tmp_path / "found.safetensors", chunk=3)
    assert found_texts == texts and set(found) == set(expected)
    for key in expected:
        if "float16" in variant and expected[key].dtype == np.float32:
            np.testing.assert_allclose(found[key], expected[key], atol=2e-3)
        else:
            np.testing.assert_array_equal(found[key], expected[key], err_msg=key)


def test_text_that_is_no_task_is_passed_over(demo, copied, tmp_path):
    rewrite(copied, lambda table: table.append_column("annotation.note", pa.array([f"note {i}" for i in range(len(table))])))
    path = copied / "meta/info.json"
    info = json.loads(path.read_text())
    info["features"]["annotation.note"] = {"dtype": "string", "shape": [1], "names": None}
    path.write_text(json.dumps(info))
    found, _ = show(copied, [9], tmp_path / "a.safetensors")
    assert set(found) == set(show(demo, [9], tmp_path / "b.safetensors")[0])


def test_task_column_named_task(demo, copied, tmp_path):
    path = copied / "meta/tasks.parquet"
    table = pq.read_table(path)
    pq.write_table(pa.table({"task": table["__index_level_0__"].cast(pa.large_string()), "task_index": table["task_index"]}), path)
    assert show(copied, [9], tmp_path / "a.safetensors")[1] == show(demo, [9], tmp_path / "b.safetensors")[1]


def test_what_is_not_needed_may_be_missing(copied, tmp_path):
    path = copied / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.select([name for name in table.column_names if not name.startswith(("stats/", "meta/"))]), path)
    (copied / "meta/stats.json").unlink()
    info = json.loads((copied / "meta/info.json").read_text())
    for key in ["robot_type", "total_frames", "splits", "chunks_size"]:
        del info[key]
    del info["features"][TOP]["info"]
    (copied / "meta/info.json").write_text(json.dumps(info))
    show(copied, [0], tmp_path / "shown.safetensors")


def test_scalars_and_higher_shapes(copied, tmp_path):
    count = 200
    grid = np.arange(count * 6, dtype=np.float32).reshape(count, 2, 3)

    def change(table):
        table = table.append_column("next.done", pa.array([i % 5 == 4 for i in range(count)]))
        table = table.append_column("observation.grid", pa.array(grid.tolist(), pa.list_(pa.list_(pa.float32()))))
        return table.append_column("observation.level", pa.array(range(count), pa.int64()))

    rewrite(copied, change)
    info = json.loads((copied / "meta/info.json").read_text())
    info["features"]["next.done"] = {"dtype": "bool", "shape": [1], "names": None}
    info["features"]["observation.grid"] = {"dtype": "float32", "shape": [2, 3], "names": None}
    info["features"]["observation.level"] = {"dtype": "int64", "shape": [1], "names": None}
    (copied / "meta/info.json").write_text(json.dumps(info))
    tensors, _ = show(copied, [14], tmp_path / "shown.safetensors")
    np.testing.assert_array_equal(tensors["000014/observation.grid"], grid[14])
    assert tensors["000014/next.done"].dtype == np.float32 and tensors["000014/next.done"] == 1
    assert tensors["000014/observation.level"].dtype == np.float32 and tensors["000014/observation.level"] == 14


def test_show_statistics(demo, tmp_path):
    out = tmp_path / "statistics.json"
    done = plimsoll("dataset", "show", demo, "--indices", 0, "--out", tmp_path / "x.safetensors", "--statistics", out)
    assert done.returncode == 0, done.stderr
    found, stored = json.loads(out.read_text()), json.loads((demo / "meta/stats.json").read_text())
    assert set(found) == {"observation.state", "observation.force", "action", TOP, WRIST}
    for name, parts in found.items():
        assert parts == {key: np.ravel(stored[name][key]).tolist() for key in ["mean", "std", "min", "max", "q01", "q99"]}


@pytest.mark.parametrize("stored", [[[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]], [0.0, 1.0, 2.0]], ids=["lerobot 0.3.3", "lerobot 0.4.4"])
def test_statistics_of_a_matrix(copied, stored, tmp_path):
    """Of a feature of shape [2, 3] lerobot has 6 values or, for it takes them over the rows too, 3."""
    rewrite(copied, lambda table: table.append_column("observation.grid", pa.array([[[1.0] * 3] * 2] * 200, pa.list_(pa.list_(pa.float32())))))
    for file, section in {"info": lambda whole: whole["features"], "stats": lambda whole: whole}.items():
        path = copied / f"meta/{file}.json"
        whole = json.loads(path.read_text())
        kind = {"dtype": "float32", "shape": [2, 3], "names": None}
        section(whole)["observation.grid"] = kind if file == "info" else dict.fromkeys(["mean", "std", "min", "max"], stored)
        path.write_text(json.dumps(whole))
    out = tmp_path / "statistics.json"
    done = plimsoll("dataset", "show", copied, "--indices", 0, "--out", tmp_path / "x.safetensors", "--statistics", out)
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())["observation.grid"] == dict.fromkeys(["mean", "std", "min", "max"], [0, 1, 2, 0, 1, 2])


# Bad input ------------------------------------------------------------------------------------------------------------


def without_bytes(table):
    cells = table[WRIST].to_pylist()
    cells[7] = {"bytes": None, "path": "elsewhere.png"}
    return with_column(table, WRIST, pa.array(cells, table.schema.field(WRIST).type))


def damaged_picture(table):
    cells = table[WRIST].to_pylist()
    cells[7] = {"bytes": b"no picture", "path": None}
    return with_column(table, WRIST, pa.array(cells, table.schema.field(WRIST).type))


def null_action(table):
    rows = table["action"].to_pylist()
    rows[7] = None
    return with_column(table, "action", pa.array(rows, pa.list_(pa.float32())))


def short_action(table):
    rows = table["action"].to_pylist()
    rows[7] = [1.0]
    return with_column(table, "action", pa.array(rows, pa.list_(pa.float32())))


def null_in_action(table):
    rows = table["action"].to_pylist()
    rows[7] = [1.0, None, 0.0]
    return with_column(table, "action", pa.array(rows, pa.list_(pa.float32())))


BAD_TABLES = {
    "missing column": (lambda table: table.drop_columns(["action"]), ["action", "missing"]),
    "text in numbers": (lambda table: with_column(table, "action", pa.array(["x"] * 200)), ["action", "string"]),
    "row is null": (null_action, ["action", "row 7", "null"]),
    "value is null": (null_in_action, ["action", "row 7", "null"]),
    "row is short": (short_action, ["action", "row 7", "1 values"]),
    "half a task": (lambda table: with_column(table, "task_index", pa.array([0.5] * 200)), ["task_index", "0.5"]),
    "unknown task": (lambda table: with_column(table, "task_index", pa.array([99] * 200)), ["task_index", "row 0", "99"]),
    "picture elsewhere": (without_bytes, [WRIST, "row 7"]),
    "picture damaged": (damaged_picture, [WRIST, "row 7"]),
    "numbers for pictures": (lambda table: with_column(table, WRIST, pa.array(range(200))), [WRIST, "struct"]),
    "row lost": (lambda table: table.slice(0, 199), ["199 rows"]),
    "rows swapped": (lambda table: table.take([1, 0] + list(range(2, 200))), ["index", "row 0"]),
}


@pytest.mark.parametrize("bad", BAD_TABLES)
def test_bad_tables_are_named(copied, bad, tmp_path):
    change, words = BAD_TABLES[bad]
    rewrite(copied, change)
    error = refusal(copied, tmp_path)
    assert all(word in error for word in ["file-000.parquet", *words]), error


@pytest.mark.parametrize("keep", [0, 3, 100, 0.5, 0.99])
def test_truncated_parquet(copied, keep, tmp_path):
    path = copied / "data/chunk-000/file-000.parquet"
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    assert "file-000.parquet" in refusal(copied, tmp_path)


@pytest.mark.parametrize("version", ["v2.0", "v2.1", "v4.0", 3])
def test_other_versions(copied, version, tmp_path):
    info = json.loads((copied / "meta/info.json").read_text())
    info["codebase_version"] = version
    (copied / "meta/info.json").write_text(json.dumps(info))
    error = refusal(copied, tmp_path)
    if str(version).startswith("v2"):  # which is read; the other files are of v3.0
        assert "meta/tasks.jsonl" in error
    else:
        assert "info.json" in error and str(version) in error
