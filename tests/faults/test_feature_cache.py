"""The feature cache in real runs: equal training with it and without, whatever happens to its files or their writers."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import time

import pytest

import runs

STEPS = 20  # an epoch has six
TRAIN = {"max_steps": STEPS, "checkpoint_every": 4}


def cached(folder, model, **changes):
    return runs.configure(folder, model, **{"train": TRAIN, "cache": {"mode": "prefix", "dir": str(folder.parent / "cache")}, **changes})


def cache_command(*words):
    return runs.finished([runs.PLIMSOLL, "cache", *words])


def stat(folder, action="stat"):
    code, text = cache_command(action, folder, "--json")
    assert code == 0, text
    return json.loads(text)


@pytest.fixture(scope="module")
def without(tmp_path_factory, model):
    """The run that all others must equal."""
    return runs.finish(runs.configure(tmp_path_factory.mktemp("without"), model, train=TRAIN), 2)


def epochs(run):
    """(read, loaded, kept) of rank 0 in every epoch, as the run says it."""
    lines = [line for line in run.output().splitlines() if "came with their features" in line]
    words = [line.split("feature cache: ")[1].replace(";", "").split() for line in lines]
    return [(int(line[0]), int(line[2]), int(line[9])) for line in words]


def test_equals_the_run_without_and_the_next_one_finds_everything(tmp_path, model, without):
    with runs.launch(cached(tmp_path / "first", model), 2) as run:
        assert run.end() == 0, run.output()
        first = epochs(run)
    runs.assert_same_training(tmp_path / "first" / "run", without, STEPS)
    assert first[0][0] == 0 and first[0][2] > 0, first
    assert first[-1][0] > 0, first
    uses = runs.lines(tmp_path / "first" / "run" / "cache.jsonl")
    assert [line["step"] for line in uses] == [6, 12, 18, 20], uses
    assert [(line["from_disk"], line["loaded"], line["kept"]) for line in uses] == first
    assert uses[0]["saved_ms"] is None and all(line["saved_ms"] >= 0 for line in uses[2:]), uses
    assert uses[0]["disk_bytes"] > 0 and uses[0]["age"] is None
    (folder,) = stat(tmp_path / "cache", "verify")
    assert folder["samples"] == 36 and folder["damaged"] == []
    with runs.launch(cached(tmp_path / "second", model), 3) as run:
        assert run.end() == 0, run.output()
        second = epochs(run)
        assert second and all(read == loaded and kept == 0 for read, loaded, kept in second), run.output()
    runs.assert_same_training(tmp_path / "second" / "run", without, STEPS)


def test_stopped_and_resumed_at_other_world_sizes(tmp_path, model, without):
    config = cached(tmp_path / "stopped", model)
    folder = tmp_path / "stopped" / "run"
    for ranks, step in (2, 3), (3, 9):  # in the middle of an epoch
        with runs.launch(config, ranks, *(["--resume"] if step > 3 else [])) as run:
            run.until(lambda at=step: runs.steps_done(folder) >= at, f"step {step}")
            run.process.send_signal(signal.SIGTERM)
            assert run.end() == 75, run.output()
    runs.finish(config, 1, "--resume")
    runs.assert_same_training(folder, without, STEPS)


def test_ranks_killed_at_any_moment(tmp_path, model, without):
    moments = 50 if runs.PROOFS else 3
    write = lambda number: cached(tmp_path / str(number) / "killed", model)
    kept = lambda folder: sum(path.stat().st_size for path in (folder.parent.parent / "cache").rglob("*.segment"))
    progress = lambda folder: (runs.steps_done(folder), kept(folder))

    def nothing_is_damaged(folder):
        cache = folder.parent.parent / "cache"
        assert not cache.exists() or all(report["damaged"] == [] for report in stat(cache, "verify")), stat(cache)

    for folder in runs.killed_at_random_moments(write, 2, STEPS, moments, random.Random(11), 0.5, progress, nothing_is_damaged):
        runs.assert_same_training(folder, without, STEPS)
        assert stat(folder.parent.parent / "cache", "verify")[0]["samples"] == 36


def test_built_before_the_run_by_several_ranks(tmp_path, model, without):
    config = cached(tmp_path / "first", model)
    command = [runs.PLIMSOLL, "cache", "build", "--config", config, "--json"]
    code, text = runs.finished([*runs.MPIRUN, "-n", "3", *command])
    assert code == 0, text
    built = json.loads(next(line for line in text.splitlines() if line.startswith("{")))
    assert (built["samples"], built["known"], built["made"]) == (36, 36, 36), text
    code, text = runs.finished(command)
    assert code == 0 and '"made":0' in text, text
    with runs.launch(config, 2) as run:
        assert run.end() == 0, run.output()
        assert all(read == loaded and kept == 0 for read, loaded, kept in epochs(run)), run.output()
    runs.assert_same_training(tmp_path / "first" / "run", without, STEPS)
    code, text = runs.finished([*command, "--set", 'cache.mode="off"'])
    assert code == 2 and "nothing to build" in text, text
    code, text = runs.finished([*command, "--set", 'cache.mode="hybrid"'])
    assert code == 2 and "a run's own" in text, text
    code, text = runs.finished([*command, "--set", 'memory.budget="1MiB"'])
    assert code == 3 and "memory.budget" in text and "1.00 MiB" in text, text


def segment_bytes(cache):
    return sum(path.stat().st_size for path in cache.rglob("*.segment"))


def killed_build(command, folder, cache, at):
    """Kills a build by two ranks as soon as its cache holds so many bytes; False when it got through before."""
    with runs.Run([*runs.MPIRUN, "-n", "2", *command], folder) as run:
        while run.process.poll() is None and segment_bytes(cache) < at:
            time.sleep(0.002)
        over = run.process.poll() is not None
    assert not over or run.process.returncode == 0, run.output()
    return not over


def stored_whole(cache):
    """Samples of which there is a record, all of what lies there being what was written."""
    folders = stat(cache, "verify") if cache.exists() else []
    assert all(folder["damaged"] == [] for folder in folders), folders
    return sum(folder["samples"] for folder in folders)


def test_a_build_killed_at_any_moment_is_gone_on_with(tmp_path, model):
    samples, larger = 360, {"data": {"synthetic_samples": 400}}
    draw = random.Random(3)
    moments = 50 if runs.PROOFS else 3
    write = lambda number: cached(tmp_path / str(number) / "first", model, **larger)

    def build(config):
        code, text = runs.finished([runs.PLIMSOLL, "cache", "build", "--config", config, "--json"])
        assert code == 0 and f'"known":{samples}' in text, text
        assert stored_whole(config.parent.parent / "cache") == samples

    build(write(0))
    whole = segment_bytes(tmp_path / "0" / "cache")
    killed = within = number = 0
    while within < moments:
        assert killed < 10 * moments, f"of {killed} kills {within} found a part of the samples stored"
        number += 1
        config, cache = write(number), tmp_path / str(number) / "cache"
        stored, at_work = 0, True
        while within < moments and at_work and stored < samples:
            before = segment_bytes(cache)
            at_work = killed_build([runs.PLIMSOLL, "cache", "build", "--config", config], tmp_path / "built", cache,
                                   before + draw.uniform(0, 1) * max(whole - before, 1))
            killed += at_work
            now = stored_whole(cache)
            assert now >= stored, "what was kept stays"
            stored = now
            within += at_work and 0 < stored < samples
        build(config)
    with runs.launch(config, 2) as run:
        assert run.end() == 0, run.output()
        assert epochs(run) and all(read == loaded and kept == 0 for read, loaded, kept in epochs(run)), run.output()
    off = runs.finish(runs.configure(tmp_path / "off", model, train=TRAIN, **larger), 2)
    runs.assert_same_training(config.parent / "run", off, STEPS)


def test_two_runs_share_a_folder(tmp_path, model, without):
    with runs.launch(cached(tmp_path / "one", model), 2) as one, runs.launch(cached(tmp_path / "two", model), 1) as two:
        assert one.end() == 0, one.output()
        assert two.end() == 0, two.output()
    for name in "one", "two":
        runs.assert_same_training(tmp_path / name / "run", without, STEPS)
    (folder,) = stat(tmp_path / "cache", "verify")
    assert folder["samples"] == 36 and folder["damaged"] == []


def test_no_picture_is_decoded_whose_features_are_known(tmp_path, model, dataset):
    copy = tmp_path / "data"
    shutil.copytree(dataset, copy)
    changes = {"data": {"path": str(copy), "synthetic_samples": 0}, "sensor": {"feature": "observation.force"}}
    whole = runs.finish(runs.configure(tmp_path / "off", model, **{"train": TRAIN, **changes}), 1)
    first = runs.finish(cached(tmp_path / "first", model, **changes), 1)
    runs.assert_same_training(first, whole, STEPS)
    for video in copy.rglob("*.mp4"):  # it still opens, but no frame of its middle is what it was
        content = bytearray(video.read_bytes())
        third = len(content) // 3
        content[third:2 * third] = bytes(third)
        times = video.stat().st_atime_ns, video.stat().st_mtime_ns
        video.write_bytes(content)
        os.utime(video, ns=times)  # or it would be another dataset
    code, text = runs.finished([runs.PLIMSOLL, "launch", "-n", 1, "--config", runs.configure(tmp_path / "blind", model, **{"train": TRAIN, **changes})])
    assert code != 0 or runs.metrics(tmp_path / "blind" / "run")[0]["loss"] != runs.metrics(whole)[0]["loss"], "the damage is seen without the cache"
    second = runs.finish(cached(tmp_path / "second", model, **changes), 1)
    runs.assert_same_training(second, whole, STEPS)


def test_damaged_files_are_found_and_not_used(tmp_path, model, without):
    runs.finish(cached(tmp_path / "first", model), 1)
    (segment,) = (tmp_path / "cache").rglob("*.segment")
    content = bytearray(segment.read_bytes())
    for at in range(5000, len(content), 20011):
        content[at] ^= 16
    segment.write_bytes(content)
    code, text = cache_command("verify", tmp_path / "cache")
    assert code == 4 and "is not what was written" in text and segment.name in text, text
    runs.finish(cached(tmp_path / "second", model), 2)
    runs.assert_same_training(tmp_path / "second" / "run", without, STEPS)
    segment.write_bytes(b"nothing of the kind" * 10)
    code, text = cache_command("verify", tmp_path / "cache")
    assert code == 4 and "is no segment of a feature cache" in text, text
    with runs.launch(cached(tmp_path / "third", model), 1) as run:
        assert run.end() == 0, run.output()
        assert "is no segment of a feature cache" in run.output()
    runs.assert_same_training(tmp_path / "third" / "run", without, STEPS)


def test_a_full_disk_is_a_slower_run(tmp_path, model, without):
    with runs.small_file_system(tmp_path / "cache", "64k") as disk:
        config = cached(tmp_path / "first", model, cache={"mode": "prefix", "dir": str(disk), "disk_bytes": "1GiB"})
        code, text = runs.finished([runs.PLIMSOLL, "cache", "build", "--config", config])
        assert code == 4 and "No space left on device" in text and "samples have no features" in text and str(disk) in text, text
        with runs.launch(config, 2) as run:
            assert run.end() == 0, run.output()
            assert "keeps no more features" in run.output()
            assert 0 < epochs(run)[-1][0] < epochs(run)[-1][1], run.output()
        runs.assert_same_training(tmp_path / "first" / "run", without, STEPS)
        assert stat(disk, "verify")[0]["damaged"] == []


def test_a_folder_that_can_only_be_read_is_read(tmp_path, model, without):
    with runs.small_file_system(tmp_path / "cache", "16m") as disk:
        runs.finish(cached(tmp_path / "first", model, train={"max_steps": 4, "checkpoint_every": 4}), 1)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        config = cached(tmp_path / "second", model)
        with runs.launch(config, 2) as run:
            assert run.end() == 0, run.output()
            assert "keeps no more features" in run.output()
            assert all(kept == 0 for _, _, kept in epochs(run)) and epochs(run)[0][0] > 0, run.output()
        runs.assert_same_training(tmp_path / "second" / "run", without, STEPS)
        code, text = runs.finished([runs.PLIMSOLL, "cache", "build", "--config", config])
        assert code == 2 and "Read-only file system" in text and f'cache.dir = "{disk}"' in text, text


@pytest.fixture
def bound(tmp_path):
    """Words before a command that bind it to files' rights, as all but root are bound anyway."""
    if os.geteuid() != 0:
        return []
    if not shutil.which("setpriv"):
        pytest.skip("setpriv is not installed: root's power over the rights of files cannot be dropped")
    powers = "-dac_override,-dac_read_search"
    words = ["setpriv", f"--bounding-set={powers}", f"--inh-caps={powers}"]
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    works = subprocess.run([*words, "true"], capture_output=True, text=True)
    if works.returncode != 0:
        pytest.skip(f"root's power over the rights of files cannot be dropped: {works.stderr.strip()}")
    if subprocess.run([*words, "ls", closed], capture_output=True).returncode == 0:
        pytest.skip("root's power over the rights of files cannot be dropped: a closed folder still opens")
    return words


