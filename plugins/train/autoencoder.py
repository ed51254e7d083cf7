"""The small autoencoder: factor 4, four latent channels.

Few steps suffice because the latent is first pulled to whitened principal components of 4x4 patches; the pull
fades out, then the latent is whitened exactly by folding a 4x4 matrix into ``quant_conv`` and ``post_quant_conv``.
It has no middle attention (``mid_block_add_attention`` false).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from diffplugin.plugins.networks.blocks import Downsample, ResnetBlock, Upsample
from diffplugin.plugins.networks.vae import Autoencoder
from diffplugin.plugins.train.common import Pixels, gaussian, random_view, tensor_psnr, to_tensor
from diffplugin.plugins.train.loop import Report

CONFIG: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [16, 48, 96],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 1,
    "mid_block_add_attention": False,  # at factor 4 it would cost more than all the rest
    "norm_num_groups": 1,
    "sample_size": 256,
    "scaling_factor": 1.0,
}


def build(config: dict[str, Any] | None = None) -> Autoencoder:
    """A fresh autoencoder."""
    return Autoencoder(config or CONFIG)


@torch.no_grad()
def add_reference(model: Autoencoder, level: float = 8.0) -> None:
    """Start channel 0 of both streams as a constant, so that group normalisation keeps a picture's absolute brightness.

    One group over all channels would otherwise divide by statistics that differ between a crop and a whole picture. The
    constant dominates them at the start; everything stays learnable.
    """

    def constant(conv: nn.Conv2d, value: float) -> None:
        conv.weight[0] = 0
        conv.bias[0] = value  # type: ignore[index]

    for part in (model.encoder, model.decoder):
        for module in part.modules():
            if isinstance(module, Downsample | Upsample):
                constant(module.conv, level)
            elif isinstance(module, ResnetBlock):
                constant(module.conv2, 0.0)
                if module.conv_shortcut is not None:
                    constant(module.conv_shortcut, level)
        constant(part.conv_in, level)
        norms = [m.norm1 for m in part.modules() if isinstance(m, ResnetBlock)] + [part.conv_norm_out]
        for norm in norms:
            norm.weight.fill_(max(1.0, level / norm.num_channels**0.5))
            norm.bias.fill_(level / norm.num_channels)
            norm.weight[0] = norm.bias[0] = 0.0  # only the statistics see the constant


def patches(image: Tensor, factor: int = 4) -> Tensor:
    """[n, 3, H, W] -> [n, 3 * factor², h, w]."""
    return F.pixel_unshuffle(image, factor)


def principal_components(images: Tensor, channels: int = 4) -> tuple[Tensor, Tensor]:
    """Mean [48] and whitening rows [4, 48] of the leading components of 4x4 patches."""
    rows = patches(images).permute(0, 2, 3, 1).flatten(0, 2)
    mean = rows.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((rows - mean).T))
    top = vectors[:, -channels:].flip(1)
    return mean, (top / values[-channels:].flip(0).sqrt()).T


def shade(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Make some pictures dark or hazy: the encoder must describe degraded pictures too."""
    out = images.clone()
    for i in range(len(out)):
        kind = rng.random()
        if kind < 0.2:
            out[i] = (out[i] + 1) * float(rng.uniform(0.05, 0.5)) - 1
        elif kind < 0.4:
            keep = float(rng.uniform(0.2, 0.9))
            out[i] = out[i] * keep + (1 - keep) * float(rng.uniform(0.2, 1.0))
        if rng.random() < 0.15:
            out[i] += torch.from_numpy(rng.normal(0, rng.uniform(0.01, 0.08), out[i].shape)).float()
    return out.clamp(-1, 1)


