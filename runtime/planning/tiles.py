"""Overlapping tiles over a picture or a latent, and their seamless sum.

A tile plan is computed once, in latent pixels; the same plan scaled by the autoencoder's factor is used for pixels.
Blended predictions of overlapping windows: arXiv:2302.08113 (MultiDiffusion), with smooth weights instead of a mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffplugin.errors import ShapeMismatch

Tensor = NDArray[np.float32]
Span = tuple[int, int]  # (start, length) along one axis


@dataclass(frozen=True)
class Tile:
    """A rectangle, in pixels of the array it is cut from."""

    top: int
    left: int
    height: int
    width: int

    def scaled(self, factor: int) -> Tile:
        """The same rectangle where every pixel has become ``factor x factor`` (latent -> picture)."""
        return Tile(self.top * factor, self.left * factor, self.height * factor, self.width * factor)

    def clipped(self, h: int, w: int) -> Tile:
        """The part of it within ``h x w``."""
        top, left = max(self.top, 0), max(self.left, 0)
        return Tile(top, left, min(self.top + self.height, h) - top, min(self.left + self.width, w) - left)

    def moved(self, down: int, right: int) -> Tile:
        """The same rectangle elsewhere."""
        return Tile(self.top + down, self.left + right, self.height, self.width)

    def cut(self, array: NDArray[Any]) -> NDArray[Any]:
        """This rectangle of [..., h, w], as a view."""
        return array[..., self.top : self.top + self.height, self.left : self.left + self.width]


def grid(rows: Sequence[Span], columns: Sequence[Span]) -> tuple[Tile, ...]:
    """The tiles of all rows and columns, row by row."""
    return tuple(Tile(top, left, height, width) for top, height in rows for left, width in columns)


def spans(length: int, side: int, overlap: int) -> list[Span]:
    """(start, side) of as few tiles as cover ``length`` along one axis, spread evenly; neighbours share ``overlap`` or
    more, which is less than ``side``."""
    if length <= side:
        return [(0, length)]
    count = -(-(length - overlap) // (side - overlap))
    return [(i * (length - side) // (count - 1), side) for i in range(count)]


def blend_weights(tiles: Sequence[Tile], h: int, w: int, grid: Sequence[Tile] | None = None) -> list[Tensor]:
    """One float32 [height, width] per tile: their sum over ``h x w`` is 1 at every pixel that a tile covers.

    Along an overlap the weight rises from 0 to 1 as a raised cosine, which is 1 minus its neighbour's; where nothing
    overlaps, and so at the picture's borders, it is 1.

    Args:
        grid: all tiles of the plan, if ``tiles`` has only some of them; None: it has all.

    Raises:
        ShapeMismatch: the tiles are not a :func:`grid` of :func:`spans` over ``h x w``, or its multiple
            (:meth:`Tile.scaled`).
    """
    every = tiles if grid is None else grid
    rows = sorted({(tile.top, tile.height) for tile in every})
    columns = sorted({(tile.left, tile.width) for tile in every})
    expected = {Tile(top, left, height, width) for top, height in rows for left, width in columns}
    if set(every) != expected or len(every) != len(expected) or not set(tiles) <= expected:
        raise ShapeMismatch(f"tiles: {len(tiles)} tiles are no grid of {len(rows)} rows and {len(columns)} columns")
    vertical, horizontal = axis_weights(rows, h, "rows"), axis_weights(columns, w, "columns")
    weights = [
        np.outer(vertical[tile.top, tile.height], horizontal[tile.left, tile.width]).astype(np.float32)
        for tile in tiles
    ]
    return weights if len(every) == len(tiles) else _normalized(tiles, weights, h, w)


def _normalized(tiles: Sequence[Tile], weights: Sequence[Tensor], h: int, w: int) -> list[Tensor]:
    """Weights of some tiles of a grid, made to sum to 1 where the others are missing."""
    total = np.zeros((h, w), np.float32)
    for tile, weight in zip(tiles, weights, strict=True):
        place = tile.cut(total)
        place += weight
    return [weight / tile.cut(total) for tile, weight in zip(tiles, weights, strict=True)]


def axis_weights(spans: list[Span], length: int, what: str) -> dict[Span, NDArray[np.float64]]:
    """Weights of each span along one axis, float64, summing to 1."""
    ends = [start + size for start, size in spans]
    gaps = any(start > end for (start, _), end in zip(spans[1:], ends, strict=False))
    if not spans or spans[0][0] != 0 or ends[-1] != length or gaps:
        raise ShapeMismatch(f"tiles: {what} {spans} do not cover 0 to {length} and end there")
    ramps = []
    total = np.zeros(length)
    for i, (start, size) in enumerate(spans):
        weight = np.ones(size)
        if i > 0:
            weight[: ends[i - 1] - start] *= _rise(ends[i - 1] - start)
        if i + 1 < len(spans):
            shared = ends[i] - spans[i + 1][0]
            weight[size - shared :] *= _rise(shared)[::-1]
        ramps.append(weight)
        total[start : start + size] += weight
    # the sum is 1 already unless three tiles meet in one place
    return {span: weight / total[span[0] : span[0] + span[1]] for span, weight in zip(spans, ramps, strict=True)}


def _rise(count: int) -> NDArray[np.float64]:
    """Raised cosine from 0 to 1 at the centres of ``count`` pixels, never 0 itself."""
    phase: NDArray[np.float64] = (np.arange(count) + 0.5) / max(count, 1)
    return (1 - np.cos(np.pi * phase)) / 2


def blend(
    outputs: Iterable[NDArray[Any]], tiles: Sequence[Tile], weights: Sequence[Tensor], shape: Sequence[int]
) -> Tensor:
    """Weighted sum of the tiles' results.

    Args:
        outputs: one array [..., height, width] per tile, in the order of ``tiles``; may be a generator, so that one
            result at a time is in memory.
        tiles, weights: as :func:`blend_weights` takes and returns them.
        shape: of the result, [..., h, w].

    Returns:
        float32 array of ``shape``.

    Raises:
        ShapeMismatch: a result does not fit its tile, or there are more or fewer results than tiles.
    """
    total = np.zeros(tuple(shape), np.float32)
    done = 0
    for output in outputs:
        if done == len(tiles):
            raise ShapeMismatch(f"tiles: more than {len(tiles)} results came")
        tile, place = tiles[done], tiles[done].cut(total)
        if output.shape != place.shape:
            came, expected = ("x".join(map(str, s)) for s in (output.shape, place.shape))
            raise ShapeMismatch(f"tiles: result {done} for {tile} is {came}, expected {expected}")
        place += output * weights[done]
        done += 1
    if done != len(tiles):
        raise ShapeMismatch(f"tiles: {done} results came, expected {len(tiles)}")
    return total
