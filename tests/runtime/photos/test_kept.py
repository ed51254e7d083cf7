"""What the file had, the result has: written with other pixels, read again, and asked."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from diffplugin.errors import ImageError
from diffplugin.runtime.photos.metadata import iptc_segment, xmp_segment
from diffplugin.runtime.photos.photo import Photo
from diffplugin.runtime.photos.pixels import with_rgb
from diffplugin.runtime.photos.read import photo_from, read_photo
from diffplugin.runtime.photos.write import check_writable, not_kept, output_suffixes, write_photo
from tests.runtime.photos.test_metadata import grey_profile, srgb_profile

CASES = Path(__file__).resolve().parents[3].parent / "shared" / "cases"
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description xmlns:tiff="t" tiff:Orientation="6">mine</rdf:Description>'
SRGB = srgb_profile()  # once: it holds the time
UPRIGHT = XMP.replace(b'"6"', b'"1"')


def picture(height: int = 24, width: int = 32, seed: int = 0) -> np.ndarray:
    return (
        np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    )


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def restored(source: Path, target: Path, **options: Any) -> Any:
    """The file with its pixels inverted, as a run does it, opened by Pillow."""
    photo = read_photo(source, **options)
    check_writable(target, photo)
    made = [with_rgb(one, 255 - one.rgb if one.deep is None else 65535 - one.deep) for one in (photo, *photo.frames)]
    write_photo(target, replace(made[0], frames=tuple(made[1:])))
    return Image.open(io.BytesIO(target.read_bytes())) if target.suffix != ".heic" else Image.new("RGB", (1, 1))


def opened(path: Path) -> Any:
    return Image.open(io.BytesIO(path.read_bytes()))


def exif_block(orientation: int = 6) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E], exif[0x013B] = "a description", "someone"
    exif[0x8769] = {0x9003: "2024:01:01 10:00:00", 0xA434: "a lens"}
    exif[0x8825] = {1: "N", 2: (52.0, 30.0, 0.0)}
    return exif.tobytes()


def check_exif(image: Image.Image) -> None:
    exif = image.getexif()
    assert (exif.get(0x010E), exif.get(0x013B), exif.get(0x0112, 1)) == ("a description", "someone", 1)
    assert exif.get_ifd(0x8769)[0xA434] == "a lens" and exif.get_ifd(0x8825)[1] == "N"


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp", ".avif", ".heic"])
def test_profile_exif_and_xmp(tmp_path: Path, suffix: str) -> None:
    if suffix not in output_suffixes():
        pytest.skip(f"{suffix} is not written here")
    source = tmp_path / "a.jpg"
    told: dict[str, Any] = {"extra": xmp_segment(XMP), "exif": exif_block(), "icc_profile": SRGB, "dpi": (300, 300)}
    Image.fromarray(picture()).save(source, **told)
    photo = read_photo(source)
    assert photo.size == (24, 32) and photo.details.xmp == UPRIGHT, "the orientation was applied and stays in XMP"
    made = restored(source, tmp_path / f"out{suffix}")
    if suffix == ".heic":  # Pillow reads it only after a plugin is registered; ours is not
        photo = read_photo(tmp_path / "out.heic")
        assert photo.details.xmp == UPRIGHT and photo.icc == SRGB and photo.exif and b"a lens" in photo.exif
        return
    assert made.size == (24, 32) and made.info["icc_profile"] == SRGB
    check_exif(made)
    assert read_photo(tmp_path / f"out{suffix}").details.xmp == UPRIGHT
    if suffix in (".jpg", ".png", ".tif"):
        assert tuple(round(float(value)) for value in made.info["dpi"]) == (300, 300)


def test_png_text_in_order_and_kind(tmp_path: Path) -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("Author", "me")
    chunks.add_itxt("Title", "雪の日", lang="ja")
    chunks.add_text("Long", "x" * 5000, zip=True)
    Image.fromarray(picture()).save(tmp_path / "a.png", pnginfo=chunks, dpi=(300, 150))
    made = restored(tmp_path / "a.png", tmp_path / "out.png")
    assert made.text == {"Author": "me", "Title": "雪の日", "Long": "x" * 5000}
    assert [round(value) for value in made.info["dpi"]] == [300, 150]
    assert not_kept("x.jpg", read_photo(tmp_path / "a.png")) == ("JPEG does not keep: PNG text",)


def test_what_png_numbers_mean(tmp_path: Path) -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add(b"gAMA", (100_000).to_bytes(4, "big"))
    Image.fromarray(picture()).save(tmp_path / "a.png", pnginfo=chunks)
    assert restored(tmp_path / "a.png", tmp_path / "out.png").info["gamma"] == 1


def test_comments(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.jpg", comment=b"hello")
    assert restored(tmp_path / "a.jpg", tmp_path / "out.jpg").info["comment"] == b"hello"
    assert restored(tmp_path / "a.jpg", tmp_path / "out.png").text == {"Comment": "hello"}
    Image.fromarray(picture()).quantize(16).save(tmp_path / "a.gif", comment=b"of a gif")
    assert restored(tmp_path / "a.gif", tmp_path / "out.gif").info["comment"] == b"of a gif"


def test_iptc(tmp_path: Path) -> None:
    records = b"\x1c\x02\x69\x00\x08headline"
    Image.fromarray(picture()).save(tmp_path / "a.jpg", extra=iptc_segment(records))
    assert read_photo(tmp_path / "a.jpg").details.iptc == records, "the test's file has no IPTC"
    for suffix in (".jpg", ".tif"):
        restored(tmp_path / "a.jpg", tmp_path / f"out{suffix}")
        assert read_photo(tmp_path / f"out{suffix}").details.iptc == records, suffix


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P"])
def test_tiff_compression_with_exif(tmp_path: Path, compression: str, mode: str) -> None:
    image = Image.fromarray(picture(200, 312)).convert(mode)
    image.save(tmp_path / "a.tif", compression=compression, dpi=(600, 600))
    photo = replace(read_photo(tmp_path / "a.tif"), exif=exif_block(1), icc=SRGB if mode[0] == "R" else None)
    write_photo(tmp_path / "out.tif", photo)
    with Image.open(tmp_path / "out.tif") as made:
        assert made.info["compression"] == photo.details.compression and made.mode == mode
        assert made.getexif().get_ifd(0x8769)[0xA434] == "a lens" and made.getexif()[0x013B] == "someone"
        assert made.info["dpi"] == (600, 600)
        np.testing.assert_array_equal(np.asarray(made.convert("RGBA")), np.asarray(image.convert("RGBA")))
    assert not_kept("x.tif", photo) == ()


def test_tiff_compression_that_is_not_written(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "a.tif", compression="jpeg")
    assert not_kept("x.tif", read_photo(tmp_path / "a.tif")) == ("TIFF does not keep: TIFF compression jpeg",)
    assert restored(tmp_path / "a.tif", tmp_path / "out.tif").info["compression"] == "tiff_adobe_deflate"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
def test_grey_stays_grey(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(picture()).convert("L").save(tmp_path / f"a{suffix}")
    photo = read_photo(tmp_path / f"a{suffix}")
    tinted = photo.rgb.copy()
    tinted[..., 2] = 255 - tinted[..., 2]
    grey = with_rgb(photo, tinted)
    np.testing.assert_array_equal(grey.rgb[..., 0], np.asarray(Image.fromarray(tinted).convert("L")))
    np.testing.assert_array_equal(grey.rgb[..., 0], grey.rgb[..., 2])
    write_photo(tmp_path / f"out{suffix}", grey)
    assert opened(tmp_path / f"out{suffix}").mode == "L"
    coloured = with_rgb(photo, tinted, colour=True)
    np.testing.assert_array_equal(coloured.rgb, tinted)
    assert coloured.mode == "RGB"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_in_three_channels_stays_grey_and_rgb(tmp_path: Path, dtype: Any) -> None:
    grey = np.repeat((picture()[..., :1].astype(dtype) * (257 if dtype == np.uint16 else 1)), 3, axis=2)
    photo = photo_from(grey)
    assert photo.mode == "RGB" and photo.is_grey
    tinted = photo.levels.copy()
    tinted[..., 2] //= 2
    made = with_rgb(photo, tinted)
    assert made.is_grey and made.mode == "RGB" and made.levels.dtype == dtype
    write_photo(tmp_path / "out.png", made)
    again = read_photo(tmp_path / "out.png")
    assert again.mode == "RGB" and again.is_grey
    coloured = grey.copy()
    coloured[3, 4, 1] ^= 1
    assert not photo_from(coloured).is_grey, "one pixel of another colour is colour"
    np.testing.assert_array_equal(with_rgb(photo_from(coloured), tinted).levels, tinted)


def test_a_grey_profile_is_applied_and_comes_back(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (16, 1))
    Image.fromarray(ramp).save(tmp_path / "a.png", icc_profile=grey_profile(1.0))
    photo = read_photo(tmp_path / "a.png")
    assert photo.rgb[0, 16, 0] > 130, "linear 64 is 137 in sRGB"
    write_photo(tmp_path / "out.png", photo)
    with Image.open(tmp_path / "out.png") as made:
        assert made.mode == "L" and made.info["icc_profile"] == grey_profile(1.0)
        off = np.abs(np.asarray(made).astype(int) - ramp).max()
    assert off <= 2, f"there and back: {off} of 255"


@pytest.mark.parametrize("suffix", [".png", ".gif", ".tif", ".bmp"])
def test_a_palette_stays_one(tmp_path: Path, suffix: str) -> None:
    image = Image.fromarray(picture()).quantize(40)
    image.save(tmp_path / f"a{suffix}")
    made = restored(tmp_path / f"a{suffix}", tmp_path / f"out{suffix}")
    assert made.mode == "P"
    np.testing.assert_array_equal(np.asarray(made.convert("RGB")), 255 - np.asarray(image.convert("RGB")))


def test_a_palette_of_more_colours_is_made_anew(tmp_path: Path) -> None:
    y, x = np.mgrid[:96, :128]
    smooth = np.stack((x * 2, y * 2, x + y), -1).astype(np.uint8)
    photo = Photo(rgb=smooth, mode="P")
    write_photo(tmp_path / "a.png", photo)
    with Image.open(tmp_path / "a.png") as made:
        assert made.mode == "P" and len(made.getcolors() or range(257)) <= 256
        blurred = np.asarray(made.convert("RGB").resize((32, 24), Image.Resampling.BOX)).astype(int)
    expected = np.asarray(Image.fromarray(smooth).resize((32, 24), Image.Resampling.BOX)).astype(int)
    assert np.abs(blurred - expected).mean() < 3


@pytest.mark.parametrize("suffix", [".png", ".gif", ".webp", ".tif"])
def test_transparent_palettes(tmp_path: Path, suffix: str) -> None:
    rgb = picture(64, 64)
    alpha = np.where(np.arange(64) < 16, 0, 255).astype(np.uint8) * np.ones((64, 1), np.uint8)
    for colours in (rgb, np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)):
        write_photo(tmp_path / f"a{suffix}", Photo(rgb=colours, alpha=alpha, mode="P"))
        back = read_photo(tmp_path / f"a{suffix}")
        np.testing.assert_array_equal(back.alpha, alpha)


def test_an_opaque_alpha_is_no_obstacle_for_a_gif(tmp_path: Path) -> None:
    for rgb in (picture(), np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)):
        write_photo(tmp_path / "a.gif", Photo(rgb=rgb, alpha=np.full(rgb.shape[:2], 255, np.uint8)))
        assert opened(tmp_path / "a.gif").mode == "P"


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif", ".avif"])
def test_frames_and_pages(tmp_path: Path, suffix: str) -> None:
    if suffix not in output_suffixes():
        pytest.skip(f"{suffix} is not written here")
    frames = [Image.fromarray(picture(seed=i)).quantize(12).convert("RGB") for i in range(3)]
    options: dict[str, Any] = {"duration": [40, 80, 120], "loop": 0} if suffix != ".tif" else {}
    options |= {"lossless": True} if suffix == ".webp" else {"quality": 100} if suffix == ".avif" else {}
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:], **options)
    made = restored(tmp_path / f"a{suffix}", tmp_path / f"out{suffix}")
    assert made.n_frames == 3
    for i, frame in enumerate(frames):
        made.seek(i)
        made.load()
        off = np.abs(np.asarray(made.convert("RGB")).astype(int) + np.asarray(frame) - 255).mean()
        assert off < (15 if suffix in (".webp", ".avif") else 0.01), f"{suffix}: frame {i} is off by {off:.2f} of 255"
        if suffix != ".tif":
            assert made.info["duration"] == options["duration"][i]
    with pytest.raises(ImageError, match=r"3 frames or pages, JPEG holds one picture; write a \.tif.*--first-frame"):
        check_writable(tmp_path / "out.jpg", read_photo(tmp_path / f"a{suffix}"))
    first = restored(tmp_path / f"a{suffix}", tmp_path / "first.png", first_frame=True)
    assert getattr(first, "n_frames", 1) == 1


def test_notes_of_all_pages_come_once(tmp_path: Path) -> None:
    pages = [Image.fromarray(picture(seed=i)) for i in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=[page.convert("1") for page in pages[1:]])
    assert read_photo(tmp_path / "a.tif").notes == ("black and white became grey",)


def test_pages_keep_their_own_size_mode_and_compression(tmp_path: Path) -> None:
    pages = [Image.fromarray(picture(24, 32)), Image.fromarray(picture(40, 16)).convert("L")]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:], compression="tiff_lzw")
    made = restored(tmp_path / "a.tif", tmp_path / "out.tif")
    assert (made.mode, made.size, made.info["compression"]) == ("RGB", (32, 24), "tiff_lzw")
    made.seek(1)
    assert (made.mode, made.size, made.info["compression"]) == ("L", (16, 40), "tiff_lzw")


def test_one_note_says_what_a_format_cannot_hold() -> None:
    photo = read_photo(io.BytesIO(_rich_png()))
    assert not_kept("x.png", photo) == ()
    (note,) = not_kept("x.bmp", photo)
    assert note == "BMP does not keep: alpha: the picture stands over white, ICC profile, EXIF, XMP, PNG text"


def _rich_png() -> bytes:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("Author", "me")
    chunks.add_itxt("XML:com.adobe.xmp", XMP.decode())
    file = io.BytesIO()
    image = Image.fromarray(picture()).convert("RGBA")
    image.save(file, "PNG", pnginfo=chunks, exif=exif_block(), icc_profile=SRGB)
    return file.getvalue()


def test_notes_of_reading(tmp_path: Path) -> None:
    black_white = saved(tmp_path / "a.png", Image.fromarray(picture()).convert("1"))
    assert read_photo(black_white).notes == ("black and white became grey",)
    inks = saved(tmp_path / "a.jpg", Image.fromarray(picture()).convert("CMYK"))
    assert read_photo(inks).notes == ("colour mode CMYK became RGB",)
    exif = Image.Exif()
    exif[0x8769] = {0x927C: b"secret of the camera"}
    noted = saved(tmp_path / "b.jpg", Image.fromarray(picture()), exif=exif)
    assert read_photo(noted).notes == ("the camera's maker note is not kept",)
    assert read_photo(saved(tmp_path / "c.jpg", Image.fromarray(picture()))).notes == ()


@pytest.mark.parametrize("source", ["bytes", "BytesIO", "open file"])
def test_bytes_and_file_objects(tmp_path: Path, source: str) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(picture()))
    with path.open("rb") as file:
        given: Any = {"bytes": path.read_bytes(), "BytesIO": io.BytesIO(path.read_bytes()), "open file": file}[source]
        photo = read_photo(given)
    np.testing.assert_array_equal(photo.rgb, picture())
    assert photo.path is None
    with pytest.raises(ImageError, match=r"^picture: empty"):
        read_photo(b"")
    with pytest.raises(ImageError, match="a file object of text"):
        read_photo(io.StringIO("text"))  # type: ignore[arg-type]


@pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not beside the repository")
def test_the_cases(tmp_path: Path) -> None:
    made = restored(CASES / "meta/x.jpg", tmp_path / "x.jpg")
    original = opened(CASES / "meta/x.jpg")
    assert {name: made.info[name] for name in ("dpi", "comment", "xmp")} == {
        name: original.info[name] for name in ("dpi", "comment", "xmp")
    }
    made, original = restored(CASES / "meta/x.png", tmp_path / "x.png"), opened(CASES / "meta/x.png")
    assert made.text == original.text and made.info["dpi"] == original.info["dpi"]
    photo = read_photo(CASES / "trunc/no-eoi.jpg")
    assert photo.size == (160, 120) and photo.notes == ("the JPEG's end marker was missing; nothing else was",)
    with pytest.raises(ImageError, match="3 channels of 32 floating-point bits, which is not read here; save it"):
        read_photo(CASES / "floats/rgb-float.tif")
    with pytest.raises(ImageError, match="an HEIC picture"):
        read_photo(CASES / "floats/msf1.heic")
