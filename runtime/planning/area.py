"""The part of a photo that runs: all of it with a border of its reflection, or what a mask touches with context."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffplugin.runtime.photos.mask import Mask
from diffplugin.runtime.planning.tiles import Tile

MULTIPLE = 8  # latent pixels: where the area of a mask begins and ends


def whole_area(working: tuple[int, int], border: int, factor: int) -> Tile:
    """All of a photo of ``working`` (width, height) px with its border, in latent pixels of that whole."""
    width, height = (-(-(side + 2 * border) // factor) for side in working)
    return Tile(0, 0, height, width)


def touched_cells(mask: Mask, working: tuple[int, int], border: int, factor: int) -> NDArray[np.bool_]:
    """The latent pixels of :func:`whole_area` that a mask touches, bool [h, w]: none of them in the border alone."""
    inside = whole_area(working, 0, factor)
    whole = whole_area(working, border, factor)
    before = border // factor
    after = (whole.height - before - inside.height, whole.width - before - inside.width)
    return np.pad(mask.touched(inside.width, inside.height), [(before, after[0]), (before, after[1])])


def masked_area(touched: NDArray[np.bool_], native: int) -> Tile:
    """The rectangle of latent pixels that runs for a mask: its bounding box with an eighth of the native side around it
    as context, at least half the native side long where the photo is, in multiples of ``MULTIPLE``.

    Args:
        touched: bool [h, w], with at least one True.
        native: side of the model's native latent.
    """
    spans = []
    for axis, length in enumerate(touched.shape):
        there = np.flatnonzero(touched.any(1 - axis))
        first, last = int(there[0]), int(there[-1]) + 1
        side = min(length, max(last - first + native // 8 * 2, native // 2))
        start = min(max(0, (first + last - side) // 2), length - side) // MULTIPLE * MULTIPLE
        end = min(length, -(-max(last, start + side) // MULTIPLE) * MULTIPLE)
        spans.append((start, end - start))
    (top, height), (left, width) = spans
    return Tile(top, left, height, width)
