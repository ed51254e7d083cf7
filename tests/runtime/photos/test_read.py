"""Reading: files, arrays and images; what cannot be read is one clear line."""

import io
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffplugin.errors import ImageError, RequestError
from diffplugin.runtime.photos.read import MAX_PIXELS, MIN_SIDE, photo_from, pixel_limit, read_photo
from tests.runtime.photos.files import HEIGHT, WIDTH, chunk, encoded, read


def fault(folder: Path, data: bytes, name: str = "picture.png") -> str:
    with pytest.raises(ImageError) as caught:
        read(folder, data, name)
    message = str(caught.value)
    assert "\n" not in message, message
    assert str(folder / name) in message, message
    assert caught.value.__suppress_context__ or caught.value.__context__ is None, "a Pillow traceback is shown above"
    return message


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"no\.png: no such file$"):
        read_photo(tmp_path / "no.png")
    with pytest.raises(ImageError, match="a folder, expected a picture file"):
        read_photo(tmp_path)


@pytest.mark.parametrize("name", ["null\0byte.png", "x" * 10_000, "two\nlines.png"])
def test_impossible_names_give_one_short_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError) as caught:
        read_photo(f"{tmp_path}/{name}")
    assert len(str(caught.value)) < 300 and str(caught.value).isprintable(), caught.value


