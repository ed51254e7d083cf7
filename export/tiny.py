"""What a tiny autoencoder loses beside the base's own: measured at export, kept in the bundle's report."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from diffplugin.export.measures import psnr, synthetic_photo
from diffplugin.spec import Array

if TYPE_CHECKING:
    from diffplugin.bundle import Bundle
    from diffplugin.engines.base import EngineBuilder

SIDE = 192  # of the picture, px
CHANGE = 0.9  # of the light, what a plugin may do to the picture


def compare_tiny(bundle: Bundle, builder: EngineBuilder, precision: str) -> dict[str, float]:
    """PSNR in dB, on one picture x: of D(E(x)) for the base's autoencoder and for the tiny one, and of a change.

    The change is the picture at 90 % of its light, as a residual output makes it: x + D(E(0.9 x)) - D(E(x)). Most of
    the error of D falls out of the difference.
    """
    engines = {
        key: builder.load(bundle, key, precision=precision, threads=None, cache=None)
        for key in ("vae_encoder", "vae_decoder", "tiny_encoder", "tiny_decoder")
    }

    def through(name: str, image: Array) -> Array:
        latents = engines[f"{name}_encoder"].run({"image": image})["cond"]
        return engines[f"{name}_decoder"].run({"latents": latents})["image"]

    try:
        photo = synthetic_photo(SIDE, SIDE).astype(np.float32).transpose(2, 0, 1)[None]
        image, darker = (np.ascontiguousarray(light * photo / 127.5 - 1, np.float32) for light in (1.0, CHANGE))
        found = {}
        for name in ("vae", "tiny"):
            whole = through(name, image)
            found[f"{name}_db"] = _db(whole, image)
            found[f"{name}_change_db"] = _db(image + through(name, darker) - whole, darker)
        return found
    finally:
        for engine in engines.values():
            engine.close()


def _db(made: Array, expected: Array) -> float:
    """PSNR of pictures in [-1, 1]."""
    return round(psnr(np.clip(made, -1, 1) * 127.5, expected * 127.5), 1)
