"""Ablated Task-Plugins (paper tables 3 and 4): one branch, an SCB that reconstructs, residuals at other places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diffplugin.errors import RequestError
from diffplugin.plugins.networks.taskplugin import SpatialComplementBranch
from diffplugin.plugins.train.plugin import Configs, Denoiser

# what learns: the released plugin, one branch alone, an SCB on self-reconstruction, a TPB over such an SCB
BRANCHES: dict[str, tuple[str, ...]] = {
    "released": ("tpb", "scb"),
    "scb": ("scb",),
    "tpb": ("tpb",),
    "reconstruction": ("scb",),
    "tpb-fixed-scb": ("tpb",),
}
PLACES = tuple(f"{side}-{stage}" for side in "ED" for stage in (1, 2, 3, 4))  # E-1 .. E-4, D-1 .. D-4
VARIANTS = (*BRANCHES, *(place for place in PLACES if place != "D-1"))


def exports(variant: str) -> bool:
    """The released layout, and so a bundle, can hold it: residuals enter at D-1."""
    return variant in BRANCHES


def maker(variant: str) -> Callable[..., Denoiser]:
    """What makes the denoiser of a variant.

    Raises:
        RequestError: no variant of that name.
    """
    if variant in BRANCHES:
        return Denoiser
    if variant in PLACES:
        return partial(Placed, place=variant)
    raise RequestError(f"variant {variant!r}: expected one of {', '.join(VARIANTS)}")


def prepare(model: Denoiser, variant: str, *, fresh: bool) -> None:
    """Silence what a variant has not: without a TPB, its tokens are zeros and say nothing of the task."""
    if variant in ("scb", "reconstruction") and fresh:
        last: Any = model.tpb.visual_projection[-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)


def freeze(model: Denoiser, variant: str, *, finishing: bool = False) -> None:
    """What of the plugin learns; ``finishing``: not the TPB, where there is an SCB (:class:`.plugin.Restoring`)."""
    learn = BRANCHES.get(variant, ("tpb", "scb"))
    if finishing and "scb" in learn:
        learn = ("scb",)
    model.tpb.requires_grad_("tpb" in learn)
    model.scb.requires_grad_("scb" in learn)


class Placed(Denoiser):
    """Residuals at another stage of the base than the last of its decoder (paper table 4).

    ``D-i`` adds them to the three skips that stage i of the decoder takes; ``E-i`` to stage i of the encoder on the way
    down, skips and main stream both, as a T2I-Adapter's are (arXiv:2302.08453). Stage 1 is the shallowest. The SCB has
    the stage's width and reads the input's latent averaged down to the stage's size.
    """

    def __init__(self, configs: Configs, place: str, *, hollow: bool = False) -> None:
        super().__init__(configs, hollow=hollow)
        unet = configs["unet"]
        side, number = place.split("-")
        self.place, self.encoder, self.stage = place, side == "E", int(number) - 1
        widths = list(unet["block_out_channels"])
        if self.stage >= len(widths):
            raise RequestError(f"{place}: the base has {len(widths)} stages")
        width = widths[self.stage]
        self.scb = SpatialComplementBranch({**configs["scb"], "block_out_channels": [width]})
        self.width, before = width, widths[max(self.stage - 1, 0)]
        outputs = self.scb.controlnet_down_blocks
        outputs[0] = nn.Conv2d(width, before if self.stage else width, 1)
        layers = unet["layers_per_block"]
        # conv_in, then the layers and the stride-2 convolution of every stage
        self.first_skip = 0 if self.stage == 0 else self.stage * (layers + 1)

    def residuals(self, t: Tensor, tokens: Tensor, cond: Tensor) -> Sequence[Tensor]:
        small = nn.functional.avg_pool2d(cond, 2**self.stage, ceil_mode=True) if self.stage else cond
        return self.scb(self.time(t, self.width), tokens, small)  # type: ignore[no-any-return]

    def denoise(self, latents: Tensor, t: Tensor, tokens: Tensor, residuals: Sequence[Tensor]) -> Tensor:
        if not residuals:
            return super().denoise(latents, t, tokens, residuals)
        if not self.encoder:
            nothing = [torch.zeros((), device=latents.device)] * self.first_skip
            return super().denoise(latents, t, tokens, [*nothing, *residuals])
        stage: Any = self.unet.down_blocks[self.stage]
        above: Any = self.unet.down_blocks[self.stage - 1]
        entry = self.unet.conv_in if self.stage == 0 else above.downsamplers[0]
        with ExitStack() as hooks:
            for place, residual in zip((entry, *getattr(stage, "attentions", stage.resnets)), residuals, strict=True):
                hooks.enter_context(_adding(place, residual))
            return super().denoise(latents, t, tokens, ())


def _adding(place: nn.Module, residual: Tensor) -> Any:
    return place.register_forward_hook(lambda _, __, made: made + residual.to(made.dtype))
