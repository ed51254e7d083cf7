"""Tiles cover everything, weigh one everywhere and leave no seam."""

import itertools

import numpy as np
import pytest

from diffplugin.errors import ShapeMismatch
from diffplugin.runtime.planning.tiles import Tile, blend, blend_weights, grid, spans

LENGTHS = (1, 2, 5, 7, 8, 9, 13, 16, 17, 23, 31, 32, 33, 47, 64, 65, 97, 131)
PLANS = [
    (length, side, overlap)
    for length in LENGTHS
    for side in (1, 4, 8, 11, 16, 24, 64)
    for overlap in (0, 1, 3, 4, 7, 10)
    if overlap < side
]


def tiles_over(h: int, w: int, side: int, overlap: int) -> tuple[Tile, ...]:
    return grid(spans(h, side, overlap), spans(w, side, overlap))


def test_every_small_plan_keeps_its_promises() -> None:
    assert len(PLANS) > 500
    for length, side, overlap in PLANS:
        found, plan = spans(length, side, overlap), (length, side, overlap)
        if length <= side:
            assert found == [(0, length)], plan
            continue
        assert {one for _, one in found} == {side} and len(found) >= 2, plan
        assert found[0][0] == 0 and found[-1][0] + side == length, plan
        steps = np.diff([start for start, _ in found])
        assert steps.min() > 0 and steps.max() <= side - overlap, f"{plan}: overlap {side - steps.max()}"
        assert steps.max() - steps.min() <= 1, f"{plan}: uneven steps {steps}"
        fewer = len(found) - 1
        assert fewer * side - (fewer - 1) * overlap < length, f"{plan}: {fewer} tiles would do"


def test_every_small_plan_weighs_one_everywhere() -> None:
    for length, side, overlap in PLANS:
        tiles = tiles_over(1, length, side, overlap)
        weights = blend_weights(tiles, 1, length)
        total = np.zeros((1, length))
        for t, weight in zip(tiles, weights, strict=True):
            assert weight.dtype == np.float32 and weight.shape == (t.height, t.width)
            assert weight.min() > 0, f"{t}: a pixel counts for nothing"
            t.cut(total)[...] += weight
        off = np.abs(total - 1).max()
        assert off < 1e-6, f"{length=} {side=} {overlap=}: sum is off by {off:.1e}"


AWKWARD = [(64, 64, 64, 16), (65, 64, 64, 16), (75, 129, 64, 16), (86, 50, 64, 8), (97, 131, 40, 12), (61, 33, 24, 23)]


@pytest.mark.parametrize(("h", "w", "tile", "overlap"), AWKWARD)
@pytest.mark.parametrize("factor", [1, 8])
def test_constant_and_linear_fields_come_back(h: int, w: int, tile: int, overlap: int, factor: int) -> None:
    tiles = [t.scaled(factor) for t in tiles_over(h, w, tile, overlap)]
    height, width = h * factor, w * factor
    weights = blend_weights(tiles, height, width)
    y, x = np.mgrid[:height, :width] / max(height, width)
    for name, field in (("constant", np.ones_like(x)), ("linear", 3 * x - 2 * y), ("noise", np.sin(99 * x * y))):
        array = np.stack((field, -field)).astype(np.float32)[None]
        back = blend((t.cut(array) for t in tiles), tiles, weights, array.shape)
        off = np.abs(back - array)
        assert off.max() < 1e-6, f"{name}: off by {off.max():.1e} at {np.unravel_index(off.argmax(), off.shape)}"
    assert back.dtype == np.float32


def test_disagreeing_tiles_blend_without_a_jump() -> None:
    """Tile i says i: the worst disagreement becomes a ramp whose steps are those of a raised cosine."""
    tiles = tiles_over(1, 112, 64, 16)
    weights = blend_weights(tiles, 1, 112)
    back = blend((np.full((1, t.width), i, np.float32) for i, t in enumerate(tiles)), tiles, weights, (1, 112))[0]
    jumps = np.abs(np.diff(back))
    assert jumps.max() < np.pi / 2 / 16 + 1e-6, f"jump {jumps.max():.3f} at {jumps.argmax()}"
    assert (np.diff(back) >= -1e-7).all() and back[0] == 0 and back[-1] == 1
    np.testing.assert_allclose(back[48:64], (1 - np.cos(np.pi * (np.arange(16) + 0.5) / 16)) / 2, atol=1e-6)


def test_weights_are_one_at_the_borders_and_where_nothing_overlaps() -> None:
    tiles = tiles_over(100, 100, 64, 16)
    weights = dict(zip(tiles, blend_weights(tiles, 100, 100), strict=True))
    first = weights[Tile(0, 0, 64, 64)]
    np.testing.assert_array_equal(first[:36, :36], 1)
    assert (np.diff(first[0]) <= 0).all() and first[0, -1] < 0.01
    np.testing.assert_array_equal(blend_weights([Tile(0, 0, 7, 9)], 7, 9)[0], np.ones((7, 9)))


def test_tiles_are_equal_in_size_and_in_reading_order() -> None:
    tiles = tiles_over(75, 129, 64, 16)
    assert len(tiles) == 2 * 3 and {(t.height, t.width) for t in tiles} == {(64, 64)}
    assert [(t.top, t.left) for t in tiles] == list(itertools.product((0, 11), (0, 32, 65)))


def test_a_picture_that_fits_one_way_is_cut_the_other_way_only() -> None:
    assert tiles_over(61, 100, 64, 16) == (Tile(0, 0, 61, 64), Tile(0, 36, 61, 64))


@pytest.mark.parametrize(
    "tiles",
    [
        [],
        [Tile(0, 0, 8, 8)],
        [Tile(0, 0, 10, 8), Tile(0, 9, 10, 1)],
        [Tile(0, 0, 10, 6), Tile(0, 5, 10, 6)],
        [Tile(0, 0, 6, 6), Tile(0, 4, 6, 6), Tile(4, 0, 6, 6)],
        [Tile(0, 0, 10, 10), Tile(0, 0, 10, 10)],
    ],
    ids=["none", "too small", "gap", "beyond", "corner missing", "twice"],
)
def test_weights_refuse_what_is_no_covering_grid(tiles: list[Tile]) -> None:
    with pytest.raises(ShapeMismatch, match="tiles"):
        blend_weights(tiles, 10, 10)


def test_blend_refuses_wrong_results() -> None:
    tiles = tiles_over(8, 12, 8, 4)
    weights = blend_weights(tiles, 8, 12)
    good = [np.zeros((1, 8, 8))] * 2
    assert blend(good, tiles, weights, (1, 8, 12)).shape == (1, 8, 12)
    for results, message in (
        (good[:1], "1 results came, expected 2"),
        (good * 2, "more than 2"),
        ([good[0], np.zeros((1, 8, 7))], "result 1 .* is 1x8x7, expected 1x8x8"),
        ([np.zeros((8, 8))] * 2, "is 8x8, expected 1x8x8"),
    ):
        with pytest.raises(ShapeMismatch, match=message):
            blend(results, tiles, weights, (1, 8, 12))


def test_cut_is_a_view() -> None:
    array = np.zeros((2, 8, 12))
    Tile(1, 2, 3, 4).cut(array)[...] = 1
    assert array.sum() == 2 * 3 * 4 and array[0, 1, 2] == 1
