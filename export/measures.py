"""How far two results are apart, and a picture to compare on."""

from __future__ import annotations

import numpy as np

from diffplugin.spec import Array


def relative_error(found: Array, expected: Array) -> float:
    """||found - expected|| / ||expected||, in double precision."""
    reference = expected.astype(np.float64)
    norm = float(np.linalg.norm(reference))
    return float(np.linalg.norm(found.astype(np.float64) - reference)) / (norm or 1.0)


def psnr(found: Array, expected: Array) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures in dB; 99 for identical ones."""
    mse = float(np.mean((found.astype(np.float64) - expected.astype(np.float64)) ** 2))
    return 99.0 if mse == 0 else min(99.0, 10 * float(np.log10(255**2 / mse)))


def test_picture(height: int, width: int, *, seed: int = 0) -> Array:
    """A picture to compare on, uint8 [H, W, 3]: smooth shades, edges and fine grain, without a file."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    shade = np.stack([0.5 + 0.4 * np.sin(6 * x + 3 * y * k) for k in (1, 2, 3)], axis=-1)
    shade[(np.floor(x * 8) + np.floor(y * 8)) % 2 == 0] *= 0.6
    return np.clip((shade + 0.05 * random.standard_normal(shade.shape)) * 255, 0, 255).astype(np.uint8)
