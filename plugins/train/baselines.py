"""One trivial, classical filter a task: what a Task-Plugin must beat before it is called more than experimental."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Pixels = NDArray[np.uint8]


def _eight_bit(values: NDArray[np.floating]) -> Pixels:
    return np.asarray(np.clip(values + 0.5, 0, 255), dtype=np.uint8)


def median(pixels: Pixels, side: int) -> Pixels:
    """Median of a square window, per channel."""
    return np.asarray(ndimage.median_filter(pixels, size=(side, side, 1)))


def smooth(pixels: Pixels, sigma: float) -> Pixels:
    """Gaussian filter."""
    return _eight_bit(ndimage.gaussian_filter(pixels.astype(np.float32), (sigma, sigma, 0)))


def unsharp(pixels: Pixels, sigma: float = 1.5, amount: float = 0.8) -> Pixels:
    """Unsharp mask."""
    values = pixels.astype(np.float32)
    return _eight_bit(values + amount * (values - ndimage.gaussian_filter(values, (sigma, sigma, 0))))


def gamma(pixels: Pixels, mean: float = 0.42) -> Pixels:
    """The power that brings the picture's mean to ``mean`` (bisection)."""
    values = pixels.astype(np.float64) / 255
    low, high = 0.05, 5.0
    for _ in range(30):
        power = (low + high) / 2
        low, high = (power, high) if (values**power).mean() > mean else (low, power)
    return _eight_bit(255 * values**power)


def stretch(pixels: Pixels) -> Pixels:
    """Every channel from its 1st to its 99th percentile."""
    low, high = np.percentile(pixels, (1, 99), axis=(0, 1))
    return _eight_bit((pixels - low) / np.maximum(high - low, 1) * 255)


def tone_down(pixels: Pixels, knee: float = 200.0) -> Pixels:
    """Values above a knee at a third of their excess."""
    values = pixels.astype(np.float32)
    return _eight_bit(np.where(values > knee, knee + (values - knee) / 3, values))


BASELINES: dict[str, tuple[str, Callable[[Pixels], Pixels]]] = {
    "derain": ("5x5 median", lambda p: median(p, 5)),
    "desnow": ("3x3 median", lambda p: median(p, 3)),
    "lowlight": ("gamma to a mean of 0.42", gamma),
    "dehaze": ("stretch, 1st to 99th percentile", stretch),
    "deblur": ("unsharp mask", unsharp),
    "highlight": ("highlights toned down", tone_down),
    "face": ("Gaussian, 0.7 px", lambda p: smooth(p, 0.7)),
    "demoire": ("Gaussian, 1 px", lambda p: smooth(p, 1.0)),
}
"""Task id -> (name, filter)."""
