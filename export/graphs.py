"""One tracing wrapper per graph kind: positional tensors in, the spec's outputs out.

Each module below takes the inputs of its :class:`~diffplugin.spec.GraphSpec` in order. The reference runs the same
modules, so the exported modules are those that were proved equal to the released model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from diffplugin.export.checkpoints import Checkpoint
from diffplugin.plugins.networks.taskplugin import SpatialComplementBranch
from diffplugin.plugins.networks.unet import UNet
from diffplugin.plugins.networks.vae import Autoencoder


class _UNet(nn.Module):
    """The UNet with the three residuals as separate inputs."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self, latents: Tensor, time: Tensor, tokens: Tensor, r0: Tensor, r1: Tensor, r2: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self.unet.whole(latents, time, tokens, (r0, r1, r2))


class _ShallowUNet(nn.Module):
    """Only the outermost blocks; the others are removed, with their weights."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet
        unet.down_blocks, unet.up_blocks = unet.down_blocks[:1], unet.up_blocks[-1:]
        del unet.down_blocks[0].downsamplers
        del unet.mid_block

    def forward(
        self, latents: Tensor, time: Tensor, tokens: Tensor, r0: Tensor, r1: Tensor, r2: Tensor, deep: Tensor
    ) -> Tensor:
        return self.unet.shallow(latents, time, tokens, (r0, r1, r2), deep)


class _Step(nn.Module):
    """A step of the sampler's loop (:func:`diffplugin.spec.graph_specs`), for comparison: its ONNX form is derived from
    the UNet's (:mod:`diffplugin.export.step`)."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self,
        latents: Tensor,
        cond: Tensor,
        noise: Tensor,
        last: Tensor,
        x0_1: Tensor,
        x0_2: Tensor,
        weights: Tensor,
        time: Tensor,
        tokens: Tensor,
        *residuals: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        w = iter(weights)
        x = sum(next(w) * tensor for tensor in (latents, cond, noise))
        eps = self.unet(x, time, tokens, residuals)
        x0 = sum(next(w) * tensor for tensor in (x, eps))
        corrected = sum(next(w) * tensor for tensor in (last, x, x0, x0_1, x0_2))
        latents = sum(next(w) * tensor for tensor in (corrected, x0, x0_1))
        return latents, corrected, x0


class _Encoder(nn.Module):
    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.scaling = autoencoder.scaling
        self.encoder, self.quant_conv = autoencoder.encoder, autoencoder.quant_conv

    def forward(self, image: Tensor) -> Tensor:
        mean, _ = self.quant_conv(self.encoder(image)).chunk(2, dim=1)
        return mean * self.scaling  # type: ignore[no-any-return]


class _Decoder(nn.Module):
    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.scaling = autoencoder.scaling
        self.decoder, self.post_quant_conv = autoencoder.decoder, autoencoder.post_quant_conv

    def forward(self, latents: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latents / self.scaling))  # type: ignore[no-any-return]


class Scb(nn.Module):
    def __init__(self, scb: SpatialComplementBranch) -> None:
        super().__init__()
        self.scb = scb

    def forward(self, time: Tensor, tokens: Tensor, cond: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.scb(time, tokens, cond)  # type: ignore[no-any-return]


_SHARED: dict[str, Callable[[Checkpoint], nn.Module]] = {
    "clip_text": lambda checkpoint: checkpoint.text_encoder(),
    "clip_vision": lambda checkpoint: checkpoint.vision_encoder(),
    "selector": lambda checkpoint: checkpoint.selector_heads(),
    "diagnosis": lambda checkpoint: checkpoint.load("diagnosis"),
    "vae_encoder": lambda checkpoint: _Encoder(checkpoint.autoencoder()),
    "unet": lambda checkpoint: _UNet(checkpoint.unet()),
    "unet_shallow": lambda checkpoint: _ShallowUNet(checkpoint.unet()),
    "vae_decoder": lambda checkpoint: _Decoder(checkpoint.autoencoder()),
    "tiny_encoder": lambda checkpoint: checkpoint.tiny_autoencoder().encoder,
    "tiny_decoder": lambda checkpoint: checkpoint.tiny_autoencoder().decoder,
}
_DERIVED: dict[str, Callable[[Checkpoint], nn.Module]] = {"step": lambda checkpoint: _Step(checkpoint.unet())}


def graph_keys(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Graphs of a bundle, in the order of export: ``unet``, …, ``tpb/<id>``, ``scb/<id>``, ``head/<id>``."""
    parts = {"selector": "selector", "diagnosis": "diagnosis", "tiny_encoder": "tiny_vae", "tiny_decoder": "tiny_vae"}
    shared = [kind for kind in _SHARED if kind not in parts or getattr(checkpoint, parts[kind]) is not None]
    return (*shared, *checkpoint.plugin_parts())


def kind_of(key: str) -> str:
    """``scb/deblur`` -> ``scb``."""
    return key.partition("/")[0]


def module_for(checkpoint: Checkpoint, key: str) -> nn.Module:
    """The network of one graph with its weights, float32, in evaluation mode."""
    kind, _, plugin = key.partition("/")
    with torch.no_grad():
        if kind == "tpb":
            return checkpoint.tpb(plugin)
        if kind == "scb":
            return Scb(checkpoint.scb(plugin))
        if kind == "head":
            return checkpoint.head(plugin)
        return (_SHARED | _DERIVED)[kind](checkpoint).eval()
