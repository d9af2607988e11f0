"""Features, hidden states and adapter gradients of `plimsoll features` against transformers and peft, on random tiny checkpoints.

The program is taken from the build folder (environment variable PLIMSOLL_BUILD, else build/). PLIMSOLL_PROOFS=1 adds many random
shapes to the fixed ones. Both sides get the same pixel values; bounds are those of the issue: relative L2 2e-5 for features and
hidden states, 2e-4 for every gradient in fp32; in bf16 our distance from the fp32 result is at most 1.2 times that of
transformers itself.
"""

import dataclasses
import json
import os
import pathlib
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

ROOT = pathlib.Path(__file__).resolve().parents[2]
PLIMSOLL = pathlib.Path(os.environ.get("PLIMSOLL_BUILD", ROOT / "build")) / "plimsoll"
PROOFS = os.environ.get("PLIMSOLL_PROOFS") == "1"
LANGUAGE = r".*language_model.*\.(q|k|v|o|gate|up|down)_proj"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
VOCABULARY = 1024
TEXTS = [
    "pick up the red block",
    "Grüße: 把红色方块放进碗里 🤖 e\u0301",
    "push the lever, then press the 2nd button twice and wait",
]

torch.set_num_threads(1)


@dataclasses.dataclass
class Shape:
    """One checkpoint and its prompt."""

    name: str
    text: tuple = (64, 4, 2)  # hidden, heads, key and value heads
    vision: tuple = (32, 2)  # hidden, heads
    blocks: tuple = (2, 3)  # vision, language
    window: int = 112
    full: tuple = (1,)
    images: tuple = ((75, 133),)  # height, width in pixels
    prompt: int = 0
    hub_names: bool = True
    sharded: bool = False
    tied: bool = True
    stored: torch.dtype = torch.float32
    targets: object = LANGUAGE
    rank: int = 4
    seed: int = 0


SHAPES = [
    Shape("one_kv_head_small_windows", text=(64, 4, 1), window=56, images=((112, 112),), hub_names=False, tied=False),
    Shape("groups_of_four_sharded", text=(128, 8, 2), images=((75, 133), (90, 61)), prompt=2, sharded=True, full=(0,)),
    Shape("odd_heads_three_images", text=(96, 2, 2), vision=(60, 3), window=84, images=((61, 150), (113, 97), (140, 84)), prompt=1),
    Shape("stored_in_bf16", images=((150, 90),), stored=torch.bfloat16, prompt=1, rank=8),
    Shape("heads_of_the_3b", text=(256, 2, 1), vision=(160, 2), blocks=(2, 2), images=((126, 98),)),
    Shape("no_image", images=(), prompt=1),
    Shape("vision_adapters", targets=["q_proj", "gate_proj", "qkv", "mlp.2"], images=((84, 112), (70, 62)), hub_names=False),
]  # fmt: skip


def random_shape(seed):
    rng = random.Random(seed)
    heads = rng.choice([1, 2, 3, 4, 6, 8])
    groups = rng.choice([kv for kv in range(1, heads + 1) if heads % kv == 0])
    vision_heads = rng.choice([1, 2, 3, 4])
    depth = rng.randint(1, 4)
    return Shape(
        f"random_{seed}",
        text=(heads * rng.choice([8, 16, 32, 40]), heads, groups),
        vision=(vision_heads * rng.choice([8, 12, 16, 20, 40]), vision_heads),
        blocks=(depth, rng.randint(1, 4)),
        window=rng.choice([28, 56, 84, 100, 112, 140]),
        full=tuple(sorted(rng.sample(range(depth), rng.randint(0, depth)))),
        images=tuple((rng.randint(20, 200), rng.randint(20, 200)) for _ in range(rng.randint(1, 3))),
        prompt=rng.randrange(3),
        hub_names=rng.random() < 0.5,
        sharded=rng.random() < 0.3,
        tied=rng.random() < 0.5,
        stored=rng.choice([torch.float32, torch.bfloat16]),
        rank=rng.choice([1, 3, 8, 16]),
        seed=seed,
    )


if PROOFS:
    SHAPES = SHAPES + [random_shape(seed) for seed in range(1, 25)]


