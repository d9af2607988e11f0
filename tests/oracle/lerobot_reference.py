"""Datasets as the real lerobot library writes and reads them. Runs inside an environment of lerobot_environment.py.

  lerobot_reference.py write FOLDER FORM ...   writes a dataset FOLDER/<form> of each of these forms (FORMS) and reads it;
                                        prints as JSON what went wrong: {form: traceback}
  lerobot_reference.py convert DATASET         converts it from v2.1 to v3.0 in place and reads it
  lerobot_reference.py as-v2.0 DATASET         makes v2.0 of v2.1 in place and reads it (lerobot 0.3.3)
  lerobot_reference.py read DATASET            reads it

To read is to take every sample as lerobot hands it out, into DATASET.safetensors: "000017/<feature>" (pictures as 8-bit
height x width x channels), with task texts, stored statistics, and statistics that lerobot computes, in DATASET.json.
"""

import contextlib
import json
import pathlib
import sys
import traceback

import numpy as np
from lerobot.datasets.compute_stats import aggregate_stats, get_feature_stats
from lerobot.datasets.lerobot_dataset import CODEBASE_VERSION, LeRobotDataset
from PIL import Image
from safetensors.numpy import save_file

V3 = CODEBASE_VERSION.startswith("v3")
REPO = "plimsoll/reference"
CHUNK = 4
LENGTHS = [6, 9, 2, 7, 5, 1, 1100]
USUAL = range(5)
LONE = range(6)  # with an episode of one frame, of which lerobot makes a dataset only in AV1 and of pictures
TASKS = ["push the red block to the left", "schieb den grünen Würfel, schnell — jetzt", "把杯子放到盘子上 🍵"]
FRONT, WRIST = "observation.images.front", "observation.images.wrist"
SIZES = {FRONT: (64, 96), WRIST: (48, 80)}


def camera(name, dtype):
    return {"dtype": dtype, "shape": (*SIZES[name], 3), "names": ["height", "width", "channels"]}


def vector(width, dtype="float32"):
    return {"dtype": dtype, "shape": (width,), "names": [f"axis_{i}" for i in range(width)]}


def features(front, wrist, **more):
    return {
        FRONT: camera(FRONT, front),
        WRIST: camera(WRIST, wrist),
        "observation.state": vector(4),
        "action": vector(3),
        **more,
    }


