"""Datasets as the real lerobot library writes and reads them. Runs inside an environment of lerobot_environment.py.

  lerobot_reference.py write FOLDER FORM ...   writes a dataset FOLDER/<form> of each of these forms (FORMS) and reads it;
                                        prints as JSON what went wrong: {form: traceback}
  lerobot_reference.py read DATASET     every sample as lerobot hands it out, into DATASET.safetensors: "000017/<feature>"
                                        (pictures as 8-bit height x width x channels) and DATASET.json: task texts,
                                        statistics
"""

import json
import pathlib
import sys
import traceback

import numpy as np
from lerobot.datasets.lerobot_dataset import CODEBASE_VERSION, LeRobotDataset
from PIL import Image
from safetensors.numpy import save_file

V3 = CODEBASE_VERSION.startswith("v3")
REPO = "plimsoll/reference"
CHUNK = 4
LENGTHS = [6, 9, 1, 7, 5]
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
    if feature["dtype"] == "bool":
        return np.array([frame == LENGTHS[episode] - 1])
    if feature["dtype"].startswith("float"):
        return random.normal(size=feature["shape"]).astype(feature["dtype"])
    return random.integers(0, 100, feature["shape"]).astype(feature["dtype"])


def task(episode, frame):
    """One an episode, but episode 1 changes its task on the way."""
    return TASKS[2 if episode == 1 and frame > 4 else episode % 2]


def record(dataset, wanted, episodes):
    for episode in episodes:
        for frame in range(LENGTHS[episode]):
            sample = {name: value(name, feature, episode, frame) for name, feature in wanted.items()}
            if V3:
                dataset.add_frame({**sample, "task": task(episode, frame)})
            else:
                dataset.add_frame(sample, task=task(episode, frame))
        dataset.save_episode(**({"parallel_encoding": False} if V3 else {}))


def recorded(root, wanted, fps=10, small_files=False, **options):
    dataset = LeRobotDataset.create(REPO, fps, wanted, root=root, robot_type="none", **options)
    if small_files and V3:
        dataset.meta.update_chunk_settings(chunks_size=2, data_files_size_in_mb=0.02, video_files_size_in_mb=0.02)
    if small_files and not V3:
        dataset.meta.info["chunks_size"] = 2
    record(dataset, wanted, range(len(LENGTHS)))
    if V3:
        dataset.finalize()


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
    statistics = {name: {key: np.asarray(part).tolist() for key, part in parts.items()} for name, parts in dataset.meta.stats.items()}
    root.with_suffix(".json").write_text(json.dumps({"tasks": tasks, "statistics": statistics}))


FORMS = {
    "av1": lambda root: recorded(root, features("video", "video"), fps=30),
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
    else:
        print(json.dumps(write(path, sys.argv[3:])))


if __name__ == "__main__":
    main()
