"""The denoising loss (paper Eq. 3) and the training of one Task-Plugin over a frozen base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffplugin.export.checkpoints import Checkpoint
from diffplugin.plugins.networks.attention import sinusoidal
from diffplugin.plugins.networks.clip import VisionEncoder
from diffplugin.plugins.networks.taskplugin import SpatialComplementBranch, TaskPromptBranch
from diffplugin.plugins.networks.unet import UNet, per_block
from diffplugin.plugins.train.common import gaussian
from diffplugin.plugins.train.pool import Batch, Pool

RENOISE_FROM = 960  # from this t on, the runtime may start from the noised input or from pure noise


class Denoiser(nn.Module):
    """Everything that the denoising loss runs through: the base's UNet and vision encoder, one TPB and one SCB."""

    def __init__(self, configs: dict[str, dict[str, Any]]) -> None:
        super().__init__()
        self.metric: Tensor
        self.alpha_bar: Tensor
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
        bar = self.alpha_bar[t][:, None, None, None]
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


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stretch of training: ``until`` this step, with ``pictures`` x ``crops`` latent crops of ``side``."""

    until: int
    pictures: int
    crops: int
    side: int


def denoising_loss(
    model: Denoiser, batch: Batch, rng: np.random.Generator, drop: float = 0.0, first: float = 0.5
) -> Tensor:
    """Paper Eq. 3. At t >= 960 the noisy latent is made from the clean latent, from the input or is pure noise, since
    the runtime starts so; the target always leads to the clean latent: v = (alpha * x_t - x_0) / sigma.
    ``model.metric`` weighs the latent's channels (identity: the plain squared error)."""
    count, device = len(batch.clean), batch.clean.device
    t = draw_times(count, rng, first).to(device)
    alpha, sigma = model.levels(t)
    noise = gaussian(batch.clean.shape, rng).to(device)
    kind = torch.from_numpy(rng.random(count)).to(device)[:, None, None, None]
    start = torch.where(kind < 0.4, batch.cond, torch.where(kind < 0.8, torch.zeros_like(batch.clean), batch.clean))
    source = torch.where((t >= RENOISE_FROM)[:, None, None, None], start, batch.clean)
    noisy = alpha * source + sigma * noise
    tokens = model.tokens(batch.pixels, batch.crops)
    output = model(noisy, t, tokens, None if rng.random() < drop else batch.cond).float()
    toward_clean = alpha * noisy - batch.clean if model.prediction == "v_prediction" else noisy - alpha * batch.clean
    error = output - toward_clean / sigma
    return torch.einsum("nchw,cd,ndhw->nchw", error, model.metric, error).mean()


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
        first_share: float = 0.5,
    ) -> None:
        super().__init__()
        self.model, self.pool, self.stages = model, pool, stages
        self.drop, self.first_share = drop, first_share
        model.requires_grad_(train_base)
        model.tpb.requires_grad_(True)
        model.scb.requires_grad_(True)
        if train_base:
            silence_self_attention(model.unet)

    def forward(self, step: int, rng: np.random.Generator) -> Tensor:
        stage = next((s for s in self.stages if step < s.until), self.stages[-1])
        batch = self.pool.draw(rng, stage.pictures, stage.crops, stage.side).to(self.model.metric.device)
        return denoising_loss(self.model, batch, rng, self.drop, self.first_share)


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


def from_checkpoint(read: Checkpoint, task: str | None) -> Denoiser:
    """The denoiser over a checkpoint's base, with the branches of ``task`` or fresh ones.

    Fresh: the SCB's blocks are copies of the base's first ones where those fit, and its output convolutions are zero
    (paper section 3.2), so that training starts from the base's own picture.

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
    model = Denoiser(configs)
    model.unet.load_state_dict(read.unet().state_dict())
    model.vision.load_state_dict(read.vision_encoder().state_dict())
    if task is not None:
        model.tpb.load_state_dict(read.tpb(task).state_dict())
        model.scb.load_state_dict(read.scb(task).state_dict())
        return model
    mine = model.scb.state_dict()
    theirs = {k: v for k, v in model.unet.state_dict().items() if k in mine and v.shape == mine[k].shape}
    model.scb.load_state_dict({**mine, **theirs})
    for layer in model.scb.controlnet_down_blocks.parameters():
        nn.init.zeros_(layer)
    return model
