"""Pieces at full size: chosen where the photo has faults that its copy loses, blended in without a seam."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffplugin.runtime.fine import refined, sample_places
from diffplugin.runtime.planning.tiles import Tile, grid, spans

Levels = NDArray[Any]
BORDER, SIDE, OVERLAP = 16, 288, 40
HEIGHT, WIDTH = 700, 1000


def _pieces(height: int = HEIGHT, width: int = WIDTH) -> tuple[Tile, ...]:
    return grid(*(spans(length + 2 * BORDER, SIDE, OVERLAP) for length in (height, width)))


def _photo(dtype: type[Any], faults: Tile, size: int) -> Levels:
    """A ramp with a checkerboard of 16 levels in one place, of fields of ``size`` pixels."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    values = np.broadcast_to((40 + x // 16)[..., None], (HEIGHT, WIDTH, 3)).copy()
    board = (y // size + x // size) % 2 * 16
    place = np.s_[faults.top : faults.top + faults.height, faults.left : faults.left + faults.width]
    values[place] += board[place][..., None]
    return (values * (np.iinfo(dtype).max // 255)).astype(dtype)


class AtFull:
    """Darkens pixels that are brighter than the next one, as a restoration that sees specks of a pixel."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, pixels: Levels) -> Levels:
        self.shapes.append(pixels.shape)
        assert all(side % 8 == 0 for side in pixels.shape[:2])
        step = np.iinfo(pixels.dtype).max // 255
        brighter = pixels - np.roll(pixels.astype(np.int64), -1, axis=1)
        return np.asarray(np.where(brighter >= 8 * step, pixels - 4 * step, pixels), pixels.dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_only_pieces_with_fine_faults_run(dtype: type[Any]) -> None:
    faults = Tile(0, 0, 220, 220)
    photo, run = _photo(dtype, faults, 1), AtFull()
    made = refined(photo, photo, _pieces(), BORDER, 3, run)
    sheets = -(-4 * len(_pieces()) // 4**2)  # of four samples in a row and in a column
    assert run.shapes == [(SIDE, SIDE, 3)] * (sheets + 1), "sheets, and one piece, all of one shape"
    assert made.dtype == dtype and (made[20:200, 20:200] != photo[20:200, 20:200]).mean() > 0.3
    assert np.array_equal(made[SIDE:], photo[SIDE:]) and np.array_equal(made[:, SIDE:], photo[:, SIDE:])


def test_what_the_copy_found_is_left_to_it() -> None:
    photo, run = _photo(np.uint8, Tile(0, 0, HEIGHT, WIDTH), 1), AtFull()
    carried = np.clip(photo.astype(np.int64) + 150, 0, 255).astype(
        np.uint8
    )  # a change beside which the detail is small
    assert refined(photo, carried, _pieces(), BORDER, 3, run) is carried
    clean = _photo(np.uint8, Tile(0, 0, 0, 0), 1)
    assert refined(clean, clean, _pieces(), BORDER, 3, run) is clean
    assert len(run.shapes) == 2 * -(-4 * len(_pieces()) // 4**2), "nothing but sheets"


def test_all_pieces_together_are_the_photo_at_full_size() -> None:
    photo = _photo(np.uint8, Tile(0, 0, HEIGHT, WIDTH), 1)
    made = refined(photo, photo, _pieces(), BORDER, 3, AtFull())
    whole = AtFull()(np.pad(photo, ((2, 2), (12, 12), (0, 0)), mode="reflect"))[2:-2, 12:-12]
    off = np.abs(made.astype(int) - whole)[:, :-1]
    assert off.max() <= 1, f"{off.max()} levels at {np.argwhere(off > 1)[:3].tolist()}: blending is no partition"


def test_a_piece_that_runs_fades_out() -> None:
    photo = _photo(np.uint8, Tile(0, 0, HEIGHT, 250), 1)

    def darker(pixels: Levels) -> Levels:
        return AtFull()(pixels) // 2

    made = refined(photo, photo, _pieces(), BORDER, 3, darker).astype(int) - photo
    row = made[400, :SIDE, 0].astype(float)
    inside, edge = np.abs(row[20:200]).mean(), np.abs(row[SIDE - BORDER - 2 :]).mean()
    assert inside > 20 and edge < 2, f"{inside:.1f} levels inside, {edge:.1f} at the edge"


def test_pieces_smaller_than_a_sheet() -> None:
    run = AtFull()
    photo = np.full((96, 200, 3), 90, np.uint8)
    pieces = grid(spans(96 + 2 * BORDER, 128, OVERLAP), spans(200 + 2 * BORDER, 88, OVERLAP))
    assert refined(photo, photo, pieces, BORDER, 2, run) is photo
    assert set(run.shapes) == {(128, 88, 3)}


def test_samples_lie_within_small_pieces() -> None:
    for piece in (Tile(5, 7, 300, 200), Tile(0, 0, 40, 500), Tile(3, 3, 20, 20)):
        for place in sample_places(piece):
            assert place == place.moved(-piece.top, -piece.left).clipped(piece.height, piece.width).moved(
                piece.top, piece.left
            )
