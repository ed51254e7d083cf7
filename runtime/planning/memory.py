"""The memory that a run needs, and the memory available."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diffplugin.control_groups import spare_memory
from diffplugin.engines.device import OwnShares
from diffplugin.spec import ModelDims

if TYPE_CHECKING:
    from diffplugin.engines.base import EngineBuilder

Shares = tuple[float, float, float]  # of weights, UNet and autoencoder, relative to float32 in ONNX Runtime
_VALUE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
# Largest working memory of one graph run, bytes per latent pixel at SD 1.4's widths in float32, attention fused.
UNET_BYTES = 130_000
VAE_BYTES = 300_000
# Arrays as large as the picture, bytes per pixel: float32 of three channels that live at the same time (the input, the
# restored picture, its weights where it is blended; for a residual also the reconstruction and the change), and the
# 8-bit pictures that come and go. Measured on the embedded model in pieces (ONNX Runtime, one thread): 1280x1280 told
# 0.50 GiB, used 0.39; 2304x2304 told 0.75, used 0.69.
_TENSOR_BYTES, _PIXEL_BYTES = 12, 6
PHOTO_BYTES = {
    "decoded": 3 * _TENSOR_BYTES + _PIXEL_BYTES,
    "residual": 4 * _TENSOR_BYTES + _PIXEL_BYTES,
    "head": 3 * _TENSOR_BYTES + _PIXEL_BYTES,
}
# Where the change of a smaller copy is carried to the photo: its pixels before and after, and bands of floats.
CARRY_BYTES = 8
# Weights that belong to these widths, bytes in float32. A network of other widths has the square of their ratio.
_SD_CHANNELS = 320
_SD_DECODER = 198_000_000


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Memory of a run, estimated.

    Attributes:
        weights: bytes that stay.
        per_latent_pixel: bytes per latent pixel of the largest piece, because one runs at a time.
        kept_per_latent_pixel: bytes per latent pixel of *every* piece, kept from step to step.
        photo_per_latent_pixel: bytes per latent pixel of the whole picture, in arrays as large as it.
        carried: bytes for carrying the change of a smaller copy to the photo.
    """

    weights: int
    per_latent_pixel: int
    kept_per_latent_pixel: int = 0
    photo_per_latent_pixel: int = 0
    carried: int = 0

    def total(self, largest: int, together: int | None = None, picture: int | None = None) -> int:
        """Bytes, with the latent pixels of the largest piece, of all pieces together and of the picture, in which
        pieces overlap (None: the piece is the only one)."""
        kept = self.kept_per_latent_pixel * (largest if together is None else together)
        whole = self.photo_per_latent_pixel * (largest if picture is None else picture)
        return self.weights + self.per_latent_pixel * largest + kept + whole + self.carried


def kept_bytes(dims: ModelDims, *, deep: bool, residuals: bool) -> int:
    """Bytes per latent pixel, always float32, that a piece keeps between its steps.

    Args:
        deep: the UNet's deep feature is used again.
        residuals: those of the SCB are shared: residual_0 once, the other two of two timesteps.
    """
    return 4 * (deep * dims.deep_channels + residuals * 5 * dims.residual_channels)


def memory_shares(builder: EngineBuilder, precision: str) -> Shares:
    """The engine's own, else those of the precision's bytes."""
    if isinstance(builder, OwnShares):
        return builder.memory_shares(precision)
    return (_VALUE_BYTES.get(precision, 4) / 4,) * 3


def footprint(
    dims: ModelDims, weights: Mapping[str, int], *, shares: Shares = (1, 1, 1), kept: int = 0, picture: int = 0
) -> Footprint:
    """Estimate for the graphs in ``weights`` (graph key -> bytes of its weights as float32); ``shares``: of
    :func:`memory_shares`; ``kept``: of :func:`kept_bytes`; ``picture``: of :data:`PHOTO_BYTES`.

    weights = their sum x shares[0]
    per_latent_pixel = max(UNET_BYTES x C / 320 x shares[1],
        VAE_BYTES x sqrt(decoder weights / SD 1.4's) x (factor / 8)^2 x shares[2])

    C is the width of the UNet's first level. Graphs run one after another, so the largest counts. The constants were
    measured with ONNX Runtime at SD 1.4's widths: the decoder at 32 x 32 and 48 x 48 latent pixels took 200 and 275 kB
    each, the UNet at 64 x 64 about 130 kB.
    """
    unet = UNET_BYTES * dims.residual_channels / _SD_CHANNELS
    decoder = weights.get("vae_decoder", weights.get("tiny_decoder", _SD_DECODER))
    vae = VAE_BYTES * math.sqrt(decoder / _SD_DECODER)
    vae *= (dims.factor / 8) ** 2
    return Footprint(
        weights=round(sum(weights.values()) * shares[0]),
        per_latent_pixel=round(max(unet * shares[1], vae * shares[2])),
        kept_per_latent_pixel=kept,
        photo_per_latent_pixel=picture * dims.factor**2,
    )


def available_memory() -> int | None:
    """Bytes that this process may still use before the machine swaps or its control group kills it; None: unknown."""
    found = [value for value in (_machine(), spare_memory()) if value is not None]
    return min(found) if found else None


def _machine() -> int | None:
    match = re.search(r"^MemAvailable:\s+(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    if match:
        return int(match[1]) * 1024
    try:  # not Linux: half of what is built in
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):
        return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
