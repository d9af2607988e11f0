"""What people get wrong: each case ends with the right exit code and an error that names the thing."""

import ctypes.util
import json
import re
import shutil

import pytest

from safetensors.numpy import load_file, save_file

import damage
import runs

TRAIN = [runs.PLIMSOLL, "train"]


def refused(command, code, *words):
    found, text = runs.finished(command)
    assert found == code, text
    for word in words:
        assert word in text, f"{word!r} is not in:\n{text}"
    return text


# --- configuration ---

@pytest.mark.parametrize("setting, words", [
    ("train.max_step=3", ["unknown key train.max_step", "train.max_steps"]),
    ("trian.lr=1", ["trian", "[train]"]),
    ("train.lr=fast", ["train.lr", "fast"]),
    ("train.lr=-1.0", ["train.lr", "above 0"]),
    ("memory.policy=reactiv", ["memory.policy", "reactiv", '"reactive"']),
    ("memory.budget=24 parsecs", ["memory.budget", "24 parsecs"]),
    ("lora.targets=(", ["lora.targets"]),
    ("lora.targets=nothing_like_it", ["lora.targets", "nothing_like_it"]),
    ("expert.heads=3", ["expert.heads", "3", "32"]),
    ("sensor.patch=3", ["sensor.patch", "3", "8"]),
    ("memory.recompute=7", ["memory.recompute", "7", "2"]),
    ("memory.budget=[\"1GiB\",\"2GiB\"]", ["memory.budget", "2 entries"]),
    ("batch.min_micro=65", ["batch.min_micro", "65"]),
    ("model.path=", ["model.path"]),
    ("run.device=gpu", ["run.device", "gpu", '"cuda"']),
    ("data.synthetic_samples=0", ["data.path"]),
    ("data.synthetic_side=30", ["data.synthetic_side", "30", "28 or 56"]),
    ("data.weights=[1.0]", ["data.weights", "synthetic_samples", "leave it out"]),
    ("data.loader_bytes=many", ["data.loader_bytes", "many"]),
], ids=lambda value: value if isinstance(value, str) else "")
def test_configuration(tmp_path, model, setting, words):
    config = runs.configure(tmp_path, model)
    refused([*TRAIN, "--config", config, "--plan-only", "--set", setting], 2, *words)


def test_a_mistyped_key_in_the_file_is_named_with_its_line(tmp_path, model):
    config = runs.configure(tmp_path, model, batch={"efective": 4})
    line = config.read_text().splitlines().index("efective = 4") + 1
    refused([*TRAIN, "--config", config], 2, f"{config}:{line}: unknown key batch.efective; the nearest known one is batch.effective")


def test_a_gpu_that_is_not_there(tmp_path, model):
    if ctypes.util.find_library("cuda"):
        pytest.skip("this machine has an NVIDIA driver")
    config = runs.configure(tmp_path, model)
    text = refused([*TRAIN, "--config", config, "--set", "run.device=cuda"], 2, "run.device", "libcuda.so.1", '"cpu"')
    assert "internal error" not in text


def test_a_batch_smaller_than_the_world(tmp_path, model):
    config = runs.configure(tmp_path, model, batch={"effective": 2})
    with runs.launch(config, 3) as run:
        assert run.end() == 2, run.output()
    assert "batch.effective is 2 for 3 ranks" in run.output()


def test_a_fixed_plan_that_does_not_multiply(tmp_path, model):
    config = runs.configure(tmp_path, model, batch={"effective": 8, "micro": 2, "accumulation": 3}, memory={"policy": "fixed"})
    with runs.launch(config, 2) as run:
        assert run.end() == 2, run.output()
    assert "micro-batch 2 x accumulation 3 x 2 ranks is not batch.effective = 8" in run.output()


# --- memory ---

@pytest.mark.parametrize("budget", ["1MiB", "5MiB", "6MiB"])
def test_a_budget_in_which_nothing_fits(tmp_path, model, budget):
    config = runs.configure(tmp_path, model, memory={"budget": budget})
    text = refused([*TRAIN, "--config", config, "--plan-only"], 3, "rank 0", "needs", "memory.budget")
    assert "internal error" not in text


