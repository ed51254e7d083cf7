"""The objective of one plugin's training, in each recipe's form, and where its batches come from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffplugin.plugins.cards import PluginCard
from diffplugin.plugins.networks.vae import Autoencoder
from diffplugin.plugins.train import autoencoder, common, data, eq3, loop, memory, plugin, pool, variants
from diffplugin.plugins.train.settings import Settings


def build(
    task: str,
    chosen: data.Data,
    opened: data.Opened,
    settings: Settings,
    model: plugin.Denoiser,
    vae: Autoencoder,
    card: PluginCard,
    key: dict[str, object],
    precision: str,
    run: Any,
) -> tuple[nn.Module, loop.BatchSource | None, data.Held]:
    """The objective, where its batches come from (None: it draws them itself), and held-out pictures for curves."""
    recipe = settings.recipe
    objective: nn.Module
    batches: loop.BatchSource | None = None
    if recipe.eq3 and settings.loss == "latent":
        published = eq3.Published(model, vae, memory.TYPES[precision]).to(run.device)
        if recipe.gradient_checkpointing:
            memory.checkpoint_blocks(model)
        found, stream = data.streamed(opened, recipe)
        batches = stream
        if settings.cache_latents:
            kept = {name: key[name] for name in ("pairs", "base and clip")}
            kept |= {"resolution": recipe.resolution, "use_data_aug": recipe.use_data_aug}
            kept |= {name: getattr(recipe, name) for name in ("clean_share", "harder_share") if getattr(recipe, name)}
            kept |= data.own_degradation(chosen, task)
            batches = data.cached(
                chosen.work / "latents" / task, found, published, recipe, kept, restart=settings.restart
            )
        objective, held = published, opened.squares(recipe.resolution, chosen.shown)
    else:
        vae.to(run.device)
        kept = {name: key[name] for name in ("pairs", "base and clip")} | {"resolution": recipe.resolution}
        if settings.loss == "picture":
            folder, held = None, opened.squares(recipe.resolution, chosen.shown)
        else:
            folder, held = data.pooled(chosen, task, opened, recipe, vae, kept, restart=settings.restart)
        objective = _small(model, vae, folder, held[1], chosen, opened, settings, card)
    variants.freeze(model, settings.variant, finishing=settings.loss == "picture")
    if isinstance(objective, eq3.Published | plugin.Denoising):
        objective.reconstruct = settings.variant == "reconstruction"
    return objective, batches, held


def _small(
    model: plugin.Denoiser,
    vae: Autoencoder,
    folder: Path | None,
    held: Sequence[common.Pixels],
    chosen: data.Data,
    opened: data.Opened,
    settings: Settings,
    card: PluginCard,
) -> nn.Module:
    """``folder``: of latents; None: the error of the picture. ``held``: what errors of the latent are weighed on."""
    recipe = settings.recipe
    times = plugin.Times.of(card, recipe.start_share, recipe.noised_share, recipe.least_t)
    side = min(recipe.crop or recipe.resolution, recipe.resolution)
    if folder is None:
        vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        view = data.drawn(chosen, opened, recipe)
        draw = partial(pool.draw_crops, view, count=recipe.train_batch_size, side=side)
        return plugin.Restoring(
            model,
            vae,
            draw,
            times=times,
            residual=card.output == "residual",
            coring=card.coring,
            coring_peak=card.coring_peak,
        )
    if recipe.weighted:
        model.metric = autoencoder.pixel_metric(vae, [common.to_tensor(v[None]) for v in held])
    stage = plugin.Stage(until=1, pictures=recipe.train_batch_size, crops=1, side=side // data.vae_factor(vae))
    return plugin.Denoising(model, pool.Pool(folder, [chosen.degradation]), (stage,), train_base=False, times=times)