def test_a_folder_without_the_right_to_write(tmp_path, model, without, bound):
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o555)
    config = cached(tmp_path / "first", model)
    code, text = runs.finished([*bound, runs.PLIMSOLL, "cache", "build", "--config", config])
    assert code == 2 and "Permission denied" in text and f'cache.dir = "{cache}"' in text, text
    train = [*bound, runs.PLIMSOLL, "train", "--config", config]
    code, text = runs.finished([*train, "--set", f'cache.dir="{cache}/new"'])  # it cannot be made
    assert code == 4 and f"{cache}/new" in text and "Permission denied" in text and "choose another cache.dir" in text, text
    code, text = runs.finished(train)
    assert code == 0 and "Permission denied" in text and "keeps no more features" in text, text
    assert not list(cache.iterdir())
    runs.assert_same_training(tmp_path / "first" / "run", without, STEPS)


def test_a_folder_without_the_right_to_look_into(tmp_path, model, bound):
    cache = tmp_path / "cache"
    config = cached(tmp_path / "first", model)
    runs.finish(cached(tmp_path / "filled", model, train={"max_steps": 2, "checkpoint_every": 2}), 1)
    (folder,) = stat(cache)
    for closed in pathlib.Path(folder["folder"]), cache:
        closed.chmod(0)
        try:
            code, text = runs.finished([*bound, runs.PLIMSOLL, "train", "--config", config])
        finally:
            closed.chmod(0o755)
        assert code == 4 and str(closed) in text and "Permission denied" in text and "choose another cache.dir" in text, text
        assert "internal error" not in text, text
    cache.chmod(0)
    try:
        code, text = runs.finished([*bound, runs.PLIMSOLL, "cache", "verify", cache])
    finally:
        cache.chmod(0o755)
    assert code == 4 and f"{cache}: cannot be read: Permission denied" in text, text


