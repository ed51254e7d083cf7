"""What the diagnosis sees of a photo: the whole of it, reduced, and pieces of it in two sizes of detail.

Haze and darkness show in the whole; blur, noise, rain and moire only in detail. Detail has two meanings: the photo's
own pixels, and those of the photo at the size of a screen, where a large photo is judged. The work is the same for
every size of photo.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffplugin.runtime.photos.photo import Pixels
from diffplugin.spec import VIEW_SIDE

SIDE = VIEW_SIDE  # of every view
SCREEN = 448  # short side at which the middle views are cut; a smaller photo is not enlarged
PIECES = 4  # of the middle and of the photo's own pixels each, one a quadrant
_CELL = 8  # pixels of the grid on which pieces are placed
_BAND = 2**22  # bytes of a photo that are reduced at a time


def views(rgb: Pixels) -> NDArray[np.float32]:
    """uint8 [H, W, 3] of any size -> float32 [9, 3, 128, 128] in [-1, 1]: the whole, four middle pieces, four of the
    photo's own pixels."""
    stacked = pixel_views(rgb).transpose(0, 3, 1, 2).astype(np.float32)
    stacked /= np.float32(127.5)
    stacked -= 1
    return np.ascontiguousarray(stacked)


def pixel_views(rgb: Pixels) -> Pixels:
    """:func:`views` as uint8 [9, 128, 128, 3].

    Of each quadrant, the busiest piece stands for it: what is in focus tells whether a photo is sharp. Two of the
    four pieces at the photo's own size come from calmer places instead, where noise and moire show.
    """
    rgb = _at_least(rgb, SIDE)
    middle = _at_least(reduced(rgb, SCREEN), SIDE)
    whole = np.asarray(Image.fromarray(middle).resize((SIDE, SIDE), Image.Resampling.BOX))
    busy = _busyness(middle)
    scale = rgb.shape[0] / middle.shape[0], rgb.shape[1] / middle.shape[1]
    found = [whole]
    found += [_piece(middle, place, (1, 1)) for place in _places(busy, SIDE, (0, 0, 0, 0))]
    own = max(round(SIDE / max(scale)), _CELL)
    found += [_piece(rgb, place, scale, own) for place in _places(busy, own, (0, 1, 1, 0))]
    return np.stack(found)


def reduced(rgb: Pixels, short: int) -> Pixels:
    """The photo with a short side of ``short``, or as it is where it is smaller; a band of rows at a time."""
    height, width = rgb.shape[:2]
    scale = short / min(height, width)
    if scale >= 1:
        return rgb
    factor = int(0.5 / scale)
    if factor > 1:
        rgb = np.concatenate(list(_box_reduced(rgb, factor)))
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC))


def _box_reduced(rgb: Pixels, factor: int) -> Iterator[Pixels]:
    """Means of squares of ``factor`` pixels; what is left over at the right and below is dropped."""
    height, width = (side // factor * factor for side in rgb.shape[:2])
    rows = max(_BAND // (3 * width) // factor, 1) * factor
    for top in range(0, height, rows):
        band = np.ascontiguousarray(rgb[top : min(top + rows, height), :width])
        yield np.asarray(Image.fromarray(band).reduce(factor))


def _at_least(rgb: Pixels, side: int) -> Pixels:
    """Continued at the bottom and right by reflection where it is smaller."""
    extra = [max(side - length, 0) for length in rgb.shape[:2]]
    return np.pad(rgb, ((0, extra[0]), (0, extra[1]), (0, 0)), mode="symmetric") if any(extra) else rgb


def _busyness(rgb: Pixels) -> NDArray[np.float64]:
    """Summed-area table [rows + 1, columns + 1] of the mean absolute difference of neighbours, by cells."""
    grey = rgb.mean(axis=2, dtype=np.float32)
    steps = np.abs(np.diff(grey, axis=0))[:, :-1] + np.abs(np.diff(grey, axis=1))[:-1]
    rows, columns = (length // _CELL for length in grey.shape)
    steps = np.pad(steps, ((0, 1), (0, 1)))[: rows * _CELL, : columns * _CELL]
    cells = steps.reshape(rows, _CELL, columns, _CELL).mean(axis=(1, 3), dtype=np.float64)
    return np.pad(cells.cumsum(0).cumsum(1), ((1, 0), (1, 0)))


def _places(table: NDArray[np.float64], side: int, calm: tuple[int, ...]) -> list[tuple[int, int]]:
    """(top, left) in pixels of one square of ``side`` a quadrant: the busiest, or the median one where ``calm``."""
    n = max(side // _CELL, 1)
    n_rows, n_columns = (min(n, length - 1) for length in table.shape)
    sums = table[n_rows:, n_columns:] - table[:-n_rows, n_columns:] - table[n_rows:, :-n_columns]
    sums = sums + table[:-n_rows, :-n_columns]
    found = []
    for quadrant in range(PIECES):
        rows, columns = _half(sums.shape[0], quadrant // 2), _half(sums.shape[1], quadrant % 2)
        part = sums[rows, columns]
        order = np.argsort(part, axis=None, kind="stable")
        at = np.unravel_index(order[len(order) // 2 if calm[quadrant] else -1], part.shape)
        found.append((int(rows.start + at[0]) * _CELL, int(columns.start + at[1]) * _CELL))
    return found


def _half(length: int, second: int) -> slice:
    """The first or the second half of a range; of a range of one, that one."""
    return slice(length // 2, length) if second else slice(0, max((length + 1) // 2, 1))


def _piece(rgb: Pixels, place: tuple[int, int], scale: tuple[float, float], side: int = SIDE) -> Pixels:
    """The square whose centre is the centre of the square of ``side`` at ``place`` of a picture smaller by ``scale``,
    moved inwards where it would leave the photo."""
    at = []
    for start, factor, length in zip(place, scale, rgb.shape[:2], strict=True):
        centre = (start + side / 2) * factor
        at.append(min(max(round(centre - SIDE / 2), 0), length - SIDE))
    return rgb[at[0] : at[0] + SIDE, at[1] : at[1] + SIDE]