def picture(name, episode, frame):
    """Smooth, coloured, and unlike any other frame's: a wrong frame cannot pass for the right one."""
    random = np.random.default_rng([len(name), sum(map(ord, name)), episode, frame])
    height, width = SIZES[name]
    coarse = Image.fromarray(random.integers(0, 256, (3, 4, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def value(name, feature, episode, frame):
    if feature["dtype"] in ("image", "video"):
        return picture(name, episode, frame)
    random = np.random.default_rng([sum(map(ord, name)), episode, frame])
    if feature["dtype"] == "string":
        return f"note {frame} of episode {episode}"
    if feature["dtype"] == "bool":
        return np.array([frame == LENGTHS[episode] - 1])
    if feature["dtype"].startswith("float"):
        return random.normal(size=feature["shape"]).astype(feature["dtype"])
    return random.integers(0, 100, feature["shape"]).astype(feature["dtype"])


def task(episode, frame):
    """One an episode, but episode 1 changes its task on the way."""
    return TASKS[2 if episode == 1 and frame > 4 else episode % 2]


def record(dataset, wanted, episodes, late=lambda frame: 0):
    for episode in episodes:
        for frame in range(LENGTHS[episode]):
            sample = {name: value(name, feature, episode, frame) for name, feature in wanted.items()}
            if V3:
                dataset.add_frame({**sample, "task": task(episode, frame)})
            else:
                dataset.add_frame(sample, task=task(episode, frame), timestamp=frame / dataset.fps + late(frame))
        dataset.save_episode(**({"parallel_encoding": False} if V3 else {}))


def created(root, wanted, fps, small_files=None, **options):
    dataset = LeRobotDataset.create(REPO, fps, wanted, root=root, robot_type="none", **options)
    if small_files and V3:
        data, videos = small_files
        dataset.meta.update_chunk_settings(chunks_size=2, data_files_size_in_mb=data, video_files_size_in_mb=videos)
    if small_files and not V3:  # a file an episode anyway
        dataset.meta.info["chunks_size"] = 2
    return dataset


def recorded(root, wanted, fps=10, episodes=USUAL, late=lambda frame: 0, **options):
    dataset = created(root, wanted, fps, **options)
    record(dataset, wanted, episodes, late)
    if V3:
        dataset.finalize()


def resumed(root):
    """Recording went on another day: the library then begins new files."""
    wanted = features("video", "image")
    recorded(root, wanted, episodes=range(2), vcodec="h264")
    dataset = LeRobotDataset(REPO, root=root, vcodec="h264")
    record(dataset, wanted, range(2, 5))
    dataset.finalize()


def merged(root):
    from lerobot.datasets.dataset_tools import merge_datasets

    wanted = features("video", "image")
    parts = []
    for name, episodes in {"first": [0, 1], "second": [2, 3, 4]}.items():
        part = root.with_name(f"{root.name}-{name}")
        recorded(part, wanted, episodes=episodes, vcodec="h264")
        parts.append(LeRobotDataset(f"{REPO}-{name}", root=part))
    merge_datasets(parts, REPO, root)


def edited(edit, wanted=None, **options):
    """A form that the library's editing tools make of a recorded dataset: edit(dataset, where to)."""

    def make(root):
        before = root.with_name(root.name + "-before")
        recorded(before, wanted or features("image", "image"), **options)
        edit(LeRobotDataset(REPO, root=before), root)

    return make


def with_episode_deleted(dataset, root):
    from lerobot.datasets.dataset_tools import delete_episodes

    delete_episodes(dataset, [3], root, REPO)


def with_features_changed(dataset, root):
    from lerobot.datasets.dataset_tools import modify_features

    effort = np.random.default_rng(7).normal(size=len(dataset)).astype(np.float32)
    added = {"observation.effort": (effort, {"dtype": "float32", "shape": (1,), "names": None})}
    modify_features(dataset, added, "observation.gripper", root, REPO)


def with_tasks_changed(dataset, root):
    from lerobot.datasets.dataset_tools import modify_tasks

    modify_tasks(dataset, TASKS[0], {1: "nimm den Würfel", 3: "etwas anderes"})
    dataset.root.rename(root)


def with_videos_made(dataset, root):
    from lerobot.datasets.dataset_tools import convert_image_to_video_dataset

    convert_image_to_video_dataset(dataset, root, REPO, num_workers=1)


def encoded_as(codecs):
    """lerobot 0.3.3 has no option for the codec; its encoding function has one. By camera."""
    from lerobot.datasets import lerobot_dataset

    encode = lerobot_dataset.encode_video_frames

    def with_codec(pictures, video, fps, **options):
        encode(pictures, video, fps, vcodec=codecs[video.parent.name], **options)

    lerobot_dataset.encode_video_frames = with_codec
    return lambda: setattr(lerobot_dataset, "encode_video_frames", encode)


def recorded_as(root, front, wrist, **options):
    restore = encoded_as({FRONT: front, WRIST: wrist})
    try:
        recorded(root, features("video", "video"), **options)
    finally:
        restore()


def as_lists(statistics):
    return {name: {key: np.asarray(part).tolist() for key, part in parts.items()} for name, parts in statistics.items()}


def computed(dataset, tensors):
    """lerobot's own statistics of what it read, by episode and of all: in double precision, for in that of the data its formula
    (the mean square less the squared mean) loses the digits that are to be compared, and of 8-bit pictures all."""
    by_episode = []
    episodes = np.array([tensors[f"{index:06d}/episode_index"] for index in range(len(dataset))])
    for episode in np.unique(episodes):
        statistics = {}
        for name, feature in dataset.features.items():
            if feature["dtype"] in ("video", "string"):
                continue  # a decoded video is no longer what its statistics were taken of
            rows = np.stack([tensors[f"{index:06d}/{name}"] for index in np.flatnonzero(episodes == episode)]).astype(np.float64)
            if feature["dtype"] == "image":
                pictures = get_feature_stats(rows.transpose(0, 3, 1, 2), axis=(0, 2, 3), keepdims=True)
                statistics[name] = {key: part if key == "count" else np.squeeze(part / 255, axis=0) for key, part in pictures.items()}
            else:
                rows = rows[:, 0] if name == "action" else rows  # of a chunk the row's own
                statistics[name] = get_feature_stats(rows, axis=0, keepdims=rows.ndim == 1)
        by_episode.append(statistics)
    return {"computed_by_episode": [as_lists(one) for one in by_episode], "computed": as_lists(aggregate_stats(by_episode))}


def convert(root):
    from lerobot.datasets.v30.convert_dataset_v21_to_v30 import convert_dataset

    with contextlib.redirect_stdout(sys.stderr):
        convert_dataset(root.name, root=root.parent, push_to_hub=False)
    read(root)


def as_v20(root):
    """What lerobot 0.3.3 itself takes for v2.0 (LeRobotDatasetMetadata.load_metadata): statistics of all frames in meta/stats.json
    in place of those of each episode. No release that can be installed any more writes that format, so that this is the library's
    v2.1 with the files of v2.0 and not a recording of that time. Its statistics had no count."""
    from lerobot.datasets.utils import EPISODES_STATS_PATH, load_episodes_stats, write_stats

    statistics = aggregate_stats(list(load_episodes_stats(root).values()))
    write_stats({name: {key: part for key, part in parts.items() if key != "count"} for name, parts in statistics.items()}, root)
    (root / EPISODES_STATS_PATH).unlink()
    info = root / "meta/info.json"
    info.write_text(json.dumps({**json.loads(info.read_text()), "codebase_version": "v2.0"}))
    read(root)


def read(root):
    info = json.loads((root / "meta/info.json").read_text())
    dataset = LeRobotDataset(REPO, root=root, delta_timestamps={"action": [i / info["fps"] for i in range(CHUNK)]})
    tensors, tasks = {}, {}
    for index in range(len(dataset)):
        for name, content in dataset[index].items():
            key = f"{index:06d}/{name}"
            if name == "task":
                tasks[f"{index:06d}"] = content
            elif name in dataset.meta.camera_keys:
                tensors[key] = np.ascontiguousarray(np.rint(content.numpy().transpose(1, 2, 0) * 255).astype(np.uint8))
            elif not isinstance(content, str):
                tensors[key] = np.array(content.numpy())
    save_file(tensors, root.with_suffix(".safetensors"))
    texts = {"tasks": tasks, "stored": as_lists(dataset.meta.stats), **computed(dataset, tensors)}
    root.with_suffix(".json").write_text(json.dumps(texts))


GRIPPER = {"observation.gripper": {"dtype": "float32", "shape": (1,), "names": None}}
# What a column may be beside the usual vectors: the library's ArrayND types, other number types, single values, text.
MORE_COLUMNS = {
    "observation.matrix": {"dtype": "float32", "shape": (2, 3), "names": None},
    "observation.cube": {"dtype": "float32", "shape": (2, 3, 2), "names": None},
    "observation.precise": vector(3, "float64"),
    "observation.counters": vector(2, "int64"),
    "observation.levels": vector(5, "uint8"),
    **GRIPPER,
    "next.done": {"dtype": "bool", "shape": (1,), "names": None},
    "note": {"dtype": "string", "shape": (1,), "names": None},
}

FORMS = {
    "av1": lambda root: recorded(root, features("video", "video"), fps=30, episodes=LONE),
    "images": lambda root: recorded(root, features("image", "image"), episodes=LONE),
    "columns": lambda root: recorded(root, features("image", "image", **MORE_COLUMNS)),
    "many-files": lambda root: recorded(root, features("video", "image"), fps=30, small_files=(0.05, 0.004)),
}
if V3:
    FORMS |= {
        "h264": lambda root: recorded(root, features("video", "video"), fps=15, vcodec="h264"),
        "hevc": lambda root: recorded(root, features("video", "video"), vcodec="hevc", small_files=(100, 1e-6)),
        "streamed": lambda root: recorded(root, features("video", "video"), fps=7, streaming_encoding=True),
        "resumed": resumed,
        "merged": merged,
        "episode-deleted": edited(with_episode_deleted, features("video", "image"), vcodec="h264"),
        "features-changed": edited(with_features_changed, features("image", "image", **GRIPPER)),
        "tasks-changed": edited(with_tasks_changed),
        "videos-made": edited(with_videos_made),
        "long": lambda root: recorded(root, features("video", "image"), fps=50, episodes=[*USUAL, 6], vcodec="h264"),
    }
else:
    FORMS |= {
        "h264": lambda root: recorded_as(root, "h264", "h264", fps=15),
        "av1-and-h264": lambda root: recorded_as(root, "libsvtav1", "h264", fps=30),
        "late-frames": lambda root: recorded(root, features("video", "image"), fps=30, late=lambda frame: 4e-5 * (frame % 2)),
    }


def write(folder, forms):
    wrong = {}
    for form in forms:
        try:
            FORMS[form](folder / form)
            read(folder / form)
        except Exception:
            wrong[form] = traceback.format_exc()
    return wrong


def main():
    what, path = sys.argv[1], pathlib.Path(sys.argv[2])
    if what == "read":
        read(path)
    elif what == "convert":
        convert(path)
    elif what == "as-v2.0":
        as_v20(path)
    else:
        print(json.dumps(write(path, sys.argv[3:])))


if __name__ == "__main__":
    main()
