"""Pieces of a real network leave no seams: jumps at tile borders against the same places of the untiled picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import diffplugin
from diffplugin.runtime.planning.tiles import Tile
from diffplugin.spec import Array


def _borders(tiles: tuple[Tile, ...], factor: int, border: int, axis: int, side: int) -> list[int]:
    """Where a tile begins or ends inside the picture, in pixels along ``axis`` (0: rows, 1: columns)."""
    spans = [(t.top, t.height) if axis == 0 else (t.left, t.width) for t in tiles]
    found = sorted({factor * edge - border for start, size in spans for edge in (start, start + size)})
    return [edge for edge in found if 0 < edge < side]


def _jump(rgb: Array, borders: list[int], axis: int) -> float:
    """Mean step between the two pixels beside each border, in 8-bit levels."""
    steps = np.abs(np.diff(rgb.astype(np.float64), axis=axis))
    return float(steps.take([border - 1 for border in borders], axis=axis).mean())


@pytest.mark.parametrize("plugin", ["derain", "lowlight"])
def test_jumps_at_tile_borders_are_those_of_the_whole_picture(oracle: Path, oracle_bundle: Path, plugin: str) -> None:
    """Measured: 1.01 at most. Pieces that meet without overlap or blending reach 1.3 and more (the last assertion)."""
    photo = oracle / "golden/landscape.png"
    with diffplugin.load(oracle_bundle, engine="onnxruntime") as restorer:
        whole = restorer.restore(photo, plugins=[plugin], steps=2, tile="off")
        tiled = restorer.restore(photo, plugins=[plugin], steps=2, tile=256)
        assert len(tiled.plan.tiles) == 9
        for axis, side in ((0, 512), (1, 600)):
            borders = _borders(tiled.plan.tiles, restorer.dims.factor, tiled.plan.border, axis, side)
            ratio = _jump(tiled.array, borders, axis) / _jump(whole.array, borders, axis)
            assert ratio <= 1.05, f"axis {axis}: {ratio:.3f} times the jump of the untiled picture at {borders}"
        cut = [restorer.restore(whole_photo, plugins=[plugin], steps=2).array for whole_photo in _halves(photo)]
        ratio = _jump(np.concatenate(cut, 1), [304], 1) / _jump(whole.array, [304], 1)
        assert ratio > 1.15, f"the measure does not see a seam that is there: {ratio:.3f}"


def _halves(photo: Path) -> list[Array]:
    from diffplugin.runtime.photos.read import read_photo

    rgb = read_photo(photo).rgb
    return [np.ascontiguousarray(part) for part in (rgb[:, :304], rgb[:, 304:])]
