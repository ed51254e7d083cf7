"""What a run gives back: the picture with everything that its file had."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffplugin.errors import Cancelled, ImageError
from diffplugin.runtime.restorer import Restorer
from tests.runtime.conftest import FakeModel, smooth_photo


def png(**options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(smooth_photo()).save(file, "PNG", **options)
    return file.getvalue()


def test_bytes_and_file_objects_go_in(restorer: Restorer) -> None:
    expected = restorer.restore(smooth_photo(), plugins=["derain"], steps=1).array
    for given in (png(), bytearray(png()), io.BytesIO(png())):
        made = restorer.restore(given, plugins=["derain"], steps=1)
        np.testing.assert_array_equal(made.array, expected, err_msg=type(given).__name__)


def test_save_keeps_what_the_file_had(restorer: Restorer, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x013B] = "someone"
    made = restorer.restore(png(dpi=(300, 300), exif=exif), plugins=["derain"], steps=1)
    assert made.save(tmp_path / "out.png") == tmp_path / "out.png"
    with Image.open(tmp_path / "out.png") as image:
        assert image.getexif()[0x013B] == "someone" and round(image.info["dpi"][0]) == 300
        np.testing.assert_array_equal(np.asarray(image), made.array)
    assert round(made.image.info["dpi"][0]) == 300 and made.image.info["exif"] == made.photo.exif
    with pytest.raises(ImageError, match="suffix"):
        made.save(tmp_path / "out.xyz")


def test_grey_stays_grey_unless_the_plugin_brings_colour(restorer: Restorer, model: FakeModel) -> None:
    def tinted(inputs: object) -> dict[str, np.ndarray]:
        latents = inputs["latents"]  # type: ignore[index]
        image = np.ascontiguousarray(latents[:, :3].repeat(8, 2).repeat(8, 3))
        image[:, 0] += 0.3
        return {"image": image}

    model.swap("vae_decoder", tinted)
    grey = smooth_photo()[..., 0]
    made = restorer.restore(grey, plugins=["derain"], steps=1)
    assert made.image.mode == "L" and np.array_equal(made.array[..., 0], made.array[..., 2])
    restorer.cards["derain"] = replace(restorer.cards["derain"], colour=True)
    coloured = restorer.restore(grey, plugins=["derain"], steps=1)
    assert coloured.image.mode == "RGB" and coloured.photo.mode == "RGB"
    assert (coloured.array[..., 0] > coloured.array[..., 2]).mean() > 0.9


def animation() -> bytes:
    frames = [Image.fromarray(smooth_photo(seed=i)) for i in range(3)]
    file = io.BytesIO()
    frames[0].save(file, "TIFF", save_all=True, append_images=[frames[1], frames[2].crop((0, 0, 40, 32))])
    return file.getvalue()


def test_every_frame_is_restored_as_if_it_came_alone(restorer: Restorer, tmp_path: Path) -> None:
    seen = []
    made = restorer.restore(
        animation(), "rain", steps=2, progress=lambda done, total, plugin: seen.append((done, total))
    )
    assert made.selection.chosen == ("derain",) and made.to_json()["frames"] == 3
    assert seen[-1][0] == seen[-1][1] == 3 * made.plan.unet_runs
    for i, frame in enumerate((made.photo, *made.photo.frames)):
        alone = smooth_photo(seed=i)[:32, :40] if i == 2 else smooth_photo(seed=i)
        expected = restorer.restore(alone, plugins=["derain"], steps=2).array
        np.testing.assert_array_equal(frame.rgb, expected, err_msg=f"frame {i}")
    made.save(tmp_path / "out.tif")
    with Image.open(tmp_path / "out.tif") as image:
        assert getattr(image, "n_frames", 1) == 3
    with pytest.raises(ImageError, match="3 frames or pages, JPEG holds one picture"):
        made.save(tmp_path / "out.jpg")
    untouched = restorer.restore(animation(), "hello there")
    assert untouched.untouched and len(untouched.photo.frames) == 2


def test_strength_keeps_a_part_of_the_chains_change(restorer: Restorer) -> None:
    photo = np.dstack([smooth_photo(), np.full((48, 64, 1), 90, np.uint8)])
    options: Any = {"plugins": ["derain", "lowlight"], "steps": 2}
    whole = restorer.restore(photo, **options)
    assert whole.strength == whole.to_json()["strength"] == 1
    for strength in (0, 0.3, 1):
        made = restorer.restore(photo, **options, strength=strength)
        expected = np.rint(photo[..., :3] + strength * (whole.array.astype(float) - photo[..., :3]))
        off = np.abs(made.array - expected)
        assert off.max() == 0, f"strength {strength}: {(off > 0).sum()} levels off, by {off.max()} at most"
        assert made.strength == strength and (np.asarray(made.photo.alpha) == 90).all()
    enlarged = restorer.restore(photo, **options, size=(96, 80), strength=0)
    np.testing.assert_array_equal(enlarged.array, photo[..., :3], err_msg="the photo itself, not its working copy")


def test_strength_at_16_bits_and_through_a_mask(restorer: Restorer) -> None:
    deep = smooth_photo().astype(np.uint16) * 257
    half = restorer.restore(deep, plugins=["derain"], steps=1, strength=0.5).photo.levels
    whole = restorer.restore(deep, plugins=["derain"], steps=1).photo.levels
    assert half.dtype == np.uint16
    assert np.abs(half - (deep + whole.astype(float)) / 2).max() <= 0.5
    mask = np.zeros((48, 64), bool)
    mask[10:30, 20:40] = True
    made = restorer.restore(smooth_photo(), plugins=["lowlight"], steps=1, mask=mask, strength=0.5).array
    np.testing.assert_array_equal(made[~mask], smooth_photo()[~mask])
    assert np.abs(made[mask].astype(int) - smooth_photo()[mask]).max() > 10


def test_auto_decides_once_for_an_animation_and_for_every_page(restorer: Restorer, model: FakeModel) -> None:
    grow = model._function("vae_decoder")
    model.swap("vae_decoder", lambda x: {"image": grow(x)["image"] * 4})  # much is clipped
    frames = [smooth_photo(seed=i) // (1 + i) for i in range(2)]
    alone = [restorer.restore(frame, plugins=["derain"], steps=1, strength="auto") for frame in frames]
    assert 0 < alone[0].strength < 1 and alone[0].strength != alone[1].strength
    for form in ("TIFF", "PNG"):
        file = io.BytesIO()
        images = [Image.fromarray(frame) for frame in frames]
        images[0].save(file, form, save_all=True, append_images=images[1:])
        made = restorer.restore(file.getvalue(), plugins=["derain"], steps=1, strength="auto")
        assert made.strength == alone[0].strength
        (second,) = made.photo.frames
        expected = alone[1].strength if form == "TIFF" else alone[0].strength
        at_expected = restorer.restore(frames[1], plugins=["derain"], steps=1, strength=expected).array
        np.testing.assert_array_equal(second.rgb, at_expected, err_msg=form)


def test_a_mask_is_for_one_picture(restorer: Restorer) -> None:
    mask = np.full((48, 64), 255, np.uint8)
    for use in (restorer.restore, restorer.plan):
        with pytest.raises(ImageError, match="3 pages, but a mask or region is for one picture"):
            use(animation(), plugins=["derain"], mask=mask)


def test_cancelling_between_frames(restorer: Restorer, model: FakeModel) -> None:
    with pytest.raises(Cancelled):
        restorer.restore(animation(), plugins=["derain"], steps=2, cancelled=lambda: model.runs("vae_decoder") > 0)
    assert model.runs("vae_decoder") == 1


def test_notes_say_what_was_lost(restorer: Restorer) -> None:
    file = io.BytesIO()
    Image.fromarray(smooth_photo()).convert("1").save(file, "PNG")
    made = restorer.restore(file.getvalue(), plugins=["derain"], steps=1)
    assert made.notes == ("black and white became grey",) == tuple(made.to_json()["notes"])
