"""A checkpoint of the smallest widths with random weights, whose config files have the keys of published ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from diffplugin.export.embedded import embedded_checkpoint_folder
from diffplugin.plugins.networks.clip import TextEncoder, VisionEncoder
from diffplugin.plugins.networks.taskplugin import SelectorHeads, SpatialComplementBranch, TaskPromptBranch
from diffplugin.plugins.networks.unet import UNet
from diffplugin.plugins.networks.vae import Autoencoder

Config = dict[str, Any]
PUBLISHED = Path(__file__).resolve().parents[2] / "data" / "published-configs.json"
WIDTHS, TOKENS, VISION = [32, 64], 16, 16
_SMALL: dict[str, Config] = {
    "unet/config.json": {
        "block_out_channels": WIDTHS,
        "cross_attention_dim": TOKENS,
        "layers_per_block": 2,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    },
    "vae/config.json": {
        "block_out_channels": [32, 32],
        "layers_per_block": 1,
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
    },
    "text_encoder/config.json": {
        "hidden_size": TOKENS,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
    },
}
CLIP: Config = {
    "architectures": ["CLIPVisionModel"],
    "attention_dropout": 0.0,
    "hidden_act": "quick_gelu",
    "hidden_size": VISION,
    "image_size": 224,
    "intermediate_size": 32,
    "layer_norm_eps": 1e-05,
    "model_type": "clip_vision_model",
    "num_attention_heads": 2,
    "num_channels": 3,
    "num_hidden_layers": 1,
    "patch_size": 56,
}
SCB: Config = {
    "_class_name": "SCBNet",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": WIDTHS[:1],
    "class_embed_type": None,
    "cross_attention_dim": TOKENS,
    "down_block_types": ["CrossAttnDownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_time_scale_shift": "default",
    "upcast_attention": False,
    "use_linear_projection": False,
}


def published() -> dict[str, dict[str, Config]]:
    """Config files by model and path, as published (the vocabulary left out)."""
    value: dict[str, dict[str, Config]] = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    return value


def write_tiny(root: Path, model: str = "Stable Diffusion 1.4") -> Path:
    """``root/{base,clip,pre-trained}``: the configs of a published model with the widths made small. A file that the
    table does not have for this model is that of 1.4."""
    torch.manual_seed(0)
    base, all_configs = root / "base", published()
    configs = {**all_configs["Stable Diffusion 1.4"], **all_configs[model]}
    shutil.copytree(embedded_checkpoint_folder() / "base" / "tokenizer", base / "tokenizer")
    vocabulary = len(json.loads((base / "tokenizer" / "vocab.json").read_text(encoding="utf-8")))
    for name, config in configs.items():
        write_json(base / name, {**config, **_SMALL.get(name, {})})
    text = base / "text_encoder" / "config.json"
    write_json(text, json.loads(text.read_text()) | {"vocab_size": vocabulary})
    for part, make in (("unet", UNet), ("vae", Autoencoder), ("text_encoder", TextEncoder)):
        config = {"norm_num_groups": 32} | json.loads((base / part / "config.json").read_text())
        name = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        save_file(make(config).state_dict(), base / part / f"{name}.safetensors")
    write_json(root / "clip" / "config.json", CLIP)
    write_json(root / "clip" / "preprocessor_config.json", configs["feature_extractor/preprocessor_config.json"])
    save_file(VisionEncoder(CLIP).state_dict(), root / "clip" / "model.safetensors")
    plugin = root / "pre-trained" / "deblur"
    write_json(plugin / "scb" / "config.json", SCB)
    torch.save(SpatialComplementBranch(SCB).state_dict(), plugin / "scb" / "diffusion_pytorch_model.bin")
    torch.save({"model": TaskPromptBranch(VISION, TOKENS).state_dict()}, plugin / "tpb.pt")
    selector = root / "pre-trained" / "plugin_selector"
    selector.mkdir()
    torch.save({"model": SelectorHeads(TOKENS, TOKENS).state_dict()}, selector / "PromptTunner.pt")
    return root


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def copy_linked(source: Path, out: Path, but: Path) -> Path:
    """A copy of ``source`` made of links, with ``but`` (relative) a file of its own."""
    for path in source.rglob("*"):
        place = out / path.relative_to(source)
        if path.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        elif path.relative_to(source) == but:
            shutil.copyfile(path, place)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path)
    return out
