"""Writing: a finished picture is written whole or not at all."""

from __future__ import annotations

import importlib.util
import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

from diffplugin.errors import ImageError
from diffplugin.files import temporary_beside, unfinished, written_whole
from diffplugin.runtime.photos.encode import AVIF, BMP, GIF, HEIF, JPEG, PNG, PNG_LEVEL, TIFF, WEBP, Format, encode
from diffplugin.runtime.photos.encode import not_kept as encode_notes
from diffplugin.runtime.photos.read import Photo, Pixels, photo_from, printable

_SUFFIXES = {
    ".png": PNG,
    ".jpg": JPEG,
    ".jpeg": JPEG,
    ".webp": WEBP,
    ".tif": TIFF,
    ".tiff": TIFF,
    ".bmp": BMP,
    ".avif": AVIF,
    ".gif": GIF,
    ".heic": HEIF,
    ".heif": HEIF,
}


def output_suffixes() -> tuple[str, ...]:
    """Suffixes that :func:`write_photo` takes with this build of Pillow and the extras that are installed, lower case,
    with the dot."""
    Image.init()
    names = {*Image.SAVE, *(["HEIF"] if importlib.util.find_spec("pillow_heif") else [])}
    return tuple(suffix for suffix, form in _SUFFIXES.items() if form.name in names)


def not_kept(path: str | os.PathLike[str], photo: Photo) -> tuple[str, ...]:
    """Properties of a photo that the format of ``path`` cannot hold: no note, or one.

    Raises:
        ImageError: the suffix names no format.
    """
    return encode_notes(photo, _format_of(path))


def check_writable(path: str | os.PathLike[str], photo: Photo | None = None) -> None:
    """Check, before hours of work, whether :func:`write_photo` can write ``path``. Leaves no file behind.

    Args:
        photo: the photo to restore; None: only the path is checked.

    Raises:
        ImageError: the suffix names no format, the folder is missing or cannot be written, ``path`` is a folder or
            an existing file that is write-protected, or the format cannot hold the photo's size or frames.
    """
    form = _format_of(path)
    if photo is not None:
        _check(photo, form, path)
    target = _target(path)
    temporary = temporary_beside(target)
    try:
        with unfinished(temporary):
            temporary.touch(exist_ok=False)
    except OSError as error:
        raise _unwritable(path, error) from None


def write_photo(path: str | os.PathLike[str], photo: Photo | Pixels, *, png_level: int = PNG_LEVEL) -> Path:
    """Write a picture in the format of the suffix: a temporary file beside ``path``, then one rename.

    The result keeps the properties of the file that its format can hold (:func:`not_kept` lists the others): mode
    (grey, palette), alpha, 16 bits a channel, frames or pages, ICC profile, EXIF, XMP, IPTC, resolution, text, comment,
    TIFF compression. If the format has no alpha, the picture is composed over white. JPEG: quality 95 without chroma
    subsampling; WebP and HEIC: quality 95; AVIF: quality 90; PNG and TIFF: lossless. The mode bits of a file that is
    replaced are kept, a new one is open to nobody to whom the photo's own file is closed, and a link is followed.

    Args:
        png_level: compression of a PNG, 0 (none) to 9 (smallest, slowest).

    Returns:
        The path as given.

    Raises:
        ImageError: as :func:`check_writable`, the picture is not uint8 [H, W, 3] or too long for the format, it has
            frames and the format holds one picture, or writing failed (no file is left behind and a former file is
            untouched).
    """
    if not isinstance(photo, Photo):
        photo = photo_from(photo)
    form = _format_of(path)
    _check(photo, form, path)
    target = _target(path)
    try:
        with written_whole(target, like=photo.path) as temporary, temporary.open("wb") as file:
            encode(photo, form, file, png_level=png_level)
    except ImageError as error:
        raise ImageError(f"{printable(path)}: {error}") from None
    except Exception as error:  # encoders raise errors of any type
        raise _unwritable(path, error) from error
    return Path(path)


def photo_bytes(photo: Photo, suffix: str, *, png_level: int = PNG_LEVEL) -> bytes:
    """The file of a photo in the format of a suffix, such as ``.png``, compressed as :func:`write_photo` does.

    Raises:
        ImageError: as :func:`write_photo`.
    """
    name = f"photo{suffix}"
    form, file = _format_of(name), io.BytesIO()
    _check(photo, form, name)
    try:
        encode(photo, form, file, png_level=png_level)
    except ImageError:
        raise
    except Exception as error:
        raise _unwritable(name, error) from error
    return file.getvalue()


def _format_of(path: str | os.PathLike[str]) -> Format:
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


def _unwritable(path: str | os.PathLike[str], error: Exception) -> ImageError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return ImageError(f"{printable(path)}: cannot be written ({' '.join(reason.split()) or type(error).__name__})")


def _check(photo: Photo, form: Format, path: str | os.PathLike[str]) -> None:
    faults = []
    if photo.rgb.dtype != np.uint8 or photo.rgb.ndim != 3 or photo.rgb.shape[2] != 3:
        faults.append(f"rgb is {photo.rgb.dtype} {'x'.join(map(str, photo.rgb.shape))}, expected uint8 HxWx3")
    if photo.alpha is not None and (photo.alpha.dtype != np.uint8 or photo.alpha.shape != photo.rgb.shape[:2]):
        size = "x".join(map(str, photo.alpha.shape))
        faults.append(f"alpha is {photo.alpha.dtype} {size}, expected uint8 {'x'.join(map(str, photo.rgb.shape[:2]))}")
    if photo.frames and not form.frames:
        faults.append(
            f"{1 + len(photo.frames)} frames or pages, {form.name} holds one picture; write a .tif, .png, .webp or "
            ".gif, or use --first-frame"
        )
    if max(photo.size) > form.longest:
        faults.append(f"{photo.size[0]}x{photo.size[1]} pixels, {form.name} holds at most {form.longest}; write a .png")
    if faults:
        raise ImageError(f"{printable(path)}: {'; '.join(faults)}")
