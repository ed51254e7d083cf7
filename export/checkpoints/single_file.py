"""Checkpoints in one file, in the layout of the original Stable Diffusion code (CompVis), as front-ends exchange them.

Such a file holds the UNet below ``model.diffusion_model``, the autoencoder below ``first_stage_model`` and CLIP's text
encoder below ``cond_stage_model.transformer``, and neither configs nor a tokenizer. The configs follow from the shapes.
Settings that shapes do not show come from the original ``v1-inference.yaml``, the same for every Stable Diffusion 1.x:
8 heads, 32 groups, the latent's scale, the noise schedule.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from diffplugin.errors import CheckpointError
from diffplugin.export.checkpoints.weights import Tensors

SUFFIXES = (".safetensors", ".ckpt")
_PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "cond_stage_model.transformer.",
}
_EMA = "model_ema."
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
}


def part_of(tensors: Tensors, part: str, path: Path) -> Tensors:
    """One network of a single file under diffusers' names: ``unet``, ``vae`` or ``text_encoder``.

    Raises:
        CheckpointError: the file has no such network.
    """
    prefix = _PREFIXES[part]
    found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if not found:
        raise CheckpointError(f"{path}: no tensor begins with {prefix!r}{_other_model(tensors)}")
    if part == "unet":
        return convert_unet(averaged(found, tensors))
    return convert_vae(found) if part == "vae" else found


def _other_model(tensors: Tensors) -> str:
    """The kind of model that the file may be instead."""
    for prefix, name in (
        ("cond_stage_model.model.", "Stable Diffusion 2"),
        ("conditioner.", "Stable Diffusion XL"),
        ("model.diffusion_model.joint_blocks.", "Stable Diffusion 3"),
        ("lora_", "a LoRA"),
        ("down_blocks.", "one network of a diffusers folder: name the folder above it"),
    ):
        if any(name_.startswith(prefix) for name_ in tensors):
            return f"; it looks like {name}"
    return ", so it is no Stable Diffusion 1.x checkpoint"


def averaged(unet: Tensors, tensors: Tensors) -> Tensors:
    """The exponential moving averages of the UNet if the file has all of them: the published folders hold these (their
    other copy is named ``non_ema``)."""
    flat = {name: f"{_EMA}diffusion_model{name.replace('.', '')}" for name in unet}
    return {name: tensors[flat[name]] for name in unet} if all(n in tensors for n in flat.values()) else unet


def has_average(tensors: Tensors) -> bool:
    """Whether :func:`averaged` takes the averages."""
    prefix = _PREFIXES["unet"]
    names = [name.removeprefix(prefix).replace(".", "") for name in tensors if name.startswith(prefix)]
    return bool(names) and all(f"{_EMA}diffusion_model{name}" in tensors for name in names)


def convert_unet(tensors: Tensors) -> Tensors:
    """Names of the original UNet -> diffusers' names; a name without a counterpart stays as it is."""
    per_level = min((int(m[1]) for n in tensors if (m := re.match(r"input_blocks\.(\d+)\.0\.op\.", n))), default=3)
    return {_unet_name(name, max(per_level, 1)): value for name, value in tensors.items()}


def _unet_name(name: str, per_level: int) -> str:
    """``per_level``: blocks of a level in both paths, one more than its layers."""
    for old, new in _UNET_ENDS.items():
        if name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    if match := re.fullmatch(r"middle_block\.([012])\.(.+)", name):
        if match[1] == "1":
            return f"mid_block.attentions.0.{match[2]}"
        return f"mid_block.resnets.{int(match[1]) // 2}.{_resnet_name(match[2])}"
    if match := re.fullmatch(r"(input|output)_blocks\.(\d+)\.([012])\.(.+)", name):
        level, layer = divmod(int(match[2]) - (match[1] == "input"), per_level)
        return _block_name("down" if match[1] == "input" else "up", level, layer, match[3], match[4])
    return name


def _block_name(path: str, level: int, layer: int, place: str, rest: str) -> str:
    block = f"{path}_blocks.{level}"
    if place == "0" and rest.startswith("op."):
        return f"{block}.downsamplers.0.conv.{rest.removeprefix('op.')}"
    if place == "0":
        return f"{block}.resnets.{layer}.{_resnet_name(rest)}"
    if path == "up" and rest.startswith("conv."):
        return f"{block}.upsamplers.0.{rest}"
    return f"{block}.attentions.{layer}.{rest}"


def _resnet_name(rest: str) -> str:
    inner, _, kind = rest.rpartition(".")
    return f"{_RESNET.get(inner, inner)}.{kind}"


def convert_vae(tensors: Tensors) -> Tensors:
    """Names of the original autoencoder -> diffusers' names. Its decoder counts levels from the picture's side."""
    last = max((int(m[1]) for n in tensors if (m := re.match(r"decoder\.up\.(\d+)\.", n))), default=0)
    return {_vae_name(name, last): value for name, value in tensors.items()}