def needed_by_one_sample(tmp_path, model):
    """MiB, from the text of a refusal."""
    config = runs.configure(tmp_path, model, memory={"budget": "6MiB"}, train={"max_steps": 3})
    text = refused([*TRAIN, "--config", config, "--plan-only"], 3, "needs")
    return float(re.search(r"needs ([0-9.]+) MiB", text)[1])


def test_a_budget_in_which_just_one_sample_fits(tmp_path, model):
    """The text of a refusal says what is needed: with that, and no byte more than its rounding, the run works."""
    needed = needed_by_one_sample(tmp_path, model)
    config = runs.configure(tmp_path, model, memory={"budget": f"{int((needed + 0.1) * 1024)}KiB"}, train={"max_steps": 3})
    code, text = runs.finished([*TRAIN, "--config", config])
    assert code == 0, text
    assert [line["step"] for line in runs.metrics(tmp_path / "run")] == [1, 2, 3]


def test_a_budget_that_falls_below_one_sample(tmp_path, model):
    budget = int((needed_by_one_sample(tmp_path, model) - 0.4) * 1024)
    change = f'{{step = 4, rank = 1, budget = "{budget}KiB"}}'
    config = runs.configure(tmp_path, model, train={"max_steps": 50, "checkpoint_every": 100})
    config.write_text(config.read_text().replace("[memory]", f"[memory]\nbudget_changes = [{change}]"))
    with runs.launch(config, 2) as run:
        assert run.end() == 3, run.output()
    assert "rank 1: sample" in run.output() and "does not fit even alone" in run.output() and "Give the rank more than" in run.output()
    assert re.search(r"The allocator said: out of memory: [0-9.]+ .?i?B wanted for [a-z]", run.output()), "the tensor's place is named"
    done = runs.metrics(tmp_path / "run")[-1]["step"]
    assert done >= 3 and list(runs.checkpoints(tmp_path / "run")) == [done], "what was learned before is kept"
    alone = float(re.search(r"Alone it needs ([0-9.]+) MiB in all", run.output())[1])
    assert alone * 1024 > budget - 64
    (tmp_path / "again").mkdir()
    again = runs.configure(tmp_path / "again", model, memory={"budget": f"{int((alone + 0.1) * 1024)}KiB"}, train={"max_steps": 5})
    code, text = runs.finished([*TRAIN, "--config", again])
    assert code == 0, f"with what was said to be needed: {text}"


# --- model directory ---

def lie_about_length(folder):
    file = folder / "model.safetensors"
    file.write_bytes(b"\xff" * 7 + b"\x7f" + file.read_bytes()[8:])


def header_case(change):
    return lambda folder: damage.edit_header(folder / "model.safetensors", change)


def first_two(header):
    names = [name for name in header if name != "__metadata__"]
    return sorted(names, key=lambda name: header[name]["data_offsets"][0])[:2]


def overlap(header):
    first, second = first_two(header)
    header[second]["data_offsets"] = list(header[first]["data_offsets"])
    header[second]["shape"] = header[first]["shape"]


def wrong_size(header):
    header[first_two(header)[0]]["shape"][0] += 1


def overflow(header):
    header[first_two(header)[0]]["shape"] = [2**62, 2**62]


def past_the_end(header):
    last = max(header, key=lambda name: header[name].get("data_offsets", [0])[0])
    begin, end = header[last]["data_offsets"]
    header[last]["data_offsets"] = [begin, end + 4096]


def hole(header):
    last = max(header, key=lambda name: header[name].get("data_offsets", [0])[0])
    del header[first_two(header)[1]]
    assert last in header


def twice(header):
    text = json.dumps(header)
    first = first_two(header)[0]
    return text[:-1] + ", " + json.dumps({first: header[first]})[1:]


def transposed(header):
    name = next(name for name in header if name.endswith("mlp.gate_proj.weight") and "visual" not in name)
    header[name]["shape"].reverse()


