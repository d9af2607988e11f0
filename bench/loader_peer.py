#!/usr/bin/env python3
"""Random access to LeRobot datasets: our loader beside lerobot's DataLoader, on the same files, cores and batch.

Usage, from the repository's root: PLIMSOLL_PROOFS=1 .venv/bin/python bench/loader_peer.py [--rounds 3] [--episodes 6 10 4] [--frames 40]
[--side 448] [--batch 8] [--workers 0 1 2] [--backends torchcodec pyav] [--rehearse]

Three datasets of two cameras, whose frames are more than any cache of decoded frames holds, and every frame drawn once:
  ours      what `plimsoll demo-data` writes: one camera H.264, one a column of PNG
  av1       recorded by lerobot: two videos in AV1
  images    recorded by lerobot: two columns of PNG
Ours hands out what the model reads (patches, tokens, normalised numbers), theirs pictures as tensors; both chunks of 16 actions.
All settings take their turns in every round; what the first round shows to be far behind the best of its side is not run again.
Ours must be 3 times theirs at its best setting; 1.3 times where decoding alone is more than 0.6 of theirs, and then a table
tells where the time of both goes. Passing over the frames again must not make our memory grow by more than 32 MiB. Exit
status 1 where any of this does not hold, 77 (the last line says why) where lerobot cannot be had. --rehearse runs our side alone,
to see that it runs.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
BUILD = pathlib.Path(os.environ.get("PLIMSOLL_BUILD", ROOT / "build"))
sys.path.insert(0, str(ROOT / "tests" / "oracle"))
VERSION = "0.4.4"
UNTRIED = 77
FASTER, FASTER_WHERE_DECODING, DECODING = 3.0, 1.3, 0.6
MOST_GROWTH, PASSES = 32, 4  # MiB from the first pass over the frames to the last
FRAME_CACHE = 64 << 20  # kFrameBytes of data/frame_cache.h
BEHIND = 0.75  # of the best of its side
OURS, LEROBOT = "ours", "lerobot"


def program(*words):
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode != 0:
        raise SystemExit(f"{words[0]}: {done.stderr[-2000:]}")
    return done.stdout


def last_json(text):
    return json.loads([line for line in text.splitlines() if line.startswith("{")][-1])


def loader_bench(*words):
    return last_json(program(BUILD / "loader_bench", *words))


def lerobot(scratch, script, *words):
    import lerobot_environment

    return lerobot_environment.run(VERSION, scratch, ROOT / "bench/peers" / script, *words)


def why_no_lerobot():
    import lerobot_environment

    return lerobot_environment.obstacle(VERSION)


def write(form, folder, episodes, options):
    data = folder / form
    if form == "ours":
        program(BUILD / "plimsoll", "demo-data", "--episodes", episodes, "--frames-per-episode", options.frames, "--heavy-fraction", 0,
                "--top-side", options.side, "--wrist-side", options.side, "--out", data)
    else:
        lerobot(folder, "lerobot_recording.py", data, form, episodes, options.frames, options.side)
    return data


class Race:
    """Both loaders over one dataset. A setting is (side, threads or workers, backend)."""

    def __init__(self, form, data, folder, options):
        self.form, self.data, self.folder, self.options = form, data, folder, options
        self.found, self.failed = {}, {}

    def settings(self):
        threads = sorted({max(1, count) for count in self.options.workers})
        settings = [(OURS, count, "") for count in threads]
        if not self.options.rehearse:
            backends = self.options.backends[:1] if self.form == "images" else self.options.backends
            settings += [(LEROBOT, count, backend) for backend in backends for count in self.options.workers]
        return settings

    def speed(self, setting):
        return statistics.median(one["samples_per_second"] for one in self.found[setting])

    def best(self, side):
        return max((setting for setting in self.found if setting[0] == side), key=self.speed, default=None)

    def run(self):
        for number in range(self.options.rounds):
            order = self.settings()
            at = number * len(order) // self.options.rounds
            behind = {setting for setting in self.found if self.speed(setting) < BEHIND * self.speed(self.best(setting[0]))}
            for setting in order[at:] + order[:at]:
                if setting not in behind and setting not in self.failed:
                    self.measure(setting)

    def measure(self, setting):
        side, count, backend = setting
        if side == OURS:
            result = loader_bench(self.data, self.folder / "model", count, self.options.batch)
        else:
            try:
                result = last_json(lerobot(self.folder, "lerobot_loader.py", self.data, count, self.options.batch, backend))
            except AssertionError as error:
                self.failed[setting] = (str(error).strip().splitlines() or ["it said nothing"])[-1]
                return
        self.found.setdefault(setting, []).append(result)

    def alone(self):
        """What lerobot's best decoder does without workers, where it is known what the time goes to."""
        best = self.best(LEROBOT)
        return self.found.get((LEROBOT, 0, best[2]), [{}])[-1] if best else {}

    def share(self):
        return self.alone().get("decode_share", 0.0)

    def profile(self):
        return loader_bench("--profile", self.data, self.folder / "model", 200)

    def growth(self):
        threads = max(setting[1] for setting in self.settings() if setting[0] == OURS)
        first, last = loader_bench(self.data, self.folder / "model", threads, self.options.batch, PASSES)["resident_mib"]
        return last - first


