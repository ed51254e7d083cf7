"""The tiny autoencoder: distilled from a base's own, whose latents it shares, in the shape of TAESD."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffplugin.export.checkpoints import Checkpoint
from diffplugin.plugins.networks.tiny_vae import TinyAutoencoder
from diffplugin.plugins.networks.vae import Autoencoder
from diffplugin.plugins.train import layout, loop, record
from diffplugin.plugins.train.autoencoder import shade
from diffplugin.plugins.train.common import Pixels, gaussian, load_photos, random_view, tensor_psnr, to_tensor

LATENT_NOISE = 0.12  # most noise on the decoder's latents: a sampler's are not the encoder's


def config(base: dict[str, Any], *, width: int, blocks: int) -> dict[str, Any]:
    """For a base's ``vae/config.json``: the same factor, ``width`` channels everywhere, one block at the picture's
    size and ``blocks`` at every other. TAESD has 64 and 3."""
    levels = len(base["block_out_channels"])
    return {
        "_class_name": "AutoencoderTiny",
        "act_fn": "relu",
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": base["latent_channels"],
        "encoder_block_out_channels": [width] * levels,
        "decoder_block_out_channels": [width] * levels,
        "num_encoder_blocks": [1] + [blocks] * (levels - 1),
        "num_decoder_blocks": [blocks] * (levels - 1) + [1],
        "latent_magnitude": 3,
        "upsampling_scaling_factor": 2,
        "scaling_factor": 1.0,
    }


class Distillation(nn.Module):
    """The loss: the encoder's latents are the base's, and the decoder's pictures are what the base decodes; so are
    those of its own latents, since a residual output subtracts them."""

    def __init__(
        self, model: TinyAutoencoder, base: Autoencoder, photos: list[Pixels], *, batch: int = 4, side: int = 96
    ) -> None:
        super().__init__()
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.base = base.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.photos, self.batch, self.side = photos, batch, side

    def forward(self, step: int, rng: np.random.Generator) -> Tensor:
        chosen = rng.integers(0, len(self.photos), self.batch)
        images = shade(to_tensor(np.stack([random_view(self.photos[i], self.side, rng) for i in chosen])), rng)
        images = images.to(next(self.model.parameters()).device).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            latents = self.base.encode(images)
            noisy = latents + float(rng.uniform(0, LATENT_NOISE)) * gaussian(latents.shape, rng).to(latents)
            target = self.base.decode(noisy).float()
        encoded, decoded = self.model.encode(images).float(), self.model.decode(noisy).float()
        through = self.model.decode(encoded.detach()).float()
        pictures = _distance(decoded, target) + 0.25 * _distance(through, images)
        return F.mse_loss(encoded, latents) + pictures


def _distance(made: Tensor, target: Tensor) -> Tensor:
    """Squared error, little absolute error, and that of neighbours' differences: edges stay sharp."""
    error = made - target
    edges = error.diff(dim=2).square().mean() + error.diff(dim=3).square().mean()
    return error.square().mean() + 0.05 * error.abs().mean() + 0.5 * edges


def quality(model: TinyAutoencoder, base: Autoencoder, photos: list[Pixels], side: int = 256) -> loop.Report:
    """What the curves show, dB: the whole tiny autoencoder against photos, its decoder against the base's, and the
    base against photos."""
    views = [to_tensor(random_view(p, side, np.random.default_rng(i))[None]) for i, p in enumerate(photos)]

    @torch.no_grad()
    def report(step: int) -> dict[str, Any]:
        device = next(model.parameters()).device
        found: dict[str, list[float]] = {"round trip": [], "decoder to base": [], "base": []}
        for view in reversed(views):  # the first one is shown
            latents = base.encode(view.to(device))
            theirs, ours = base.decode(latents).cpu(), model.decode(latents).cpu()
            through = model.decode(model.encode(view.to(device))).cpu()
            found["round trip"].append(tensor_psnr(through, view))
            found["decoder to base"].append(tensor_psnr(ours, theirs))
            found["base"].append(tensor_psnr(theirs, view))
        pair = torch.cat((view, through), 3)[0].clamp(-1, 1)
        picture = ((pair.permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8).numpy()
        return {name: float(np.mean(values)) for name, values in found.items()} | {"picture": picture}

    return report


def train(
    work: Path,
    base: Path,
    out: Path,
    *,
    steps: int,
    width: int = 64,
    blocks: int = 3,
    precision: loop.Precision = "bf16",
    restart: bool = False,
) -> None:
    """A tiny autoencoder of ``base``'s latents from the photos of ``work``, written to ``out`` as diffusers does.

    Args:
        base: diffusers folder, or a single file in the original layout.
        restart: a state made from another base or of another shape is removed.

    Raises:
        CheckpointError: the base has no autoencoder, or ``out`` cannot be written.
        RequestError: there are no photos, or the state was made from something else.
    """
    photos, held = load_photos(work, "train"), load_photos(work, "val")
    read = Checkpoint(base, base.parent / "clip", {}, None)
    teacher, shape = read.autoencoder(), config(read.config("vae"), width=width, blocks=blocks)
    state = work / "run" / "tiny_vae.pt"
    files = read.source("vae").files
    record.claim(
        state, {"base": record.weights_key(*files), "width": width, "blocks": blocks, "steps": steps}, restart=restart
    )
    torch.manual_seed(0)
    model = TinyAutoencoder(shape)
    arguments = loop.TrainingArguments(
        steps=steps, peak=2e-3, clip=0.5, clip_parts=("model.encoder", "model.decoder"), precision=precision
    )
    loop.fit(
        Distillation(model, teacher, photos), arguments, state, name="tiny-vae", report=quality(model, teacher, held)
    )
    layout.write_json(out / "config.json", shape)
    layout.write_tensors(out / "diffusion_pytorch_model.safetensors", model.state_dict())
