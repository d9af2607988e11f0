"""The stage-2 model in plain PyTorch: transformers' Qwen2.5-VL, peft's LoRA, and the action expert and sensor encoder as ordinary
modules. Parameter names equal Plimsoll's, so one file of trainable tensors serves both.

Written as one would write it for training in PyTorch: padded batches, SDPA, one VLM forward for several noise draws.
"""

import json
import math
import pathlib

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from transformers import Qwen2_5_VLForConditionalGeneration

EPSILON = 1e-6


def rms(x):
    return x * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + EPSILON)


class Gated(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        for name in "qkvo":
            setattr(self, name, nn.Linear(width, width, bias=False))

    def forward(self, x, context, mask=None):
        def split(t):
            return t.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        out = F.scaled_dot_product_attention(split(self.q(x)), split(self.k(context)), split(self.v(context)), attn_mask=mask)
        return self.o(out.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.modulation = nn.Linear(width, 9 * width)
        self.self = Attention(width, heads)
        self.cross = Attention(width, heads)
        self.mlp = Gated(width, (width * 8 // 3 + 31) // 32 * 32)

    def forward(self, x, time, context, mask):
        m = self.modulation(time).unsqueeze(1).chunk(9, -1)
        draws = x.shape[0] // context.shape[0]

        def norm(i):
            return rms(x) * (1 + m[2 * i + 1]) + m[2 * i]

        h = norm(0)
        x = x + m[6] * self.self(h, h)
        # All draws of a sample are one sequence of queries: the context is not copied.
        h = norm(1).unflatten(0, (-1, draws)).flatten(1, 2)
        x = x + m[7] * self.cross(h, context, mask).unflatten(1, (draws, -1)).flatten(0, 1)
        return x + m[8] * self.mlp(norm(2))


class Expert(nn.Module):
    def __init__(self, o, hidden):
        super().__init__()
        width = o["width"]
        rows = o["chunk"] + (o["state_dim"] > 0)
        self.options = o
        self.action_in = nn.Linear(o["action_dim"], width)
        if o["state_dim"] > 0:
            self.state_in = nn.Linear(o["state_dim"], width)
        self.row_positions = nn.Parameter(torch.zeros(rows, width))
        self.context_in = nn.Linear(hidden, width)
        self.context_positions = nn.Parameter(torch.zeros(o["max_context"], width))
        self.time_in = nn.Linear(256, width)
        self.time_out = nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(width, o["heads"]) for _ in range(o["depth"]))
        self.final_modulation = nn.Linear(width, 2 * width)
        self.action_out = nn.Linear(width, o["action_dim"])

    def time(self, t):
        scale = 1000.0 if self.options["kind"] == "flow" else 1000.0 / self.options["diffusion_steps"]
        exponents = -torch.arange(128, dtype=torch.float64, device=t.device) / 128
        angles = t.double().unsqueeze(1) * scale * torch.pow(10000.0, exponents)
        embedding = torch.cat([angles.cos(), angles.sin()], 1).float()
        return F.silu(self.time_out(F.silu(self.time_in(embedding))))

    def forward(self, noisy, t, state, hidden, lengths, sensors):
        """hidden: [B, L, H] padded, lengths: [B]; sensors: [B, K, width] or None, which follow each sample's own tokens."""
        context = self.context_in(hidden)
        tokens = sensors.shape[1] if sensors is not None else 0
        total = lengths + tokens
        if sensors is not None:
            context = F.pad(context, (0, 0, 0, tokens))
            index = (lengths.unsqueeze(1) + torch.arange(tokens, device=hidden.device)).unsqueeze(-1).expand(-1, -1, context.shape[-1])
            context = context.scatter(1, index, sensors.to(context.dtype))
        context = rms(context + self.context_positions[: context.shape[1]])
        mask = (torch.arange(context.shape[1], device=hidden.device) < total.unsqueeze(1))[:, None, None, :]
        time = self.time(t)
        x = self.action_in(noisy)
        if self.options["state_dim"] > 0:
            draws = noisy.shape[0] // state.shape[0]
            x = torch.cat([self.state_in(state).repeat_interleave(draws, 0).unsqueeze(1), x], 1)
        x = x + self.row_positions
        for block in self.blocks:
            x = block(x, time, context, mask)
        shift, scale = self.final_modulation(time).unsqueeze(1).chunk(2, -1)
        return self.action_out(rms(x) * (1 + scale) + shift)[:, -noisy.shape[1] :]


class Sensor(nn.Module):
    def __init__(self, o):
        super().__init__()
        width = o["sensor_width"]
        self.tokens = o["sensor_window"] // o["sensor_patch"]
        self.patch_in = nn.Linear(o["sensor_patch"] * o["sensor_channels"], width)
        self.positions = nn.Parameter(torch.zeros(self.tokens, width))
        self.norm = nn.RMSNorm(width, eps=EPSILON)
        self.mlp = Gated(width, 2 * width)
        self.out = nn.Linear(width, o["width"])

    def forward(self, window):
        x = self.patch_in(window.reshape(window.shape[0], self.tokens, -1)) + self.positions
        return self.out(x + self.mlp(self.norm(x)))


def cosine_alphas(steps):
    def signal(t):
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - signal((i + 1) / steps) / signal(i / steps), 0.999) for i in range(steps)]
    return torch.cumprod(1 - torch.tensor(betas, dtype=torch.float64), 0)


class Reference(nn.Module):
    """options: what reference_dump wrote. `recompute` language blocks run again in backward. Batches and results are on `device`."""

    def __init__(self, options, attention="sdpa", device="cpu"):
        super().__init__()
        self.options = options
        self.device = torch.device(device)
        dtype = torch.bfloat16 if options["bf16"] else torch.float32
        base = Qwen2_5_VLForConditionalGeneration.from_pretrained(options["model"], dtype=dtype, attn_implementation=attention)
        base.requires_grad_(False)
        if options["stage"] == 2:
            config = LoraConfig(r=options["rank"], lora_alpha=options["alpha"], lora_dropout=0.0, target_modules=options["targets"])
            self.vlm = get_peft_model(base, config)
            self.inner = self.vlm.base_model.model.model
        else:
            self.vlm = base
            self.inner = base.model
        self.expert = Expert(options, base.config.get_text_config().hidden_size)
        self.sensor = Sensor(options) if options["sensor_window"] > 0 else None
        self.register_buffer("alphas", cosine_alphas(options["diffusion_steps"]), persistent=False)
        self.image_token = base.config.image_token_id
        self.set_recompute(options["recompute"])
        self.to(self.device)

    def set_recompute(self, blocks):
        """May be called again."""
        for module in self.vlm.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = False
        if blocks == 0:
            return
        self.vlm.gradient_checkpointing_enable({"use_reentrant": False})
        self.inner.train()
        for module in self.inner.visual.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = False
        for i, layer in enumerate(self.inner.language_model.layers):
            layer.gradient_checkpointing = i < blocks

    def trainable(self):
        """name -> parameter, under Plimsoll's names."""
        named = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                named[name.removeprefix("vlm.").replace(".default", "")] = parameter
        return named

    def load(self, path):
        own, given = self.trainable(), load_file(path)
        if own.keys() != given.keys():
            raise SystemExit(f"names differ: {sorted(own.keys() ^ given.keys())[:6]}")
        with torch.no_grad():
            for name, tensor in given.items():
                own[name].copy_(tensor)

    def optimizer(self, fused=None):
        """None: torch's own choice, which on the CPU is its loop over tensors. True: the one kernel that transformers' Trainer takes."""
        o = self.options
        groups = {"vl_lr": [], "lr": []}
        for name, parameter in self.trainable().items():
            groups["vl_lr" if "lora_" in name else "lr"].append(parameter)
        return torch.optim.AdamW([{"params": p, "lr": o[lr]} for lr, p in groups.items() if p], weight_decay=o["weight_decay"], fused=fused)

    def features(self, batch):
        with torch.set_grad_enabled(self.options["stage"] == 2 and torch.is_grad_enabled()):
            return self.inner(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                position_ids=batch["position_ids"],
                pixel_values=batch["pixel_values"],
                image_grid_thw=batch["image_grid_thw"],
                mm_token_type_ids=(batch["input_ids"] == self.image_token).int(),
                use_cache=False,
            ).last_hidden_state

    def losses(self, batch):
        """Loss per sample [B]."""
        o = self.options
        with torch.autocast(self.device.type, torch.bfloat16, enabled=o["bf16"]):
            hidden = self.features(batch)
            sensors = self.sensor(batch["sensor"]) if self.sensor is not None else None
            actions = batch["actions"].repeat_interleave(o["draws"], 0)
            t, noise = batch["timesteps"], batch["noise"]
            if o["kind"] == "flow":
                signal, scale, target = 1 - t, t, noise - actions
            else:
                alpha = self.alphas[t.long()]
                signal, scale, target = alpha.sqrt().float(), (1 - alpha).sqrt().float(), noise
            noisy = signal[:, None, None] * actions + scale[:, None, None] * noise
            predicted = self.expert(noisy, t, batch["state"], hidden, batch["lengths"], sensors)
        weight = batch["action_weight"].repeat_interleave(o["draws"], 0).unsqueeze(-1)
        error = ((predicted.float() - target).square() * weight).sum((1, 2)).view(-1, o["draws"]).sum(1)
        return error / (batch["action_weight"].sum(1) * o["draws"] * o["action_dim"])


def collate(samples, device="cpu"):
    """Pads the sequences of a list of samples on the right."""
    lengths = torch.tensor([len(s["input_ids"]) for s in samples])
    longest = int(lengths.max())
    batch = {
        "lengths": lengths,
        "input_ids": torch.stack([F.pad(s["input_ids"], (0, longest - len(s["input_ids"]))) for s in samples]),
        "attention_mask": (torch.arange(longest) < lengths.unsqueeze(1)).long(),
        "position_ids": torch.stack([F.pad(s["position_ids"], (0, longest - len(s["input_ids"])), value=1) for s in samples], 1),
    }
    for name in ("pixel_values", "image_grid_thw", "noise", "timesteps"):
        batch[name] = torch.cat([s[name] for s in samples])
    for name in ("state", "sensor", "actions", "action_weight"):
        batch[name] = torch.stack([s[name] for s in samples])
    return {name: tensor.to(device) for name, tensor in batch.items()}


def read_options(folder):
    return json.loads((pathlib.Path(folder) / "options.json").read_text())


def read_batches(folder):
    """[step][sample] -> fields."""
    steps = {}
    for key, tensor in load_file(str(pathlib.Path(folder) / "batches.safetensors")).items():
        step, sample, field = key.split("/")
        steps.setdefault(int(step), {}).setdefault(int(sample), {})[field] = tensor
    return [[samples[i] for i in sorted(samples)] for _, samples in sorted(steps.items())]