def test_a_folder_that_ranks_do_not_share_is_refused(tmp_path, model):
    """The second rank, as on another node, sees a file system of its own there."""
    (tmp_path / "cache").mkdir()
    alone = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs tmpfs {tmp_path}/cache && exec "$@"', "sh"]
    tried = subprocess.run([*alone, "true"], capture_output=True, text=True)
    if tried.returncode != 0:
        pytest.skip(f"cannot make a mount namespace: {tried.stderr.strip()}")
    train = [runs.PLIMSOLL, "train", "--config", cached(tmp_path / "first", model)]
    code, text = runs.finished([*runs.MPIRUN, "-n", "1", *train, ":", "-n", "1", *alone, *train])
    assert code == 2 and "rank 1 does not find there what rank 0 writes" in text and str(tmp_path / "cache") in text, text


def test_clear_and_its_errors(tmp_path, model):
    runs.finish(cached(tmp_path / "first", model, train={"max_steps": 2, "checkpoint_every": 2}), 1)
    (folder,) = stat(tmp_path / "cache")
    name = folder["folder"].split("/")[-1]
    assert folder["fingerprint"]["features"] == "vision tower and merger"
    for words, said in (
        (["stat"], "give the folder"),
        (["look", tmp_path / "cache"], "stat, verify or clear"),
        (["stat", tmp_path / "nowhere"], "nowhere"),
        (["clear", tmp_path / "cache"], "say which folders"),
        (["clear", tmp_path / "cache", "0123"], "is no folder of a feature cache"),
    ):
        code, text = cache_command(*words)
        assert code in (2, 4) and said in text, text
    shutil.copytree(tmp_path / "cache", tmp_path / "copy")
    code, text = cache_command("clear", tmp_path / "cache", name)
    assert code == 0 and "removed" in text, text
    assert stat(tmp_path / "cache") == []
    there = sum(path.stat().st_size for path in (tmp_path / "copy" / name).iterdir())
    code, text = cache_command("clear", tmp_path / "copy", "all", "--json")
    assert code == 0 and json.loads(text) == {"bytes": there} and there > 0, text
    assert not (tmp_path / "copy" / name).exists()
    code, text = cache_command("clear", tmp_path / "copy", "all", "--json")
    assert code == 0 and json.loads(text) == {"bytes": 0}, text


