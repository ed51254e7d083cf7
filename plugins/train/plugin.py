"""The denoising loss (paper Eq. 3) and the training of one Task-Plugin over a frozen base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffplugin.export.checkpoints import Checkpoint
from diffplugin.plugins.cards import PluginCard
from diffplugin.plugins.networks.attention import sinusoidal
from diffplugin.plugins.networks.clip import VisionEncoder
from diffplugin.plugins.networks.taskplugin import SpatialComplementBranch, TaskPromptBranch
from diffplugin.plugins.networks.unet import UNet, per_block
from diffplugin.plugins.networks.vae import Autoencoder
from diffplugin.plugins.train.common import gaussian
from diffplugin.plugins.train.coring import cored
from diffplugin.plugins.train.pool import Batch, Crops, Pool
from diffplugin.runtime.sampling.noise_schedule import NoiseSchedule
from diffplugin.runtime.sampling.time_features import time_settings

Configs = dict[str, dict[str, Any]]
UNSEEN = (1.5 / 255) ** 2  # mean squared error of a picture in 0..1
RENOISE_FROM = 960  # from this t on, the runtime may start from the noised input or from pure noise


class Denoiser(nn.Module):
    """Everything that the denoising loss runs through: the base's UNet and vision encoder, one TPB and one SCB."""

    def __init__(self, configs: Configs, *, hollow: bool = False) -> None:
        """``hollow``: the base's networks have no storage yet; a checkpoint's are to take their place."""
        super().__init__()
        self.metric: Tensor
        self.alpha_bar: Tensor
        unet, vision = configs["unet"], configs["vision"]
        self.time_settings = time_settings(unet)
        self.features: int = unet["block_out_channels"][0]
        schedule = NoiseSchedule.from_config(configs["scheduler"])
        self.prediction: str = schedule.prediction_type
        with torch.device("meta") if hollow else nullcontext():
            self.unet, self.vision = UNet(unet), VisionEncoder(vision)
        self.tpb = TaskPromptBranch(vision["hidden_size"], unet["cross_attention_dim"])
        self.scb = SpatialComplementBranch(configs["scb"])
        self.register_buffer("metric", torch.eye(unet["out_channels"]), persistent=False)
        self.register_buffer("alpha_bar", torch.tensor(schedule.alphas_cumprod, dtype=torch.float32), persistent=False)

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma [n, 1, 1, 1] of timesteps [n]."""
        bar = self.alpha_bar[t][:, None, None, None]
        return bar.sqrt(), (1 - bar).sqrt()

    def forward(self, latents: Tensor, t: Tensor, tokens: Tensor, cond: Tensor | None) -> Tensor:
        """The UNet's estimate [n, 4, h, w]; without ``cond`` no plugin speaks."""
        residuals = () if cond is None else self.residuals(t, tokens, cond)
        return self.denoise(latents, t, tokens, residuals)

    def time(self, t: Tensor, features: int) -> Tensor:
        """Sinusoidal features [n, ``features``] of timesteps [n]."""
        return sinusoidal(t, features, **self.time_settings)

    def residuals(self, t: Tensor, tokens: Tensor, cond: Tensor) -> Sequence[Tensor]:
        """What the SCB says at timesteps [n]."""
        return self.scb(self.time(t, self.features), tokens, cond)  # type: ignore[no-any-return]

    def denoise(self, latents: Tensor, t: Tensor, tokens: Tensor, residuals: Sequence[Tensor]) -> Tensor:
        """The UNet's estimate with these residuals (empty: without a plugin), in the type that the UNet is held in."""
        time, dtype = self.time(t, self.features), self.unet.conv_in.weight.dtype
        if dtype != torch.float32:  # frozen, in half the memory
            latents, time, tokens = (x.to(dtype) for x in (latents, time, tokens))
            residuals = [residual.to(dtype) for residual in residuals]
        return self.unet(latents, time, tokens, residuals)  # type: ignore[no-any-return]

    def tokens(self, pixels: Tensor, crops: int = 1) -> Tensor:
        """Prompt tokens [pictures * crops, 256, D] of CLIP pixels [pictures, 3, 224, 224]."""
        dtype = self.vision.vision_model.pre_layrnorm.weight.dtype
        patches = self.vision(pixels) if dtype == torch.float32 else self.vision(pixels.to(dtype)).float()
        return self.tpb(patches).repeat_interleave(crops, dim=0)  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class Times:
    """Which timesteps a training visits, biased towards those that samplers of few steps visit.

    A share ``first`` lies among the 60 below ``top``, where sampling starts; the rest from ``bottom`` up to those.
    Below 960, the noisy latent of a share ``noised`` is made from the input (at the start of sampling: of all), as the
    runtime starts (SDEdit, arXiv:2108.01073) and as it may still look a few steps later; never below ``least``, where
    so little noise is left that the input says everything.

    ``cold``: the start is the input without noise, and the way from there to the clean latent has none either: what was
    done to the picture takes its place (Cold Diffusion, arXiv:2208.09392). On that way latent and input together give
    the clean latent away, so the share ``first`` lies at its very start.
    """

    top: int = 1000
    bottom: int = 20
    first: float = 0.4
    noised: float = 0.5
    least: int = 250
    cold: bool = False

    @classmethod
    def of(cls, card: PluginCard, first: float | None, noised: float | None, least: int) -> Times:
        """The small recipe's, as a card starts; shares that are None are its own choice."""
        cold = card.start == "input"
        share = (0.75 if cold else 0.6) if first is None else first
        return cls(top=card.first_t + 1, first=share, noised=0.3 if noised is None else noised, least=least, cold=cold)

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Timesteps int64 [count], and whether each is noised from the input."""
        edge = self.top - (1 if self.cold else 60)
        start = rng.random(count) < self.first
        t = np.where(start, rng.integers(edge, self.top, count), rng.integers(self.bottom, edge, count))
        given = np.where(start & (self.top <= RENOISE_FROM), 1.0, self.noised * (t >= self.least))
        return torch.from_numpy(t), torch.from_numpy(rng.random(count) < given)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stretch of training: ``until`` this step, with ``pictures`` x ``crops`` latent crops of ``side``."""

    until: int
    pictures: int
    crops: int
    side: int


