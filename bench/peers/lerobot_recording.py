"""A dataset of two cameras as lerobot itself records one, for bench/loader_peer.py. Runs inside an environment of lerobot.

Usage: lerobot_recording.py ROOT FORM EPISODES FRAMES SIDE. FORM: "av1" (videos, lerobot's own setting of the encoder) or "images"
(columns of PNG). The pictures are as a camera's are, smooth and moving, with noise: so they take what such pictures take to
decode.
"""

import pathlib
import sys

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from PIL import Image

FPS = 10
CAMERAS = ["observation.images.front", "observation.images.wrist"]
NOISE = 3.0  # standard deviation, of 255


def features(form, side):
    kind = "video" if form == "av1" else "image"
    cameras = {name: {"dtype": kind, "shape": (side, side, 3), "names": ["height", "width", "channels"]} for name in CAMERAS}
    vectors = {"observation.state": 4, "action": 3}
    return cameras | {name: {"dtype": "float32", "shape": (width,), "names": [f"axis_{i}" for i in range(width)]} for name, width in vectors.items()}


def scene(random, side):
    """A picture to look at a part of: the camera moves over it."""
    coarse = Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((2 * side, 2 * side), Image.Resampling.BICUBIC))


def picture(random, seen, side, frame):
    at = 3 * frame % side
    return np.clip(seen[at:at + side, at:at + side] + random.normal(0, NOISE, (side, side, 3)), 0, 255).astype(np.uint8)


def main():
    root, form, episodes, frames, side = pathlib.Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:6])
    wanted = features(form, side)
    dataset = LeRobotDataset.create("plimsoll/bench", FPS, wanted, root=root, robot_type="none", image_writer_threads=2)
    random = np.random.default_rng(7)
    for episode in range(episodes):
        scenes = {name: scene(random, side) for name in CAMERAS}
        for frame in range(frames):
            vectors = {name: random.normal(size=wanted[name]["shape"]).astype(np.float32) for name in ("observation.state", "action")}
            pictures = {name: picture(random, scenes[name], side, frame) for name in CAMERAS}
            dataset.add_frame({**vectors, **pictures, "task": f"push block {episode % 4} to its pad"})
        dataset.save_episode(parallel_encoding=False)
    dataset.finalize()
    dataset.stop_image_writer()


main()