class Reconstruction(nn.Module):
    """The loss of the whole autoencoder: mean squared error, little KL, noise on the latent, and the fading pull."""

    def __init__(self, model: Autoencoder, photos: list[Pixels], *, steps: int, batch: int = 8, side: int = 64) -> None:
        super().__init__()
        self.mean: Tensor
        self.rows: Tensor
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.photos, self.steps, self.batch, self.side = photos, steps, batch, side
        views = [random_view(p, 64, np.random.default_rng(i)) for i, p in enumerate(photos * 2)]
        mean, rows = principal_components(to_tensor(np.stack(views)))
        self.register_buffer("mean", mean[:, None, None], persistent=False)
        self.register_buffer("rows", rows, persistent=False)

    def images(self, step: int, rng: np.random.Generator) -> Tensor:
        """Crops [n, 3, s, s], some of them degraded; the last 30 % of the steps see four times larger ones."""
        count, side = (max(self.batch // 4, 1), 2 * self.side) if step >= 0.7 * self.steps else (self.batch, self.side)
        chosen = rng.integers(0, len(self.photos), count)
        images = shade(to_tensor(np.stack([random_view(self.photos[i], side, rng) for i in chosen])), rng)
        return images.to(self.rows.device).contiguous(memory_format=torch.channels_last)

    def forward(self, step: int, rng: np.random.Generator) -> Tensor:
        images = self.images(step, rng)
        latent, log_variance = self.model.moments(images)
        log_variance = log_variance.clamp(-12, 4)
        noise = float(rng.uniform(0, 0.1)) * gaussian(latent.shape, rng).to(latent)
        output = self.model.decode((latent + noise) * self.model.scaling).float()
        pull = max(0.0, 1 - step / (0.6 * self.steps))
        target = torch.einsum("kc,nchw->nkhw", self.rows, patches(images) - self.mean)
        kl = 0.5 * (latent.float().square() + log_variance.exp() - 1 - log_variance).mean()
        anchor = F.mse_loss(latent.float(), target)
        return F.mse_loss(output, images) + 0.02 * F.l1_loss(output, images) + 0.1 * pull * anchor + 1e-5 * kl  # type: ignore[no-any-return]


class Decoding(nn.Module):
    """The loss of the decoder alone, on slightly noisy latents: what was learned on the latents stays true."""

    def __init__(self, model: Autoencoder, photos: list[Pixels], *, batch: int = 4, side: int = 96) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last).requires_grad_(False)  # type: ignore[call-overload]
        self.model.decoder.requires_grad_(True)
        self.model.post_quant_conv.requires_grad_(True)
        self.photos, self.batch, self.side = photos, batch, side

    def forward(self, step: int, rng: np.random.Generator) -> Tensor:
        chosen = rng.integers(0, len(self.photos), self.batch)
        images = to_tensor(np.stack([random_view(self.photos[i], self.side, rng) for i in chosen]))
        images = images.to(self.model.quant_conv.weight.device).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            latent = self.model.encode(images)
            latent = latent + float(rng.uniform(0, 0.12)) * gaussian(latent.shape, rng).to(latent)
        return F.mse_loss(self.model.decode(latent).float(), images)


def quality(model: Autoencoder, photos: list[Pixels], side: int = 256) -> Report:
    """What the curves show: PSNR of reconstructed views, and the first of them beside its original."""
    views = [to_tensor(random_view(p, side, np.random.default_rng(i))[None]) for i, p in enumerate(photos)]

    def report(step: int) -> dict[str, float | NDArray[np.uint8]]:
        made = [model.decode(model.encode(view.to(model.quant_conv.weight.device))).cpu() for view in views]
        scores = [tensor_psnr(a, b) for a, b in zip(made, views, strict=True)]
        pair = torch.cat((views[0], made[0]), dim=3)[0].clamp(-1, 1).permute(1, 2, 0)
        return {"psnr": float(np.mean(scores)), "picture": ((pair + 1) * 127.5).round().to(torch.uint8).numpy()}

    return report


@torch.no_grad()
def whiten(model: Autoencoder, images: list[Tensor]) -> None:
    """Give the latents of ``images`` zero mean and unit covariance, exactly undone before the decoder."""
    rows = torch.cat([model.moments(image)[0].permute(0, 2, 3, 1).flatten(0, 2) for image in images])
    mean = rows.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((rows - mean).T))
    matrix = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    quant, post = model.quant_conv, model.post_quant_conv
    channels = len(mean)
    weight, bias = quant.weight[:channels, :, 0, 0].clone(), quant.bias[:channels].clone()  # type: ignore[index]
    quant.weight[:channels, :, 0, 0] = matrix @ weight
    quant.bias[:channels] = matrix @ (bias - mean)  # type: ignore[index]
    back = torch.linalg.inv(matrix)
    post.bias += post.weight[:, :, 0, 0] @ mean  # type: ignore[operator]
    post.weight[:, :, 0, 0] = post.weight[:, :, 0, 0] @ back


@torch.no_grad()
def pixel_metric(model: Autoencoder, images: list[Tensor], floor: float = 0.15, seed: int = 0) -> Tensor:
    """How much errors of the latent's channels show in the picture: [4, 4], trace 4, for the denoising loss.

    The decoder's mean J^T J, probed with fine and with coarse noise, mixed with ``floor`` of the identity. The latents
    are white, pictures are not: the plain loss would spend three quarters of its effort where nobody sees it.
    """
    torch.manual_seed(seed)
    channels, total = model.quant_conv.out_channels // 2, torch.zeros(())
    device = model.quant_conv.weight.device
    for image in images:
        latent = model.encode(image.to(device))
        plain = model.decode(latent)
        for cells in (latent.shape[-1], max(latent.shape[-1] // 8, 2)):
            noise = F.interpolate(torch.randn(1, 1, cells, cells), size=latent.shape[-2:], mode="bicubic")
            noise = (0.05 * noise / noise.std()).to(device)
            rows = []
            for channel in range(channels):
                moved = latent.clone()
                moved[:, channel : channel + 1] += noise
                rows.append((model.decode(moved) - plain).flatten())
            gram = (torch.stack(rows) @ torch.stack(rows).T).cpu()
            total = total + gram / gram.trace()
    return (1 - floor) * channels * total / total.trace() + floor * torch.eye(channels)