def plimsoll(*arguments, code=0):
    done = subprocess.run([PLIMSOLL, *map(str, arguments)], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == code, done.stderr
    return done.stderr


def sections(width):
    """Three parts of half a head, as the real model's 16, 24, 24 of 64."""
    half = width // 2
    first = max(half // 4, 1)
    second = (half - first) // 2
    return [first, second, half - first - second]


def config_of(shape, image_token):
    hidden, heads, groups = shape.text
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections(hidden // heads)}
    text = dict(vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=hidden * 2 + 8, num_hidden_layers=shape.blocks[1],
                num_attention_heads=heads, num_key_value_heads=groups, rms_norm_eps=1e-6, rope_parameters=rope,
                bos_token_id=image_token - 12, eos_token_id=image_token - 10)  # fmt: skip
    vision = dict(depth=shape.blocks[0], hidden_size=shape.vision[0], num_heads=shape.vision[1], intermediate_size=shape.vision[0] + 20,
                  out_hidden_size=hidden, window_size=shape.window, fullatt_block_indexes=list(shape.full))  # fmt: skip
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, image_token_id=image_token, video_token_id=image_token + 1,
                            vision_start_token_id=image_token - 3, vision_end_token_id=image_token - 2,
                            tie_word_embeddings=shape.tied)  # fmt: skip


def randomise(model):
    """Weights that hide nothing: norms away from one, biases away from zero, sums of ordinary size."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_q" in name:
                parameter.normal_(1.0, 0.1)
            elif parameter.dim() == 1:
                parameter.normal_(0.0, 0.1)
            else:
                parameter.normal_(0.0, 0.5 if "embed" in name else parameter[0].numel() ** -0.5)


def prompt_of(text, images):
    picture = "<|vision_start|><|image_pad|><|vision_end|>"
    user = picture * images + text
    return f"<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """A folder whose tokenizer and processor the random checkpoints share."""
    folder = tmp_path_factory.mktemp("template") / "model"
    plimsoll("init-model", "--size", "tiny", "--out", folder, "--dtype", "fp32")
    return folder


class Case:
    def __init__(self, shape, template, folder):
        torch.manual_seed(shape.seed)
        self.shape, self.folder = shape, folder
        self.model, self.adapter, self.pixels = folder / "model", folder / "adapter", folder / "pixels.safetensors"
        self.write_model(template)
        self.make_inputs()

    def write_model(self, template):
        token = json.loads((template / "config.json").read_text())["image_token_id"]
        model = Qwen2_5_VLForConditionalGeneration(config_of(self.shape, token))
        randomise(model)
        size = "200KB" if self.shape.sharded else "5GB"
        model.to(self.shape.stored).save_pretrained(self.model, save_original_format=self.shape.hub_names, max_shard_size=size)
        assert (self.model / "model.safetensors.index.json").exists() == self.shape.sharded
        for file in template.iterdir():
            if file.suffix in (".json", ".jinja") and "config.json" != file.name and "model" not in file.name:
                (self.model / file.name).write_bytes(file.read_bytes())

    def make_inputs(self):
        rng = np.random.default_rng(self.shape.seed)
        images = [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in self.shape.images]
        self.text = TEXTS[self.shape.prompt]
        processor = AutoProcessor.from_pretrained(self.model)
        prompt = prompt_of(self.text, len(images))
        self.inputs = processor(text=[prompt], images=images or None, return_tensors="pt")
        self.files = []
        for i, image in enumerate(images):
            self.files.append(self.folder / f"image{i}.png")
            image.save(self.files[-1])
        if images:
            save_file({key: self.inputs[key].contiguous() for key in ("pixel_values", "image_grid_thw")}, self.pixels)

    def load(self, dtype):
        return Qwen2_5_VLForConditionalGeneration.from_pretrained(self.model, dtype=dtype, attn_implementation="sdpa")

    def adapted(self, dtype):
        torch.manual_seed(self.shape.seed + 1)
        options = LoraConfig(r=self.shape.rank, lora_alpha=2 * self.shape.rank, target_modules=self.shape.targets)
        model = get_peft_model(self.load(dtype), options)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0.0, 0.05)
        return model.eval()

    def hidden(self, model):
        return model(**self.inputs, output_hidden_states=False).last_hidden_state

    def reference(self, dtype, save=False):
        peft = self.adapted(dtype)
        if save:
            peft.save_pretrained(self.adapter)
        model = peft.base_model.model.model
        result = {"last_hidden_state": self.hidden(model)}
        if self.shape.images:
            features = model.get_image_features(self.inputs["pixel_values"], self.inputs["image_grid_thw"]).pooler_output
            result["image_features"] = features if torch.is_tensor(features) else torch.cat(list(features))
        result["last_hidden_state"].float().square().mean().backward()
        for name, parameter in peft.named_parameters():
            if parameter.requires_grad:
                result[name.replace(".default", "")] = parameter.grad
        return {name: value.detach().float() for name, value in result.items()}

    def ours(self, dtype, *more):
        out = self.folder / f"ours_{dtype}.safetensors"
        pixels = ["--pixels", self.pixels] if self.shape.images else []
        plimsoll("features", "--model", self.model, "--text", self.text, "--dtype", dtype, "--out", out, *pixels, *more)
        return load_file(out)


@pytest.fixture(params=SHAPES, ids=lambda shape: shape.name)
def case(request, template, tmp_path):
    return Case(request.param, template, tmp_path)


def distance(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30))


def gradients(result):
    return torch.cat([result[name].flatten() for name in sorted(result) if ".lora_" in name])


def test_fp32_and_bf16(case):
    reference = case.reference(torch.float32, save=True)
    ours = case.ours("fp32", "--adapter", case.adapter, "--grad")
    inputs = {"input_ids", "position_ids", "pixel_values", "image_grid_thw"} if case.shape.images else {"input_ids", "position_ids"}
    assert set(ours) - inputs == set(reference)
    assert torch.equal(ours["input_ids"], case.inputs["input_ids"])
    if case.shape.images:
        assert torch.equal(ours["pixel_values"], case.inputs["pixel_values"])
    for name, value in reference.items():
        assert ours[name].shape == value.shape, name
        assert value.abs().max() > 0, name
        assert distance(ours[name], value) < (2e-4 if ".lora_" in name else 2e-5), name

    rounded = case.reference(torch.bfloat16)
    ours = case.ours("bf16", "--adapter", case.adapter, "--grad")
    figures = {}
    for name in [name for name in reference if ".lora_" not in name] + ["gradients"]:
        pick = gradients if name == "gradients" else lambda result, name=name: result[name]
        figures[name] = (distance(pick(ours), pick(reference)), distance(pick(rounded), pick(reference)))
    print(case.shape.name, {name: f"ours {a:.2e}, transformers {b:.2e}, ratio {a / b:.2f}" for name, (a, b) in figures.items()})
    for name, (mine, theirs) in figures.items():
        assert mine <= 1.2 * theirs, name


def test_the_base_alone(case):
    ours = case.ours("fp32")
    with torch.no_grad():
        reference = case.hidden(case.load(torch.float32).model)
    assert distance(ours["last_hidden_state"], reference) < 2e-5


def test_pictures_through_our_own_processor(case):
    """--image in place of --pixels: the same tokens, places and grid, pixels within a step of 1/255, and of these the same states."""
    out = case.folder / "pictures.safetensors"
    pictures = [word for file in case.files for word in ("--image", file)]
    plimsoll("features", "--model", case.model, "--text", case.text, "--dtype", "fp32", "--out", out, *pictures)
    ours, inputs = load_file(out), dict(case.inputs)
    model = case.load(torch.float32).model
    places, _ = model.get_rope_index(inputs["input_ids"], inputs["mm_token_type_ids"], inputs.get("image_grid_thw"))
    assert torch.equal(ours["input_ids"], inputs["input_ids"])
    assert torch.equal(ours["position_ids"].long(), places.long())
    assert ("image_grid_thw" in ours) == bool(case.files)
    if case.files:
        assert torch.equal(ours["image_grid_thw"].long(), inputs["image_grid_thw"])
        step = 1 / 255 / min(AutoProcessor.from_pretrained(case.model).image_processor.image_std)
        assert ours["pixel_values"].shape == inputs["pixel_values"].shape
        assert float((ours["pixel_values"] - inputs["pixel_values"]).abs().max()) <= step * 1.0001
        inputs["pixel_values"] = ours["pixel_values"]
    with torch.no_grad():
        reference = model(**inputs).last_hidden_state
    assert distance(ours["last_hidden_state"], reference) < 2e-5


def test_our_adapter_loads_in_peft(case):
    peft = case.adapted(torch.float32)
    peft.save_pretrained(case.adapter)
    written = case.folder / "written"
    ours = case.ours("fp32", "--adapter", case.adapter, "--write-adapter", written)
    again = PeftModel(case.load(torch.float32), LoraConfig.from_pretrained(written))
    result = again.load_adapter(written, adapter_name="default")
    assert [key for key in result.missing_keys if ".lora_" in key] == []
    assert result.unexpected_keys == []
    theirs, ourselves = load_file(case.adapter / "adapter_model.safetensors"), load_file(written / "adapter_model.safetensors")
    assert set(theirs) == set(ourselves)
    assert all(torch.equal(value, ourselves[name]) for name, value in theirs.items())
    with torch.no_grad():
        assert distance(ours["last_hidden_state"], case.hidden(again.eval().base_model.model.model)) < 2e-5


def test_made_checkpoint_opens_in_transformers(template):
    model, loading = Qwen2_5_VLForConditionalGeneration.from_pretrained(template, dtype=torch.float32, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"] and not loading["mismatched_keys"]
    assert model.config.text_config.hidden_size == 128
    ids = AutoProcessor.from_pretrained(template).tokenizer(prompt_of("hello", 1)).input_ids
    assert model.config.image_token_id in ids


@pytest.mark.skipif(not PROOFS, reason="writes and reads 0.8 GB: PLIMSOLL_PROOFS=1 runs it")
def test_made_checkpoint_of_full_size_opens_in_transformers(tmp_path):
    plimsoll("init-model", "--size", "3b", "--out", tmp_path / "m", "--layers", "1")
    model, loading = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"] and not loading["mismatched_keys"]
    assert model.dtype == torch.bfloat16 and model.config.image_token_id == 151655
    ids = AutoProcessor.from_pretrained(tmp_path / "m").tokenizer(prompt_of("hello", 1)).input_ids
    assert {151644, 151645, 151652, 151653, 151655} <= set(ids)


@pytest.mark.skipif(not PROOFS, reason="writes 1.4 GB: PLIMSOLL_PROOFS=1 runs it")
def test_a_checkpoint_is_made_without_holding_it(tmp_path):
    """Not even one copy of the weights is in memory at once: of four blocks little more than half, most of it the
    table of token embeddings, which is no larger in a model of 36."""
    most = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    words = [PLIMSOLL, "init-model", "--size", "3b", "--layers", "4", "--out", tmp_path / "m"]
    held = 1024 * int(subprocess.run([sys.executable, "-c", most, *map(str, words)], check=True, capture_output=True, text=True).stdout)
    written = sum(file.stat().st_size for file in (tmp_path / "m").glob("*.safetensors"))
    assert written > 1.2e9 and held < 0.65 * written, (held, written)


def test_made_checkpoint_of_the_wide_size_opens_in_transformers(tmp_path):
    plimsoll("init-model", "--size", "wide", "--out", tmp_path / "m")
    model, loading = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"] and not loading["mismatched_keys"]
    assert model.config.text_config.hidden_size == 1024 and model.config.text_config.num_hidden_layers == 4
    assert model.config.image_token_id in AutoProcessor.from_pretrained(tmp_path / "m").tokenizer(prompt_of("hello", 1)).input_ids


def test_bad_input(template, tmp_path):
    out = tmp_path / "out.safetensors"
    base = ["features", "--model", template, "--text", "hi", "--out", out]
    assert "model_type" in plimsoll("features", "--model", other_architecture(tmp_path, template), "--text", "hi", "--out", out, code=4)
    assert "--grad" in plimsoll(*base, "--grad", code=2)
    assert "--dtype fp16" in plimsoll(*base, "--dtype", "fp16", code=2)
    assert "adapter_config.json" in plimsoll(*base, "--adapter", tmp_path, code=4)
    assert "not an empty folder" in plimsoll("init-model", "--size", "tiny", "--out", template, code=2)
    assert "huge" in plimsoll("init-model", "--size", "huge", "--out", tmp_path / "x", code=2)
    picture, pixels = tmp_path / "picture.png", tmp_path / "pixels.safetensors"
    Image.new("RGB", (56, 56)).save(picture)
    grid = torch.tensor([[1, 4, 4]])
    save_file({"pixel_values": torch.zeros(16, 1176), "image_grid_thw": grid}, pixels)
    assert "--pixels" in plimsoll(*base, "--pixels", pixels, "--image", picture, code=2)
    for bad, words in [({"pixel_values": torch.zeros(16, 1175), "image_grid_thw": grid}, "[16, 1175]"),
                       ({"pixel_values": torch.zeros(16, 1176), "image_grid_thw": grid.int()}, "I32"),
                       ({"pixel_values": torch.zeros(16, 1176)}, "image_grid_thw")]:
        save_file(bad, pixels)
        said = plimsoll(*base, "--pixels", pixels, code=4)
        assert words in said and str(pixels) in said, said
    assert not out.exists()


def other_architecture(folder, template):
    other = folder / "other"
    other.mkdir()
    for file in template.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    config = json.loads((other / "config.json").read_text())
    config["model_type"] = "llama"
    (other / "config.json").write_text(json.dumps(config))
    return other
