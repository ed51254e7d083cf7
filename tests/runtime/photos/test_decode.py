"""Decoding: every kind of file becomes one upright 8-bit RGB photo that keeps all that it can."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from diffplugin.errors import ImageError
from tests.runtime.photos.files import HEIGHT, WIDTH, chunk, encoded, png, read, rows_of


def test_plain_rgb_is_read_as_it_is(tmp_path: Path, rgb: np.ndarray) -> None:
    photo = read(tmp_path, encoded(Image.fromarray(rgb), "PNG"))
    np.testing.assert_array_equal(photo.rgb, rgb)
    assert photo.alpha is None and photo.icc is None and photo.exif is None and photo.notes == ()
    assert photo.size == (WIDTH, HEIGHT) and photo.path == tmp_path / "picture.png"
    assert photo.rgb.flags.c_contiguous and not photo.rgb.flags.writeable


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
def test_orientation_is_applied_as_pillow_does_and_reset(
    tmp_path: Path, rgb: np.ndarray, orientation: int, form: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x013B] = "someone"
    data = encoded(Image.fromarray(rgb), form, exif=exif)
    photo = read(tmp_path, data)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(photo.rgb, expected)
    kept = Image.Exif()
    assert photo.exif is not None
    kept.load(photo.exif)
    assert 0x0112 not in kept and kept[0x013B] == "someone"


def test_alpha_turns_with_the_picture(tmp_path: Path, rgb: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(np.dstack((rgb, rgb[..., 0])))
    photo = read(tmp_path, encoded(image, "PNG", exif=exif))
    assert photo.rgb.shape == (WIDTH, HEIGHT, 3)
    np.testing.assert_array_equal(photo.alpha, photo.rgb[..., 0])


def test_rgba_keeps_colours_under_transparent_pixels(tmp_path: Path, rgb: np.ndarray) -> None:
    alpha = np.where(np.arange(WIDTH) < 5, 0, 200).astype(np.uint8) * np.ones((HEIGHT, 1), np.uint8)
    photo = read(tmp_path, encoded(Image.fromarray(np.dstack((rgb, alpha))), "PNG"))
    np.testing.assert_array_equal(photo.rgb, rgb)
    np.testing.assert_array_equal(photo.alpha, alpha)


def test_grey_and_grey_with_alpha(tmp_path: Path, rgb: np.ndarray) -> None:
    grey = rgb[..., 2]
    plain = read(tmp_path, encoded(Image.fromarray(grey), "PNG"))
    np.testing.assert_array_equal(plain.rgb, np.dstack((grey,) * 3))
    assert plain.alpha is None
    both = Image.merge("LA", (Image.fromarray(grey), Image.fromarray(255 - grey)))
    photo = read(tmp_path, encoded(both, "PNG"))
    np.testing.assert_array_equal(photo.rgb, np.dstack((grey,) * 3))
    np.testing.assert_array_equal(photo.alpha, 255 - grey)


def test_palette_with_and_without_transparency(tmp_path: Path) -> None:
    indices = np.tile(np.arange(WIDTH, dtype=np.uint8) % 3, (HEIGHT, 1))
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    palette = chunk(b"PLTE", colours.tobytes())
    opaque = read(tmp_path, png(WIDTH, HEIGHT, 8, 3, rows_of(indices), palette))
    np.testing.assert_array_equal(opaque.rgb, colours[indices])
    assert opaque.alpha is None
    photo = read(tmp_path, png(WIDTH, HEIGHT, 8, 3, rows_of(indices), palette, chunk(b"tRNS", b"\x00\x80")))
    np.testing.assert_array_equal(photo.rgb, colours[indices])
    np.testing.assert_array_equal(photo.alpha, np.array([0, 128, 255], np.uint8)[indices])


@pytest.mark.parametrize("channels", [1, 3])
def test_one_transparent_colour(tmp_path: Path, rgb: np.ndarray, channels: int) -> None:
    samples = rgb[..., :channels] if channels == 3 else rgb[..., 0]
    key = struct.pack(f">{channels}H", *rgb[3, 4, :channels].tolist())
    photo = read(tmp_path, png(WIDTH, HEIGHT, 8, 2 if channels == 3 else 0, rows_of(samples), chunk(b"tRNS", key)))
    clear = (rgb[..., :channels] == rgb[3, 4, :channels]).all(axis=-1)
    np.testing.assert_array_equal(photo.alpha, np.where(clear, 0, 255))


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, form: str) -> None:
    deep = np.linspace(0, 65535, WIDTH * HEIGHT).round().astype(np.uint16).reshape(HEIGHT, WIDTH)
    by_hand = b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + deep.astype(">u2").tobytes()
    photo = read(tmp_path, by_hand if form == "PPM" else encoded(Image.fromarray(deep), form))
    np.testing.assert_array_equal(photo.rgb[..., 0], np.rint(deep / 257))
    np.testing.assert_array_equal(photo.rgb[..., 0], photo.rgb[..., 2])


def test_16_bit_rgb_and_rgba_keep_their_high_byte(tmp_path: Path, rgb: np.ndarray) -> None:
    low = np.full_like(rgb, 77).astype(">u2")
    deep = (rgb.astype(">u2") * 256 + low).astype(">u2")
    photo = read(tmp_path, png(WIDTH, HEIGHT, 16, 2, rows_of(deep)))
    np.testing.assert_array_equal(photo.rgb, rgb)
    with_alpha = np.dstack((deep, deep[..., 0])).astype(">u2")
    photo = read(tmp_path, png(WIDTH, HEIGHT, 16, 6, rows_of(with_alpha)))
    np.testing.assert_array_equal(photo.rgb, rgb)
    np.testing.assert_array_equal(photo.alpha, rgb[..., 0])


def test_16_bit_grey_with_a_transparent_value(tmp_path: Path) -> None:
    deep = np.tile(np.arange(WIDTH) * 2000, (HEIGHT, 1)).astype(">u2")
    photo = read(tmp_path, png(WIDTH, HEIGHT, 16, 0, rows_of(deep), chunk(b"tRNS", struct.pack(">H", 4000))))
    assert photo.alpha is not None
    np.testing.assert_array_equal(photo.alpha[0], np.where(np.arange(WIDTH) == 2, 0, 255))


def test_bilevel_and_cmyk(tmp_path: Path, rgb: np.ndarray) -> None:
    black_white = read(tmp_path, encoded(Image.fromarray(rgb[..., 0] > 100), "PNG"))
    np.testing.assert_array_equal(black_white.rgb[..., 1], np.where(rgb[..., 0] > 100, 255, 0))
    cmyk = read(tmp_path, encoded(Image.fromarray(rgb).convert("CMYK"), "JPEG", quality=100), "photo.jpg")
    off = np.abs(cmyk.rgb.astype(int) - rgb).max()
    assert off <= 8, f"CMYK JPEG: a channel is off by {off} of 255"


@pytest.mark.parametrize("form", ["TIFF", "GIF", "PNG", "WEBP"])
def test_all_frames_are_read_or_the_first_with_a_note(tmp_path: Path, rgb: np.ndarray, form: str) -> None:
    frames = [Image.fromarray(value).convert("L").convert("RGB") for value in (rgb, 255 - rgb, rgb // 2)]
    lossless = {"lossless": True} if form == "WEBP" else {}
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], duration=[50, 70, 90], loop=3, **lossless)
    photo = read(tmp_path, data)
    assert len(photo.frames) == 2 and photo.notes == ()
    for i, (one, frame) in enumerate(zip((photo, *photo.frames), frames, strict=True)):
        np.testing.assert_array_equal(one.rgb, np.asarray(frame), err_msg=f"{form}: frame {i}")
    assert all(frame.frames == () for frame in photo.frames)
    if form != "TIFF":
        assert [one.details.duration for one in (photo, *photo.frames)] == [50, 70, 90]
        assert photo.details.loop == 3
    first = read(tmp_path, data, first_frame=True)
    assert first.frames == () and first.notes == ("only the first of 3 frames or pages is used",)
    np.testing.assert_array_equal(first.rgb, photo.rgb)


def test_the_limit_holds_for_all_frames_together(tmp_path: Path, rgb: np.ndarray) -> None:
    frames = [Image.fromarray(rgb), Image.fromarray(255 - rgb)]
    data = encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    assert len(read(tmp_path, data, max_pixels=2 * WIDTH * HEIGHT).frames) == 1
    with pytest.raises(
        ImageError, match="the first 2 have 768 pixels together, expected at most 767; use --first-frame"
    ):
        read(tmp_path, data, max_pixels=2 * WIDTH * HEIGHT - 1)
    assert read(tmp_path, data, max_pixels=2 * WIDTH * HEIGHT - 1, first_frame=True).frames == ()


def test_the_content_decides_not_the_suffix(tmp_path: Path, rgb: np.ndarray) -> None:
    np.testing.assert_array_equal(read(tmp_path, encoded(Image.fromarray(rgb), "PNG"), "wrong.dng").rgb, rgb)
    np.testing.assert_array_equal(read(tmp_path, encoded(Image.fromarray(rgb), "BMP"), "wrong.jpg").rgb, rgb)
