"""What the diagnosis sees of a photo."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from PIL import Image

from diffplugin.runtime.request.views import SCREEN, SIDE, pixel_views, reduced, views
from diffplugin.spec import VIEWS, Array


def _noise(height: int, width: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (96, 128), (128, 128), (129, 2000), (900, 601)])
def test_any_size_gives_the_same_views(size: tuple[int, int]) -> None:
    photo = _noise(*size)
    seen = views(photo)
    assert seen.shape == (VIEWS, 3, SIDE, SIDE) and seen.dtype == np.float32
    assert seen.min() >= -1 and seen.max() <= 1
    np.testing.assert_array_equal(seen, views(photo))


def test_a_small_photo_is_continued_by_reflection() -> None:
    photo = _noise(3, 5)
    own = pixel_views(photo)[-1]
    np.testing.assert_array_equal(own[:3, :5], photo)
    np.testing.assert_array_equal(own[3:6, :5], photo[::-1])


def test_pieces_are_the_photos_own_pixels_where_something_is() -> None:
    photo = np.full((1600, 2400, 3), 120, np.uint8)
    detail = _noise(90, 90)
    photo[1200:1290, 1700:1790] = detail
    _, *rest = pixel_views(photo)
    middle, own = rest[:4], rest[4:]
    assert [piece.std() > 1 for piece in middle] == [False, False, False, True], "each quadrant its busiest piece"
    place = next((y, x) for y in range(SIDE) for x in range(SIDE) if (own[3][y, x] != 120).any())
    seen = own[3][place[0] :, place[1] :][:90, :90]
    np.testing.assert_array_equal(seen, detail[: seen.shape[0], : seen.shape[1]])


def test_a_large_photo_is_reduced_in_little_memory() -> None:
    photo = np.broadcast_to(np.arange(4000, dtype=np.uint8)[None, :, None], (3000, 4000, 3))
    tracemalloc.start()
    small = reduced(photo, SCREEN)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert small.shape == (SCREEN, round(4000 * SCREEN / 3000), 3)
    assert peak < 25e6, f"{peak / 1e6:.0f} MB for a photo of 36 MB"


def test_bands_give_what_the_whole_photo_gives() -> None:
    photo = np.asarray(Image.fromarray(_noise(30, 40)).resize((2000, 1500)))
    whole = Image.fromarray(photo[: 1500 // 1 * 1]).resize((round(2000 * SCREEN / 1500), SCREEN), Image.Resampling.BOX)
    assert np.abs(reduced(photo, SCREEN).astype(int) - np.asarray(whole)).max() <= 6
