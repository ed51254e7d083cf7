"""What the curves of a denoiser show: validation photos restored with the released sampler, in PyTorch."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from diffplugin.export.measures import psnr
from diffplugin.plugins.networks.vae import Autoencoder
from diffplugin.plugins.train.common import Pixels, centre, to_tensor
from diffplugin.plugins.train.coring import cored
from diffplugin.plugins.train.degradations import degrade
from diffplugin.plugins.train.loop import Report
from diffplugin.plugins.train.plugin import Denoiser
from diffplugin.plugins.train.pool import clip_pixels, shrink
from diffplugin.runtime.sampling.loop import sample
from diffplugin.runtime.sampling.noise_schedule import NoiseSchedule
from diffplugin.runtime.sampling.samplers import unipc
from diffplugin.runtime.sampling.start_noise import normal

if TYPE_CHECKING:
    from diffplugin.plugins.cards import PluginCard
    from diffplugin.plugins.networks.head import ChangeHead


@torch.no_grad()
def final_latents(
    model: Denoiser,
    vae: Autoencoder,
    schedule: NoiseSchedule,
    given: Sequence[Pixels],
    card: PluginCard,
    *,
    noise: NDArray[np.float32],
    seen: Sequence[Pixels] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(latents of equally large inputs [n, 4, h, w], what the plugin makes of them), both scaled, as the runtime's loop
    does with this card.

    Args:
        noise: standard normal [n, 4, h, w].
        seen: pictures for the vision encoder; None: the inputs.
    """
    here, there = device_of(model), device_of(vae)
    dtype = vae.quant_conv.weight.dtype
    cond = torch.cat([vae.encode(to_tensor(p[None]).to(there, dtype)).float() for p in given]).to(here)
    tokens = torch.cat([model.tokens(clip_pixels(shrink(p)[None]).to(here)) for p in (seen or given)])
    table = unipc(schedule, card.steps_first, card.first_t)

    def denoise(i: int, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        t = torch.full((len(given),), float(table.t[i]), device=here)
        return model(torch.from_numpy(latents).to(here), t, tokens, cond).float().cpu().numpy()  # type: ignore[no-any-return]

    made = sample(table, denoise, noise, cond.cpu().numpy(), start=card.start, renoise_from_t=card.renoise_from_t)
    return cond, torch.from_numpy(made).to(here)


@torch.no_grad()
def restore(
    model: Denoiser,
    vae: Autoencoder,
    schedule: NoiseSchedule,
    pictures: Sequence[Pixels],
    card: PluginCard,
    *,
    seed: int = 42,
    head: ChangeHead | None = None,
) -> list[Pixels]:
    """Restore equally large pictures (sides a multiple of 16) as the runtime does with this card: its sampler, noise
    and steps. ``head``: of a card whose output it is."""
    there, dtype = device_of(vae), vae.quant_conv.weight.dtype
    factor = 2 ** (len(vae.encoder.down_blocks) - 1)
    sides = (side // factor for side in pictures[0].shape[:2])
    noise = np.repeat(normal(seed, (1, vae.post_quant_conv.in_channels, *sides)), len(pictures), axis=0)
    cond, latents = final_latents(model, vae, schedule, pictures, card, noise=noise)
    given = torch.cat([to_tensor(p[None]).to(there) for p in pictures])
    if card.output == "head" and head is not None:
        images = given + head(given, latents.to(there), cond.to(there)).float()
    else:
        images = torch.cat([vae.decode(z[None].to(there, dtype)).float() for z in latents])
        if card.output == "residual":
            change = images - torch.cat([vae.decode(z[None].to(there, dtype)).float() for z in cond])
            images = given + cored(change, card.coring, card.coring_peak)
    return to_pixels(images)


def to_pixels(images: torch.Tensor) -> list[Pixels]:
    """[n, 3, H, W] about [-1, 1] -> uint8 [H, W, 3] each."""
    values = (images.clamp(-1, 1) / 2 + 0.5) * 255
    return [np.ascontiguousarray(v.round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()) for v in values]


def device_of(network: nn.Module) -> torch.device:
    """Where a network's weights are."""
    return next(itertools.chain(network.parameters(), network.buffers())).device


def report_pairs(
    model: Denoiser,
    vae: Autoencoder,
    scheduler: Mapping[str, Any],
    named: Mapping[str, tuple[Sequence[Pixels], Sequence[Pixels]]],
    registry: Mapping[str, PluginCard],
) -> Report:
    """PSNR of the restored pictures by task ("psnr/derain"), and input, result and truth of each task's first one.

    ``named``: task -> (inputs, ground truths), all of one size; ``registry``: task -> how it is sampled.
    """
    schedule = NoiseSchedule.from_config(dict(scheduler))

    def report(step: int) -> dict[str, float | NDArray[np.uint8]]:
        found: dict[str, float | NDArray[np.uint8]] = {}
        columns = []
        for name, (bad, clean) in named.items():
            made = restore(model, vae, schedule, bad, registry[name])
            found[f"psnr/{name}"] = float(np.mean([psnr(m, c) for m, c in zip(made, clean, strict=True)]))
            columns.append(np.concatenate((bad[0], made[0], clean[0])))
        return {**found, "pictures": np.concatenate(columns, axis=1)}

    return report


def report(
    model: Denoiser,
    vae: Autoencoder,
    scheduler: Mapping[str, Any],
    registry: Mapping[str, PluginCard],
    photos: Sequence[Pixels],
    *,
    side: int = 256,
) -> Report:
    """:func:`report_pairs` of the central squares of photos, degraded for each task."""
    clean = [centre(p, side) for p in photos]
    named = {task: ([degrade(c, task, 5000 + i) for i, c in enumerate(clean)], clean) for task in registry}
    return report_pairs(model, vae, scheduler, named, registry)
