"""The denoising loss (paper Eq. 3) and the training of one Task-Plugin over a frozen base."""

from __future__ import annotations

import copy
import time as clock
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffplugin.plugins.networks.attention import sinusoidal
from diffplugin.plugins.networks.clip import VisionEncoder
from diffplugin.plugins.networks.taskplugin import SpatialComplementBranch, TaskPromptBranch
from diffplugin.plugins.networks.unet import UNet
from diffplugin.plugins.train.common import load_state, rate, save_state
from diffplugin.plugins.train.pool import Batch, Pool

RENOISE_FROM = 960  # from this t on, the runtime may start from the noised input or from pure noise


class Denoiser(nn.Module):
    """Everything that the denoising loss runs through: the base's UNet and vision encoder, one TPB and one SCB."""

    def __init__(self, configs: dict[str, dict[str, Any]]) -> None:
        super().__init__()
        unet, vision = configs["unet"], configs["vision"]
        self.flip, self.shift = unet.get("flip_sin_to_cos", True), unet.get("freq_shift", 0)
        self.features: int = unet["block_out_channels"][0]
        self.prediction: str = configs["scheduler"]["prediction_type"]
        self.unet, self.vision = UNet(unet), VisionEncoder(vision)
        self.tpb = TaskPromptBranch(vision["hidden_size"], unet["cross_attention_dim"])
        self.scb = SpatialComplementBranch(configs["scb"])
        betas = torch.linspace(
            configs["scheduler"]["beta_start"] ** 0.5,
            configs["scheduler"]["beta_end"] ** 0.5,
            configs["scheduler"]["num_train_timesteps"],
            dtype=torch.float64,
        )
        self.register_buffer("metric", torch.eye(unet["out_channels"]), persistent=False)
        self.register_buffer("alpha_bar", torch.cumprod(1 - betas**2, 0).float(), persistent=False)

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma [n, 1, 1, 1] of timesteps [n]."""
        bar = self.alpha_bar[t][:, None, None, None]  # type: ignore[index]
        return bar.sqrt(), (1 - bar).sqrt()

    def forward(self, latents: Tensor, t: Tensor, tokens: Tensor, cond: Tensor | None) -> Tensor:
        """The UNet's estimate [n, 4, h, w]; without ``cond`` no plugin speaks."""
        time = sinusoidal(t, self.features, flip_sin_to_cos=self.flip, freq_shift=self.shift)
        residuals = () if cond is None else self.scb(time, tokens, cond)
        return self.unet(latents, time, tokens, residuals)  # type: ignore[no-any-return]

    def tokens(self, pixels: Tensor, crops: int = 1) -> Tensor:
        """Prompt tokens [pictures * crops, 256, D] of CLIP pixels [pictures, 3, 224, 224]."""
        return self.tpb(self.vision(pixels)).repeat_interleave(crops, dim=0)  # type: ignore[no-any-return]


def draw_times(count: int, rng: np.random.Generator, first: float = 0.5) -> Tensor:
    """Timesteps biased towards those that samplers of few steps visit: a share ``first`` at the start."""
    high, low = rng.integers(940, 1000, count), rng.integers(150, 940, count)
    return torch.from_numpy(np.where(rng.random(count) < first, high, low))