@dataclass(frozen=True)
class Estimate:
    """What the model says of noisy latents: ``clean``, its estimate of x_0 [n, 4, h, w], and ``error``, its output less
    the output that leads to the true x_0, weighted by :func:`estimate`."""

    clean: Tensor
    error: Tensor


def estimate(model: Denoiser, batch: Batch, rng: np.random.Generator, times: Times, drop: float = 0.0) -> Estimate:
    """Denoise latents such as the runtime's loop meets.

    They are made from the clean latent or from the input (:class:`Times`); at t >= 960 from the input, from the clean
    latent or of pure noise. The target always leads to the clean latent: v = (alpha * x_t - x_0) / sigma. Where x_t
    holds the input, the error counts by what it does to the clean estimate: as sigma^2, relative to the start's.
    """
    count, device = len(batch.clean), batch.clean.device
    steps, given = times.draw(count, rng)
    t, noised = steps.to(device), given.to(device)[:, None, None, None]
    alpha, sigma = model.levels(t)
    noise = gaussian(batch.clean.shape, rng).to(device)
    kind = torch.from_numpy(rng.random(count)).to(device)[:, None, None, None]
    start = torch.where(kind < 0.4, batch.cond, torch.where(kind < 0.8, torch.zeros_like(batch.clean), batch.clean))
    late = (t < RENOISE_FROM)[:, None, None, None]
    source = torch.where(late, torch.where(noised, batch.cond, batch.clean), start)
    top = model.levels(torch.tensor([times.top - 1], device=device))
    if times.cold:
        source, noise = batch.clean, top[0] / top[1] * (batch.cond - batch.clean)
    noisy = alpha * source + sigma * noise
    tokens = model.tokens(batch.pixels, batch.crops)
    output = model(noisy, t, tokens, None if rng.random() < drop else batch.cond).float()
    v = model.prediction == "v_prediction"
    toward_clean = alpha * noisy - batch.clean if v else noisy - alpha * batch.clean
    weight = torch.where(late & noised, sigma / top[1], torch.ones_like(sigma))
    clean = alpha * noisy - sigma * output if v else (noisy - sigma * output) / alpha
    return Estimate(clean, (output - toward_clean / sigma) * weight)


def denoising_loss(model: Denoiser, batch: Batch, rng: np.random.Generator, times: Times, drop: float = 0.0) -> Tensor:
    """Paper Eq. 3 over the latents of :func:`estimate`; ``model.metric`` weighs their channels (identity: the plain
    squared error)."""
    error = estimate(model, batch, rng, times, drop).error
    return torch.einsum("nchw,cd,ndhw->nchw", error, model.metric, error).mean()


def picture_loss(made: Tensor, truth: Tensor) -> Tensor:
    """Minus the mean PSNR, dB, of pictures [n, 3, h, w] in [-1, 1] (PSNRLoss of HINet, arXiv:2105.06086).

    A picture counts by the factor by which its error shrinks: one that is hardly degraded as much as a ruined one. An
    error that nobody sees (:data:`UNSEEN`) counts little: else clean pictures would decide.
    """
    return 10 * torch.log10((made - truth).square().mean(dim=(1, 2, 3)) / 4 + UNSEEN).mean()


