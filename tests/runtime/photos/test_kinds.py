"""Damaged, unsupported, harmless: told apart, and the remedy named."""

from __future__ import annotations

import builtins
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from diffplugin.errors import DamagedImage, ImageError, UnsupportedImage
from diffplugin.runtime.photos.mend import NO_END
from diffplugin.runtime.photos.read import read_photo
from diffplugin.runtime.photos.write import output_suffixes, write_photo
from tests.runtime.photos.files import encoded
from tests.runtime.photos.test_metadata import srgb_profile


def smooth(height: int = 120, width: int = 160) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack((x, y * 2, (x + y) // 2), -1).astype(np.uint8)


def noise(height: int = 64, width: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("tail", [b"", b"\xff", b"\0" * 700])
@pytest.mark.parametrize("pixels", [smooth(), noise()], ids=["smooth", "noise"])
def test_a_jpeg_without_its_end_marker_is_read_with_a_note(pixels: np.ndarray, tail: bytes, progressive: bool) -> None:
    data = encoded(Image.fromarray(pixels), "JPEG", progressive=progressive)
    photo = read_photo(data[:-2] + tail)
    np.testing.assert_array_equal(photo.rgb, read_photo(data).rgb)
    assert photo.notes in ((NO_END,), ()) and (tail[:1] == b"\0" or photo.notes), "no note"


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_lacks_more_is_damaged(progressive: bool) -> None:
    data = encoded(Image.fromarray(noise()), "JPEG", progressive=progressive)
    for cut in (4, 10, 100, len(data) // 2):
        with pytest.raises(DamagedImage, match="truncated or damaged"):
            read_photo(data[:-cut])


def test_a_progressive_jpeg_cut_between_two_scans_is_damaged() -> None:
    data = encoded(Image.fromarray(smooth()), "JPEG", progressive=True)
    scans = [i for i in range(len(data) - 1) if data[i : i + 2] == b"\xff\xda"]
    tables = [i for i in range(len(data) - 1) if data[i : i + 2] == b"\xff\xc4" and i > scans[0]]
    for end in [*scans[1:], *tables]:
        with pytest.raises(DamagedImage):
            read_photo(data[:end])


def test_harmless(tmp_path: Path) -> None:
    """Rubbish behind the picture, a PNG without IEND, a GIF without its trailer."""
    for form in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        data = encoded(Image.fromarray(smooth()), form)
        np.testing.assert_array_equal(read_photo(data + b"rubbish" * 99).rgb, read_photo(data).rgb, err_msg=form)
    for form, cut in (("PNG", 12), ("GIF", 1)):
        data = encoded(Image.fromarray(smooth()), form)
        np.testing.assert_array_equal(read_photo(data[:-cut]).rgb, read_photo(data).rgb, err_msg=form)


@pytest.mark.parametrize("kind", [b"tEXt", b"iCCP", b"pHYs", b"eXIf"])
def test_a_png_with_a_broken_part_beside_its_pixels(kind: bytes) -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("Author", "me")
    exif = Image.Exif()
    exif[0x013B] = "someone"
    options = {"pnginfo": chunks, "dpi": (300, 300), "icc_profile": srgb_profile(), "exif": exif}
    data = bytearray(encoded(Image.fromarray(smooth()), "PNG", **options))
    data[data.index(kind) + 7] ^= 1
    photo = read_photo(bytes(data))
    np.testing.assert_array_equal(photo.rgb, smooth())
    assert photo.notes == (f"damaged parts beside the pixels are left out ({kind.decode()})",)
    kept = {"tEXt": photo.details.text, "iCCP": photo.icc, "pHYs": photo.details.dpi, "eXIf": photo.exif}
    assert [name for name, value in kept.items() if not value] == [kind.decode()]
    for critical in (b"IHDR", b"IDAT"):
        data = bytearray(encoded(Image.fromarray(smooth()), "PNG"))
        data[data.index(critical) + 6] ^= 1
        with pytest.raises(DamagedImage):
            read_photo(bytes(data))


UNSUPPORTED = {
    b"\xff\x0a": "a JPEG XL picture",
    b"\0\0\0\x0cJXL \r\n\x87\n": "a JPEG XL picture",
    b"8BPS\0\1": "a Photoshop document",
    b"%PDF-1.7": "a PDF document",
    b"%!PS-Adobe": "a PostScript document",
    b"<svg xmlns=": "an SVG drawing",
    b"<?xml version='1.0'?>": "a text document",
    b"\0\0\0\x18ftypmp42\0\0\0\0": "a film (MP4)",
    b"\0\0\0\x14ftypqt  \0\0\0\0": "a film (QuickTime)",
    b"RIFF\0\0\0\0AVI LIST": "a film (AVI)",
    b"RIFF\0\0\0\0WAVEfmt ": "a sound (WAV)",
    b"PK\x03\x04": "a ZIP archive",
    b"\x76\x2f\x31\x01": "an OpenEXR picture",
}


@pytest.mark.parametrize("head", UNSUPPORTED, ids=list(UNSUPPORTED.values()))
def test_kinds_that_are_not_read_are_named(head: bytes) -> None:
    with pytest.raises(UnsupportedImage) as caught:
        read_photo(head + bytes(100), name="x")
    assert str(caught.value).startswith(f"x: {UNSUPPORTED[head]}") and "convert it to PNG" in str(caught.value)


def test_tiff_layouts_that_are_not_read_are_named() -> None:
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
    cases = [
        (np.zeros((9, 9, 3), np.float32), {"photometric": "rgb"}, "3 channels of 32 floating-point bits"),
        (np.zeros((9, 9, 3), np.uint32), {"photometric": "rgb"}, "3 channels of 32 unsigned bits"),
        (
            np.zeros((3, 9, 9), np.uint16),
            {"photometric": "rgb", "planarconfig": "separate"},
            "16 bits with each channel in a plane of its own, which is not read here",
        ),
    ]
    for array, options, words in cases:
        file = io.BytesIO()
        tifffile.imwrite(file, array, **options)
        with pytest.raises(UnsupportedImage, match=words) as caught:
            read_photo(file.getvalue())
        assert "; save it with " in str(caught.value)
    with pytest.raises(UnsupportedImage, match="float32 pixels from 7 to 7, expected 8 or 16"):
        read_photo(encoded(Image.fromarray(np.full((9, 9), 7, np.float32)), "TIFF"))


# ---- extras


@pytest.mark.parametrize("suffix", [".heic", ".heif"])
def test_heic(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("pillow_heif", reason="needs the extra [heif]")
    before = "HEIF" in Image.OPEN  # other packages of the tests may have registered it
    assert suffix in output_suffixes()
    write_photo(tmp_path / f"a{suffix}", smooth())
    photo = read_photo(tmp_path / f"a{suffix}")
    off = np.abs(photo.rgb.astype(int) - smooth()).mean()
    assert off < 3, f"HEIC is off by {off:.1f} of 255"
    data = (tmp_path / f"a{suffix}").read_bytes()
    with pytest.raises(DamagedImage, match="an HEIC picture, truncated or damaged"):
        read_photo(data[: len(data) // 2])
    assert ("HEIF" in Image.OPEN) == before, "the plugin was registered for the whole process"


def dng() -> bytes:
    """A small raw file: 96x64 sensor pixels of 16 bits in a Bayer pattern, green brighter than red and blue."""
    width, height = 96, 64
    pattern = np.array([[20_000, 40_000], [40_000, 20_000]], np.uint16)
    data = np.tile(pattern, (height // 2, width // 2)).astype("<u2").tobytes()
    matrix = [(6000, 10000), (0, 1), (0, 1), (0, 1), (10000, 10000), (0, 1), (0, 1), (0, 1), (8000, 10000)]
    entries: list[tuple[int, int, int, bytes]] = [
        (254, 4, 1, struct.pack("<I", 0)),
        (256, 4, 1, struct.pack("<I", width)),
        (257, 4, 1, struct.pack("<I", height)),
        (258, 3, 1, struct.pack("<HH", 16, 0)),
        (259, 3, 1, struct.pack("<HH", 1, 0)),
        (262, 3, 1, struct.pack("<HH", 32803, 0)),
        (271, 2, 6, b"maker\0"),
        (272, 2, 7, b"camera\0"),
        (273, 4, 1, b"OFFS"),
        (277, 3, 1, struct.pack("<HH", 1, 0)),
        (278, 4, 1, struct.pack("<I", height)),
        (279, 4, 1, struct.pack("<I", len(data))),
        (33421, 3, 2, struct.pack("<HH", 2, 2)),
        (33422, 1, 4, bytes((0, 1, 1, 2))),
        (50706, 1, 4, bytes((1, 4, 0, 0))),
        (50708, 2, 7, b"camera\0"),
        (50717, 4, 1, struct.pack("<I", 65535)),
        (50721, 10, 9, b"".join(struct.pack("<ii", *value) for value in matrix)),
        (50728, 5, 3, struct.pack("<6I", 1, 1, 1, 1, 1, 1)),
        (50778, 3, 1, struct.pack("<HH", 21, 0)),
    ]
    begin = 8 + 2 + 12 * len(entries) + 4
    beyond = b""
    table = b""
    total = sum(len(value) + len(value) % 2 for *_, value in entries if len(value) > 4)
    for tag, kind, count, value in entries:
        field = struct.pack("<I", begin + total) if value == b"OFFS" else value.ljust(4, b"\0")
        if len(value) > 4:
            field = struct.pack("<I", begin + len(beyond))
            beyond += value + b"\0" * (len(value) % 2)
        table += struct.pack("<HHI", tag, kind, count) + field
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + bytes(4) + beyond + data


def test_camera_raw(tmp_path: Path) -> None:
    pytest.importorskip("rawpy", reason="needs the extra [raw]")
    photo = read_photo(dng())
    assert photo.size == (96, 64) and photo.deep is not None
    middle = photo.deep[32, 48].astype(int)
    assert middle[1] > middle[0] and middle[1] > middle[2], f"not green: {middle}"
    assert photo.notes[0].startswith("developed from camera RAW") and photo.exif is not None and b"maker" in photo.exif
    write_photo(tmp_path / "out.tif", photo)
    np.testing.assert_array_equal(read_photo(tmp_path / "out.tif").deep, photo.deep)
    (tmp_path / "cut.dng").write_bytes(dng()[:7])
    with pytest.raises(ImageError, match="a camera RAW picture"):
        read_photo(tmp_path / "cut.dng")


@pytest.mark.parametrize(("package", "extra"), [("pillow_heif", "heif"), ("rawpy", "raw")])
def test_a_missing_extra_is_named(package: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    data = dng() if extra == "raw" else b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    with pytest.raises(UnsupportedImage, match=rf"needs the extra \[{extra}\]: pip install 'diffplugin\[{extra}\]'"):
        read_photo(data)


def test_pillows_limit_of_pixels_is_left_to_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread that opens pictures while ours are read keeps its guard."""
    seen = []
    real = Image.Image.convert

    def watched(self: Image.Image, *args: Any, **options: Any) -> Image.Image:
        seen.append(Image.MAX_IMAGE_PIXELS)
        return real(self, *args, **options)

    monkeypatch.setattr(Image.Image, "convert", watched)
    for form in ("PNG", "JPEG", "GIF", "TIFF", "WEBP"):
        read_photo(encoded(Image.fromarray(smooth()), form))
    assert seen and set(seen) == {Image.MAX_IMAGE_PIXELS} != {None}


def test_the_limit_holds_for_pillow_images_and_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffplugin.runtime.photos.read import photo_from

    monkeypatch.setenv("DIFFPLUGIN_MAX_PIXELS", "1000")
    for given in (Image.new("RGB", (40, 26)), np.zeros((26, 40, 3), np.uint8)):
        with pytest.raises(ImageError, match="40x26 is 1,040 pixels, expected at most 1,000"):
            photo_from(given)
    assert photo_from(Image.new("RGB", (40, 25))).size == (40, 25)
