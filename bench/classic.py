"""Classic filters beside the networks: scikit-image's, with usual settings, one picture after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffplugin.bench.work import Pixels
from diffplugin.errors import RequestError

# name -> what it does, for people
FILTERS = {
    "median": "3x3 median of each channel",
    "unsharp": "unsharp mask, radius 1, amount 1",
    "bilateral": "bilateral filter, 7x7, noise estimated",
    "non-local means": "fast non-local means, patches of 5 pixels within 6, noise estimated",
}


def apply(name: str, pixels: Pixels) -> Pixels:
    """``pixels`` through a filter, uint8 [H, W, 3].

    Raises:
        RequestError: no filter of this name.
    """
    if name not in _APPLY:
        raise RequestError(f"filter {name!r}: unknown; expected one of {', '.join(FILTERS)}")
    made: Pixels | NDArray[np.floating[Any]] = _APPLY[name](pixels)
    return np.asarray(made if made.dtype == np.uint8 else np.clip(made, 0, 1) * 255 + 0.5, np.uint8)


def _median(pixels: Pixels) -> Any:
    from scipy import ndimage  # scikit-image's median calls it for 8-bit pictures of several channels

    return ndimage.median_filter(pixels, size=(3, 3, 1))


def _unsharp(pixels: Pixels) -> Any:
    from skimage import filters

    # scikit-image 0.26 leaves its result unwritten for channel_axis=-1
    return filters.unsharp_mask(_floats(pixels), radius=1, amount=1, channel_axis=2)


def _bilateral(pixels: Pixels) -> Any:
    from skimage import restoration

    floats = _floats(pixels)
    return restoration.denoise_bilateral(
        floats, win_size=7, sigma_color=_noise(floats), sigma_spatial=3, channel_axis=-1
    )


def _non_local_means(pixels: Pixels) -> Any:
    from skimage import restoration

    floats = _floats(pixels)
    sigma = _noise(floats)
    return restoration.denoise_nl_means(
        floats, patch_size=5, patch_distance=6, h=0.8 * sigma, sigma=sigma, fast_mode=True, channel_axis=-1
    )


def _noise(floats: Any) -> float:
    """Deviation of the noise, from a mask that edges leave at 0: Immerkaer, CVIU 64(2), 1996."""
    from scipy import ndimage

    mask = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    found = ndimage.convolve(floats.mean(axis=-1), mask)
    # of a mean of three channels
    return max(1e-3, float(np.sqrt(np.pi / 2) / 6 * np.abs(found).mean() * np.sqrt(3)))


def _floats(pixels: Pixels) -> Any:
    return pixels.astype(np.float32) / 255


_APPLY: dict[str, Callable[[Pixels], Any]] = {
    "median": _median,
    "unsharp": _unsharp,
    "bilateral": _bilateral,
    "non-local means": _non_local_means,
}
