"""The small autoencoder: factor 4, four latent channels.

Few steps suffice because the latent is first pulled to whitened principal components of 4x4 patches; the pull
fades out, then the latent is whitened exactly by folding a 4x4 matrix into ``quant_conv`` and ``post_quant_conv``.
It has no middle attention (``mid_block_add_attention`` false).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffplugin.plugins.networks.vae import Autoencoder
from diffplugin.plugins.train.common import Pixels, load_state, psnr, random_view, rate, save_state, to_tensor

CONFIG: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [16, 32, 64],
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


def train(
    train_photos: list[Pixels],
    val_photos: list[Pixels],
    path: Path,
    *,
    steps: int,
    batch: int = 8,
    side: int = 64,
    peak: float = 2e-3,
    seed: int = 0,
) -> Autoencoder:
    """Train or resume; ``path`` holds the state. Mean squared error, little KL, noise on the latent."""
    model = build()
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=1e-4, betas=(0.9, 0.98))
    rng = np.random.default_rng(seed)
    basis = to_tensor(np.stack([random_view(p, 64, np.random.default_rng(i)) for i, p in enumerate(train_photos * 2)]))
    mean, rows = principal_components(basis)
    first = 0
    if (state := load_state(path)) is not None:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["step"]
        rng = np.random.default_rng(seed + first)
    val = to_tensor(np.stack([random_view(p, 256, np.random.default_rng(i)) for i, p in enumerate(val_photos)]))
    began = time.time()
    for step in range(first, steps):
        for group in optimiser.param_groups:
            group["lr"] = rate(step, steps, peak)
        here, count = (2 * side, max(batch // 3, 1)) if step > 0.75 * steps else (side, batch)
        chosen = rng.integers(0, len(train_photos), count)
        images = shade(to_tensor(np.stack([random_view(train_photos[i], here, rng) for i in chosen])), rng)
        latent, log_variance = model.moments(images)
        log_variance = log_variance.clamp(-12, 4)
        noisy = latent + float(rng.uniform(0, 0.1)) * torch.randn_like(latent)
        output = model.decode(noisy * model.scaling)
        pull = max(0.0, 1 - step / (0.6 * steps))
        target = torch.einsum("kc,nchw->nkhw", rows, patches(images) - mean[:, None, None])
        kl = 0.5 * (latent.square() + log_variance.exp() - 1 - log_variance).mean()
        loss = F.mse_loss(output, images) + 0.02 * F.l1_loss(output, images) + 0.1 * pull * F.mse_loss(latent, target)
        loss = loss + 1e-5 * kl
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if (step + 1) % 200 == 0 or step + 1 == steps:
            save_state(path, {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1})
            with torch.no_grad():
                score = np.mean([psnr(model.decode(model.encode(v[None])), v[None]) for v in val])
            print(
                f"vae step {step + 1}/{steps} loss {loss.item():.5f} val {score:.2f} dB {time.time() - began:.0f} s",
                flush=True,
            )
    return model


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


def refine_decoder(
    model: Autoencoder,
    clean: list[Pixels],
    val: list[Pixels],
    path: Path,
    *,
    steps: int,
    batch: int = 4,
    side: int = 96,
    peak: float = 8e-4,
    seed: int = 1,
) -> None:
    """Go on training the decoder alone, on slightly noisy latents: what was learned on the latents stays true."""
    model.requires_grad_(False)
    learned = nn.ModuleDict({"decoder": model.decoder, "post": model.post_quant_conv}).requires_grad_(True)
    optimiser = torch.optim.AdamW(learned.parameters(), lr=peak, weight_decay=1e-4, betas=(0.9, 0.98))
    first = 0
    if (state := load_state(path)) is not None:
        learned.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["step"]
    rng = np.random.default_rng((seed, first))
    held = to_tensor(np.stack([random_view(p, 256, np.random.default_rng(i)) for i, p in enumerate(val)]))
    for step in range(first, steps):
        for group in optimiser.param_groups:
            group["lr"] = rate(step, steps, peak)
        chosen = rng.integers(0, len(clean), batch)
        images = to_tensor(np.stack([random_view(clean[i], side, rng) for i in chosen]))
        with torch.no_grad():
            latent = model.encode(images)
            latent += float(rng.uniform(0, 0.12)) * torch.randn_like(latent)
        loss = F.mse_loss(model.decode(latent), images)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(learned.parameters(), 0.5)
        optimiser.step()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            save_state(path, {"model": learned.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1})
            with torch.no_grad():
                score = np.mean([psnr(model.decode(model.encode(v[None])), v[None]) for v in held])
            print(f"decoder step {step + 1}/{steps} loss {loss.item():.5f} val {score:.2f} dB", flush=True)


@torch.no_grad()
def pixel_metric(model: Autoencoder, images: list[Tensor], floor: float = 0.15, seed: int = 0) -> Tensor:
    """How much errors of the latent's channels show in the picture: [4, 4], trace 4, for the denoising loss.

    The decoder's mean J^T J, probed with fine and with coarse noise, mixed with ``floor`` of the identity. The latents
    are white, pictures are not: the plain loss would spend three quarters of its effort where nobody sees it.
    """
    torch.manual_seed(seed)
    channels, total = model.quant_conv.out_channels // 2, torch.zeros(())
    for image in images:
        latent = model.encode(image)
        plain = model.decode(latent)
        for cells in (latent.shape[-1], max(latent.shape[-1] // 8, 2)):
            noise = F.interpolate(torch.randn(1, 1, cells, cells), size=latent.shape[-2:], mode="bicubic")
            noise = 0.05 * noise / noise.std()
            rows = []
            for channel in range(channels):
                moved = latent.clone()
                moved[:, channel : channel + 1] += noise
                rows.append((model.decode(moved) - plain).flatten())
            gram = torch.stack(rows) @ torch.stack(rows).T
            total = total + gram / gram.trace()
    return (1 - floor) * channels * total / total.trace() + floor * torch.eye(channels)


def finish(model: Autoencoder, clean: list[Pixels], path: Path) -> None:
    """Whiten on views of the training photos, round to float16 (as shipped) and save the weights."""
    views = [to_tensor(random_view(p, 256, np.random.default_rng(i))[None]) for i, p in enumerate(clean[::2])]
    whiten(model, views)
    save_state(path, {"model": {name: value.half() for name, value in model.state_dict().items()}})


def load_final(path: Path) -> Autoencoder:
    """The finished autoencoder, with the rounded weights that ship."""
    state = load_state(path)
    if state is None:
        raise FileNotFoundError(f"{path}: train the autoencoder first (stage vae)")
    model = build()
    model.load_state_dict({name: value.float() for name, value in state["model"].items()})
    return model.requires_grad_(False)
