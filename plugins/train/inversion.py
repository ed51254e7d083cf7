"""DDIM inversion (arXiv:2010.02502, section 4.3): the start noise that an input's latent comes from, for table 3."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from diffplugin.export.checkpoints import Checkpoint
from diffplugin.plugins.networks.attention import causal_mask
from diffplugin.plugins.networks.clip import TextEncoder
from diffplugin.plugins.networks.vae import Autoencoder
from diffplugin.plugins.train.common import Pixels, to_tensor
from diffplugin.plugins.train.plugin import Denoiser
from diffplugin.plugins.train.pool import clip_pixels, shrink

# descriptions of a degraded and of a clean photo; the paper gives desnowing's as an example
DESCRIPTIONS = {
    "desnow": ("a photo of a snowy day", "a photo of a sunny day"),
    "dehaze": ("a photo of a hazy day", "a photo of a clear day"),
    "derain": ("a photo of a rainy day", "a photo of a sunny day"),
}


def text_tokens(read: Checkpoint, texts: Sequence[str]) -> Tensor:
    """Last hidden states [n, 77, D] of the base's text encoder: what a text-conditional Stable Diffusion is given."""
    from diffplugin.export.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(read.tokenizer)
    ids = torch.tensor([e.ids for e in tokenizer.encode_batch(list(texts))])
    encoder: TextEncoder = read.text_encoder()
    model = encoder.text_model
    with torch.no_grad():
        states = model.encoder(model.embeddings(ids), causal_mask(ids.shape[1], ids.device))
        return model.final_layer_norm(states)  # type: ignore[no-any-return]


def _clean(model: Denoiser, latents: Tensor, output: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """(x_0, eps) that an output means."""
    alpha, sigma = model.levels(t)
    if model.prediction == "v_prediction":
        return alpha * latents - sigma * output, sigma * latents + alpha * output
    return (latents - sigma * output) / alpha, output


@torch.no_grad()
def walk(model: Denoiser, latents: Tensor, tokens: Tensor, timesteps: Sequence[int]) -> Tensor:
    """DDIM steps without noise and without an SCB through these timesteps, upwards (inversion) or downwards."""
    for now, after in itertools.pairwise(timesteps):
        t, to = torch.full((len(latents),), now), torch.full((len(latents),), after)
        clean, eps = _clean(model, latents, model(latents, t, tokens, None).float(), t)
        alpha, sigma = model.levels(to)
        latents = alpha * clean + sigma * eps
    return latents


@torch.no_grad()
def restore(
    model: Denoiser,
    vae: Autoencoder,
    pictures: Sequence[Pixels],
    *,
    steps: int,
    texts: tuple[Tensor, Tensor] | None = None,
) -> list[Pixels]:
    """Invert each input [H, W, 3], and come back from that noise.

    Args:
        texts: tokens [1, 77, D] of the way up and of the way down ("inversion + editing"); None: the TPB's, both ways.
    """
    ladder = torch.linspace(0, len(model.alpha_bar) - 1, steps + 1).round().int().tolist()
    made = []
    for picture in pictures:
        cond = vae.encode(to_tensor(picture[None])).float()
        own = model.tokens(clip_pixels(shrink(picture)[None]))
        up, down = texts or (own, own)
        noise = walk(model, cond, up, ladder)
        image = vae.decode(walk(model, noise, down, ladder[::-1]))[0].float()
        pixels = ((image.clamp(-1, 1) / 2 + 0.5) * 255).round().to(torch.uint8)
        made.append(pixels.permute(1, 2, 0).contiguous().numpy())
    return made
