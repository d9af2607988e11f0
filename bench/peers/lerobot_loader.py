"""Samples a second of lerobot's own DataLoader: every frame once, shuffled. Runs inside an environment of lerobot.

Usage: lerobot_loader.py DATASET WORKERS BATCH BACKEND. One line of JSON: samples and seconds of all but the first batch,
samples_per_second, and with 0 workers where the time of those went: `parts`, seconds each without those within them;
decode_share, the part of the time in which pictures were decoded, those of videos and of image columns; decoded, pictures a
sample, among which are those of the rows that lerobot reads for a chunk of actions.
"""

import functools
import json
import sys
import time

import av
import datasets
import lerobot.datasets.lerobot_dataset as lerobot
import torch
import torchvision

VIDEOS, COLUMNS = "decoding of videos", "decoding of image columns"
PICTURES = (VIDEOS, COLUMNS)


class VideoReader:
    """What lerobot's backend "pyav" reads videos by: torchvision's class of this name, as it was over PyAV. The torchvision that
    goes with our torch no longer has it."""

    def __init__(self, path, stream):
        self.container = av.open(path, metadata_errors="ignore")
        self.stream = self.container.streams.video[0]
        self.frames = self.container.decode(self.stream)

    def seek(self, seconds, keyframes_only=False):
        self.container.seek(int(round(seconds / self.stream.time_base)), backward=True, any_frame=False, stream=self.stream)
        self.frames = self.container.decode(self.stream)

    def __iter__(self):
        return self

    def __next__(self):
        frame = next(self.frames)
        return {"data": torch.tensor(frame.to_rgb().to_ndarray()).permute(2, 0, 1), "pts": float(frame.pts * frame.time_base)}


class Clock:
    """Seconds and calls by part, each without the parts that are called within it."""

    def __init__(self):
        self.seconds, self.calls, self.within = {}, {}, []

    def timed(self, part, function):
        @functools.wraps(function)
        def call(*arguments, **named):
            start = time.perf_counter()
            self.within.append(0.0)
            try:
                return function(*arguments, **named)
            finally:
                whole = time.perf_counter() - start
                self.seconds[part] = self.seconds.get(part, 0.0) + whole - self.within.pop()
                self.calls[part] = self.calls.get(part, 0) + 1
                if self.within:
                    self.within[-1] += whole

        return call

    def method(self, owner, name, part):
        setattr(owner, name, self.timed(part, getattr(owner, name)))

    def restart(self):
        self.seconds.clear()
        self.calls.clear()


def time_the_parts(clock, backend):
    if backend == "torchcodec":
        from torchcodec.decoders import VideoDecoder

        clock.method(VideoDecoder, "get_frames_at", VIDEOS)
    else:
        for name in ("__init__", "seek", "__next__"):
            clock.method(torchvision.io.VideoReader, name, VIDEOS)
    clock.method(datasets.Image, "decode_example", COLUMNS)
    clock.method(lerobot, "decode_video_frames", "video frames to tensors")
    clock.method(lerobot, "hf_transform_to_torch", "rows to tensors, pictures of image columns too")
    clock.method(lerobot.LeRobotDataset, "__getitem__", "rows of the table, and the rest of a sample")


def decoded(clock, backend):
    """Pictures that lerobot asked its decoders for. Over PyAV each frame is a call, beside opening and seeking for each video."""
    videos = clock.calls.get("video frames to tensors", 0)
    if backend == "pyav":
        videos = clock.calls.get(VIDEOS, 0) - 2 * videos
    return videos + clock.calls.get(COLUMNS, 0)


def main():
    root, workers, batch, backend = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    if not hasattr(torchvision.io, "VideoReader"):
        torchvision.io.VideoReader = VideoReader
    clock = Clock()
    if workers == 0:  # those of other processes would not be seen
        time_the_parts(clock, backend)
    meta = lerobot.LeRobotDatasetMetadata("plimsoll/bench", root=root)
    actions = {"action": [i / meta.fps for i in range(16)]}
    dataset = lerobot.LeRobotDataset("plimsoll/bench", root=root, video_backend=backend, delta_timestamps=actions)
    loader = torch.utils.data.DataLoader(dataset, batch_size=batch, shuffle=True, num_workers=workers, drop_last=True)
    samples, start = 0, None
    for found in loader:
        if start is None:
            start = time.perf_counter()
            clock.restart()
        else:
            samples += len(found["index"])
    seconds = time.perf_counter() - start
    result = {"samples": samples, "seconds": seconds, "samples_per_second": samples / seconds}
    if workers == 0:
        parts = {**clock.seconds, "batches": seconds - sum(clock.seconds.values())}
        result |= {"parts": parts, "decode_share": sum(parts.get(part, 0) for part in PICTURES) / seconds, "decoded": decoded(clock, backend) / samples}
    print(json.dumps(result))


main()