def test_not_pictures(tmp_path: Path) -> None:
    assert "empty (0 bytes), expected a PNG" in fault(tmp_path, b"")
    assert "not a picture (begins with 'hello, this is text');" in fault(tmp_path, b"hello, this\nis text")
    assert fault(tmp_path, bytes(range(255, 0, -1))).endswith("JPEG 2000 or AVIF file")
    assert "an HEIC picture" in fault(tmp_path, b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    assert "a PostScript document, which is not read here" in fault(
        tmp_path, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "code.eps"
    )


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000"])
def test_truncated_pictures(tmp_path: Path, form: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise), form)
    assert "truncated or damaged (" in fault(tmp_path, data[: len(data) // 2])


@pytest.mark.parametrize(("width", "height"), [(1, 1), (MIN_SIDE - 1, 100), (100, MIN_SIDE - 1)])
def test_too_small_names_both_sides(tmp_path: Path, width: int, height: int) -> None:
    data = encoded(Image.new("RGB", (width, height)), "PNG")
    assert f"{width}x{height} pixels, expected at least {MIN_SIDE}x{MIN_SIDE}" in fault(tmp_path, data)


def test_smallest_picture_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, encoded(Image.new("RGB", (MIN_SIDE, MIN_SIDE)), "PNG")).size == (MIN_SIDE, MIN_SIDE)


def bomb(side: int) -> bytes:
    packer = zlib.compressobj(9)
    block = bytes((side // 8 + 1) * 100)  # one bit a pixel
    packed = b"".join([packer.compress(block) for _ in range(side // 100)]) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bomb(20_000)
    assert len(data) < 100_000

    def no_decoding(self: Image.Image) -> None:
        raise AssertionError("the bomb was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", no_decoding)
    message = fault(tmp_path, data)
    assert f"20000x20000 is 400,000,000 pixels, expected at most {MAX_PIXELS:,}" in message
    assert "DIFFPLUGIN_MAX_PIXELS" in message


def test_the_limit_is_adjustable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("RGB", (40, 25)), "PNG")
    assert read(tmp_path, data, max_pixels=1000).size == (40, 25)
    with pytest.raises(ImageError, match="at most 999"):
        read(tmp_path, data, max_pixels=999)
    monkeypatch.setenv("DIFFPLUGIN_MAX_PIXELS", "999")
    assert "at most 999" in fault(tmp_path, data)
    monkeypatch.setenv("DIFFPLUGIN_MAX_PIXELS", "1000")
    assert read(tmp_path, data).size == (40, 25)
    for bad in ("many", "0", "-5", "1e6"):
        monkeypatch.setenv("DIFFPLUGIN_MAX_PIXELS", bad)
        with pytest.raises(RequestError, match="DIFFPLUGIN_MAX_PIXELS"):
            pixel_limit()


def test_pillows_own_limit_neither_warns_nor_stays_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)  # warns above it, refuses above twice it
    for side in (20, 40):
        assert read(tmp_path, encoded(Image.new("RGB", (side, side)), "PNG")).size == (side, side)
    assert Image.MAX_IMAGE_PIXELS == 300


def test_pixels_of_unknown_scale_are_refused(tmp_path: Path) -> None:
    for dtype in (np.float32, np.int32):
        data = encoded(Image.fromarray(np.full((9, 9), 7, dtype)), "TIFF")
        assert f"{dtype.__name__} pixels from 7 to 7, expected 8 or 16" in fault(tmp_path, data)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF"])
def test_random_damage_gives_a_photo_or_one_line(tmp_path: Path, rgb: np.ndarray, form: str) -> None:
    Image.init()
    if form not in Image.SAVE:
        pytest.skip(f"this Pillow has no {form}")
    random = np.random.default_rng(1)
    data = encoded(Image.fromarray(rgb), form)
    refused = 0
    for trial in range(60):
        broken = bytearray(data if trial % 3 else data[: random.integers(1, len(data))])
        for place in random.integers(0, len(broken) if trial % 2 else min(len(broken), 200), random.integers(1, 6)):
            broken[place] = random.integers(0, 256)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                photo = read(tmp_path, bytes(broken))
                assert photo.rgb.dtype == np.uint8 and photo.rgb.shape[2] == 3
            except ImageError as error:
                refused += 1
                assert str(error).isprintable(), repr(str(error))
    assert refused > 0


def test_a_broken_exif_block_does_not_stop_the_picture(tmp_path: Path, rgb: np.ndarray) -> None:
    random = np.random.default_rng(2)
    exif = Image.Exif()
    exif[0x010F] = "maker"
    exif[0x8769] = {0x9003: "2024:01:01 00:00:00", 0x829A: 0.01}
    block = exif.tobytes()
    for _ in range(50):
        broken = bytearray(block)
        for place in random.integers(6, len(broken), 4):
            broken[place] = random.integers(0, 256)
        photo = read(tmp_path, encoded(Image.fromarray(rgb), "JPEG", exif=bytes(broken)))
        assert sorted(photo.rgb.shape) == [3, HEIGHT, WIDTH]


def test_reading_in_threads_leaves_process_settings_alone(tmp_path: Path, rgb: np.ndarray) -> None:
    (tmp_path / "p.png").write_bytes(encoded(Image.fromarray(rgb), "PNG"))
    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    threads = [threading.Thread(target=lambda: [read_photo(tmp_path / "p.png") for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert limit == Image.MAX_IMAGE_PIXELS and list(warnings.filters) == filters


# ---- from Python


def test_photo_from_arrays(rgb: np.ndarray) -> None:
    photo = photo_from(rgb)
    np.testing.assert_array_equal(photo.rgb, rgb)
    original = rgb[0, 0, 0]
    rgb[0, 0, 0] = original + 1
    assert photo.rgb[0, 0, 0] == original, "the photo follows later changes of the caller's array"
    for channels, alpha in ((1, False), (2, True), (3, False), (4, True)):
        photo = photo_from(np.random.default_rng(0).integers(0, 256, (9, 11, channels), np.uint8))
        assert photo.size == (11, 9) and (photo.alpha is not None) == alpha
    np.testing.assert_array_equal(photo_from(rgb[..., 1]).rgb[..., 0], rgb[..., 1])
    assert photo_from(photo) is photo


def test_photo_from_pillow_and_path(tmp_path: Path, rgb: np.ndarray) -> None:
    np.testing.assert_array_equal(photo_from(Image.fromarray(rgb)).rgb, rgb)
    palette = Image.fromarray(rgb).quantize(16)
    np.testing.assert_array_equal(photo_from(palette).rgb, np.asarray(palette.convert("RGB")))
    Image.fromarray(rgb).save(tmp_path / "p.png")
    np.testing.assert_array_equal(photo_from(str(tmp_path / "p.png")).rgb, rgb)


def test_photo_from_refuses_other_things(rgb: np.ndarray) -> None:
    for bad in (rgb.astype(np.float32), rgb[None], np.zeros((9, 9, 5), np.uint8)):
        with pytest.raises(ImageError, match="expected uint8 HxW or HxWxC"):
            photo_from(bad)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="array: 7x9 pixels, expected at least 8x8"):
        photo_from(np.zeros((9, 7, 3), np.uint8))
    with pytest.raises(ImageError, match="cannot make a picture of int"):
        photo_from(3)  # type: ignore[arg-type]
    broken = Image.open(io.BytesIO(encoded(Image.fromarray(rgb), "BMP")[:300]))
    with pytest.raises(ImageError, match="image: truncated or damaged"):
        photo_from(broken)
