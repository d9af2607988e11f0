"""Checkpoints that were damaged, left half written, or for which there was no space."""

import shutil
import subprocess

import pytest

import damage
import runs

FILES = ["trainable.safetensors", "optimiser.safetensors", "state.json", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"]
WAYS = [damage.flip, damage.truncate, damage.remove, damage.empty]
CASES = [(file, way) for file in FILES for way in WAYS]
if not runs.PROOFS:
    CASES = [CASES[i] for i in (0, 5, 10)]


@pytest.mark.parametrize("file, way", CASES, ids=lambda value: getattr(value, "__name__", value))
def test_damage_is_found_and_named(tmp_path, short, file, way):
    config = runs.copy_run(short, tmp_path / "copy")
    damaged = runs.checkpoints(config.parent / "run")[8] / file
    way(damaged)
    code, text = runs.finished([runs.PLIMSOLL, "train", "--config", config, "--resume"])
    assert code == 6 and str(damaged) in text, text


@pytest.mark.parametrize("way", [damage.truncate, damage.empty], ids=lambda way: way.__name__)
def test_a_damaged_list_of_checksums_is_named(tmp_path, short, way):
    config = runs.copy_run(short, tmp_path / "copy")
    damaged = runs.checkpoints(config.parent / "run")[8] / "complete.json"
    way(damaged)
    code, text = runs.finished([runs.PLIMSOLL, "train", "--config", config, "--resume"])
    assert code == 6 and str(damaged) in text, text


def test_launch_does_not_try_again_and_the_advice_helps(tmp_path, short):
    config = runs.copy_run(short, tmp_path / "copy")
    newest = runs.checkpoints(config.parent / "run")[8]
    damage.flip(newest / "trainable.safetensors")
    with runs.launch(config, 2, "--resume") as run:
        assert run.end() == 6, run.output()
    assert "restart 1" not in run.output()
    assert f"{newest}/trainable.safetensors: its content changed since it was written; delete the folder" in run.output()
    shutil.rmtree(newest)
    runs.assert_same_training(runs.finish(config, 2, "--resume"), short.parent / "run", 8)


def test_leftovers_of_an_interrupted_write_are_ignored(tmp_path, short):
    config = runs.copy_run(short, tmp_path / "copy")
    folder = config.parent / "run"
    found = runs.checkpoints(folder)
    shutil.copytree(found[8], folder / "checkpoints" / ".step-8.writing")
    (folder / "checkpoints" / ".step-8.writing" / "state.json").unlink()
    shutil.copytree(found[8], folder / "checkpoints" / "step-900")
    (folder / "checkpoints" / "step-900" / "complete.json").unlink()
    (folder / "checkpoints" / "step-x").mkdir()
    (folder / "checkpoints" / "step-950").write_text("a file, not a folder")
    shutil.rmtree(found[8])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step":9,"los')
    runs.assert_same_training(runs.finish(config, 2, "--resume"), short.parent / "run", 8)
    assert not (folder / "checkpoints" / ".step-8.writing").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of four megabytes; two checkpoints of the short run fit, three do not."""
    with runs.small_file_system(tmp_path / "disk", "4m") as folder:
        yield folder


def test_no_space_for_a_checkpoint(small_disk, short, model):
    config = runs.configure(small_disk, model)
    folder = small_disk / "run"
    with runs.launch(config, 2) as run:
        assert run.end() == 6, run.output()
    assert "No space left on device; free space there or choose another folder" in run.output()
    assert f"{folder}/checkpoints/.step-6.writing/" in run.output()
    assert runs.exit_record(folder)["exit_code"] == 6
    assert sorted(runs.checkpoints(folder)) == [2, 4]
    assert not list((folder / "checkpoints").glob(".*"))
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    runs.assert_same_training(runs.finish(config, 2, "--resume"), short.parent / "run", 8)


def test_no_space_even_for_the_last_words(small_disk, tmp_path, model):
    """Something else fills the disk to the last byte: exit.json cannot be written, the exit code still says it."""
    config = runs.configure(tmp_path / "files", model, run="../disk", train={"max_steps": 5000, "checkpoint_every": 2})
    with runs.launch(config, 2) as run:
        run.until(lambda: 2 in runs.checkpoints(small_disk), "the first checkpoint")
        with open(small_disk / "filler", "wb", buffering=0) as file:
            while True:
                try:
                    file.write(b"x" * 4096)
                except OSError:
                    break
        assert run.end() == 6, run.output()
    assert "No space left on device" in run.output()
    assert "restart 1" not in run.output()
    assert runs.checkpoints(small_disk)


def test_a_limit_on_file_sizes(tmp_path, model):
    config = runs.configure(tmp_path, model)
    code, text = runs.finished(["bash", "-c", 'ulimit -f 900; exec "$@"', "bash", runs.PLIMSOLL, "train", "--config", config])
    assert code == 6, text
    assert "optimiser.safetensors" in text and "File too large; the file-size limit" in text
    assert not runs.checkpoints(tmp_path / "run")


def test_a_new_run_does_not_write_over_an_old_one(tmp_path, short):
    config = runs.copy_run(short, tmp_path / "copy")
    with runs.launch(config, 2) as run:
        assert run.end() == 2, run.output()
    assert f"{config.parent}/run/checkpoints/step-8: a checkpoint of an earlier run" in run.output() and "--resume" in run.output()
    runs.assert_same_training(config.parent / "run", short.parent / "run", 8)


def test_a_checkpoint_of_another_configuration(tmp_path, short):
    config = runs.copy_run(short, tmp_path / "copy")
    code, text = runs.finished([runs.PLIMSOLL, "train", "--config", config, "--resume", "--set", "train.lr=0.5"])
    assert code == 2 and f"{config.parent}/run/checkpoints/step-8" in text, text
    assert runs.steps_done(config.parent / "run") == 8, "what was there must stay"


def test_a_folder_that_cannot_be_written(tmp_path, model):
    (tmp_path / "file").write_text("")
    config = runs.configure(tmp_path, model, run="file/run")
    code, text = runs.finished([runs.PLIMSOLL, "train", "--config", config])
    assert code == 2 and str(tmp_path / "file") in text, text
