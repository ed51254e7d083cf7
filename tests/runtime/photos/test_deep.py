"""Sixteen bits a channel go in and come out."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from diffplugin.runtime.photos.deep import grey_of, to_8_bits
from diffplugin.runtime.photos.photo import Photo
from diffplugin.runtime.photos.pixels import from_tensor, from_tensor_deep, resize, to_tensor, with_rgb, working_photo
from diffplugin.runtime.photos.read import photo_from, read_photo
from diffplugin.runtime.photos.write import not_kept, write_photo
from tests.runtime.photos.files import chunk, png, rows_of

if TYPE_CHECKING:
    from diffplugin.runtime.restorer import Restorer

WIDTH, HEIGHT = 40, 24
COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # of PNG, by channels


def levels(channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 65536, (HEIGHT, WIDTH, channels), np.uint16)


def deep_of(photo: Photo) -> np.ndarray:
    """uint16 [H, W, C] of a photo, alpha last."""
    assert photo.deep is not None
    colours = photo.deep if photo.mode == "RGB" else photo.deep[..., :1]
    return colours if photo.deep_alpha is None else np.dstack((colours, photo.deep_alpha))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_there_and_back(tmp_path: Path, channels: int) -> None:
    deep = levels(channels)
    samples = deep.astype(">u2")
    (tmp_path / "a.png").write_bytes(png(WIDTH, HEIGHT, 16, COLOUR_TYPES[channels], rows_of(samples)))
    photo = read_photo(tmp_path / "a.png")
    assert photo.mode == ("L" if channels < 3 else "RGB")
    np.testing.assert_array_equal(deep_of(photo), deep)
    assert photo.rgb.dtype == np.uint8 and np.abs(photo.rgb[..., 0].astype(int) * 257 - deep[..., 0]).max() <= 257
    write_photo(tmp_path / "out.png", photo)
    assert (tmp_path / "out.png").read_bytes()[24:26] == bytes((16, COLOUR_TYPES[channels]))
    np.testing.assert_array_equal(deep_of(read_photo(tmp_path / "out.png")), deep)


def test_png_filters_and_interlacing() -> None:
    """Filters are undone with the distance of a pixel, 6 bytes; Pillow does that and interlacing for us."""
    deep = levels(3)
    rows = []
    above = np.zeros(WIDTH * 6, np.uint8)
    for y, row in enumerate(deep.astype(">u2")):
        raw = row.view(np.uint8).ravel()
        left = np.concatenate((np.zeros(6, np.uint8), raw[:-6]))
        average = ((left.astype(int) + above) // 2).astype(np.uint8)
        filtered = (raw, raw - left, raw - above, raw - average)[y % 4]
        rows.append(bytes([y % 4]) + filtered.tobytes())
        above = raw
    photo = read_photo(png(WIDTH, HEIGHT, 16, 2, b"".join(rows)))
    np.testing.assert_array_equal(photo.deep, deep)
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    woven = b"".join(rows_of(deep[y::dy, x::dx].astype(">u2")) for x, y, dx, dy in passes)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 1))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(woven)) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(read_photo(data).deep, deep)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zlib"},
        {"compression": "zlib", "predictor": True},
        {"tile": (16, 32)},
        {"tile": (16, 32), "compression": "zlib"},
        {"byteorder": ">"},
        {"byteorder": ">", "compression": "zlib"},
        {"rowsperstrip": 5},
    ],
    ids=str,
)
def test_tiff_there_and_back(tmp_path: Path, channels: int, options: dict[str, Any]) -> None:
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
    deep = levels(channels)
    kind: dict[str, Any] = {"photometric": "minisblack"} if channels == 1 else {"photometric": "rgb"}
    kind |= {"extrasamples": ["unassalpha"]} if channels == 4 else {}
    tifffile.imwrite(tmp_path / "a.tif", np.squeeze(deep), **kind, **options)
    photo = read_photo(tmp_path / "a.tif")
    np.testing.assert_array_equal(deep_of(photo), deep)
    write_photo(tmp_path / "out.tif", photo)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out.tif").reshape(deep.shape), deep)
    np.testing.assert_array_equal(deep_of(read_photo(tmp_path / "out.tif")), deep)


def test_compressed_planes_are_read_at_8_bits_with_a_note(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile", reason="tifffile is not installed")
    deep = levels(3)
    planes = np.moveaxis(deep, 2, 0)
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="rgb", planarconfig="separate", compression="zlib")
    photo = read_photo(tmp_path / "a.tif")
    np.testing.assert_array_equal(photo.rgb, deep >> 8)
    assert photo.deep is None and photo.notes[0].startswith("16 bits a channel became 8")


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "raw"])
def test_16_bit_tiff_in_every_compression(tmp_path: Path, compression: str) -> None:
    photo = photo_from(levels(3))
    details = photo.details.__class__(compression=compression)
    write_photo(tmp_path / "a.tif", Photo(rgb=photo.rgb, deep=photo.deep, details=details))
    back = read_photo(tmp_path / "a.tif")
    np.testing.assert_array_equal(back.deep, photo.deep)
    assert back.details.compression == compression


def test_other_formats_say_that_8_bits_are_written(tmp_path: Path) -> None:
    photo = photo_from(levels(3))
    assert not_kept("x.jpg", photo) == ("JPEG does not keep: 16 bits a channel: 8 are written",)
    assert not_kept("x.png", photo) == () == not_kept("x.tif", photo)
    assert not_kept("x.png", replace(photo, frames=(photo,))) == (
        "PNG does not keep: 16 bits a channel: 8 are written",
    )
    write_photo(tmp_path / "out.jpg", photo)
    assert read_photo(tmp_path / "out.jpg").deep is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_deep_photo_is_turned_like_its_8_bits(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    deep = levels(3)
    photo = read_photo(png(WIDTH, HEIGHT, 16, 2, rows_of(deep.astype(">u2")), chunk(b"eXIf", block)))
    np.testing.assert_array_equal(deep_of(photo)[..., :3] >> 8, photo.rgb, err_msg=f"orientation {orientation}")


def test_one_transparent_colour_at_16_bits() -> None:
    deep = levels(3)
    key = struct.pack(">3H", *deep[3, 4].tolist())
    photo = read_photo(png(WIDTH, HEIGHT, 16, 2, rows_of(deep.astype(">u2")), chunk(b"tRNS", key)))
    assert photo.deep_alpha is not None and photo.deep_alpha[3, 4] == 0 and (photo.deep_alpha == 65535).sum() == 959


def test_metadata_follow_a_deep_png(tmp_path: Path) -> None:
    from tests.runtime.photos.test_kept import SRGB, exif_block

    photo = photo_from(levels(3))
    write_photo(tmp_path / "a.png", Photo(rgb=photo.rgb, deep=photo.deep, icc=SRGB, exif=exif_block(1)))
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["icc_profile"] == SRGB and image.getexif()[0x013B] == "someone"
        image.load()


def test_tensors_of_16_bits_go_there_and_back() -> None:
    deep = levels(3)
    np.testing.assert_array_equal(from_tensor_deep(to_tensor(deep)), deep)
    np.testing.assert_array_equal(from_tensor(to_tensor(deep)), to_8_bits(deep))


def test_working_sizes_of_16_bits() -> None:
    smooth = np.linspace(0, 65535, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint16)
    photo = photo_from(smooth)
    half = working_photo(photo, (32, 32))
    assert half.dtype == np.uint16 and len(np.unique(half)) > 1000
    off = np.abs(half.astype(float) / 257 - working_photo(photo.rgb, (32, 32))).max()
    assert off <= 1.01, f"8 and 16 bits differ by {off:.2f} of 255"
    assert resize(smooth, (64, 64)) is smooth


def test_grey_of_16_bits() -> None:
    rgb = levels(3)
    assert np.array_equal(grey_of(np.repeat(rgb[..., :1], 3, 2)), rgb[..., 0]), "grey changed"
    exact = rgb @ np.array([0.299, 0.587, 0.114])
    assert np.abs(grey_of(rgb) - exact).max() < 1.5


def test_a_run_keeps_the_precision(restorer: Restorer, tmp_path: Path) -> None:
    """The fake model gives means of 8x8 pixels plus 0.2, in float: more levels than 8 bits can tell apart."""
    y, x = np.mgrid[:64, :96]
    deep = np.stack((x * 600, y * 700, (x + y) * 300), -1).astype(np.uint16)
    made = restorer.restore(photo_from(deep), plugins=["derain"], steps=2)
    result = made.photo.deep
    assert result is not None and len(np.unique(result % 257)) > 5, "an 8-bit picture, blown up"
    np.testing.assert_array_equal(made.array, to_8_bits(result))
    eight = restorer.restore(to_8_bits(deep), plugins=["derain"], steps=2).array
    assert np.abs(eight.astype(int) - made.array).max() <= 1
    made.save(tmp_path / "out.png")
    np.testing.assert_array_equal(read_photo(tmp_path / "out.png").deep, result)
    chained = restorer.restore(photo_from(deep), plugins=["derain", "deblur"], steps=2).photo.deep
    assert chained is not None and len(np.unique(chained % 257)) > 5, "8 bits between two plugins"


def test_grey_with_a_profile_says_that_8_bits_are_left(tmp_path: Path) -> None:
    from tests.runtime.photos.test_metadata import grey_profile

    Image.fromarray(levels(1)[..., 0]).save(tmp_path / "a.png", icc_profile=grey_profile(1.0))
    photo = read_photo(tmp_path / "a.png")
    assert photo.deep is None and "16 bits of grey became 8" in photo.notes[0]


def test_12_bits_of_grey_are_not_taken_for_16(tmp_path: Path) -> None:
    """Packed 12-bit samples: a value of 4095 is white."""
    values = np.linspace(0, 4095, WIDTH * HEIGHT).astype(np.uint32)
    pairs = values.reshape(-1, 2)
    packed = np.stack((pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255), -1)
    tags = [(256, 4, WIDTH), (257, 4, HEIGHT), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 134), (277, 3, 1)]
    tags += [(278, 4, HEIGHT), (279, 4, packed.size), (284, 3, 1)]
    table = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    data = b"II*\0" + struct.pack("<IH", 8, len(tags)) + table + bytes(4) + packed.astype(np.uint8).tobytes()
    photo = read_photo(data)
    expected = values.reshape(HEIGHT, WIDTH) * (65535 / 4095)
    assert photo.deep is not None and np.abs(photo.deep[..., 0] - expected).max() <= 1
    assert photo.rgb.max() == 255


def test_16_bit_grey_from_pillow() -> None:
    deep = levels(1)[..., 0]
    photo = photo_from(Image.fromarray(deep))
    assert photo.mode == "L" and photo.deep is not None
    np.testing.assert_array_equal(photo.deep[..., 0], deep)


def test_with_rgb_keeps_depth_and_alpha_together() -> None:
    photo = photo_from(levels(4))
    assert photo.deep is not None
    made = with_rgb(photo, 65535 - photo.deep)
    np.testing.assert_array_equal(made.deep_alpha, photo.deep_alpha)
    np.testing.assert_array_equal(made.rgb, to_8_bits(65535 - photo.deep))
    assert made.alpha is not None