class Denoising(nn.Module):
    """The objective of :func:`denoising_loss` over a pool, through ``stages``.

    With ``train_base`` everything learns; without it, the TPB and the SCB alone (the paper's setting).
    """

    def __init__(
        self,
        model: Denoiser,
        pool: Pool,
        stages: tuple[Stage, ...],
        *,
        train_base: bool,
        drop: float = 0.0,
        times: Times = Times(),
    ) -> None:
        super().__init__()
        self.model, self.pool, self.stages = model, pool, stages
        self.drop, self.times = drop, times
        self.reconstruct = False  # an ablation: the SCB is given the ground truth
        model.requires_grad_(train_base)
        model.tpb.requires_grad_(True)
        model.scb.requires_grad_(True)
        if train_base:
            silence_self_attention(model.unet)

    def forward(self, step: int, rng: np.random.Generator) -> Tensor:
        stage = next((s for s in self.stages if step < s.until), self.stages[-1])
        batch = self.pool.draw(rng, stage.pictures, stage.crops, stage.side).to(self.model.metric.device)
        if self.reconstruct:
            batch = replace(batch, cond=batch.clean)
        return denoising_loss(self.model, batch, rng, self.times, self.drop)


class Restoring(nn.Module):
    """The objective :func:`picture_loss` of what the decoder makes of the clean estimate; the SCB alone learns.

    The TPB stays: the selector compares requests with its tokens, so a finished plugin needs no new selector.
    ``draw(generator)`` gives the crops; ``residual``, ``coring``, ``coring_peak``: the picture is shown as such a
    card says (:class:`diffplugin.plugins.cards.PluginCard`).
    """

    def __init__(
        self,
        model: Denoiser,
        vae: Autoencoder,
        draw: Callable[[np.random.Generator], Crops],
        *,
        times: Times,
        residual: bool,
        coring: int = 0,
        coring_peak: int = 0,
    ) -> None:
        super().__init__()
        self.model, self.vae, self.draw, self.times, self.residual = model, vae, draw, times, residual
        self.coring, self.coring_peak = coring, coring_peak
        self.requires_grad_(False)
        model.scb.requires_grad_(True)

    def forward(self, step: int, rng: np.random.Generator) -> Tensor:
        crops, device = self.draw(rng), self.model.metric.device
        given, truth = crops.given.to(device), crops.truth.to(device)
        with torch.no_grad():
            cond, clean = self.vae.encode(given).float(), self.vae.encode(truth).float()
            known = self.vae.decode(cond).float() if self.residual else None
        batch = Batch(pixels=crops.pixels.to(device), clean=clean, cond=cond, crops=1)
        made = self.vae.decode(estimate(self.model, batch, rng, self.times).clean).float()
        shown = made if known is None else given + cored(made - known, self.coring, self.coring_peak)
        return picture_loss(shown, truth)


def silence_self_attention(unet: UNet) -> None:
    """Silence the middle block's self-attention: trained on small crops it would meet far more pixels at run time."""
    attention: Any = unet.mid_block.attentions[0]
    attention = attention.transformer_blocks[0].attn1
    nn.init.zeros_(attention.to_out[0].weight)
    nn.init.zeros_(attention.to_out[0].bias)
    attention.requires_grad_(False)


def scb_config(unet: dict[str, Any]) -> dict[str, Any]:
    """``scb/config.json`` that fits a base's ``unet/config.json``: its first block with cross-attention."""
    kept = ("act_fn", "cross_attention_dim", "downsample_padding", "flip_sin_to_cos", "freq_shift", "in_channels")
    more = ("layers_per_block", "mid_block_scale_factor", "norm_eps", "norm_num_groups")
    return {
        "_class_name": "SCBNet",
        "attention_head_dim": per_block(unet["attention_head_dim"], len(unet["block_out_channels"]))[0],
        "block_out_channels": list(unet["block_out_channels"][:1]),
        "down_block_types": ["CrossAttnDownBlock2D"],
        "only_cross_attention": per_block(unet.get("only_cross_attention", False), 1)[0],
        **{name: unet[name] for name in (*kept, *more) if name in unet},
    }


def from_checkpoint(
    read: Checkpoint, task: str | None, make: Callable[..., Denoiser] | None = None, *, copy_base: bool = True
) -> Denoiser:
    """The denoiser over a checkpoint's base, with the branches of ``task`` or fresh ones.

    Fresh: the SCB's output convolutions are zero (paper section 3.2), so that training starts from the base's own
    picture. With ``copy_base`` its blocks are copies of the base's first ones where those fit (the release's
    ``load_weights_from_unet``), else they are new.

    Raises:
        CheckpointError: a file is missing or does not fit.
    """
    unet = read.config("unet")
    configs = {
        "unet": unet,
        "vision": read.vision_config,
        "scheduler": read.config("scheduler"),
        "scb": read.scb_config(task) if task else scb_config(unet),
    }
    model = (make or Denoiser)(configs, hollow=True)
    model.unet, model.vision = read.unet(), read.vision_encoder()
    if task is not None:
        model.tpb.load_state_dict(read.tpb(task).state_dict())
        model.scb.load_state_dict(read.scb(task).state_dict())
        return model
    if copy_base:
        mine = model.scb.state_dict()
        theirs = {k: v for k, v in model.unet.state_dict().items() if k in mine and v.shape == mine[k].shape}
        model.scb.load_state_dict({**mine, **theirs})
    for layer in model.scb.controlnet_down_blocks.parameters():
        nn.init.zeros_(layer)
    return model
