"""A window of a resized picture, computed without the rest."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

_PRECISION = 22  # bits of a weight's fraction in Pillow's 8-bit resampling
_SUPPORT = 2.0  # of the cubic, in output pixels


def bicubic_window(
    pixels: NDArray[np.uint8], size: tuple[int, int], box: tuple[int, int, int, int]
) -> NDArray[np.uint8]:
    """The result of Pillow's ``resize(size, BICUBIC).crop(box)`` for uint8 [H, W, C], bit for bit, from only the source
    pixels that ``box`` needs: memory and time depend on the box, not on ``size``.

    The same two passes with rounding to 8 bits between them, columns first, and the same fixed-point weights
    (Pillow's Resample.c; from version 13 on it takes the rows first where a tall picture is made smaller).
    ``Image.resize`` itself takes a ``box``, but as 32-bit floats, which is not exact.

    Args:
        size: (width, height) of the whole resized picture.
        box: (left, top, right, bottom) in it.
    """
    left, top, right, bottom = box
    rows, row_weights = _weights(pixels.shape[0], size[1], top, bottom)
    first, last = int(rows.min()), int(rows.max()) + row_weights.shape[1]
    window = pixels[first : min(last, pixels.shape[0])]
    if size[0] == pixels.shape[1]:
        window = window[:, left:right]
    else:
        columns, column_weights = _weights(pixels.shape[1], size[0], left, right)
        window = _pass(window.transpose(1, 0, 2), columns, column_weights).transpose(1, 0, 2)
    if size[1] == pixels.shape[0]:
        return np.ascontiguousarray(window[rows - first])
    return _pass(window, rows - first, row_weights)


def _weights(length: int, target: int, begin: int, end: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(first source pixel, fixed-point weights [n, taps]) of output pixels ``begin`` to ``end`` of one axis."""
    if length == target:
        return np.arange(begin, end), np.ones((end - begin, 1), np.int64)
    scale = length / target
    stretch = max(scale, 1.0)
    support = _SUPPORT * stretch
    taps = math.ceil(support) * 2 + 1
    starts = np.zeros(end - begin, np.int64)
    weights = np.zeros((end - begin, taps), np.int64)
    for i in range(end - begin):
        centre = (begin + i + 0.5) * scale
        start = max(0, int(centre - support + 0.5))
        count = min(length, int(centre + support + 0.5)) - start
        exact = [_cubic((x + start - centre + 0.5) * (1.0 / stretch)) for x in range(count)]
        total = sum(exact)
        shares = [weight / total for weight in exact]
        starts[i] = start
        weights[i, :count] = [int(share * (1 << _PRECISION) + (0.5 if share >= 0 else -0.5)) for share in shares]
    return starts, weights


def _cubic(x: float, a: float = -0.5) -> float:
    """Keys' cubic convolution kernel (doi:10.1109/TASSP.1981.1163711)."""
    x = abs(x)
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2.0 else 0.0


def _pass(pixels: Pixels, starts: NDArray[np.int64], weights: NDArray[np.int64]) -> Pixels:
    """One pass along the first axis: uint8 [n, ...] -> uint8 [len(starts), ...]."""
    total = np.full((len(starts), *pixels.shape[1:]), 1 << (_PRECISION - 1), np.int64)
    for tap in range(weights.shape[1]):
        source = pixels[np.minimum(starts + tap, len(pixels) - 1)].astype(np.int64)  # past the end the weight is 0
        total += source * weights[:, tap].reshape(-1, *[1] * (pixels.ndim - 1))
    made: Pixels = np.clip(total >> _PRECISION, 0, 255).astype(np.uint8)
    return made
