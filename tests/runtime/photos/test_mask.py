"""Masks: what is outside stays bit for bit, what is inside is what the whole would have been, and only that runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffplugin.errors import ImageError, RequestError
from diffplugin.runtime.photos.mask import Mask, as_mask, blend, compose, feathered, read_mask, read_region, region_mask
from diffplugin.runtime.photos.photo import Photo
from diffplugin.runtime.photos.pixels import resize
from diffplugin.runtime.planning.area import masked_area
from diffplugin.runtime.planning.tiles import Tile, blend_weights, grid, spans
from diffplugin.runtime.restorer import Restorer
from tests.runtime.conftest import FakeModel, smooth_photo


def square(height: int, width: int, top: int, left: int, side: int) -> np.ndarray:
    grey = np.zeros((height, width), np.uint8)
    grey[top : top + side, left : left + side] = 255
    return grey


def test_feather_goes_inwards_and_reaches_one() -> None:
    grey = square(100, 100, 20, 30, 50)
    alpha = feathered(grey, 16)
    assert (alpha[grey == 0] == 0).all() and (alpha[grey > 0] > 0).all()
    assert alpha[45, 55] == 255
    row = alpha[45, 30:47].astype(int)
    assert (np.diff(row) >= 0).all() and 0 < row[0] < 40 and row[-1] == 255


def test_the_photos_border_is_no_edge() -> None:
    alpha = feathered(square(60, 60, 0, 0, 40), 16)
    assert alpha[0, 0] == 255 and alpha[10, 0] == 255
    assert alpha[39, 10] < 40
    assert (feathered(np.full((30, 30), 255, np.uint8), 16) == 255).all()


def test_thin_strokes_are_not_feathered_away() -> None:
    line = np.zeros((50, 50), np.uint8)
    line[25:27] = 255
    assert (feathered(line, None)[25:27] == 255).all()
    assert (feathered(line, 0) == line).all()


def test_soft_masks_stay_as_they_are() -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint8), (20, 1))
    np.testing.assert_array_equal(feathered(ramp, None), ramp)


def test_masks_of_any_size_and_kind(tmp_path: Path) -> None:
    grey = square(60, 80, 0, 0, 30)
    Image.fromarray(grey).save(tmp_path / "mask.png")
    expected = np.kron(grey, np.ones((2, 2), np.uint8))
    for source in (tmp_path / "mask.png", Image.fromarray(grey), grey, grey > 0, np.stack([grey] * 3, 2)):
        mask = read_mask(source, (160, 120), feather=0)
        assert mask.size == (160, 120)
        assert np.count_nonzero((mask.alpha > 127) != (expected > 127)) <= 130
    clear = np.dstack([np.full((60, 80, 3), 255, np.uint8), grey])  # what is transparent counts as black
    np.testing.assert_array_equal(read_mask(clear, (80, 60), feather=0).alpha, grey)


def test_faults_are_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="black everywhere"):
        read_mask(np.zeros((9, 9), np.uint8), (9, 9))
    with pytest.raises(ImageError, match="no such file"):
        read_mask(tmp_path / "none.png", (9, 9))
    with pytest.raises(RequestError, match="feather is -1"):
        read_mask(np.full((9, 9), 255, np.uint8), (9, 9), feather=-1)
    with pytest.raises(RequestError, match="lies outside of a photo of 20x10"):
        region_mask((20, 0, 5, 5), (20, 10))
    with pytest.raises(RequestError, match="16x16 pixels, this one has 20x10"):
        as_mask(Mask(alpha=np.full((16, 16), 255, np.uint8)), Photo(rgb=np.zeros((10, 20, 3), np.uint8)))
    for text in ("1,2,3", "a,b,c,d", "-1,0,5,5", "1,2,0,5", ""):
        with pytest.raises(RequestError, match="region"):
            read_region(text)
    assert read_region("1, 2,3,4") == (1, 2, 3, 4)


def test_blend_is_exact_at_both_ends() -> None:
    rng = np.random.default_rng(0)
    before, after = (rng.integers(0, 256, (40, 40, 3)).astype(np.uint8) for _ in range(2))
    weight = np.zeros((40, 40), np.uint8)
    weight[:20] = 255
    mixed = blend(before, after, weight)
    np.testing.assert_array_equal(mixed[:20], after[:20])
    np.testing.assert_array_equal(mixed[20:], before[20:])


def test_compose_at_another_output_size_keeps_the_outside() -> None:
    before = smooth_photo(96, 128)
    working = np.asarray(Image.fromarray(before).resize((64, 48)))
    mask = Mask(alpha=square(96, 128, 20, 20, 40))
    made = compose(
        before, np.zeros((48, 64, 3), np.uint8), (0, 0), working, mask, lambda restored: resize(restored, (128, 96))
    )
    np.testing.assert_array_equal(made[mask.alpha == 0], before[mask.alpha == 0])
    assert made[40, 40].max() == 0


def test_touched_cells_have_a_border() -> None:
    mask = Mask(alpha=square(64, 64, 32, 32, 1))
    cells = mask.touched(8, 8)
    assert cells.sum() == 9 and cells[3:6, 3:6].all()
    assert Mask(alpha=square(65, 67, 64, 60, 7)).touched(8, 8)[7, 7]


@pytest.mark.parametrize("seed", range(8))
def test_the_area_holds_the_mask_and_is_small(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(n) for n in rng.integers(10, 200, 2))
    touched = np.zeros((height, width), bool)
    top, left = int(rng.integers(height)), int(rng.integers(width))
    touched[top : top + int(rng.integers(1, 30)), left : left + int(rng.integers(1, 30))] = True
    area = masked_area(touched, native=64)
    assert area.cut(touched).sum() == touched.sum()
    assert 0 <= area.top <= area.top + area.height <= height and area.left + area.width <= width
    assert min(height, 32) <= area.height <= max(30 + 2 * 8, 32) + 16


def test_weights_of_some_tiles_sum_to_one_where_they_are() -> None:
    tiles = grid(spans(60, 32, 8), spans(100, 32, 8))
    some = tiles[1:4]
    total = np.zeros((60, 100), np.float32)
    for tile, weight in zip(some, blend_weights(some, 60, 100, tiles), strict=True):
        place = tile.cut(total)
        place += weight
    covered = np.zeros((60, 100), bool)
    for tile in some:
        tile.cut(covered)[:] = True
    np.testing.assert_allclose(total, covered, atol=1e-6)
    assert Tile(0, 0, 60, 100).clipped(50, 90) == Tile(0, 0, 50, 90)


def test_outside_is_the_input_and_inside_is_the_whole_runs(restorer: Restorer) -> None:
    photo = smooth_photo(160, 240)
    whole = restorer.restore(photo, plugins=["lowlight"]).array
    grey = square(160, 240, 40, 60, 50)
    made = restorer.restore(photo, plugins=["lowlight"], mask=read_mask(grey, (240, 160), feather=0))
    np.testing.assert_array_equal(made.array[grey == 0], photo[grey == 0])
    np.testing.assert_array_equal(made.array[grey > 0], whole[grey > 0])
    assert np.abs(whole.astype(int) - photo).max() > 20


def test_a_white_mask_is_no_mask(restorer: Restorer) -> None:
    photo = smooth_photo(100, 300)
    wishes: tuple[dict[str, Any], ...] = ({}, {"size": (200, 100)}, {"steps": 3, "sampler": "ddim"})
    for options in wishes:
        whole = restorer.restore(photo, plugins=["derain", "deblur"], **options).array
        made = restorer.restore(photo, plugins=["derain", "deblur"], mask=np.full((9, 11), 255, np.uint8), **options)
        np.testing.assert_array_equal(made.array, whole)


def test_only_pieces_that_the_mask_touches_run(restorer: Restorer, model: FakeModel) -> None:
    photo = smooth_photo(600, 900)
    restorer.restore(photo, plugins=["derain"], steps=2)
    whole = model.runs("unet")
    grey = square(600, 900, 5, 5, 20) | square(600, 900, 570, 870, 20)  # two far corners
    made = restorer.restore(photo, plugins=["derain"], steps=2, mask=grey)
    assert model.runs("unet") - whole == made.plan.unet_runs < whole / 4
    assert "touch the mask" in made.plan.tiling
    np.testing.assert_array_equal(made.array[grey == 0], photo[grey == 0])
    assert (made.array[grey > 0] != photo[grey > 0]).any()
    small = restorer.restore(photo, plugins=["derain"], mask=region_mask((440, 300, 20, 20), (900, 600)))
    assert len(small.plan.tiles) == 1 and small.plan.latent_size[0] * 8 < 200


def test_the_noise_is_that_of_the_whole_photo(restorer: Restorer) -> None:
    photo = smooth_photo(160, 240)
    grey = square(160, 240, 80, 100, 40)
    seen: dict[str, np.ndarray] = {}

    def observe(plugin: str, name: str, step: int, value: np.ndarray) -> None:
        if (name, step) == ("latents", 0):
            seen[where] = value

    where = "whole"
    restorer.restore(photo, plugins=["lowlight"], observe=observe)
    where = "part"
    made = restorer.restore(photo, plugins=["lowlight"], observe=observe, mask=grey)
    area = made.plan.area
    place = Tile((area.top + 16) // 8, (area.left + 16) // 8, *reversed(made.plan.latent_size))
    np.testing.assert_array_equal(seen["part"], place.cut(seen["whole"]))
