"""A checkpoint of Stable Diffusion 1.4's full widths with random weights, in the released layouts.

Nothing may be learned from its pictures; time and memory are those of the real model. About 5 GB, and as much again
for the bundle:

    python -m diffplugin.bench.full_width DIR
    dp-export --base DIR/base --clip DIR/clip --plugins DIR/pre-trained --out DIR/bundle
    dp-bench run --model full:DIR --out bench/results/NAME
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffplugin.export.embedded import embedded_checkpoint_folder

UNET: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
}
SCB = UNET | {"block_out_channels": [320], "down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": []}
VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
}
TEXT: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "eos_token_id": 2,
}
VISION: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
}
SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
}


def _write(folder: Path, config: Mapping[str, Any], name: str = "config.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(config, indent=1), encoding="utf-8")
    return folder


def make(out: Path, *, plugins: tuple[str, ...] = ("deblur",), seed: int = 0) -> None:
    """Write the checkpoint; weights are PyTorch's initial ones, so activations stay finite."""
    import torch
    from safetensors.torch import save_file

    from diffplugin.plugins.networks.clip import TextEncoder, VisionEncoder
    from diffplugin.plugins.networks.taskplugin import SelectorHeads, SpatialComplementBranch, TaskPromptBranch
    from diffplugin.plugins.networks.unet import UNet
    from diffplugin.plugins.networks.vae import Autoencoder

    torch.manual_seed(seed)
    base, embedded = out / "base", embedded_checkpoint_folder()
    shutil.copytree(embedded / "base" / "tokenizer", base / "tokenizer", dirs_exist_ok=True)
    vocabulary = len(json.loads((base / "tokenizer" / "vocab.json").read_text(encoding="utf-8")))
    _write(base / "scheduler", SCHEDULER, "scheduler_config.json")
    save_file(UNet(UNET).state_dict(), _write(base / "unet", UNET) / "diffusion_pytorch_model.safetensors")
    save_file(Autoencoder(VAE).state_dict(), _write(base / "vae", VAE) / "diffusion_pytorch_model.safetensors")
    text = TEXT | {"vocab_size": vocabulary}
    save_file(TextEncoder(text).state_dict(), _write(base / "text_encoder", text) / "model.safetensors")
    save_file(VisionEncoder(VISION).state_dict(), _write(out / "clip", VISION) / "model.safetensors")
    shutil.copy(embedded / "clip" / "preprocessor_config.json", out / "clip")
    for plugin in plugins:
        folder = out / "pre-trained" / plugin
        scb = _write(folder / "scb", SCB)
        torch.save(SpatialComplementBranch(SCB).state_dict(), scb / "diffusion_pytorch_model.bin")
        torch.save({"model": TaskPromptBranch(1024, 768).state_dict()}, folder / "tpb.pt")
    selector = out / "pre-trained" / "plugin_selector"
    selector.mkdir(parents=True, exist_ok=True)
    torch.save({"model": SelectorHeads(768, 768).state_dict()}, selector / "PromptTunner.pt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A full-width checkpoint with random weights.")
    parser.add_argument("out", type=Path)
    make(parser.parse_args().out)