def set_config(**values):
    return lambda folder: damage.edit_json(folder / "config.json", lambda config: config.update(values))


MODELS = {
    "no_folder": (shutil.rmtree, ["model"]),
    "no_configuration": (lambda folder: damage.remove(folder / "config.json"), ["config.json"]),
    "configuration_is_not_json": (lambda folder: damage.truncate(folder / "config.json"), ["config.json"]),
    "another_architecture": (set_config(model_type="llama", architectures=["LlamaForCausalLM"]), ["config.json", "llama"]),
    "no_weights": (lambda folder: damage.remove(folder / "model.safetensors"), ["model.safetensors"]),
    "truncated": (lambda folder: damage.truncate(folder / "model.safetensors"), ["model.safetensors"]),
    "empty": (lambda folder: damage.empty(folder / "model.safetensors"), ["model.safetensors"]),
    "lying_length": (lie_about_length, ["model.safetensors"]),
    "overlap": (header_case(overlap), ["model.safetensors"]),
    "wrong_size": (header_case(wrong_size), ["model.safetensors"]),
    "overflow": (header_case(overflow), ["model.safetensors"]),
    "past_the_end": (header_case(past_the_end), ["model.safetensors"]),
    "hole": (header_case(hole), ["model.safetensors"]),
    "duplicate_key": (header_case(twice), ["model.safetensors"]),
    "other_shape": (header_case(transposed), ["model.safetensors", "gate_proj"]),
    "missing_shard": (lambda folder: (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors") and
                      (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}})),
                      ["model-00002-of-00002.safetensors"]),
}


@pytest.mark.parametrize("case", MODELS)
def test_model_directory(tmp_path, model, case):
    spoil, words = MODELS[case]
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    spoil(copy)
    config = runs.configure(tmp_path, copy)
    refused([*TRAIN, "--config", config, "--plan-only"], 4, *words)


def test_an_adapter_of_another_model(tmp_path, model, short):
    other = tmp_path / "other"
    assert runs.finished([runs.PLIMSOLL, "init-model", "--size", "tiny", "--layers", 3, "--dtype", "fp32", "--out", other])[0] == 0
    adapter = runs.checkpoints(short.parent / "run")[8] / "adapter"
    config = runs.configure(tmp_path, other)
    refused([*TRAIN, "--config", config, "--plan-only", "--set", f"model.adapter={adapter}"], 4, "adapter_model.safetensors", "layers.2")


def test_an_adapter_of_another_rank(tmp_path, model, short):
    adapter = runs.checkpoints(short.parent / "run")[8] / "adapter"
    config = runs.configure(tmp_path, model, lora={"rank": 4})
    refused([*TRAIN, "--config", config, "--plan-only", "--set", f"model.adapter={adapter}"], 4, "adapter_config.json", "lora.rank")


def test_no_adapter_there(tmp_path, model):
    config = runs.configure(tmp_path, model)
    refused([*TRAIN, "--config", config, "--plan-only", "--set", f"model.adapter={tmp_path}/none"], 4, str(tmp_path / "none"))


# --- dataset ---

def on_dataset(tmp_path, model, dataset, **changes):
    tables = {"data": {"path": str(dataset), "synthetic_samples": 0}, "sensor": {"feature": "observation.force"}}
    for table, keys in changes.items():
        tables.setdefault(table, {}).update(keys)
    return runs.configure(tmp_path, model, **tables)


def set_info(**values):
    return lambda folder: damage.edit_json(folder / "meta" / "info.json", lambda info: info.update(values))


def video_of(dataset):
    return next((dataset / "videos").rglob("*.mp4"))


def shorten_video(dataset):
    other = dataset.parent / "shorter"
    code, text = runs.finished([runs.PLIMSOLL, "demo-data", "--episodes", 4, "--frames-per-episode", 4, "--out", other])
    assert code == 0, text
    shutil.copy(video_of(other), video_of(dataset))


def spoil_images(values):
    for value in values:
        value["bytes"] = b"\x89PNG\r\n\x1a\n" + b"no picture at all" * 10


