"""Feature vectors of pictures for FID and KID, from networks that the user has; nothing is downloaded.

Two extractors, both with the resizing of clean-fid's ``clean`` mode (arXiv:2104.11222: antialiased bicubic, not
rounded to eight bits for Inception): the Inception network of ``inception-2015-12-05.pt``, and CLIP ViT-B/32, which the
released evaluation takes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diffplugin.errors import CheckpointError, MissingDependency
from diffplugin.plugins.train.pool import clip_pixels, shrink

Pixels = NDArray[np.uint8]
Extractor = Callable[[Pixels], NDArray[np.float64]]
INCEPTION_SIDE = 299
_CLASSES = (1000, 1001, 1008)  # outputs of Inception's classifiers: probabilities, no features


def open_extractor(place: Path) -> Extractor:
    """A function of a picture [H, W, 3] that returns its feature vector.

    Args:
        place: a TorchScript file: ``inception-2015-12-05.pt``, or any network that takes float32 [n, 3, 299, 299] in
            0..255 and returns [n, k]; or a transformers folder of CLIP with its projection
            (``openai/clip-vit-base-patch32``).

    Raises:
        CheckpointError: neither, or the network returns no feature vectors.
        MissingDependency: a CLIP folder without transformers.
    """
    extract = _clip(place) if place.is_dir() else _inception(place)
    _check(extract, place)
    return extract


def _inception(place: Path) -> Extractor:
    try:
        network = torch.jit.load(str(place), map_location="cpu").eval()  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{place}: neither a TorchScript network nor a CLIP folder ({str(error).splitlines()[0]})"
        ) from None
    arguments = {argument.name for argument in network.forward.schema.arguments}

    @torch.no_grad()
    def extract(pixels: Pixels) -> NDArray[np.float64]:
        image = torch.from_numpy(clean_resized(pixels, INCEPTION_SIDE).transpose(2, 0, 1)[None].copy())
        if hasattr(network, "layers"):  # NVIDIA's file: its own forward would resize once more
            found: Tensor = network.layers((image - 128) / 128)
        elif "return_features" in arguments:
            found = network(image, return_features=True)
        else:
            found = network(image)
        return _vector(found, place)

    return extract


def _clip(place: Path) -> Extractor:
    try:
        from transformers import CLIPVisionModelWithProjection
    except ImportError:
        raise MissingDependency(
            f"{place}: CLIP features need transformers: pip install 'diffplugin[measures]'"
        ) from None
    try:
        network: Any = CLIPVisionModelWithProjection.from_pretrained(str(place), local_files_only=True).eval()
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{place}: no CLIP vision network with projection ({str(error).splitlines()[0]})"
        ) from None
    side = network.config.image_size

    @torch.no_grad()
    def extract(pixels: Pixels) -> NDArray[np.float64]:
        return _vector(network(clip_pixels(shrink(pixels, side)[None])).image_embeds, place)

    return extract


def clean_resized(pixels: Pixels, side: int) -> NDArray[np.float32]:
    """[H, W, 3] -> [side, side, 3]: bicubic with antialiasing, channel by channel in float32, in 0..255."""
    channels = [
        np.asarray(Image.fromarray(pixels[..., c].astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC))
        for c in range(3)
    ]
    return np.stack(channels, axis=-1).clip(0, 255)


def _vector(found: Any, place: Path) -> NDArray[np.float64]:
    if not isinstance(found, Tensor) or len(found) != 1:
        what = f"a tensor {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise CheckpointError(f"{place}: returns {what} for one picture, expected a feature vector [1, k]")
    values = found.float().flatten(1)[0].numpy().astype(np.float64)
    if found.ndim > 2 and values.size != found.shape[1]:
        raise CheckpointError(f"{place}: returns maps {tuple(found.shape)}, expected a feature vector [1, k]")
    return values


def _check(extract: Extractor, place: Path) -> None:
    """Probabilities are no features: they sum to one, and a Fréchet distance of them is next to nothing."""
    rng = np.random.default_rng(0)
    rows = np.stack([extract(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(2)])
    width = rows.shape[1]
    if not np.isfinite(rows).all():
        raise CheckpointError(f"{place}: returns values that are not finite")
    if np.allclose(rows.sum(axis=1), 1, atol=1e-3) and (rows >= 0).all():
        raise CheckpointError(f"{place}: returns {width} probabilities, expected features: take another output of it")
    if width in _CLASSES:
        raise CheckpointError(f"{place}: returns {width} class scores, expected features: take another output of it")
    if width < 2 or np.allclose(rows[0], rows[1]):
        raise CheckpointError(f"{place}: returns the same {width} value(s) for different pictures, expected features")
