"""A change that was made on a smaller copy, carried to the photo itself, so that the photo keeps its detail.

Guided: the change is taken for a linear function of the photo's levels within a small window, as brightening, haze and
glare are; its coefficients are fitted on the copy and enlarged (the fast guided filter, He and Sun, arXiv:1505.00996).
What the fit leaves is enlarged as it is. In bands: float arrays of the photo's size are never in memory.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffplugin.runtime.photos.box_mean import Floats, box_mean

_Level = TypeVar("_Level", np.uint8, np.uint16)

BAND = 256  # rows of the photo at once
_WINDOW = 64  # short sides of the copy in a window's radius
_EPS = 2e-3  # variance of levels (0 to 1) that counts as texture: 0.045 squared, above the noise of a dark photo


def carry_change(photo: NDArray[_Level], copy: NDArray[_Level], restored: NDArray[_Level], *, guided: bool) -> Any:
    """photo + the change from ``copy`` to ``restored``, of the photo's shape and dtype.

    Args:
        photo: uint8 or uint16 [H, W, 3].
        copy, restored: the photo made smaller, before and after, [h, w, 3].
        guided: the change follows the photo's levels; False: it is enlarged as it is.
    """
    most = np.float32(np.iinfo(photo.dtype).max)
    made = np.empty_like(photo)
    for channel in range(3):
        small = copy[..., channel].astype(np.float32) / most
        rest = restored[..., channel].astype(np.float32) / most - small
        slope = _slope(small, rest) if guided else None
        if slope is not None:
            rest -= slope * small
            slope = _wide(slope, photo.shape[1])
        rest = _wide(rest, photo.shape[1])
        for top in range(0, len(photo), BAND):
            rows = np.arange(top, min(top + BAND, len(photo)))
            before = photo[rows[0] : rows[-1] + 1, :, channel].astype(np.float32)
            before /= most
            if slope is not None:
                before += before * _tall(slope, rows, len(photo))
            before += _tall(rest, rows, len(photo))
            np.clip(before, 0, 1, out=before)
            made[rows[0] : rows[-1] + 1, :, channel] = np.rint(before * most)
    return made


def _slope(guide: Floats, change: Floats) -> Floats:
    """How much the change grows with the guide around each pixel: cov(guide, change) / (var(guide) + eps), averaged
    over the windows that hold the pixel. All [h, w]."""
    radius = max(2, min(guide.shape) // _WINDOW)
    mean, mean_change = box_mean(guide, radius), box_mean(change, radius)
    variance = box_mean(guide * guide, radius) - mean * mean
    covariance = box_mean(guide * change, radius) - mean * mean_change
    slope = (covariance / (np.maximum(variance, 0) + np.float32(_EPS))).astype(np.float32)
    return box_mean(slope, radius)


def _wide(values: Floats, width: int) -> Floats:
    """[h, w] -> [h, width], bicubic."""
    made = Image.fromarray(values).resize((width, values.shape[0]), Image.Resampling.BICUBIC)
    return np.asarray(made, np.float32)


def _tall(values: Floats, rows: NDArray[np.int64], height: int) -> Floats:
    """Some rows of [h, w] enlarged to ``height`` rows, [len(rows), w]: Keys' cubic convolution
    (doi:10.1109/TASSP.1981.1163711), as Pillow's; edge rows are repeated."""
    place = (rows + 0.5) * len(values) / height - 0.5
    first = np.floor(place).astype(np.int64)
    share = (place - first).astype(np.float32)[:, None]
    total = np.zeros((len(rows), values.shape[1]), np.float32)
    for tap in range(-1, 3):
        total += _cubic(np.abs(share - tap)) * values[np.clip(first + tap, 0, len(values) - 1)]
    return total


def _cubic(x: Floats) -> Floats:
    """The kernel with a = -0.5, for 0 <= x <= 2."""
    near = (np.float32(1.5) * x - np.float32(2.5)) * x * x + 1
    far = ((np.float32(-0.5) * x + np.float32(2.5)) * x - 4) * x + 2
    return np.where(x < 1, near, far)
