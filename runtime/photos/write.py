"""Writing: a finished picture reaches its file whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from diffplugin.errors import ImageError
from diffplugin.runtime.photos.read import Photo, Pixels, photo_from, printable

_JPEG_SEGMENT = 65533  # bytes of one JPEG marker segment, its length field included


@dataclass(frozen=True, kw_only=True)
class _Format:
    """One output format: Pillow's name, whether it holds alpha and metadata, its longest side, its options."""

    name: str
    alpha: bool
    metadata: bool = True
    longest: int = 2**31 - 1
    options: Mapping[str, Any] = field(default_factory=dict)


_PNG = _Format(name="PNG", alpha=True)
_JPEG = _Format(name="JPEG", alpha=False, longest=65500, options={"quality": 95, "subsampling": 0})
_TIFF = _Format(name="TIFF", alpha=True, options={"compression": "tiff_adobe_deflate"})
_WEBP = _Format(name="WEBP", alpha=True, longest=16383, options={"quality": 95})
_AVIF = _Format(name="AVIF", alpha=True, longest=65536, options={"quality": 90})
_BMP = _Format(name="BMP", alpha=False, metadata=False)
_SUFFIXES = {
    ".png": _PNG,
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".webp": _WEBP,
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".bmp": _BMP,
    ".avif": _AVIF,
}


def output_suffixes() -> tuple[str, ...]:
    """Suffixes that :func:`write_photo` takes with this build of Pillow, lower case, with the dot."""
    Image.init()
    return tuple(suffix for suffix, form in _SUFFIXES.items() if form.name in Image.SAVE)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Find out before hours of work whether :func:`write_photo` could write ``path``. Leaves nothing behind.

    Raises:
        ImageError: the suffix names no format, the folder is missing or cannot be written, ``path`` is a folder or
            an existing file that is write-protected.
    """
    _format_of(path)
    target = _target(path)
    temporary = _temporary(target)
    try:
        temporary.touch(exist_ok=False)
        temporary.unlink()
    except OSError as error:
        raise _unwritable(path, error) from None


def write_photo(path: str | os.PathLike[str], photo: Photo | Pixels) -> Path:
    """Write a picture in the format of the suffix: a temporary file beside ``path``, then one rename.

    Alpha is kept in PNG, WebP, TIFF and AVIF; JPEG and BMP get the picture over white. ICC profile and EXIF are kept
    in all but BMP; an EXIF block too long for JPEG is left out. JPEG: quality 95 without chroma subsampling; WebP:
    quality 95; AVIF: quality 90; PNG and TIFF: lossless (a TIFF with EXIF is not compressed). The mode bits of a file
    that is replaced are kept, and a link is followed.

    Returns:
        The path as given.

    Raises:
        ImageError: as :func:`writable`, the picture is not uint8 [H, W, 3] or too long for the format, or writing
            failed (nothing is left behind and a former file is untouched).
    """
    if not isinstance(photo, Photo):
        photo = photo_from(photo)
    form = _format_of(path)
    _check(photo, form, path)
    target = _target(path)
    temporary = _temporary(target)
    try:
        with temporary.open("xb") as file:  # not tempfile: its files are private whatever the umask says
            _encode(photo, form, file)
        if target.exists():
            shutil.copymode(target, temporary)
        temporary.replace(target)
    except BaseException as error:  # Ctrl-C too: nothing half-written stays
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, Exception):  # encoders raise errors of any type
            raise _unwritable(path, error) from error
        raise
    return Path(path)


def _format_of(path: str | os.PathLike[str]) -> _Format:
    suffix = Path(path).suffix.lower()
    known = output_suffixes()
    if suffix not in known:
        what = f"suffix {suffix!r} is no picture format written here" if suffix else "has no suffix"
        raise ImageError(f"{printable(path)}: {what}, expected one of {' '.join(known)}")
    return _SUFFIXES[suffix]


def _target(path: str | os.PathLike[str]) -> Path:
    """The file that will be replaced, links followed; it exists as a writable file or its folder does."""
    try:
        target = Path(path).resolve()
        if target.is_dir():
            raise ImageError(f"{printable(path)}: a folder, expected a file name")
        if not target.parent.is_dir():
            what = "is not a folder" if target.parent.exists() else "does not exist; create it first"
            raise ImageError(f"{printable(path)}: folder {printable(target.parent)} {what}")
        if target.exists() and not os.access(target, os.W_OK):
            raise ImageError(f"{printable(path)}: exists and is write-protected; choose another name")
    except (OSError, ValueError, RuntimeError) as error:  # a null byte in the name; a circle of links
        raise _unwritable(path, error) from None
    return target


def _temporary(target: Path) -> Path:
    return target.with_name(f".diffplugin-{secrets.token_hex(6)}.tmp")


def _unwritable(path: str | os.PathLike[str], error: Exception) -> ImageError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return ImageError(f"{printable(path)}: cannot be written ({' '.join(reason.split()) or type(error).__name__})")


def _check(photo: Photo, form: _Format, path: str | os.PathLike[str]) -> None:
    faults = []
    if photo.rgb.dtype != np.uint8 or photo.rgb.ndim != 3 or photo.rgb.shape[2] != 3:
        faults.append(f"rgb is {photo.rgb.dtype} {'x'.join(map(str, photo.rgb.shape))}, expected uint8 HxWx3")
    if photo.alpha is not None and (photo.alpha.dtype != np.uint8 or photo.alpha.shape != photo.rgb.shape[:2]):
        size = "x".join(map(str, photo.alpha.shape))
        faults.append(f"alpha is {photo.alpha.dtype} {size}, expected uint8 {'x'.join(map(str, photo.rgb.shape[:2]))}")
    if max(photo.size) > form.longest:
        faults.append(f"{photo.size[0]}x{photo.size[1]} pixels, {form.name} holds at most {form.longest}; write a .png")
    if faults:
        raise ImageError(f"{printable(path)}: {'; '.join(faults)}")


def _encode(photo: Photo, form: _Format, file: IO[bytes]) -> None:
    image = Image.fromarray(np.ascontiguousarray(photo.rgb))
    if photo.alpha is not None:
        alpha = Image.fromarray(np.ascontiguousarray(photo.alpha))
        if form.alpha:
            image.putalpha(alpha)
        else:
            image = Image.composite(image, Image.new("RGB", image.size, "white"), alpha)
    options = dict(form.options)
    if form.metadata and photo.icc:
        options["icc_profile"] = photo.icc
    if form.metadata and photo.exif and (form is not _JPEG or len(photo.exif) <= _JPEG_SEGMENT):
        options["exif"] = photo.exif
        options.pop("compression", None)  # Pillow's compressed TIFF writer cannot hold the blocks inside EXIF
    image.save(file, form.name, **options)