def drop_feature(name):
    return lambda folder: damage.edit_json(folder / "meta" / "info.json", lambda info: info["features"].pop(name))


DATASETS = {
    "no_folder": (shutil.rmtree, ["data"]),
    "another_version": (set_info(codebase_version="v1.6"), ["info.json", "v1.6", "v3.0"]),
    "information_is_not_json": (lambda folder: damage.truncate(folder / "meta" / "info.json"), ["info.json"]),
    "no_statistics": (lambda folder: damage.remove(folder / "meta" / "stats.json"), ["stats.json"]),
    "feature_missing": (drop_feature("action"), ["action"]),
    "column_missing": (lambda folder: damage.drop_column(folder, "action"), ["file-000.parquet", "action"]),
    "parquet_truncated": (lambda folder: damage.truncate(damage.parquet_of(folder)), ["file-000.parquet"]),
    "video_shorter": (shorten_video, ["file-000.mp4"]),
    "video_truncated": (lambda folder: damage.truncate(video_of(folder)), ["file-000.mp4"]),
    "video_missing": (lambda folder: damage.remove(video_of(folder)), ["file-000.mp4"]),
    "image_does_not_decode": (lambda folder: damage.edit_column(folder, "observation.images.wrist", spoil_images), ["observation.images.wrist"]),
}


def spoiled(tmp_path, dataset, spoil):
    """A copy of the dataset, with that done to it."""
    copy = tmp_path / "data"
    shutil.copytree(dataset, copy)
    spoil(copy)
    return copy


@pytest.mark.parametrize("case", DATASETS)
def test_dataset(tmp_path, model, dataset, case):
    spoil, words = DATASETS[case]
    copy = spoiled(tmp_path, dataset, spoil)
    config = on_dataset(tmp_path, model, copy, train={"max_steps": 8})
    refused([*TRAIN, "--config", config], 4, *words)


def test_a_camera_that_is_not_there(tmp_path, model, dataset):
    config = on_dataset(tmp_path, model, dataset, data={"cameras": ["observation.images.topp"]})
    refused([*TRAIN, "--config", config, "--plan-only"], 4, "observation.images.topp", "observation.images.wrist")


@pytest.mark.parametrize("spoil", [
    lambda value: value["model"].update(type="WordPiece"),
    lambda value: value.update(pre_tokenizer={"type": "Whitespace"}),
], ids=["model", "pre_tokenizer"])
def test_a_tokenizer_of_another_kind(tmp_path, model, dataset, spoil):
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    damage.edit_json(copy / "tokenizer.json", spoil)
    config = on_dataset(tmp_path, copy, dataset)
    refused([*TRAIN, "--config", config, "--plan-only"], 4, "tokenizer.json")


def spoil_action(rows):
    def change(values):
        for row in rows if rows is not None else range(len(values)):
            values[row] = [float("nan")] * len(values[row])
    return change


def test_a_sample_that_is_not_a_number_is_skipped_and_named(tmp_path, model, dataset):
    copy = tmp_path / "data"
    shutil.copytree(dataset, copy)
    damage.edit_column(copy, "action", spoil_action([8]))  # the first frame of an episode: in one action chunk only
    config = on_dataset(tmp_path, model, copy, train={"max_steps": 7, "checkpoint_every": 100})
    with runs.launch(config, 2) as run:
        assert run.end() == 0, run.output()
    lines = runs.metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, 8))
    assert sum(line["skipped"] for line in lines) == 1, run.output()
    assert "(sample 8)" in run.output()
    assert all(line["loss"] is not None for line in lines)


def test_three_steps_that_are_not_numbers_end_the_run(tmp_path, model, dataset):
    copy = tmp_path / "data"
    shutil.copytree(dataset, copy)
    damage.edit_column(copy, "action", spoil_action(None))
    config = on_dataset(tmp_path, model, copy)
    with runs.launch(config, 2) as run:
        assert run.end() == 4, run.output()
    assert "not finite in 3 steps in a row" in run.output() and "sample" in run.output()
    assert "restart 1" not in run.output()


