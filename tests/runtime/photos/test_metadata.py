"""Profiles and EXIF: what follows a picture, what is converted, what stays behind."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from diffplugin.runtime.photos.metadata import colour_space, portable_exif, to_srgb
from diffplugin.runtime.photos.read import photo_from, read_photo

ImageCms = pytest.importorskip("PIL.ImageCms", reason="this Pillow has no colour management")
D50 = struct.pack(">3i", round(0.9642 * 65536), 65536, round(0.8249 * 65536))


def profile(space: bytes, kind: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A minimal ICC version 2 profile (ICC.1:2001-04, 6)."""
    header = struct.pack(
        ">I4sI4s4s4s6H4s4s6I12s4s44s",
        *(0, b"none", 0x02400000, kind, space, connection, 2024, 1, 1, 0, 0, 0, b"acsp", b"\0" * 4),
        *(0, 0, 0, 0, 0, 0, D50, b"none", b""),
    )
    table, data, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, body in tags.items():
        table += struct.pack(">4sII", name, start + len(data), len(body))
        data += body + b"\0" * (-len(body) % 4)
    whole = header + struct.pack(">I", len(tags)) + table + data
    return struct.pack(">I", len(whole)) + whole[4:]


def grey_profile(gamma: float) -> bytes:
    curve = b"curv" + struct.pack(">IIH", 0, 1, round(gamma * 256))
    return profile(b"GRAY", b"mntr", b"XYZ ", {b"wtpt": b"XYZ \0\0\0\0" + D50, b"kTRC": curve})


def cmyk_profile(lab: tuple[int, int, int]) -> bytes:
    """Every ink mix is the one colour ``lab``: shows whether the profile was used at all."""
    lut = b"mft1" + struct.pack(">IBBBB9i", 0, 4, 3, 2, 0, 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    lut += bytes(range(256)) * 4 + bytes(lab) * 16 + bytes(range(256)) * 3
    return profile(b"CMYK", b"prtr", b"Lab ", {b"wtpt": b"XYZ \0\0\0\0" + D50, b"A2B0": lut})


def srgb_profile() -> bytes:
    return bytes(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())


def test_colour_space() -> None:
    assert colour_space(srgb_profile()) == "RGB"
    assert colour_space(grey_profile(1)) == "L"
    assert colour_space(cmyk_profile((128, 128, 128))) == "CMYK"
    assert colour_space(b"junk") is None


def test_linear_grey_becomes_srgb(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(0, 256, 5, dtype=np.uint8), (9, 1))
    Image.fromarray(ramp).save(tmp_path / "grey.png", icc_profile=grey_profile(1.0))
    photo = read_photo(tmp_path / "grey.png")
    linear = ramp / 255
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055) * 255
    off = np.abs(photo.rgb - srgb[..., None]).max()
    assert off <= 2, f"linear grey to sRGB is off by {off} of 255"
    assert photo.icc is None


def test_grey_with_alpha_and_16_bits_use_the_profile_too(tmp_path: Path) -> None:
    mid = np.full((9, 9), 55, np.uint8)
    Image.merge("LA", (Image.fromarray(mid),) * 2).save(tmp_path / "la.png", icc_profile=grey_profile(1.0))
    Image.fromarray(mid.astype(np.uint16) * 257).save(tmp_path / "deep.png", icc_profile=grey_profile(1.0))
    for name in ("la.png", "deep.png"):
        value = int(read_photo(tmp_path / name).rgb[0, 0, 0])
        assert abs(value - 127) <= 2, f"{name}: linear 55 became {value}, sRGB is 127"
    alpha = read_photo(tmp_path / "la.png").alpha
    assert alpha is not None and (alpha == 55).all(), "alpha went through the profile"


def test_cmyk_goes_through_its_profile(tmp_path: Path) -> None:
    image = Image.new("CMYK", (16, 16), (10, 200, 30, 40))
    image.save(tmp_path / "ink.jpg", icc_profile=cmyk_profile((138, 209, 195)))  # Lab 54, 81, 67: red
    photo = read_photo(tmp_path / "ink.jpg")
    red, green, blue = photo.rgb[0, 0].tolist()
    assert red > 230 and green < 60 and blue < 60, (red, green, blue)
    assert photo.icc is None


def test_rgb_values_and_profile_stay_together(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    icc = srgb_profile()
    Image.fromarray(pixels).save(tmp_path / "p.png", icc_profile=icc)
    photo = read_photo(tmp_path / "p.png")
    np.testing.assert_array_equal(photo.rgb, pixels)
    assert photo.icc == icc


@pytest.mark.parametrize("icc", [b"junk" * 50, grey_profile(1.0)], ids=["junk", "for another mode"])
def test_useless_profiles_are_dropped(icc: bytes) -> None:
    image = Image.new("RGB", (9, 9), (1, 2, 3))
    image.info["icc_profile"] = icc
    photo = photo_from(image)
    assert photo.icc is None and photo.rgb[0, 0].tolist() == [1, 2, 3]
    assert to_srgb(image, icc) is None


def test_broken_profile_of_the_right_kind_falls_back() -> None:
    broken = grey_profile(1.0)[:140] + b"\xff" * 40
    image = Image.new("L", (9, 9), 77)
    image.info["icc_profile"] = broken
    assert photo_from(image).rgb[0, 0].tolist() == [77, 77, 77]


def test_exif_keeps_what_still_holds(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0110] = "camera"
    exif[0x0100] = 4000  # width: a layout tag
    exif[0x0111] = 8  # strip offsets
    exif[0x0112] = 3
    exif[0x8769] = {0x9003: "2024:01:01 10:00:00", 0x829A: 0.01, 0x927C: b"maker note", 0xA002: 4000, 0xA003: 3000}
    exif[0x8825] = {1: "N", 2: (52.0, 30.0, 0.0)}
    block = portable_exif(exif)
    assert block is not None and block.startswith(b"Exif\0\0")
    back = Image.Exif()
    back.load(block)
    assert sorted(back) == [0x0110, 0x8769, 0x8825]
    assert back[0x0110] == "camera"
    assert sorted(back.get_ifd(0x8769)) == [0x829A, 0x9003]
    assert back.get_ifd(0x8825)[1] == "N" and [float(v) for v in back.get_ifd(0x8825)[2]] == [52, 30, 0]
    Image.new("RGB", (9, 9)).save(tmp_path / "p.jpg", exif=block)
    with Image.open(tmp_path / "p.jpg") as image:
        assert image.getexif()[0x0110] == "camera"


def test_no_thumbnail_of_the_old_picture_survives() -> None:
    thumbnail = io.BytesIO()
    Image.new("RGB", (8, 8)).save(thumbnail, "JPEG")
    entries = struct.pack(">H", 1) + struct.pack(">HHI4s", 0x0110, 2, 4, b"cam\0") + struct.pack(">I", 26)
    second = struct.pack(">H", 2) + struct.pack(">HHII", 0x0201, 4, 1, 56) + struct.pack(">HHII", 0x0202, 4, 1, 1)
    block = b"Exif\0\0MM\0*" + struct.pack(">I", 8) + entries + second + bytes(4) + thumbnail.getvalue()
    exif = Image.Exif()
    exif.load(block)
    assert 0x0201 in exif.get_ifd(ExifTags.IFD.IFD1), "the test's block has no thumbnail"
    kept = portable_exif(exif)
    assert kept is not None and thumbnail.getvalue()[:20] not in kept and b"cam" in kept


def test_nothing_to_keep() -> None:
    assert portable_exif(Image.Exif()) is None
