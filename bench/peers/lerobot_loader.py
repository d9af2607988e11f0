"""Samples a second of lerobot's own DataLoader: every frame once, shuffled. Runs inside an environment of lerobot.

Usage: lerobot_loader.py DATASET WORKERS BATCH BACKEND. One line of JSON: samples and seconds of all but the first batch,
samples_per_second, and with 0 workers decode_share, the part of that time that lerobot's decoding of videos took.
"""

import json
import sys
import time

import lerobot.datasets.lerobot_dataset as lerobot
import torch


def main():
    root, workers, batch, backend = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    spent = [0.0]
    decode = lerobot.decode_video_frames

    def timed(*arguments, **named):
        start = time.perf_counter()
        frames = decode(*arguments, **named)
        spent[0] += time.perf_counter() - start
        return frames

    lerobot.decode_video_frames = timed
    meta = lerobot.LeRobotDatasetMetadata("plimsoll/bench", root=root)
    actions = {"action": [i / meta.fps for i in range(16)]}
    dataset = lerobot.LeRobotDataset("plimsoll/bench", root=root, video_backend=backend, delta_timestamps=actions)
    loader = torch.utils.data.DataLoader(dataset, batch_size=batch, shuffle=True, num_workers=workers, drop_last=True)
    samples, start = 0, None
    for found in loader:
        if start is None:
            start, spent[0] = time.perf_counter(), 0.0
        else:
            samples += len(found["index"])
    seconds = time.perf_counter() - start
    result = {"samples": samples, "seconds": seconds, "samples_per_second": samples / seconds}
    if workers == 0:
        result["decode_share"] = spent[0] / seconds
    print(json.dumps(result))


main()
