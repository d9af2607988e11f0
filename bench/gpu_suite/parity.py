"""Our step beside transformers' and peft's on the same device, and beside our own on the CPU."""

from suite import PEERS, NotRun, python


def tensors_in(path):
    from safetensors.torch import load_file  # and with it torch, which takes a while

    return load_file(str(path))


def dump(suite, name, device, *words):
    """Runs our steps; (folder, tensors by name)."""
    folder = suite.work / "parity" / name
    suite.run([suite.program("reference_dump"), "--out", folder, *(("--device", device) if "--device" not in words else ()), *words],
              f"our steps, {name}")  # fmt: skip
    return folder, tensors_in(folder / "ours.safetensors")


def reference(suite, folder, device, *dtypes):
    """What PyTorch makes of the same steps, in each of the dtypes; one process, as importing takes as long as the steps."""
    outs = [folder / f"reference-{device}-{dtype}.safetensors" for dtype in dtypes]
    again = [word for dtype, out in zip(dtypes[1:], outs[1:]) for word in ("--again", dtype, out)]
    suite.run([python(), PEERS / "reference_step.py", folder, "--device", device, "--dtype", dtypes[0], "--out", outs[0], *again],
              f"PyTorch's steps, {folder.name}")  # fmt: skip
    return [tensors_in(out) for out in outs]


def distance(a, b):
    """Relative L2 of all tensors together."""
    above = sum(float((x.double() - y.double()).square().sum()) for x, y in zip(a, b))
    below = sum(float(y.double().square().sum()) for y in b)
    return (above / max(below, 1e-300)) ** 0.5


def gradients(tensors, of):
    """Of adapters ("lora") or of everything else, in the order of their names."""
    return [tensors[name] for name in sorted(tensors) if name.startswith("gradient/") and (("lora_" in name) == (of == "lora"))]


def worst(ours, theirs):
    return float(((ours - theirs).abs() / theirs.abs()).max())


def tiny(suite, section):
    """20 steps in fp32, all updates included."""
    words = ("--batch", "3", "--micro", "2", "--steps", "20", "--lr", "1e-3", "--vl-lr", "3e-4")
    model = suite.work / "parity" / "tiny"
    suite.run([suite.program("plimsoll"), "init-model", "--size", "tiny", "--dtype", "fp32", "--out", model], "a tiny model")
    _, on_cpu = dump(suite, "tiny-cpu", "cpu", "--model", model, *words)
    folder, here = dump(suite, "tiny", suite.device, "--model", model, *words)
    (theirs,) = reference(suite, folder, suite.device, "fp32")
    section.figure("tiny, fp32: 20 losses beside the CPU's, worst", worst(here["losses"], on_cpu["losses"]), "relative", at_most=1e-3)
    section.figure("tiny, fp32: 20 losses beside PyTorch's, worst", worst(here["losses"], theirs["losses"].mean(1)), "relative", at_most=1e-3)
    for of in ("lora", "expert"):
        section.figure(f"tiny, fp32: gradients of {of} beside the CPU's", distance(gradients(here, of), gradients(on_cpu, of)), "relative L2", at_most=1e-4)
        section.figure(f"tiny, fp32: gradients of {of} beside PyTorch's", distance(gradients(here, of), gradients(theirs, of)), "relative L2", at_most=1e-4)
    section.figure("tiny, fp32: hidden states beside PyTorch's", distance([here["hidden"]], [theirs["hidden"]]), "relative L2", at_most=1e-4)


def full(suite, section):
    """In bf16: how far we are from the fp32 result, and how far transformers is."""
    suite.need_model()
    s = suite.scale
    folder, ours = dump(suite, "full", suite.device, *suite.sample_words(), "--batch", "2")
    theirs, exact = reference(suite, folder, suite.device, "bf16", "fp32")
    parts = {"hidden states": lambda t: [t["hidden"]], "gradients of lora": lambda t: gradients(t, "lora"),
             "gradients of expert": lambda t: gradients(t, "expert")}  # fmt: skip
    for name, of in parts.items():
        mine, other = distance(of(ours), of(exact)), distance(of(theirs), of(exact))
        section.figure(f"{s.size}, bf16: {name}, distance from fp32", mine, "relative L2")
        section.figure(f"{s.size}, bf16: {name}, ours by transformers'", mine / max(other, 1e-12), "ratio", at_most=1.2)
    section.figure(f"{s.size}, bf16: losses beside transformers'", worst(ours["sample_losses"][0], theirs["losses"][0]), "relative", at_most=2e-2)


def run(suite, section):
    tiny(suite, section)
    try:
        full(suite, section)
    except NotRun as why:
        section.not_run("full size", str(why))
