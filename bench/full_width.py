"""A checkpoint of Stable Diffusion 1.4's full widths with random weights, in the released layouts, with exactly the
published config files. The vocabulary is the embedded model's, whose tokens are the first of 49,408.

Nothing may be learned from its pictures; time and memory are those of the real model. About 5 GB, and as much again
for the bundle:

    python -m diffplugin.bench.full_width DIR
    dp-export --base DIR/base --clip DIR/clip --plugins DIR/pre-trained --tiny-vae DIR/tiny-vae --out DIR/bundle
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
from diffplugin.spec import ModelDims

DIMS = ModelDims(
    factor=8,
    latent_channels=4,
    residual_channels=320,
    deep_channels=640,
    time_features=320,
    tokens=256,
    token_width=768,
    vision_width=1024,
    vision_size=224,
    context=77,
    native_latent=64,
)

# The configs of CompVis/stable-diffusion-v1-4, key by key as published: its autoencoder has no norm_num_groups.
UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.12.0.dev0",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "class_embed_type": None,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "out_channels": 4,
    "resnet_time_scale_shift": "default",
    "sample_size": 64,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "upcast_attention": False,
    "use_linear_projection": False,
}
VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.2.2",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "out_channels": 3,
    "sample_size": 512,
    "scaling_factor": 0.18215,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
TEXT: dict[str, Any] = {
    "_name_or_path": "openai/clip-vit-large-patch14",
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "torch_dtype": "float32",
    "transformers_version": "4.21.0.dev0",
    "vocab_size": 49408,
}
SCHEDULER: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.7.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
VISION: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
}
PREPROCESSOR: dict[str, Any] = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 224,
}
SCB: dict[str, Any] = {
    "_class_name": "SCBNet",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320],
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
}


def _write(folder: Path, config: Mapping[str, Any], name: str = "config.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(config, indent=1), encoding="utf-8")
    return folder


def make(out: Path, *, plugins: tuple[str, ...] = ("deblur",), seed: int = 0) -> None:
    """Write the checkpoint; weights are PyTorch's initial ones, so activations stay finite."""
    import torch
    from safetensors.torch import save_file

    from diffplugin.export.checkpoints.configs import read_config
    from diffplugin.plugins.networks.clip import TextEncoder, VisionEncoder
    from diffplugin.plugins.networks.taskplugin import SelectorHeads, SpatialComplementBranch, TaskPromptBranch
    from diffplugin.plugins.networks.tiny_vae import TinyAutoencoder
    from diffplugin.plugins.networks.unet import UNet
    from diffplugin.plugins.networks.vae import Autoencoder
    from diffplugin.plugins.train.tiny_vae import config

    torch.manual_seed(seed)
    base, clip = out / "base", out / "clip"
    shutil.copytree(embedded_checkpoint_folder() / "base" / "tokenizer", base / "tokenizer", dirs_exist_ok=True)
    _write(base / "scheduler", SCHEDULER, "scheduler_config.json")
    save_file(UNet(UNET).state_dict(), _write(base / "unet", UNET) / "diffusion_pytorch_model.safetensors")
    vae = read_config("vae", VAE, "vae")[0]
    save_file(Autoencoder(vae).state_dict(), _write(base / "vae", VAE) / "diffusion_pytorch_model.safetensors")
    save_file(TextEncoder(TEXT).state_dict(), _write(base / "text_encoder", TEXT) / "model.safetensors")
    save_file(VisionEncoder(VISION).state_dict(), _write(clip, VISION) / "model.safetensors")
    _write(clip, PREPROCESSOR, "preprocessor_config.json")
    for plugin in plugins:
        folder = out / "pre-trained" / plugin
        scb = _write(folder / "scb", SCB)
        torch.save(SpatialComplementBranch(SCB).state_dict(), scb / "diffusion_pytorch_model.bin")
        torch.save({"model": TaskPromptBranch(1024, 768).state_dict()}, folder / "tpb.pt")
    selector = out / "pre-trained" / "plugin_selector"
    selector.mkdir(parents=True, exist_ok=True)
    torch.save({"model": SelectorHeads(768, 768).state_dict()}, selector / "PromptTunner.pt")
    tiny = config(VAE, width=64, blocks=3)  # TAESD's widths
    save_file(
        TinyAutoencoder(tiny).state_dict(), _write(out / "tiny-vae", tiny) / "diffusion_pytorch_model.safetensors"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A full-width checkpoint with random weights.")
    parser.add_argument("out", type=Path)
    make(parser.parse_args().out)
