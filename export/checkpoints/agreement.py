"""What the parts of a checkpoint must agree on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

from diffplugin.runtime.sampling.time_features import time_settings
from diffplugin.spec import ModelDims


def pairs(
    config: Callable[[str], dict[str, Any]], parts: Collection[str], dims: ModelDims
) -> Iterator[tuple[str, Any, str, Any]]:
    """Settings that must agree: (name, value, name, value). ``config``: of a part, complete."""
    unet, text = config("unet"), config("text_encoder")
    yield "unet in_channels", unet["in_channels"], "vae latent_channels", dims.latent_channels
    yield "text_encoder hidden_size", text["hidden_size"], "unet cross_attention_dim", dims.token_width
    if "tiny_vae" in parts:
        tiny = config("tiny_vae")
        yield "tiny_vae latent_channels", tiny["latent_channels"], "vae latent_channels", dims.latent_channels
        yield "tiny_vae factor", 2 ** (len(tiny["decoder_block_out_channels"]) - 1), "vae factor", dims.factor
    for plugin in (part.removeprefix("scb/") for part in parts if part.startswith("scb/")):
        scb = config(f"scb/{plugin}")
        yield f"{plugin} scb in_channels", scb["in_channels"], "vae latent_channels", dims.latent_channels
        yield f"{plugin} scb width", scb["block_out_channels"][0], "unet width", dims.residual_channels
        yield f"{plugin} scb cross_attention_dim", scb["cross_attention_dim"], "unet's", dims.token_width
        yield f"{plugin} scb layers_per_block", scb["layers_per_block"], "what three residuals need", 2
        # one set of time features feeds both networks
        ours, theirs = dict(time_settings(scb)), dict(time_settings(unet))
        for key, value in ours.items():
            yield f"{plugin} scb {key}", value, "unet's", theirs[key]
        if f"head/{plugin}" in parts:
            head = config(f"head/{plugin}")
            yield f"{plugin} head latent_channels", head["latent_channels"], "vae's", dims.latent_channels
            yield f"{plugin} head factor", head["factor"], "vae factor", dims.factor
