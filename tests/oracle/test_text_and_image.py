"""Tokenizer, image processor, position ids and model directory against the tokenizers and transformers libraries.

Our side is driven through vlm_input_probe in the build folder (environment variable PLIMSOLL_BUILD, else build/).
"""

import io
import json
import os
import pathlib
import random
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoProcessor, AutoTokenizer, Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROBE = pathlib.Path(os.environ.get("PLIMSOLL_BUILD", ROOT / "build")) / "vlm_input_probe"
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
STEP = 1 / 255

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def probe(tmp_path_factory):
    """Answers of our side to a list of requests."""
    folder = tmp_path_factory.mktemp("probe")

    def ask(*requests):
        (folder / "requests.json").write_text(json.dumps(requests))
        subprocess.run([PROBE, folder / "requests.json", folder / "results.json"], check=True)
        return json.loads((folder / "results.json").read_text())

    return ask


@pytest.fixture(scope="session")
def model(probe, tmp_path_factory):
    """A model directory as `plimsoll init-model` writes its text and image side."""
    folder = tmp_path_factory.mktemp("model")
    answer = probe({"op": "write_model", "dir": str(folder), "vocabulary": 1024})[0]
    return folder, answer


# Texts ----------------------------------------------------------------------------------------------------------------

CORPUS = [
    "pick up the red block and place it in the bowl",
    "It's the robot's 3rd try: they'll move 1,234.5 mm, won't they?",
    "The quick brown fox jumps over the lazy dog. " * 3,
    "Grüße aus Köln, naïve façade, Ångström, Tiếng Việt, Ελληνικά, Русский язык",
    "把红色方块放进碗里。日本語のテキスト、한국어 문장",
    "التقط المكعب الأحمر وضعه في الوعاء שלום עולם",
    "def f(x):\n    return x**2  # comment\n\n\n\tif x:\n\t\tpass\n",
    "emoji 🤖🦾👩‍🔧👍🏽 🇩🇪 ❤️ ✨✨",
]
HAND_MADE = [
    "",
    " ",
    "\n",
    "a",
    "pick up the red block",
    "  leading, trailing  ",
    "tabs\t\tand\n\n\nnew\r\nlines \r\n  \n x",
    " " * 500 + "after long space" + "\t" * 300 + " " * 77,
    "x" * 3000,
    "ab " * 700,
    "I'm you'RE we'Ve he'LL she'd it'S 'T 'ſ ’s",
    "1234567890 ١٢٣ ⅷ ½ ² 千",
    "e\u0301 vs é; o\u0302\u0323 vs \u1ed9; \u1112\u1161\u11ab vs 한; \u212b \u2126 \u0344 \u0958",
    "कर्म क्षेत्र ไทยนี้ မြန်မာ",
    "zero\u200bwidth\u200d joiner\ufeff bom\u00ad soft\u2060",
    "spaces\u00a0\u1680\u2003\u2028\u2029\u202f\u205f\u3000\u0085\u180eend",
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>hi<|im_end|>\n",
    "a<|im_end|><|im_end|> <|im_end|> b <|im_en <|im_end|",
    "e<|im_end|>\u0301 combining after a token",
    "<tool_call>{}</tool_call> <|endoftext|>",
    "null \x00 control \x01\x1f\x7f",
    "🤖🦾👩‍🔧👍🏽 🇩🇪❤️\U0001f9ff",
    "\U00010348 \U0001d54f \U00020000 \ue000 \ufffd",
    "עִבְרִית العَرَبِيَّة \u202eabc\u202c",
]
RANGES = [(0x20, 0x7E), (0x20, 0x7E), (0x09, 0x0D), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x52F), (0x590, 0x6FF), (0x900, 0x97F),
          (0xAC00, 0xD7A3), (0x1100, 0x11FF), (0x2000, 0x206F), (0x3000, 0x30FF), (0x4E00, 0x4EFF), (0x1F300, 0x1F64F)]  # fmt: skip


