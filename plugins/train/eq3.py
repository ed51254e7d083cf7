"""The published objective: the denoising loss of paper Eq. 3, as the released training computes it.

z_t = sqrt(alpha_bar_t) z_0 + sqrt(1 - alpha_bar_t) eps with t uniform over the whole schedule and z_0 *drawn* from the
autoencoder's posterior of the ground truth; the input's latent is the posterior's mean. CLIP sees the training square
resized bilinearly to 224, without antialiasing (the runtime sees the whole picture, bicubic: paper and release alike).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffplugin.plugins.networks.vae import Autoencoder
from diffplugin.plugins.train.common import gaussian
from diffplugin.plugins.train.plugin import Denoiser
from diffplugin.plugins.train.pool import CLIP_MEAN, CLIP_STD
from diffplugin.plugins.train.stream import Images


@dataclass(frozen=True)
class Draws:
    """What chance decides in one step: timesteps int64 [n], ``noise`` (Eq. 3's eps) and ``posterior`` (which z_0 of the
    autoencoder's Gaussian), both standard normal [n, 4, h, w]."""

    t: Tensor
    noise: Tensor
    posterior: Tensor

    def to(self, device: torch.device) -> Draws:
        return Draws(self.t.to(device), self.noise.to(device), self.posterior.to(device))


@dataclass(frozen=True)
class Latents:
    """What the frozen encoders say of a batch: ``patches`` [n, 256, Dv] of the inputs, ``cond`` their scaled latents
    [n, 4, h, w], ``mean`` and ``deviation`` of the ground truths' scaled latents."""

    patches: Tensor
    cond: Tensor
    mean: Tensor
    deviation: Tensor

    def to(self, device: torch.device) -> Latents:
        return Latents(*(x.to(device) for x in (self.patches, self.cond, self.mean, self.deviation)))


def draw(count: int, latent: tuple[int, int, int], timesteps: int, rng: np.random.Generator) -> Draws:
    """Uniform timesteps in [0, ``timesteps``), and noise, from NumPy: the same on every device."""
    t = torch.from_numpy(rng.integers(0, timesteps, count))
    return Draws(t, gaussian((count, *latent), rng), gaussian((count, *latent), rng))


def clip_pixels(given: Tensor) -> Tensor:
    """[n, 3, S, S] in [-1, 1] -> CLIP's normalised [n, 3, 224, 224], bilinear as released."""
    small = F.interpolate((given + 1) / 2, size=(224, 224), mode="bilinear", align_corners=False)
    mean, deviation = (torch.tensor(v, device=given.device)[:, None, None] for v in (CLIP_MEAN, CLIP_STD))
    return (small - mean) / deviation


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Without autocast; PyTorch's meta device has none."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def eq3_loss(model: Denoiser, latents: Latents, draws: Draws) -> Tensor:
    """Mean squared error, float32, of the base's estimate against eps (or against v, where the base estimates v).

    Args:
        model: its TPB and SCB learn; the base, in whatever type it is held, does not.
        latents: of the frozen encoders, float32.
        draws: timesteps and noise.
    """
    alpha, sigma = model.levels(draws.t)
    clean = latents.mean + latents.deviation * draws.posterior
    noisy = alpha * clean + sigma * draws.noise
    tokens = model.tpb(latents.patches)
    residuals = model.residuals(draws.t, tokens, latents.cond)
    with full_precision(noisy.device):  # the base computes in the type that it is held in
        made = model.denoise(noisy, draws.t, tokens.float(), [r.float() for r in residuals])
    target = alpha * draws.noise - sigma * clean if model.prediction == "v_prediction" else draws.noise
    return F.mse_loss(made.float(), target.float())


class Published(nn.Module):
    """The objective of :func:`eq3_loss` over streamed pairs; the TPB and the SCB learn, all else is frozen.

    ``dtype``: what the frozen networks are held in; the learning branches stay float32 (autocast computes them).
    """

    def __init__(self, model: Denoiser, vae: Autoencoder, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model, self.vae, self.dtype = model, vae, dtype
        self.reconstruct = False  # an ablation: the SCB is given the ground truth
        self.requires_grad_(False)
        for frozen in (model.unet, model.vision, vae):
            if next(frozen.parameters()).dtype != dtype:
                frozen.to(dtype)
        model.tpb.requires_grad_(True)
        model.scb.requires_grad_(True)

    @torch.no_grad()
    def encode(self, images: Images) -> Latents:
        """The frozen encoders; their results are float32."""
        with full_precision(images.given.device):
            mean, log_variance = (x.float() for x in self.vae.moments(images.truth.to(self.dtype)))
            deviation = (0.5 * log_variance.clamp(-30, 20)).exp()
            cond = self.vae.encode(images.given.to(self.dtype)).float()
            patches = self.model.vision(clip_pixels(images.given).to(self.dtype)).float()
        scale = self.vae.scaling
        return Latents(patches, cond, mean * scale, deviation * scale)

    def forward(self, step: int, rng: np.random.Generator, batch: Images | Latents) -> Tensor:
        """The loss of streamed pictures, or of latents that were kept (:mod:`.cache`)."""
        here = batch.to(self.model.alpha_bar.device)
        latents = self.encode(here) if isinstance(here, Images) else here
        if self.reconstruct:
            latents = replace(latents, cond=latents.mean)
        count, *shape = latents.mean.shape
        draws = draw(count, (shape[0], shape[1], shape[2]), len(self.model.alpha_bar), rng)
        return eq3_loss(self.model, latents, draws.to(latents.mean.device))