# --- ranks that were not started alike ---

def two_ranks(first, second):
    """Two ranks under bare mpirun; each is (folder to start in, command)."""
    command = [*runs.MPIRUN]
    for folder, words in (first, second):
        command += [":"] if len(command) > len(runs.MPIRUN) else []
        command += ["-n", "1", "-wdir", str(folder), *words]
    return command


def test_another_configuration(tmp_path, model):
    config = runs.configure(tmp_path, model)
    one = (tmp_path, [*TRAIN, "--config", config])
    other = (tmp_path, [*TRAIN, "--config", config, "--set", "train.lr=0.5"])
    refused(two_ranks(one, other), 2, "rank 1 differs from rank 0 in its configuration")


def test_another_folder_to_write_to(tmp_path, model):
    config = runs.configure(tmp_path, model)
    one = (tmp_path, [*TRAIN, "--config", config])
    other = (tmp_path, [*TRAIN, "--config", config, "--set", f"run.dir={tmp_path}/elsewhere"])
    refused(two_ranks(one, other), 2, f"{tmp_path}/elsewhere")


def test_another_build(tmp_path, model):
    config = runs.configure(tmp_path, model)
    copy = tmp_path / "plimsoll"
    shutil.copy(runs.PLIMSOLL, copy)
    with copy.open("ab") as file:
        file.write(b"\0")
    refused(two_ranks((tmp_path, [*TRAIN, "--config", config]), (tmp_path, [copy, "train", "--config", config])), 2,
            "rank 1 differs from rank 0 in its build")


@pytest.fixture
def two_places(tmp_path, model, dataset):
    """Two folders with the same relative paths to a model and a dataset, as on two machines."""
    for name in ("here", "there"):
        shutil.copytree(model, tmp_path / name / "model")
        shutil.copytree(dataset, tmp_path / name / "data")
    return tmp_path / "here", tmp_path / "there"


def test_other_weights(tmp_path, two_places):
    here, there = two_places
    shutil.rmtree(there / "model")
    assert runs.finished([runs.PLIMSOLL, "init-model", "--size", "tiny", "--layers", 2, "--dtype", "fp32", "--seed", 1, "--out", there / "model"])[0] == 0
    command = [*TRAIN, "--config", runs.configure(tmp_path, "model")]
    refused(two_ranks((here, command), (there, command)), 2, "rank 1 differs from rank 0 in its model files")


def test_no_weights_on_one_rank(tmp_path, two_places):
    here, there = two_places
    damage.remove(there / "model" / "model.safetensors")
    command = [*TRAIN, "--config", runs.configure(tmp_path, "model")]
    refused(two_ranks((here, command), (there, command)), 4, "model.safetensors")


def test_other_data(tmp_path, two_places):
    here, there = two_places

    def change(values):
        values[7][0] += 0.25

    damage.edit_column(there / "data", "action", change)
    command = [*TRAIN, "--config", on_dataset(tmp_path, "model", "data")]
    refused(two_ranks((here, command), (there, command)), 2, "rank 1 differs from rank 0 in its dataset")


def test_other_adapters(tmp_path, model, short, two_places):
    here, there = two_places
    for place in two_places:
        shutil.copytree(runs.checkpoints(short.parent / "run")[8] / "adapter", place / "adapter")
    file = there / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values())).flat[-1] += 0.25
    save_file(tensors, file)
    command = [*TRAIN, "--config", runs.configure(tmp_path, "model"), "--set", "model.adapter=adapter"]
    refused(two_ranks((here, command), (there, command)), 2, "rank 1 differs from rank 0 in its weights", "adapter")


def test_other_checkpoints_to_resume_from(tmp_path, short, two_places):
    """As on two machines whose network file system lags: the same folder, and another newest checkpoint in it."""
    here, there = two_places
    for place in two_places:
        shutil.copytree(short.parent / "run" / "checkpoints", place / "checkpoints")
    shutil.rmtree(there / "checkpoints" / "step-8")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to("/proc/self/cwd/checkpoints")
    config = runs.configure(tmp_path, "model")
    command = [*TRAIN, "--config", config, "--resume"]
    refused(two_ranks((here, command), (there, command)), 2, "rank 1 differs from rank 0 in its newest checkpoint", "step-")


