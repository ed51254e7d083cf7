"""Camera RAW files, developed by LibRaw (rawpy, extra [raw])."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, BinaryIO, cast

import numpy as np
from PIL import Image

from diffplugin.errors import DamagedImage, UnsupportedImage
from diffplugin.runtime.photos.decode import check_size
from diffplugin.runtime.photos.metadata import has_maker_note, portable_exif
from diffplugin.runtime.photos.photo import Deep, Photo

_SRGB_CURVE = (2.4, 12.92)  # exponent and slope near black, IEC 61966-2-1


def raw_size(file: IO[bytes], name: str) -> tuple[int, int]:
    """(width, height) of a RAW file, without developing it.

    Raises:
        UnsupportedImage, DamagedImage, ImageError: as :func:`read_raw`; there is no upper limit of pixels here.
    """
    with _opened(file, name) as (_, raw):
        size = (int(raw.sizes.width), int(raw.sizes.height))
        check_size(size, name, None)
        return size


@contextmanager
def _opened(file: IO[bytes], name: str) -> Iterator[tuple[Any, Any]]:
    """(the package rawpy, the file opened by it); its errors become those of this package."""
    try:
        import rawpy
    except ImportError:
        raise UnsupportedImage(
            f"{name}: a camera RAW picture, which needs the extra [raw]: pip install 'diffplugin[raw]'"
        ) from None
    file.seek(0)
    try:
        with rawpy.imread(cast(BinaryIO, file)) as raw:
            yield rawpy, raw
    except rawpy.LibRawFileUnsupportedError:
        raise UnsupportedImage(
            f"{name}: a camera RAW picture that LibRaw {'.'.join(map(str, rawpy.libraw_version))} does not read, or "
            "damaged; convert it to DNG or TIFF first"
        ) from None
    except rawpy.LibRawError as error:
        what = f"a camera RAW picture, truncated or damaged ({_text(error)})"
        raise DamagedImage(f"{name}: {what}; expected a complete picture") from None


def read_raw(file: IO[bytes], name: str, limit: int | None) -> Photo:
    """A RAW file as sRGB at 16 bits a channel, with the camera's white balance; turned upright by LibRaw.

    Raises:
        UnsupportedImage: rawpy is not installed, or LibRaw does not support the camera.
        DamagedImage: LibRaw cannot read it.
        ImageError: too small, or more pixels than ``limit``.
    """
    with _opened(file, name) as (rawpy, raw):
        check_size((raw.sizes.width, raw.sizes.height), name, limit)
        levels = raw.postprocess(
            output_bps=16, use_camera_wb=True, output_color=rawpy.ColorSpace.sRGB, gamma=_SRGB_CURVE
        )
    deep: Deep = np.ascontiguousarray(levels[..., :3], np.uint16)
    check_size((deep.shape[1], deep.shape[0]), name, limit)
    rgb = (deep >> 8).astype(np.uint8)
    for array in (deep, rgb):
        array.setflags(write=False)
    exif = _exif(file)
    lost = ("the camera's maker note is not kept",) if has_maker_note(exif) else ()
    return Photo(
        rgb=rgb,
        deep=deep,
        exif=portable_exif(exif),
        notes=("developed from camera RAW with the camera's white balance, to sRGB", *lost),
    )


def _exif(file: IO[bytes]) -> Image.Exif:
    """EXIF from the TIFF structure of most RAW files."""
    exif = Image.Exif()
    try:
        file.seek(0)
        data = file.read()
        if data[:4] in (b"II*\0", b"MM\0*"):
            exif.load_from_fp(io.BytesIO(data))
            dict(exif)
    except Exception:  # Pillow's parser raises errors of any type; a broken block is no reason to refuse the picture
        return Image.Exif()
    return exif


def _text(error: Exception) -> str:
    found = error.args[0] if error.args else type(error).__name__
    text = found.decode("utf-8", "replace") if isinstance(found, bytes) else str(found)
    return " ".join(text.split())[:160]