def _vae_name(name: str, last: int) -> str:
    if match := re.fullmatch(r"(encoder|decoder)\.mid\.attn_1\.(\w+)\.(\w+)", name):
        return f"{match[1]}.mid_block.attentions.0.{_VAE_ATTENTION.get(match[2], match[2])}.{match[3]}"
    if match := re.fullmatch(r"(encoder|decoder)\.mid\.block_([12])\.(.+)", name):
        new = f"{match[1]}.mid_block.resnets.{int(match[2]) - 1}.{match[3]}"
    elif match := re.fullmatch(r"encoder\.down\.(\d+)\.(?:block\.(\d+)|(downsample))\.(.+)", name):
        inner = "downsamplers.0" if match[3] else f"resnets.{match[2]}"
        new = f"encoder.down_blocks.{match[1]}.{inner}.{match[4]}"
    elif match := re.fullmatch(r"decoder\.up\.(\d+)\.(?:block\.(\d+)|(upsample))\.(.+)", name):
        inner = "upsamplers.0" if match[3] else f"resnets.{match[2]}"
        new = f"decoder.up_blocks.{last - int(match[1])}.{inner}.{match[4]}"
    else:
        new = name.replace("coder.norm_out.", "coder.conv_norm_out.")
    return new.replace(".nin_shortcut.", ".conv_shortcut.")


def config_of(part: str, tensors: Tensors, single: Tensors) -> dict[str, Any]:
    """The config derived from the shapes of a converted part, not checked; other settings are those of SD 1.x.

    Args:
        part: ``unet``, ``vae``, ``text_encoder`` or ``scheduler``.
        tensors: the part under diffusers' names.
        single: the whole file, for its markers: ``v_pred`` and ``ztsnr`` are empty tensors that training scripts write.
    """
    if part == "scheduler":
        marks = {"prediction_type": "v_prediction"} if "v_pred" in single else {}
        return SCHEDULER | marks | ({"rescale_betas_zero_snr": True} if "ztsnr" in single else {})
    return {"unet": _unet_config, "vae": _vae_config, "text_encoder": _text_config}[part](tensors)


def _unet_config(tensors: Tensors) -> dict[str, Any]:
    down, up = _count(tensors, "down_blocks"), _count(tensors, "up_blocks")
    widths = [_side(tensors, f"down_blocks.{i}.resnets.0.conv1.weight", 0) for i in range(down)]
    projections = [value for name, value in tensors.items() if name.endswith("attentions.0.proj_in.weight")]
    crossed = [name for name in tensors if name.endswith("attn2.to_k.weight")]
    return {
        "in_channels": _side(tensors, "conv_in.weight", 1),
        "out_channels": _side(tensors, "conv_out.weight", 0),
        "block_out_channels": widths,
        "layers_per_block": _count(tensors, "down_blocks.0.resnets"),
        "down_block_types": [_kind("Down", tensors, f"down_blocks.{i}") for i in range(len(widths))],
        "up_block_types": [_kind("Up", tensors, f"up_blocks.{i}") for i in range(up)],
        "cross_attention_dim": _side(tensors, crossed[0], 1) if crossed else 0,
        "use_linear_projection": bool(projections) and projections[0].ndim == 2,
        "attention_head_dim": 8,
    }


def _kind(way: str, tensors: Iterable[str], block: str) -> str:
    crossed = any(name.startswith(f"{block}.attentions.") for name in tensors)
    return f"CrossAttn{way}Block2D" if crossed else f"{way}Block2D"


def _vae_config(tensors: Tensors) -> dict[str, Any]:
    count = _count(tensors, "encoder.down_blocks")
    return {
        "block_out_channels": [
            _side(tensors, f"encoder.down_blocks.{i}.resnets.0.conv1.weight", 0) for i in range(count)
        ],
        "down_block_types": ["DownEncoderBlock2D"] * count,
        "up_block_types": ["UpDecoderBlock2D"] * _count(tensors, "decoder.up_blocks"),
        "layers_per_block": _count(tensors, "encoder.down_blocks.0.resnets"),
        "latent_channels": _side(tensors, "quant_conv.weight", 0) // 2,
    }


def _text_config(tensors: Tensors) -> dict[str, Any]:
    width = _side(tensors, "text_model.embeddings.token_embedding.weight", 1)
    return {
        "vocab_size": _side(tensors, "text_model.embeddings.token_embedding.weight", 0),
        "max_position_embeddings": _side(tensors, "text_model.embeddings.position_embedding.weight", 0),
        "hidden_size": width,
        "intermediate_size": _side(tensors, "text_model.encoder.layers.0.mlp.fc1.weight", 0),
        "num_hidden_layers": _count(tensors, "text_model.encoder.layers"),
        "num_attention_heads": max(width // 64, 1),  # of every CLIP that OpenAI published
    }


def _side(tensors: Tensors, name: str, axis: int) -> int:
    """A side of a tensor; 0 if it is missing, which the check of the config then reports."""
    value: Tensor | None = tensors.get(name)
    return value.shape[axis] if value is not None and value.ndim > axis else 0


def _count(tensors: Iterable[str], prefix: str) -> int:
    """Entries of a numbered list of modules."""
    pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.")
    return len({match[1] for name in tensors if (match := pattern.match(name))})
