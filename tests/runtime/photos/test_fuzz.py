"""Two thousand mutated pictures: a photo or one line, in bounded time and memory, and no file left."""

from __future__ import annotations

import io
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from diffplugin.errors import ImageError
from diffplugin.runtime.photos.photo import Photo
from diffplugin.runtime.photos.read import read_photo
from diffplugin.runtime.photos.write import not_kept, output_suffixes, write_photo
from tests.runtime.photos.test_kept import XMP, exif_block
from tests.runtime.photos.test_kinds import dng
from tests.runtime.photos.test_metadata import cmyk_profile, grey_profile, srgb_profile

COUNT, SECONDS, BYTES, MAX_PIXELS = 2000, 20.0, 300_000_000, 4_000_000


def seeds() -> Iterator[tuple[str, bytes]]:
    """(name, file) of many kinds, small, with all the metadata they take."""
    random = np.random.default_rng(0)
    rgb = random.integers(0, 256, (5, 6, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    colour, grey = Image.fromarray(rgb), Image.fromarray(rgb[..., 0])
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("Author", "me")
    chunks.add_itxt("XML:com.adobe.xmp", XMP.decode())
    more = {"exif": exif_block(), "icc_profile": srgb_profile()}
    many = {"save_all": True}
    cases: list[tuple[str, Image.Image, dict[str, object]]] = [
        ("PNG", colour, more | {"pnginfo": chunks, "dpi": (300, 300)}),
        ("PNG", grey, {"icc_profile": grey_profile(1.0)}),
        ("PNG", colour.quantize(30), {"transparency": 3}),
        ("PNG", colour, dict(many)),
        ("JPEG", colour, more | {"comment": b"hello", "dpi": (72, 72)}),
        ("JPEG", colour, {"progressive": True}),
        ("JPEG", colour.convert("CMYK"), {"icc_profile": cmyk_profile((138, 209, 195))}),
        ("MPO", colour, dict(many)),
        ("TIFF", colour, dict(more)),
        ("TIFF", colour.convert("RGBA"), {"compression": "tiff_adobe_deflate"}),
        ("TIFF", grey.convert("1"), {"compression": "group4"}),
        ("TIFF", colour, many | {"compression": "packbits"}),
        ("GIF", colour, many | {"duration": 50, "loop": 0, "comment": b"gif"}),
        ("WEBP", colour, dict(more)),
        ("WEBP", colour, dict(many)),
        ("BMP", colour, {}),
        ("PPM", colour, {}),
        ("JPEG2000", colour, {}),
        ("AVIF", colour, {"exif": exif_block(1)}),
    ]
    Image.init()
    for form, image, options in cases:
        if form in Image.SAVE:
            file = io.BytesIO()
            if "save_all" in options:
                options["append_images"] = [Image.fromarray(255 - rgb), Image.fromarray(rgb // 2)]
            image.copy().save(file, form, **options)
            yield form, file.getvalue()
    deep = random.integers(0, 65536, (40, 48, 3), np.uint16)
    yield "DNG", dng()
    for suffix in (".png", ".tif", ".heic"):
        if suffix in output_suffixes():
            yield suffix, _written(suffix, Photo(rgb=(deep >> 8).astype(np.uint8), deep=deep))


def _written(suffix: str, photo: Photo) -> bytes:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        return write_photo(Path(folder) / f"a{suffix}", photo).read_bytes()


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """``data`` with one to three of: bytes changed, a part cut out, doubled, zeroed, or the end cut off."""
    broken = bytearray(data)
    for _ in range(random.integers(1, 4)):
        if not broken:
            break
        place = int(random.integers(0, len(broken) if random.random() < 0.5 else min(len(broken), 300)))
        length = int(random.integers(1, 40))
        kind = random.integers(0, 6)
        if kind == 0:
            broken[place] = int(random.integers(0, 256))
        elif kind == 1:
            del broken[place : place + length]
        elif kind == 2:
            broken[place:place] = broken[place : place + length]
        elif kind == 3:
            broken[place : place + length] = bytes(len(broken[place : place + length]))
        elif kind == 4:
            broken[place : place + 4] = bytes(random.choice([0, 127, 128, 255], 4).astype(np.uint8))
        else:
            del broken[place:]
    return bytes(broken)


@pytest.mark.slow
def test_2000_mutated_pictures(tmp_path: Path) -> None:
    random = np.random.default_rng(14)
    kinds = list(seeds())
    results = {"read": 0, "written": 0, "refused": 0}
    tracemalloc.start()
    for i in range(COUNT):
        name, data = kinds[i % len(kinds)]
        path = tmp_path / f"{i}.{'dng' if name == 'DNG' else 'bin'}"
        path.write_bytes(mutated(data, random))
        began = time.perf_counter()
        where = f"picture {i} ({name})"
        try:
            photo = read_photo(path, max_pixels=MAX_PIXELS)
            results["read"] += 1
            target = tmp_path / f"out{random.choice(['.png', '.tif', '.jpg', '.gif', '.webp'])}"
            not_kept(target, photo)
            if photo.size[0] * photo.size[1] < 100_000:
                write_photo(target, photo)
                results["written"] += 1
                target.unlink()
        except ImageError as error:
            results["refused"] += 1
            assert str(error).isprintable() and len(str(error)) < 600, f"{where}: {error!r}"
        seconds, peak = time.perf_counter() - began, tracemalloc.get_traced_memory()[1]
        assert seconds < SECONDS, f"{where}: {seconds:.1f} s"
        assert peak < BYTES, f"{where}: {peak / 1e6:.0f} MB"
        path.unlink()
    tracemalloc.stop()
    assert list(tmp_path.iterdir()) == []
    print(results)
    assert min(results.values()) > COUNT // 20, results