def test_another_tokenizer(tmp_path, two_places):
    here, there = two_places
    damage.edit_json(there / "model" / "tokenizer.json", lambda value: value["model"]["merges"].pop())
    command = [*TRAIN, "--config", on_dataset(tmp_path, "model", "data")]
    refused(two_ranks((here, command), (there, command)), 2, "rank 1 differs from rank 0 in its model files")


# --- datasets whose files contradict each other ---

import pyarrow as pa
import pyarrow.parquet as pq

TOP = "observation.images.top"
EPISODES = ("meta", "episodes", "chunk-000", "file-000.parquet")
TASKS = ("meta", "tasks.parquet")
DATA = ("data", "chunk-000", "file-000.parquet")


def edit_table(place, change):
    """Spoils a parquet file of a dataset: change(table) returns the one to put there."""
    def spoil(folder):
        file = folder.joinpath(*place)
        pq.write_table(change(pq.read_table(file)), file)
    return spoil


def set_values(name, change, kind=None):
    """Of a table's column: change(list of values) returns the new ones."""
    def changed(table):
        place = table.schema.get_field_index(name)
        values = change(table.column(name).to_pylist())
        return table.set_column(place, name, pa.array(values, kind or table.schema.field(name).type))
    return changed


def set_feature(name, **values):
    return lambda folder: damage.edit_json(folder / "meta" / "info.json", lambda info: info["features"][name].update(values))


def set_statistic(feature, name, value):
    return lambda folder: damage.edit_json(folder / "meta" / "stats.json", lambda stats: stats[feature].update({name: value}))


def rename(old, new):
    return lambda table: table.rename_columns([new if name == old else name for name in table.column_names])


def bytes_for_text(table):
    """The first task in Latin-1, as no parquet writer puts it there by itself."""
    texts = [text.encode() for text in table.column("__index_level_0__").to_pylist()]
    spoiled_texts = pa.array(["räume auf".encode("latin-1"), *texts[1:]], pa.binary()).cast(pa.string(), safe=False)
    return table.set_column(table.schema.get_field_index("__index_level_0__"), "__index_level_0__", spoiled_texts)


