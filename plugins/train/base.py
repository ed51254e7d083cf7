"""The small base: its configs in the released layouts."""

from __future__ import annotations

import dataclasses
from typing import Any

from diffplugin.plugins.cards import PluginCard, shipped_cards
from diffplugin.plugins.train import autoencoder
from diffplugin.plugins.train.plugin import scb_config

TOKEN_WIDTH = 96
_DOWN = ["DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"]

UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "attention_head_dim": 1,  # the number of heads: each costs as much as the first
    "block_out_channels": [64, 96, 128],
    "center_input_sample": False,
    "cross_attention_dim": TOKEN_WIDTH,
    "down_block_types": _DOWN,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-5,
    "norm_num_groups": 4,
    "only_cross_attention": True,
    "out_channels": 4,
    "sample_size": 128,  # whole pictures up to 512 pixels sampled as well as tiles of 256 or better
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
}
VISION: dict[str, Any] = {
    "architectures": ["CLIPVisionModel"],
    "model_type": "clip_vision_model",
    "attention_dropout": 0.0,
    "hidden_act": "quick_gelu",
    "hidden_size": 96,
    "image_size": 224,
    "intermediate_size": 384,
    "layer_norm_eps": 1e-5,
    "num_attention_heads": 4,
    "num_channels": 3,
    "num_hidden_layers": 4,
    "patch_size": 14,
    "projection_dim": TOKEN_WIDTH,
}
SCHEDULER: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
SCB = scb_config(UNET)
CONFIGS: dict[str, dict[str, Any]] = {
    "unet": UNET,
    "scb": SCB,
    "vision": VISION,
    "scheduler": SCHEDULER,
    "vae": autoencoder.CONFIG,
}
LICENCE = "Embedded default model, trained by this project on freely licensed photographs: docs/embedded-model.md."
# Where the small model's cards differ from the shipped ones. One step scored best (docs/embedded-model.md). The less a
# degradation changes, the less noise it takes to undo.
_CARD: dict[str, Any] = {"steps_first": 1, "steps_chained": 1, "output": "residual", "licence": LICENCE}
_START: dict[str, dict[str, Any]] = {
    "derain": {"start": "noised_input", "first_t": 600, "coring": 12},
    "desnow": {"start": "noised_input", "first_t": 500, "coring": 12},
    "deblur": {"start": "input", "first_t": 120, "coring": 3},
    "highlight": {"start": "input", "first_t": 180, "coring": 6, "coring_peak": 30},
    "face": {"start": "input", "first_t": 180, "coring": 5},
    "demoire": {"start": "input", "first_t": 150, "coring_peak": 4},
}
# The scale at which each task lives, measured (docs/speed.md).
_SCALE: dict[str, dict[str, Any]] = {
    "derain": {"work_size": 1024, "guided": True, "fine": True},
    **{task: {"work_size": 1024, "fine": True} for task in ("desnow", "demoire", "face")},
    "deblur": {"work_size": 768},
    "dehaze": {"work_size": 512, "piece_size": 384, "guided": True},
    **{task: {"work_size": 512, "guided": True} for task in ("lowlight", "highlight")},
}


def card(task: str) -> PluginCard:
    """The card of a plugin over the small base, for one of the eight tasks."""
    return dataclasses.replace(shipped_cards()[task], **(_CARD | _START.get(task, {}) | _SCALE[task]))
