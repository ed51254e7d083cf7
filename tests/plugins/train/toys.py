"""Toy configs that the training tests share."""

from __future__ import annotations

from typing import Any

from diffplugin.plugins.train import autoencoder, base
from diffplugin.plugins.train.plugin import scb_config

UNET = {**base.UNET, "block_out_channels": [8, 8, 16], "cross_attention_dim": 8, "attention_head_dim": 2}
TOY: dict[str, dict[str, Any]] = {
    **base.CONFIGS,
    "unet": UNET,
    "scb": scb_config(UNET),
    "vision": {
        **base.VISION,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
}
VAE = {**autoencoder.CONFIG, "block_out_channels": [4, 4, 4]}