def test_bad_settings(tmp_path, model):
    (tmp_path / "file").write_text("no folder")
    for changes, code, said in (
        ({"cache": {"mode": "prefx"}}, 2, "cache.mode"),
        ({"cache": {"mode": "prefix", "dir": str(tmp_path / "file")}}, 4, "choose another cache.dir"),
        ({"cache": {"mode": "prefix", "dir": ""}}, 2, "cache.dir"),
        ({"cache": {"mode": "prefix", "disk_bytes": "many"}}, 2, "cache.disk_bytes"),
        ({"cache": {"mode": "prefix", "host_bytes": "900TiB"}}, 2, "cache.host_bytes"),
        ({"cache": {"mode": "hybrid", "live_fraction": 1.5}}, 2, "cache.live_fraction"),
        ({"cache": {"mode": "hybrid", "live_fraction": -0.1}}, 2, "cache.live_fraction"),
        ({"cache": {"mode": "hybrid", "drift_bound": 1.5}}, 2, "cache.drift_bound"),
        ({"lora": {"targets": ".*(blocks|layers).*(qkv|q_proj)"}}, 2, "needs a vision tower without adapters"),
        ({"memory": {"knobs": ["micro_batch", "resolution"]}, "data": {"resolution": 112}}, 2, "memory.knobs names"),
    ):
        config = cached(tmp_path / "bad", model, **changes)
        found, text = runs.finished([runs.PLIMSOLL, "train", "--config", config, "--max-steps", "1"])
        assert found == code and said in text, text