def random_texts(count, seed):
    rng = random.Random(seed)
    words = " ".join(CORPUS).split() + SPECIAL + [" ", "  ", "\n", "'s"]
    texts = []
    for _ in range(count):
        parts = []
        for _ in range(rng.randrange(1, 12)):
            low, high = rng.choice(RANGES)
            parts.append(rng.choice(words) if rng.random() < 0.4 else "".join(chr(rng.randint(low, high)) for _ in range(rng.randrange(1, 6))))
        texts.append(rng.choice(["", " "]).join(parts))
    return texts


TEXTS = HAND_MADE + CORPUS + random_texts(600, seed=1)


def train(size, alphabet=True, **bpe):
    tokenizer = Tokenizer(models.BPE(**bpe))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if alphabet else [],
        special_tokens=["<unk>"] if "unk_token" in bpe else [],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False)])
    return tokenizer


def compare_encoding(probe, tokenizer, path, texts=TEXTS):
    answer = probe({"op": "encode", "tokenizer": str(path), "texts": texts})[0]
    assert "error" not in answer, answer
    for text, ours, encoding in zip(texts, answer["ids"], tokenizer.encode_batch(texts)):
        assert ours == encoding.ids, repr(text)
    return answer


@pytest.mark.parametrize("size", [263, 300, 700, 1500])
def test_ids_equal_those_of_tokenizers(probe, tmp_path, size):
    tokenizer = train(size)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    answer = compare_encoding(probe, tokenizer, tmp_path / "tokenizer.json")
    # Python's NFC of the text between the special tokens is what comes back.
    for text, ours, ids in zip(TEXTS, answer["decoded"], answer["ids"]):
        assert ours == tokenizer.decode(ids, skip_special_tokens=False), repr(text)


def test_merges_as_strings(probe, tmp_path):
    tokenizer = train(500)
    content = json.loads(tokenizer.to_str())
    content["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    compare_encoding(probe, tokenizer, tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    "options", [{}, {"unk_token": "<unk>"}, {"unk_token": "<unk>", "fuse_unk": True}], ids=["dropped", "unknown", "fused"]
)
def test_bytes_that_the_vocabulary_lacks(probe, tmp_path, options):
    tokenizer = train(400, alphabet=False, **options)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    compare_encoding(probe, tokenizer, tmp_path / "tokenizer.json")


def test_ignore_merges_and_flags_of_added_tokens(probe, tmp_path):
    tokenizer = train(400)
    tokenizer.add_tokens(
        [
            AddedToken("[strip]", lstrip=True, rstrip=True, normalized=False),
            AddedToken("[left]", lstrip=True, normalized=False),
            AddedToken("word", single_word=True, normalized=False),
            AddedToken("caf\u00e9", normalized=True),
            AddedToken("[a]", normalized=False),
            AddedToken("[a][b]", normalized=False),
        ]
    )
    content = json.loads(tokenizer.to_str())
    content["model"]["ignore_merges"] = True
    content["model"]["merges"] = content["model"]["merges"][:60]  # later tokens are reached as whole pieces only
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    texts = ["x [strip]  y", "x\n\t[left]  y [left][left] ", "word words sword a word, word_ word", "cafe\u0301 caf\u00e9s",
             "[a][a][b][b]", "[strip] [strip]", "  [left]"]  # fmt: skip
    compare_encoding(probe, Tokenizer.from_str(json.dumps(content)), tmp_path / "tokenizer.json", texts + TEXTS)


def test_every_letter_digit_and_space_is_cut_alike(probe, tmp_path):
    """The whole Basic Multilingual Plane, but for what is not assigned in Python's Unicode (PCRE2's is of the same age)."""
    import unicodedata

    tokenizer = train(300)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    known = [chr(c) for c in range(1, 0x10000) if unicodedata.category(chr(c)) not in ("Cs", "Cn")]
    texts = ["".join(f"a{c}b{c}1 {c} .{c}\n {c}{c} '{c} " for c in known[i : i + 16]) for i in range(0, len(known), 16)]
    compare_encoding(probe, tokenizer, tmp_path / "tokenizer.json", texts)