def in_words(setting):
    side, count, backend = setting
    if side == OURS:
        return f"ours, {count} thread{'' if count == 1 else 's'}"
    return f"lerobot {VERSION}, {count} worker{'' if count == 1 else 's'}, {backend}"


def show_speeds(race):
    print(f"| {race.form}: two cameras of {race.options.side} px, batches of {race.options.batch} | samples/s, median | runs |\n|---|---:|---:|")
    for setting, results in race.found.items():
        print(f"| {in_words(setting)} | {race.speed(setting):.2f} | {len(results)} |")
    for setting, reason in race.failed.items():
        print(f"| {in_words(setting)} | did not run: {reason[:120].replace('|', '/')} | 0 |")


def show_profile(race):
    """Milliseconds a sample, each side on one thread."""
    ours, theirs = race.profile(), race.alone()
    names = list(dict.fromkeys([*theirs.get("parts", {}), *ours["parts"]]))
    print(f"| {race.form}: where the time goes, ms a sample on one thread | ours | lerobot |\n|---|---:|---:|")
    for name in names:
        cells = [f"{1000 * side['parts'][name] / side['samples']:.2f}" if name in side.get("parts", {}) else "" for side in (ours, theirs)]
        print(f"| {name} | {cells[0]} | {cells[1]} |")
    if "decoded" in theirs:
        print(f"FIGURE loader, {race.form}: pictures that lerobot decodes for a sample of two = {theirs['decoded']:.1f}")


def bounded(bound, met):
    return f"(bound {bound}: {'met' if met else 'NOT met'})"


def is_fast(race):
    ours, theirs = race.best(OURS), race.best(LEROBOT)
    if not theirs:
        print(f"{race.form}: lerobot's loader ran in no setting")
        return False
    share = race.share()
    bound = FASTER_WHERE_DECODING if share > DECODING else FASTER
    ratio = race.speed(ours) / race.speed(theirs)
    print(f"FIGURE loader, {race.form}: samples/s, {in_words(ours)}, by {in_words(theirs)} = {ratio:.2f} {bounded(bound, ratio >= bound)}")
    print(f"FIGURE loader, {race.form}: part of lerobot's time that decoding takes = {share:.2f}")
    if share > DECODING:
        show_profile(race)
    return ratio >= bound


def is_flat(race):
    growth = race.growth()
    flat = growth <= MOST_GROWTH
    print(f"FIGURE loader, {race.form}: memory in pass {PASSES} over the frames beyond that in the first = {growth:.1f} MiB {bounded(MOST_GROWTH, flat)}")
    return flat


def rehearse(race):
    race.run()
    show_speeds(race)
    show_profile(race)
    race.growth()


def parsed():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--episodes", type=int, nargs=3, default=[6, 10, 4], help="of the three datasets")
    parser.add_argument("--frames", type=int, default=40, help="of an episode")
    parser.add_argument("--side", type=int, default=448)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--backends", nargs="+", default=["torchcodec", "pyav"])
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    least = min(options.episodes) * options.frames * 2 * options.side**2 * 3
    if not options.rehearse and least < 2 * FRAME_CACHE:
        parser.error(f"the smallest dataset is {least >> 20} MiB of pictures: give more than {2 * FRAME_CACHE >> 20}, or a cache of frames could hold them")
    return options


def main():
    options = parsed()
    if not options.rehearse and (reason := why_no_lerobot()):
        print(reason)
        sys.exit(UNTRIED)
    kept = True
    with tempfile.TemporaryDirectory(prefix="plimsoll-loader-") as name:
        folder = pathlib.Path(name)
        program(BUILD / "plimsoll", "init-model", "--size", "tiny", "--out", folder / "model")
        for form, episodes in zip(["ours"] if options.rehearse else ["ours", "av1", "images"], options.episodes):
            race = Race(form, write(form, folder, episodes, options), folder, options)
            if options.rehearse:
                rehearse(race)
                continue
            race.run()
            show_speeds(race)
            kept = all([kept, is_fast(race), is_flat(race)])
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
