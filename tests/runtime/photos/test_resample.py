"""A window of a resized picture, against Pillow."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from diffplugin.runtime.photos.pixels import clip_pixels
from diffplugin.runtime.photos.resample import bicubic_window


@pytest.mark.parametrize(
    "shape", [(8, 9), (8, 300), (300, 8), (13, 1700), (1700, 13), (223, 40), (40, 2500), (100, 99)]
)
@pytest.mark.parametrize("extreme", [False, True])
def test_a_window_of_the_resized_picture_is_pillows(shape: tuple[int, int], extreme: bool) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    rgb = (rgb > 127).astype(np.uint8) * 255 if extreme else rgb
    height, width = shape
    small = int(224 * width / min(shape)), int(224 * height / min(shape))
    left, top = (small[0] - 224) // 2, (small[1] - 224) // 2
    for box in ((left, top, left + 224, top + 224), (0, 0, 30, 20), (small[0] - 30, small[1] - 20, *small)):
        expected = Image.fromarray(rgb).resize(small, Image.Resampling.BICUBIC).crop(box)
        np.testing.assert_array_equal(bicubic_window(rgb, small, box), np.asarray(expected), err_msg=f"{shape} {box}")


def test_a_long_strip_is_seen_without_being_enlarged_whole() -> None:
    """Enlarged whole, 8x200,000 is 224x5,600,000: 12.4 GB."""
    resource = pytest.importorskip("resource", reason="measures the process's peak memory")
    strip = np.zeros((200_000, 8, 3), np.uint8)
    strip[99_990:100_010] = 255
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seen = clip_pixels(strip)
    wide = clip_pixels(np.ascontiguousarray(strip.transpose(1, 0, 2)))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 30, f"CLIP's view of a strip took {grown:.0f} MiB"
    assert seen.min() > 1 and wide.min() > 1, "not the middle of the strip"