# Refusals -------------------------------------------------------------------------------------------------------------


def other_kind(change):
    content = json.loads(train(300).to_str())
    change(content)
    return json.dumps(content)


REFUSED = {
    "unigram": (lambda: Tokenizer(models.Unigram([("a", -1.0)])).to_str(), "Unigram"),
    "wordpiece": (lambda: Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")).to_str(), "WordPiece"),
    "byte_fallback": (lambda: Tokenizer(models.BPE({"a": 0}, [], byte_fallback=True)).to_str(), "byte_fallback"),
    "no byte level": (lambda: other_kind(lambda c: c.update(pre_tokenizer={"type": "Whitespace"})), "Whitespace"),
    "normaliser": (lambda: other_kind(lambda c: c.update(normalizer={"type": "Lowercase"})), "Lowercase"),
    "prefix": (lambda: other_kind(lambda c: c["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True)), "add_prefix_space"),
    "bos": (lambda: other_kind(lambda c: c.update(post_processor={"type": "TemplateProcessing"})), "TemplateProcessing"),
    "pattern": (lambda: other_kind(lambda c: c["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": "("})), "does not compile"),
    "merge": (lambda: other_kind(lambda c: c["model"]["merges"].append(["zq", "qz"])), "zq"),
    "same id": (lambda: other_kind(lambda c: c["model"]["vocab"].update({"zqzq": 5})), "id 5"),
    "truncated": (lambda: train(300).to_str()[:2000], "JSON"),
    "not a tokenizer": (lambda: '{"a": 1}', "model"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_tokenizers_are_refused(probe, tmp_path, kind):
    make, named = REFUSED[kind]
    path = tmp_path / "tokenizer.json"
    path.write_text(make())
    answer = probe({"op": "encode", "tokenizer": str(path), "texts": ["a"]})[0]
    assert answer["code"] == 4 and str(path) in answer["error"] and named in answer["error"], answer


# Images ---------------------------------------------------------------------------------------------------------------


def picture(height, width, seed):
    """Gradients, a sharp disc and noise: every part of a resampling kernel is seen."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    values = np.stack([x * 255 / max(width - 1, 1), y * 255 / max(height - 1, 1), (x + y) % 256], -1)
    values[(x - width / 2) ** 2 + (y - height / 2) ** 2 < (min(height, width) / 3) ** 2] = 255 * rng.random(3)
    values[: height // 2] += rng.integers(-60, 60, values[: height // 2].shape)
    return np.clip(values, 0, 255).astype(np.uint8)


# height, width: exact, up, down, extreme ratio, half-to-even cases, one or two pixels, over max_pixels
SIZES = [(112, 112), (56, 56), (28, 140), (224, 224), (480, 640), (241, 319), (30, 40), (100, 57), (126, 70), (14, 98), (400, 2), (3, 500),
         (1, 1), (1, 150), (7, 9), (1080, 1920), (1500, 900), (50, 1400), (113, 111), (84, 85), (42, 42), (333, 77)]  # fmt: skip


def pixels_of(path, rows):
    return np.fromfile(path, np.float32).reshape(rows, 1176)


def assert_within_a_step(ours, theirs, std, label):
    """Before normalisation; prints how many values differ at all."""
    assert ours.shape == theirs.shape
    scale = np.repeat(np.asarray(std, np.float64), 392)
    steps = np.abs(ours.astype(np.float64) - theirs) * scale / STEP
    different = int((ours != theirs).sum())
    print(f"{label}: {different} of {ours.size} values differ, by {steps.max():.3f} steps of 1/255 at most")
    assert steps.max() < 1.001, label
    return different


@pytest.mark.parametrize(
    "bounds", [{}, {"min_pixels": 28 * 28 * 4, "max_pixels": 28 * 28 * 30}, {"min_pixels": 28 * 28 * 200, "max_pixels": 28 * 28 * 400}]
)
def test_pixel_values(probe, model, tmp_path, bounds):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in model[0].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "preprocessor_config.json").read_text())
    config.pop("size")
    (folder / "preprocessor_config.json").write_text(json.dumps(config | bounds))
    processor = Qwen2VLImageProcessor.from_pretrained(folder)
    requests = []
    for i, size in enumerate(SIZES):
        Image.fromarray(picture(*size, seed=i)).save(tmp_path / f"{i}.png")
        requests.append({"op": "prepare", "model": str(folder), "text": "go", "images": [str(tmp_path / f"{i}.png")], "out": str(tmp_path / f"{i}.bin")})
    different = 0
    for i, answer in enumerate(probe(*requests)):
        if max(SIZES[i]) > 200 * min(SIZES[i]):
            assert answer["code"] == 4 and "200" in answer["error"]
            continue
        assert "error" not in answer, answer
        theirs = processor(images=[Image.open(tmp_path / f"{i}.png")], return_tensors="pt")
        assert answer["image_grid_thw"] == theirs["image_grid_thw"].tolist(), SIZES[i]
        ours = pixels_of(tmp_path / f"{i}.bin", theirs["pixel_values"].shape[0])
        different += assert_within_a_step(ours, theirs["pixel_values"].numpy(), processor.image_std, SIZES[i])
        assert answer["shape"] == [len(answer["input_ids"]), ours.shape[0]]
    assert different == 0


def test_bound_on_the_longer_side(probe, model, tmp_path):
    """Is the library's resize to the bounded size, then its processor."""
    from torchvision.transforms.v2 import functional as tvf

    pixels = picture(300, 433, seed=5)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    answer = probe({"op": "prepare", "model": str(model[0]), "text": "go", "images": [str(tmp_path / "a.png")], "resolution": 140, "out": str(tmp_path / "a.bin")})[0]
    bounded = tvf.resize(torch.from_numpy(pixels).permute(2, 0, 1), [97, 140], interpolation=tvf.InterpolationMode.BICUBIC, antialias=True)
    theirs = Qwen2VLImageProcessor.from_pretrained(model[0])(images=[bounded], return_tensors="pt")["pixel_values"].numpy()
    assert np.array_equal(pixels_of(tmp_path / "a.bin", theirs.shape[0]), theirs)
    assert answer["shape"] == [len(answer["input_ids"]), theirs.shape[0]]


def encoded_pictures():
    """Name -> (file content, expected RGB)."""
    rgb = Image.fromarray(picture(61, 83, seed=3))
    grey = rgb.convert("L")
    deep = (np.asarray(grey).astype(np.uint16) << 8) + 77
    made = {}

    def add(name, image, expected=None, **options):
        stream = io.BytesIO()
        image.save(stream, **options)
        made[name] = (stream.getvalue(), np.asarray((expected or Image.open(stream)).convert("RGB")))

    add("rgb.png", rgb, format="PNG")
    add("grey.png", grey, format="PNG")
    add("grey16.png", Image.fromarray(deep), expected=grey, format="PNG")
    add("alpha.png", Image.merge("RGBA", [*rgb.split(), grey]), format="PNG")
    add("grey_alpha.png", Image.merge("LA", [grey, grey]), format="PNG")
    add("palette.png", rgb.quantize(50), format="PNG")
    add("two_colours.png", rgb.convert("1"), format="PNG")
    add("rgb.bmp", rgb, format="BMP")
    add("rgb.ppm", rgb, format="PPM")
    add("grey.pgm", grey, format="PPM")
    add("rgb.tiff", rgb, format="TIFF")
    add("lossless.webp", rgb, format="WEBP", lossless=True)
    for subsampling in (0, 1, 2):
        add(f"subsampling{subsampling}.jpg", rgb, format="JPEG", quality=80, subsampling=subsampling)
    add("progressive.jpg", rgb, format="JPEG", quality=60, progressive=True)
    add("grey.jpg", grey, format="JPEG")
    add("cmyk.jpg", rgb.convert("CMYK"), format="JPEG", quality=90)
    return made


def test_decoding(probe, tmp_path):
    made = encoded_pictures()
    for name, (content, _) in made.items():
        (tmp_path / name).write_bytes(content)
    answers = probe(*({"op": "decode", "path": str(tmp_path / name), "out": str(tmp_path / (name + ".bin"))} for name in made))
    for (name, (_, expected)), answer in zip(made.items(), answers):
        assert "error" not in answer, answer
        ours = np.fromfile(tmp_path / (name + ".bin"), np.uint8).reshape(answer["height"], answer["width"], 3)
        difference = np.abs(ours.astype(int) - expected)
        print(f"{name}: {(difference > 0).sum()} of {difference.size} values differ, by {difference.max()} at most")
        assert difference.max() <= (1 if name == "cmyk.jpg" else 0), name


def test_damaged_pictures_are_refused(probe, tmp_path):
    made = encoded_pictures()
    png, jpeg = made["rgb.png"][0], made["subsampling2.jpg"][0]
    damaged = {
        "empty.png": b"",
        "text.png": b"no picture at all",
        "half.png": png[: len(png) // 2],
        "half.jpg": jpeg[: len(jpeg) // 2],
        "header.jpg": jpeg[:100],
        "flipped.png": png[:1000] + bytes(b ^ 0x55 for b in png[1000:1100]) + png[1100:],
        "no_pixels.png": png[:16] + bytes(8) + png[24:],
        "huge.png": png[:16] + b"\x7f\xff\xff\xff" * 2 + png[24:],
    }
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
    names = [*damaged, "missing.png"]
    for name, answer in zip(names, probe(*({"op": "decode", "path": str(tmp_path / name), "out": str(tmp_path / "out.bin")} for name in names))):
        assert answer.get("code") == 4 and str(tmp_path / name) in answer["error"], (name, answer)


# Prompts and positions ------------------------------------------------------------------------------------------------


def prompt_of(text, images):
    picture_part = "<|vision_start|><|image_pad|><|vision_end|>" * images
    return f"<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{picture_part}{text}<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("vocabulary", [278, 1024, 151936])
def test_model_directory(probe, tmp_path, vocabulary):
    """AutoProcessor opens what we write, and gives the same as we do for 0 to 3 pictures."""
    ids = probe({"op": "write_model", "dir": str(tmp_path), "vocabulary": vocabulary})[0]
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"
    assert type(AutoTokenizer.from_pretrained(tmp_path)).__name__.startswith("Qwen2Tokenizer")
    assert processor.tokenizer.eos_token_id == ids["im_end"] and processor.tokenizer.pad_token_id == ids["pad"]
    for name in ("im_start", "im_end", "vision_start", "vision_end", "vision_pad", "image_pad", "video_pad"):
        assert processor.tokenizer.convert_tokens_to_ids(f"<|{name}|>") == ids[name]
    assert len(processor.tokenizer) == min(vocabulary, 151665)
    if vocabulary > 151665:
        assert (ids["pad"], ids["video_pad"]) == (151643, 151656)
        # The 22 of Qwen2.5's tokenizer_config.json, in its order.
        added = ["endoftext", "im_start", "im_end", "object_ref_start", "object_ref_end", "box_start", "box_end", "quad_start", "quad_end",
                 "vision_start", "vision_end", "vision_pad", "image_pad", "video_pad"]
        added = [f"<|{name}|>" for name in added] + ["<tool_call>", "</tool_call>"]
        added += [f"<|{name}|>" for name in ("fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "repo_name", "file_sep")]
        assert processor.tokenizer.convert_tokens_to_ids(added) == list(range(151643, 151665))
    config = Qwen2_5_VLConfig(image_token_id=ids["image_pad"], video_token_id=ids["video_pad"], vision_start_token_id=ids["vision_start"])
    holder = type("Holder", (), {"config": config, "get_vision_position_ids": Qwen2_5_VLModel.get_vision_position_ids})()
    sizes = [(60, 90), (333, 77), (112, 112)]
    paths = []
    for i, size in enumerate(sizes):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(picture(*size, seed=i)).save(paths[-1])
    cases = [(text, count) for count in range(4) for text in ("reach the red pad", "\n  把红色方块 🤖 e\u0301<|im_end|>", "")]
    requests = [{"op": "prepare", "model": str(tmp_path), "text": t, "images": paths[:n], "out": str(tmp_path / f"{i}.bin")} for i, (t, n) in enumerate(cases)]
    for i, ((text, count), answer) in enumerate(zip(cases, probe(*requests))):
        assert "error" not in answer, answer
        images = [Image.open(path) for path in paths[:count]] or None
        theirs = processor(text=[prompt_of(text, count)], images=images, return_tensors="pt")
        assert answer["input_ids"] == theirs["input_ids"][0].tolist(), (text, count)
        positions, _ = Qwen2_5_VLModel.get_rope_index(holder, theirs["input_ids"], theirs["mm_token_type_ids"], theirs.get("image_grid_thw"))
        assert answer["position_ids"] == positions.flatten().tolist(), (text, count)
        assert answer["shape"] == [len(answer["input_ids"]), sum(t * h * w for t, h, w in answer["image_grid_thw"])]
        if count:
            assert answer["image_grid_thw"] == theirs["image_grid_thw"].tolist()
            assert np.array_equal(pixels_of(tmp_path / f"{i}.bin", theirs["pixel_values"].shape[0]), theirs["pixel_values"].numpy())


def test_chat_template_writes_the_prompt(model):
    processor = AutoProcessor.from_pretrained(model[0])
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "reach the pad"}]
    made = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False)
    assert made == prompt_of("reach the pad", 2)


def test_pictures_named_in_the_instruction_are_refused(probe, model):
    for text in ("look at <|image_pad|>", "<|video_pad|>"):
        answer = probe({"op": "prepare", "model": str(model[0]), "text": text, "images": []})[0]
        assert answer["code"] == 4 and text in answer["error"]


def test_directories_that_lack_something_are_refused(probe, model, tmp_path):
    def ask():
        return probe({"op": "prepare", "model": str(tmp_path), "text": "a", "images": []})[0]

    assert "tokenizer.json" in ask()["error"]
    (tmp_path / "tokenizer.json").write_bytes((model[0] / "tokenizer.json").read_bytes())
    answer = ask()
    assert answer["code"] == 4 and "preprocessor_config.json" in answer["error"]
    config = json.loads((model[0] / "preprocessor_config.json").read_text())
    for change, named in [({"image_processor_type": "CLIPImageProcessor"}, "CLIP"), ({"resample": 2}, "resample"), ({"image_std": [0, 1, 1]}, "image_std"),
                          ({"patch_size": "x"}, "preprocessor_config"), ({"min_pixels": 10**9}, "min_pixels"), ({"do_resize": False}, "do_resize")]:  # fmt: skip
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(config | change))
        answer = ask()
        assert answer["code"] == 4 and named in answer["error"], answer


def test_nested_processor_config_goes_first(probe, model, tmp_path):
    """What transformers 5 writes: its save_pretrained nests the image processor."""
    AutoProcessor.from_pretrained(model[0]).save_pretrained(tmp_path)
    nested = json.loads((tmp_path / "processor_config.json").read_text())
    nested["image_processor"]["size"] = {"shortest_edge": 28 * 28 * 50, "longest_edge": 28 * 28 * 60}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    (tmp_path / "preprocessor_config.json").write_bytes((model[0] / "preprocessor_config.json").read_bytes())
    Image.fromarray(picture(100, 140, seed=0)).save(tmp_path / "a.png")
    answer = probe({"op": "prepare", "model": str(tmp_path), "text": "a", "images": [str(tmp_path / "a.png")]})[0]
    theirs = AutoProcessor.from_pretrained(tmp_path).image_processor(images=[Image.open(tmp_path / "a.png")], return_tensors="pt")
    assert answer["image_grid_thw"] == theirs["image_grid_thw"].tolist()