CONTRADICTIONS = {
    "column_renamed": (edit_table(DATA, rename("action", "actions")), ["file-000.parquet", "column action: is missing", "actions"]),
    "text_for_numbers": (edit_table(DATA, set_values("action", lambda values: ["left"] * len(values), pa.string())),
                         ["file-000.parquet", "column action", "string"]),
    "half_an_index": (edit_table(DATA, set_values("index", lambda values: [*values[:5], 4.5, *values[6:]], pa.float64())),
                      ["file-000.parquet", "column index", "row 5 holds 4.5"]),
    "no_task_text": (edit_table(TASKS, set_values("__index_level_0__", lambda values: [*values[:-1], None])),
                     ["tasks.parquet", "__index_level_0__", "null text"]),
    "video_of_another_size": (set_feature(TOP, shape=[60, 84, 3]), ["file-000.mp4", "[60, 84, 3]", "info.json"]),
    "frames_without_end": (edit_table(EPISODES, set_values("dataset_to_index", lambda values: [*values[:-1], 2**63 - 1])),
                           ["episodes", "dataset_to_index", "row 11", str(2**63 - 1)]),
    "statistics_are_no_numbers": (set_statistic("action", "mean", [float("nan")] * 3), ["action", "mean", "nan"]),
    "no_episode": (edit_table(EPISODES, lambda table: table.slice(0, 0)), ["episodes", "empty"]),
    "frames_that_are_not_listed": (set_info(total_frames=1000), ["info.json", "total_frames is 1000", "meta/episodes"]),
    "episodes_that_are_not_listed": (set_info(total_episodes=13), ["info.json", "total_episodes is 13", "meta/episodes"]),
    "task_in_no_table": (edit_table(TASKS, set_values("__index_level_0__", lambda values: ["sweep the floor", *values[1:]])),
                         ["episodes", "column tasks: row", "tasks.parquet"]),
    "task_that_is_no_text": (edit_table(TASKS, bytes_for_text), ["tasks.parquet", "task 0", "no valid UTF-8"]),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_dataset_that_contradicts_itself(tmp_path, model, dataset, case):
    spoil, words = CONTRADICTIONS[case]
    copy = spoiled(tmp_path, dataset, spoil)
    refused([*TRAIN, "--config", on_dataset(tmp_path, model, copy), "--plan-only"], 4, *words)
    code, text = runs.finished([runs.PLIMSOLL, "dataset", "check", copy])
    assert code == 4 and any(line.startswith("fault") for line in text.splitlines()), text


def test_an_instruction_longer_than_the_model_reads(tmp_path, model, dataset):
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    damage.edit_json(copy / "config.json", lambda config: config["text_config"].update(max_position_embeddings=20))
    refused([*TRAIN, "--config", on_dataset(tmp_path, copy, dataset), "--plan-only"], 4,
            "tasks.parquet", "task 0 (its task_index)", "20 positions", "config.json")


def test_what_training_only_warns_of(tmp_path, model, dataset):
    """`dataset check` complains of each too; all of it can be read, and nothing of it is silent."""
    copy = tmp_path / "data"
    shutil.copytree(dataset, copy)
    for spoil in [
        set_info(total_tasks=99),
        set_feature("observation.state", dtype="float64"),
        set_statistic("action", "std", [0.25, 0.0, 0.25]),
    ]:
        spoil(copy)
    words = ["total_tasks is 99", "column observation.state: holds values of type float32", '"action": zero range (std is 0) in dimensions 1']
    code, text = runs.finished([*TRAIN, "--config", on_dataset(tmp_path, model, copy), "--plan-only"])
    assert code == 0, text
    assert [text.count(word) for word in words] == [1, 1, 1], text
    code, text = runs.finished([runs.PLIMSOLL, "dataset", "check", copy])
    assert code == 4 and all(word in text for word in [*words[:2], '"action": element 1 has zero range']), text


def test_a_camera_of_depth(tmp_path, model, dataset):
    copy = spoiled(tmp_path, dataset, set_feature(TOP, info={"video.is_depth_map": True}))
    named = on_dataset(tmp_path, model, copy, data={"cameras": [TOP]})
    refused([*TRAIN, "--config", named, "--plan-only"], 4, "info.json", TOP, "is depth", "data.cameras")
    code, text = runs.finished([*TRAIN, "--config", on_dataset(tmp_path, model, copy), "--plan-only"])
    assert code == 0, text
    assert text.count(f'"{TOP}" is depth') == 1, text


def test_check_lists_all_contradictions_at_once(tmp_path, dataset):
    copy = tmp_path / "data"
    shutil.copytree(dataset, copy)
    for spoil in [
        edit_table(DATA, rename("action", "actions")),
        edit_table(TASKS, set_values("__index_level_0__", lambda values: ["sweep the floor", *values[1:]])),
        set_feature(TOP, shape=[60, 84, 3]),
        set_feature("observation.state", dtype="float64"),
        set_statistic("observation.force", "std", [0.0, float("nan"), 1.0]),
    ]:
        spoil(copy)
    code, text = runs.finished([runs.PLIMSOLL, "dataset", "check", copy])
    assert code == 4, text
    for words in [
        ("fault", "file-000.parquet", "column action: is missing"),
        ("fault", "episodes", "column tasks: row", "tasks.parquet"),
        ("fault", "file-000.mp4", "[60, 84, 3]"),
        ("fault", "column observation.state", "float32", "float64"),
        ("fault", "observation.force", "element 1 of std is nan"),
        ("warning", "observation.force", "element 0 has zero range"),
    ]:
        assert any(line.startswith(words[0]) and all(word in line for word in words) for line in text.splitlines()), (words, text)
