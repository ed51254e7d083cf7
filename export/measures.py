"""Measures of the difference between two results, and a picture to compare on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffplugin.spec import Array

Pixels = NDArray[np.uint8]


def relative_error(found: Array, expected: Array) -> float:
    """||found - expected|| / ||expected||, in double precision."""
    reference = expected.astype(np.float64)
    norm = float(np.linalg.norm(reference))
    return float(np.linalg.norm(found.astype(np.float64) - reference)) / (norm or 1.0)


def psnr(found: Array, expected: Array) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures in dB; 99 for identical ones."""
    mse = float(np.mean((found.astype(np.float64) - expected.astype(np.float64)) ** 2))
    return 99.0 if mse == 0 else min(99.0, 10 * float(np.log10(255**2 / mse)))


def synthetic_photo(height: int, width: int, *, seed: int = 0) -> Array:
    """A picture to compare on, uint8 [H, W, 3]: smooth shades, edges and fine grain, without a file."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    shade = np.stack([0.5 + 0.4 * np.sin(6 * x + 3 * y * k) for k in (1, 2, 3)], axis=-1)
    shade[(np.floor(x * 8) + np.floor(y * 8)) % 2 == 0] *= 0.6
    return np.clip((shade + 0.05 * random.standard_normal(shade.shape)) * 255, 0, 255).astype(np.uint8)


def _luma(pixels: Pixels) -> NDArray[np.float64]:
    return pixels.astype(np.float64) @ np.array((0.299, 0.587, 0.114))  # type: ignore[no-any-return]


def ssim(a: Pixels, b: Pixels) -> float:
    """Structural similarity (Wang et al., IEEE TIP 13(4), 2004) of the luma, Gaussian window of 1.5 pixels."""
    from scipy import ndimage

    x, y = _luma(a), _luma(b)

    def mean(z: NDArray[np.float64]) -> NDArray[np.float64]:
        return ndimage.gaussian_filter(z, 1.5, truncate=3.5)  # type: ignore[no-any-return]

    mx, my = mean(x), mean(y)
    vx, vy, cxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float((((2 * mx * my + c1) * (2 * cxy + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))[5:-5, 5:-5].mean())


def gmsd(a: Pixels, b: Pixels) -> float:
    """Gradient magnitude similarity deviation of two 8-bit pictures [H,W,3]: 0 for equal ones, larger is worse.

    Xue et al., IEEE TIP 23(2), 2014, Eq. 3 to 6: Prewitt gradients of the luma at half size, c = 170. It replaces
    LPIPS, whose weights cannot be shipped: it is a perceptual distance that needs no weights.
    """
    one, other = _gradients(a), _gradients(b)
    similarity = (2 * one * other + 170) / (one**2 + other**2 + 170)
    return float(similarity.std())


def _gradients(picture: Pixels) -> NDArray[np.float64]:
    from scipy import ndimage

    luma = _luma(picture)
    height, width = (side // 2 * 2 for side in luma.shape)
    half = luma[:height, :width].reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))
    across, down = (ndimage.prewitt(half, axis=axis, mode="nearest") / 3 for axis in (1, 0))
    made: NDArray[np.float64] = np.hypot(across, down)
    return made
