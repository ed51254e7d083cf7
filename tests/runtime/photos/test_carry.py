"""A change made on a smaller copy reaches the photo: its detail stays, or is brightened with what is around it."""

from __future__ import annotations

import numpy as np
import pytest

from diffplugin.runtime.photos import carry
from diffplugin.runtime.photos.carry import carry_change
from diffplugin.runtime.photos.pixels import resize
from diffplugin.spec import Array


def _photo(height: int, width: int, seed: int = 0, noise: float = 6) -> Array:
    """Smooth light, with fine texture that a smaller copy cannot hold."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    light = 40 + 25 * np.sin(5 * x + 3 * y)[..., None] * np.array([1, 0.8, 0.6])
    noisy: Array = np.clip(light + rng.normal(0, noise, (height, width, 3)), 0, 255).astype(np.uint8)
    return noisy


def _off(made: Array, expected: Array) -> float:
    """Root mean square difference, in levels."""
    return float(np.sqrt(np.mean((made.astype(float) - expected) ** 2)))


@pytest.mark.parametrize("guided", [False, True])
def test_no_change_changes_nothing(guided: bool) -> None:
    photo = _photo(90, 131)
    copy = resize(photo, (44, 30))
    assert np.array_equal(carry_change(photo, copy, copy, guided=guided), photo)


def test_detail_stays_where_a_smooth_change_is_added() -> None:
    photo = _photo(240, 320)
    copy = resize(photo, (80, 60))
    ramp = np.linspace(0, 60, 320)[None, :, None]
    small = np.linspace(0, 60, 80)[None, :, None]
    made = carry_change(photo, copy, np.rint(copy + small).astype(np.uint8), guided=False)
    assert _off(made, photo + ramp) < 1, "the change is enlarged as it is"
    assert _off(resize(np.rint(copy + small).astype(np.uint8), (320, 240)), photo + ramp) > 4, (
        "a resized result lost it"
    )


def test_a_guided_change_brightens_detail_too() -> None:
    """The plugin doubles the levels of the copy: the photo's own detail has to double, not only to stay."""
    photo = _photo(240, 320, noise=16)
    copy = resize(photo, (160, 120))
    doubled = copy * 2
    expected = np.minimum(photo.astype(int) * 2, 255)
    guided, plain = (_off(carry_change(photo, copy, doubled, guided=g), expected) for g in (True, False))
    assert guided < 0.75 * plain, f"{guided:.2f} levels off guided, {plain:.2f} as it is"


def test_bands_and_16_bits_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    photo = _photo(100, 60)
    copy, after = resize(photo, (30, 50)), resize(_photo(100, 60, seed=1), (30, 50))
    whole = carry_change(photo, copy, after, guided=True)
    monkeypatch.setattr(carry, "BAND", 7)
    assert np.array_equal(carry_change(photo, copy, after, guided=True), whole)
    deep = carry_change(*(level.astype(np.uint16) * 257 for level in (photo, copy, after)), guided=True)
    assert deep.dtype == np.uint16 and np.abs(deep / 257 - whole).max() <= 0.51


def test_enlarging_is_pillows_bicubic() -> None:
    """Both passes; Pillow weighs edge rows anew, here they are repeated: the inside is compared."""
    from PIL import Image

    values = np.random.default_rng(2).random((20, 30)).astype(np.float32)
    made = carry._tall(carry._wide(values, 90), np.arange(60), 60)
    expected = np.asarray(Image.fromarray(values).resize((90, 60), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(made[6:-6], expected[6:-6], atol=1e-5)
