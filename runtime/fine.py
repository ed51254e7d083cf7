"""Faults that are too fine for the smaller copy of a large photo: samples of the photo itself show where they are, and
those pieces are restored at full size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffplugin.runtime.photos.pixels import reflected
from diffplugin.runtime.planning.tiles import Tile, axis_weights
from diffplugin.spec import Array

Levels = NDArray[Any]  # uint8 or uint16 [h, w, 3]
AtFull = Callable[[Levels], Levels]  # restores pixels as they are; sides in multiples of the autoencoder's factor

SAMPLE = 64  # pixels of a side of a sample
_EDGE = 8  # pixels of a sample on every side that are not judged: beside them is another sample
# Detail that a change at full size must have, root mean square, for the copy to have missed it: levels of 255, and of
# the change that the copy gave. Chosen on four photos with faults of two sizes (docs/speed.md).
_DETAIL, _SHARE = 0.3, 0.02


def refined(
    photo: Levels, carried: Levels, pieces: Sequence[Tile], border: int, ratio: float, at_full: AtFull
) -> Levels:
    """``carried``, with the pieces restored at full size whose samples say so: there the change has detail that the
    copy could not hold. What the copy found alone, as faults that grow with the photo, stays its.

    Args:
        photo: as it was, uint8 or uint16 [H, W, 3].
        carried: with the change of a smaller copy, of the same shape and type.
        pieces: a grid, in pixels, over the photo with ``border`` pixels of its reflection around it.
        ratio: short side of the photo / of the copy.
    """
    height, width = photo.shape[:2]
    inside = [piece.moved(-border, -border).clipped(height, width) for piece in pieces]
    places = [sample_places(piece) for piece in inside]
    flat = [place for four in places for place in four]
    made = _samples_at_full([_cut(photo, place) for place in flat], pieces[0], border, at_full)
    scale = 255 / np.iinfo(photo.dtype).max
    detail, change = [], []
    for place, after in zip(flat, made, strict=True):
        before = _cut(photo, place).astype(np.float32) * scale
        detail.append(_square(_detail(after * scale - before, ratio)))
        change.append(_square(_cut(carried, place) * scale - before))
    # of the four samples of a piece together
    found, known = (np.sqrt(np.reshape(squares, (-1, 4)).mean(axis=1)) for squares in (detail, change))
    chosen = [piece for piece, fine in zip(pieces, found > np.maximum(_DETAIL, _SHARE * known), strict=True) if fine]
    return _with_pieces(photo, carried, pieces, chosen, border, at_full)


def sample_places(piece: Tile) -> tuple[Tile, ...]:
    """The four samples of a piece, at its quarters' centres: less where the piece is smaller than a sample."""
    size = min(SAMPLE, piece.height, piece.width)
    centres = [(piece.height * down // 4, piece.width * right // 4) for down in (1, 3) for right in (1, 3)]
    return tuple(
        Tile(
            piece.top + min(max(y - size // 2, 0), piece.height - size),
            piece.left + min(max(x - size // 2, 0), piece.width - size),
            size,
            size,
        )
        for y, x in centres
    )


def _samples_at_full(samples: Sequence[Levels], piece: Tile, border: int, at_full: AtFull) -> list[Levels]:
    """Samples restored at full size, many at once: side by side in sheets, with a border. Sheets have the shape of a
    piece, because some engines keep memory for each shape."""
    rows, columns = (max(1, (side - 2 * border) // SAMPLE) for side in (piece.height, piece.width))
    height, width = max(piece.height, rows * SAMPLE + border), max(piece.width, columns * SAMPLE + border)
    made = []
    for first in range(0, len(samples), rows * columns):
        some = samples[first : first + rows * columns]
        sheet = np.zeros((rows * SAMPLE, columns * SAMPLE, 3), some[0].dtype)
        places = [Tile(i // columns * SAMPLE, i % columns * SAMPLE, SAMPLE, SAMPLE) for i in range(rows * columns)]
        for i, place in enumerate(places):
            sample = some[min(i, len(some) - 1)]  # the last one fills the last sheet
            _cut(sheet, place)[...] = reflected(sample, 0, 0, SAMPLE, SAMPLE)
        after = at_full(reflected(sheet, -border, -border, height, width))
        made += [
            _cut(after, place.moved(border, border))[: sample.shape[0], : sample.shape[1]]
            for place, sample in zip(places, some, strict=False)
        ]
    return made


def _cut(pixels: Levels, place: Tile) -> Levels:
    return pixels[place.top : place.top + place.height, place.left : place.left + place.width]


def _detail(change: Array, ratio: float) -> Array:
    """What of a change [h, w, 3] is lost in a copy smaller by ``ratio``."""
    height, width = change.shape[:2]
    small = max(1, round(width / ratio)), max(1, round(height / ratio))
    rest = np.empty_like(change)
    for i in range(3):
        plane = Image.fromarray(np.ascontiguousarray(change[..., i], np.float32))
        copy = plane.resize(small, Image.Resampling.LANCZOS).resize((width, height), Image.Resampling.BICUBIC)
        rest[..., i] = change[..., i] - np.asarray(copy)
    return rest


def _square(values: Array) -> float:
    """The mean square of what is judged of a sample."""
    return float(np.square(values[_EDGE:-_EDGE, _EDGE:-_EDGE]).mean())


def _with_pieces(
    photo: Levels, carried: Levels, pieces: Sequence[Tile], chosen: Sequence[Tile], border: int, at_full: AtFull
) -> Levels:
    """``carried`` with the chosen pieces restored at full size; where a neighbour was not chosen, they fade out."""
    if not chosen:
        return carried
    height, width = photo.shape[:2]
    rows, columns = ({(p.top, p.height) for p in pieces}, {(p.left, p.width) for p in pieces})
    down = axis_weights(sorted(rows), max(map(sum, rows)), "rows")
    right = axis_weights(sorted(columns), max(map(sum, columns)), "columns")
    result = carried.copy()
    for piece in chosen:
        place = piece.moved(-border, -border)
        after = at_full(reflected(photo, place.top, place.left, place.height, place.width))
        seen = place.clipped(height, width)
        within = seen.moved(-place.top, -place.left)
        weight = np.outer(down[piece.top, piece.height], right[piece.left, piece.width]).astype(np.float32)
        weight = within.cut(weight)[..., None]
        change = (_cut(after, within).astype(np.float32) - _cut(carried, seen)) * weight
        spot = _cut(result, seen)
        spot[...] = np.clip(np.rint(spot + change), 0, np.iinfo(result.dtype).max)
    return result