def denoising_loss(
    model: Denoiser, batch: Batch, rng: np.random.Generator, drop: float = 0.0, first: float = 0.5
) -> Tensor:
    """Paper Eq. 3. At t >= 960 the noisy latent is made from the clean latent, from the input or is pure noise, since
    the runtime starts so; the target always leads to the clean latent: v = (alpha * x_t - x_0) / sigma.
    ``model.metric`` weighs the latent's channels (identity: the plain squared error)."""
    count = len(batch.clean)
    t = draw_times(count, rng, first)
    alpha, sigma = model.levels(t)
    noise = torch.from_numpy(rng.standard_normal(batch.clean.shape, dtype=np.float32))
    kind = torch.from_numpy(rng.random(count))[:, None, None, None]
    start = torch.where(kind < 0.4, batch.cond, torch.where(kind < 0.8, torch.zeros_like(batch.clean), batch.clean))
    source = torch.where((t >= RENOISE_FROM)[:, None, None, None], start, batch.clean)
    noisy = alpha * source + sigma * noise
    tokens = model.tokens(batch.pixels, batch.crops)
    output = model(noisy, t, tokens, None if rng.random() < drop else batch.cond)
    toward_clean = alpha * noisy - batch.clean if model.prediction == "v_prediction" else noisy - alpha * batch.clean
    error = output - toward_clean / sigma
    return torch.einsum("nchw,cd,ndhw->nchw", error, model.metric, error).mean()


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stretch of training: ``until`` this step, with ``pictures`` x ``crops`` latent crops of ``side``."""

    until: int
    pictures: int
    crops: int
    side: int


def fit(
    model: Denoiser,
    pool: Pool,
    path: Path,
    stages: tuple[Stage, ...],
    *,
    peak: float,
    train_base: bool,
    drop: float = 0.0,
    first_share: float = 0.5,
    seed: int = 0,
    decay: float = 0.995,
    every: int = 50,
    name: str = "base",
) -> Denoiser:
    """Train (or go on training from ``path``) and return the model with averaged weights.

    With ``train_base`` everything learns; without it, the TPB and the SCB alone (the paper's setting).
    """
    learned = model if train_base else nn.ModuleDict({"tpb": model.tpb, "scb": model.scb})
    model.requires_grad_(False)
    learned.requires_grad_(True)
    freeze_self_attention(model.unet)
    parameters = [p for p in learned.parameters() if p.requires_grad]
    average = copy.deepcopy(learned)
    optimiser = torch.optim.AdamW(parameters, lr=peak, weight_decay=1e-3, betas=(0.9, 0.99))
    first, steps = 0, stages[-1].until
    if (state := load_state(path)) is not None:
        learned.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        first = int(state["step"])
    rng = np.random.default_rng((seed, first))
    began, losses = clock.time(), []
    for step in range(first, steps):
        stage = next(s for s in stages if step < s.until)
        for group in optimiser.param_groups:
            group["lr"] = rate(step, steps, peak, warmup=60)
        loss = denoising_loss(model, pool.draw(rng, stage.pictures, stage.crops, stage.side), rng, drop, first_share)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        keep = min(decay, (step + 1) / (step + 10))
        with torch.no_grad():
            for a, p in zip(average.parameters(), learned.parameters(), strict=True):
                a.lerp_(p, 1 - keep)
        losses.append(loss.item())
        if (step + 1) % every == 0 or step + 1 == steps:
            state = {
                "model": learned.state_dict(),
                "average": average.state_dict(),
                "optimiser": optimiser.state_dict(),
                "step": step + 1,
            }
            save_state(path, state)
            print(
                f"{name} step {step + 1}/{steps} side {stage.side} loss {np.mean(losses):.4f} "
                f"shards {pool.refresh()} {clock.time() - began:.0f} s",
                flush=True,
            )
            losses = []
    learned.load_state_dict(average.state_dict())
    return model


def freeze_self_attention(unet: UNet) -> None:
    """Silence the middle block's self-attention: trained on small crops it would meet far more pixels at run time."""
    attention: Any = unet.mid_block.attentions[0]
    attention = attention.transformer_blocks[0].attn1
    nn.init.zeros_(attention.to_out[0].weight)
    nn.init.zeros_(attention.to_out[0].bias)
    attention.requires_grad_(False)


def load_averaged(model: Denoiser, base: Path, plugin: Path | None = None) -> Denoiser:
    """Averaged weights of a base state, and of a plugin's state over them."""
    for path, target in ((base, model), (plugin, nn.ModuleDict({"tpb": model.tpb, "scb": model.scb}))):
        if path is not None:
            state = load_state(path)
            if state is None:
                raise FileNotFoundError(f"{path}: train it first")
            target.load_state_dict(state["average"])
    return model
