"""Reading: any file, Pillow image or array -> one upright RGB :class:`Photo`, or one clear line.

Treatment of each kind of input:

* EXIF orientation is applied (as ``PIL.ImageOps.exif_transpose`` does) and reset, in XMP too.
* 16 bits a channel of PNG and TIFF files are kept in addition to the 8 that Pillow reads (``Photo.deep``); 16-bit grey
  is scaled to 8 bits by value / 257, rounded; Pillow itself keeps the high byte of 16-bit RGB.
* CMYK and grey files with an ICC profile are converted to sRGB through it (grey is converted back when it is written);
  without one, by Pillow's formulas.
* RGB values are kept unchanged, as in the release, and their ICC profile is copied to the output.
* Transparency (alpha, or a transparent palette entry) becomes ``Photo.alpha``; colours under it are kept.
* Frames and pages that follow are ``Photo.frames``, or left out with a note (``first_frame``).
* Floating-point and 32-bit pixels are refused: their scale is unknown.
* A JPEG that lacks only its end marker is read, with a note; so is a PNG with broken chunks other than its pixels.
* HEIC needs the extra [heif], camera RAW the extra [raw].

Limits: a side has at least ``MIN_SIDE`` pixels (one latent pixel), a picture with all its frames at most ``MAX_PIXELS``
(adjustable by argument or by the environment variable ``DIFFPLUGIN_MAX_PIXELS``); the header is checked before anything
is decoded. Pillow's own limit for the process is not changed.
"""

from __future__ import annotations

import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from diffplugin.errors import DamagedImage, ImageError, RequestError, UnsupportedImage
from diffplugin.runtime.photos.decode import Source, check_size, decode, photo_from_array
from diffplugin.runtime.photos.kinds import first_words, looks_like_a_photo, reader_of, unread_kind
from diffplugin.runtime.photos.mend import mended
from diffplugin.runtime.photos.photo import MIN_SIDE, Deep, Photo, Pixels
from diffplugin.runtime.photos.raw import raw_size, read_raw

__all__ = [
    "MAX_PIXELS",
    "MIN_SIDE",
    "Photo",
    "PhotoLike",
    "Pixels",
    "photo_from",
    "pixel_limit",
    "printable",
    "read_photo",
]

PhotoLike = Photo | Image.Image | Pixels | Deep | str | os.PathLike[str] | bytes | bytearray | IO[bytes]
MAX_PIXELS = 100_000_000
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")  # no EPS: it runs programs
_READ = "a PNG, JPEG, WebP, TIFF, BMP, GIF, PPM, JPEG 2000 or AVIF file"
_lock = threading.Lock()  # Python's warning filters belong to the whole process


def read_photo(
    source: str | os.PathLike[str] | bytes | IO[bytes],
    *,
    max_pixels: int | None = None,
    first_frame: bool = False,
    name: str | None = None,
) -> Photo:
    """The picture in a file.

    Args:
        source: a path, the bytes of a file, or a file object opened for bytes; a PNG, JPEG, WebP, TIFF, BMP, GIF, PPM,
            JPEG 2000, AVIF, HEIC or camera RAW file; the content decides, not the suffix.
        max_pixels: most pixels to decode; None: ``DIFFPLUGIN_MAX_PIXELS`` or ``MAX_PIXELS``.
        first_frame: leave further frames and pages out, with a note.
        name: of the picture in messages; None: its path.

    Raises:
        UnsupportedImage: one line naming the file, its kind and the remedy: it is not a picture, or its kind is not
            supported (at all, or without an extra).
        DamagedImage: the picture is truncated or broken.
        ImageError: it is missing, a folder, empty, smaller than ``MIN_SIDE`` or larger than ``max_pixels``.
        RequestError: ``DIFFPLUGIN_MAX_PIXELS`` is not a positive whole number.
    """
    limit = pixel_limit(max_pixels)
    if isinstance(source, str | os.PathLike):
        name = name or printable(source)
        _check_is_file(source, name)
        try:
            with Path(source).open("rb") as file:
                photo = _read(file, name, limit, first_frame, Path(source).suffix)
        except PermissionError:
            raise ImageError(f"{name}: may not be read (permission denied)") from None
        except OSError as error:  # of opening: those of decoding are told apart below
            raise ImageError(f"{name}: cannot be opened ({_one_line(error)})") from None
        return replace(photo, path=Path(source))
    data = source if isinstance(source, bytes) else source.read()
    name = name or printable(str(getattr(source, "name", "picture")))
    if not isinstance(data, bytes):
        raise ImageError(f"{name}: a file object of text, expected one opened for bytes")
    if not data:
        raise ImageError(f"{name}: empty (0 bytes), expected {_READ}")
    return _read(io.BytesIO(data), name, limit, first_frame, Path(name).suffix)


def read_header(path: str | os.PathLike[str], *, name: str | None = None) -> tuple[str, tuple[int, int]]:
    """(Pillow's name of the format, or "RAW"; (width, height) as stored) of a file; no pixel is decoded.

    Raises:
        ImageError: as :func:`read_photo`, as far as the header shows; no upper limit of pixels applies.
    """
    name = printable(path) if name is None else name
    _check_is_file(path, name)
    with Path(path).open("rb") as file, _plain_faults(name), _quiet_pillow():
        reader = reader_of(file, Path(path).suffix)
        if reader == "raw":
            return "RAW", raw_size(file, name)
        image = (_open_heif if reader == "heif" else _open_pillow)(file, name)
        check_size(image.size, name, None)
        return image.format or "", image.size


def photo_from(image: PhotoLike) -> Photo:
    """A :class:`Photo` from any input that a Python caller may have.

    Args:
        image: a path, bytes or file object, as :func:`read_photo` takes them; a Pillow image of any mode, its current
            frame; a uint8 (or uint16) array [H, W], [H, W, 1], [H, W, 2] (grey, alpha), [H, W, 3] or [H, W, 4] (RGB,
            alpha), copied; or a Photo, returned as it is.

    Raises:
        ImageError: as :func:`read_photo`, or the array is not of these shapes and types.
    """
    if isinstance(image, Photo):
        return image
    if isinstance(image, bytearray | memoryview):
        image = bytes(image)
    if isinstance(image, str | os.PathLike | bytes):
        return read_photo(image)
    if isinstance(image, np.ndarray):
        return photo_from_array(image, "array", pixel_limit())
    if isinstance(image, Image.Image):
        source = Source(name="image", limit=pixel_limit(), first_frame=True)
        with _plain_faults("image"), _quiet_pillow():
            check_size(image.size, source.name, source.limit)
            return decode(image, source)
    if hasattr(image, "read"):
        return read_photo(image)
    raise ImageError(
        f"cannot make a picture of {type(image).__name__}; expected a path, bytes, a file object, a Pillow image or an "
        "array"
    )


def pixel_limit(max_pixels: int | None = None) -> int:
    """Most pixels a picture may have: the argument, else ``DIFFPLUGIN_MAX_PIXELS``, else ``MAX_PIXELS``."""
    if max_pixels is not None:
        return max_pixels
    value = os.environ.get("DIFFPLUGIN_MAX_PIXELS", "").strip()
    if value and (not value.isdecimal() or int(value) < 1):
        raise RequestError(f"DIFFPLUGIN_MAX_PIXELS is {value!r}, expected a positive whole number such as {MAX_PIXELS}")
    return int(value) if value else MAX_PIXELS


def printable(path: str | os.PathLike[str]) -> str:
    """A path for a one-line message: control characters escaped, shortened to 200 characters."""
    text = os.fspath(path)
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= 200 else f"{text[:120]}…{text[-60:]}"


def _check_is_file(path: str | os.PathLike[str], name: str) -> None:
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise ImageError(f"{name}: cannot be opened ({_one_line(error)})") from None
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(f"{name}: a folder, expected a picture file")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{name}: not a regular file, expected a picture file")
    if status.st_size == 0:
        raise ImageError(f"{name}: empty (0 bytes), expected {_READ}")


def _read(file: IO[bytes], name: str, limit: int, first_frame: bool, suffix: str) -> Photo:
    """The picture in an open file."""
    reader = reader_of(file, suffix)
    kind = {"heif": "an HEIC picture, ", "raw": "a camera RAW picture, ", "pillow": ""}[reader]
    with _plain_faults(name, kind), _quiet_pillow():
        if reader == "raw":
            return read_raw(file, name, limit)
        open_image = _open_heif if reader == "heif" else _open_pillow
        source = Source(
            name=name,
            limit=limit,
            file=file,
            reopen=lambda again: open_image(again, name),
            first_frame=first_frame,
        )
        try:
            return decode(open_image(file, name), source)
        except (OSError, SyntaxError, ValueError, DamagedImage):
            found = _mended(file, name, limit)
            if found is None:
                raise
            sound, note = found
            photo = decode(_open_pillow(sound, name), replace(source, file=sound))
            return replace(photo, notes=(*photo.notes, note))


def _mended(file: IO[bytes], name: str, limit: int) -> tuple[io.BytesIO, str] | None:
    def open_checked(again: io.BytesIO) -> Image.Image:
        image = _open_pillow(again, name)
        check_size(image.size, name, limit)
        return image

    file.seek(0)
    found = mended(file.read(), open_checked)
    return None if found is None else (io.BytesIO(found[0]), found[1])


def _open_pillow(file: IO[bytes], name: str) -> Image.Image:
    """The image in a file, not loaded, as ``Image.open`` finds it; our limit of pixels applies, not Pillow's.

    Raises:
        UnsupportedImage, DamagedImage: no decoder accepts it.
    """
    Image.init()
    for form in _FORMATS:
        if form not in Image.OPEN:  # not in every build of Pillow
            continue
        factory, accepts = Image.OPEN[form]
        file.seek(0)
        if accepts is not None and accepts(file.read(16)) is not True:
            continue
        file.seek(0)
        try:
            made: Image.Image = factory(file, b"")
        except (SyntaxError, IndexError, TypeError, KeyError, EOFError, ValueError):
            continue
        except Exception as error:  # struct.error and whatever a decoder raises
            if isinstance(error, OSError | MemoryError | Image.DecompressionBombError):
                raise
            continue
        return made
    raise _unidentified(file, name)


def _open_heif(file: IO[bytes], name: str) -> Image.Image:
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise UnsupportedImage(
            f"{name}: an HEIC picture, which needs the extra [heif]: pip install 'diffplugin[heif]'"
        ) from None
    file.seek(0)
    made: Image.Image = HeifImageFile(io.BytesIO(file.read()), "")
    return made


def _unidentified(file: IO[bytes], name: str) -> ImageError:
    """The error for a file that no decoder accepts."""
    kind = unread_kind(file)
    if kind is not None and kind.startswith("a TIFF"):
        remedy = "save it with 8 or 16 unsigned bits a channel, all channels in one plane"
        return UnsupportedImage(f"{name}: {kind}, which is not read here; {remedy}")
    if kind is not None:
        return UnsupportedImage(f"{name}: {kind}, which is not read here; convert it to PNG, TIFF or JPEG first")
    if looks_like_a_photo(file):
        return DamagedImage(f"{name}: truncated or damaged (its header cannot be read); expected {_READ}")
    words = first_words(file)
    return UnsupportedImage(f"{name}: not a picture{f' (begins with {words!r})' if words else ''}; expected {_READ}")


@contextmanager
def _plain_faults(name: str, kind: str = "") -> Iterator[None]:
    """Turn whatever decoders raise on hostile bytes into one line."""
    try:
        yield
    except (ImageError, RequestError):
        raise
    except MemoryError:
        raise ImageError(f"{name}: does not fit into memory; make the picture smaller") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: {_one_line(error)}: Pillow's own limit; raise PIL.Image.MAX_IMAGE_PIXELS") from None
    except Exception as error:
        what = f"{kind}truncated or damaged ({_one_line(error)})"
        raise DamagedImage(f"{name}: {what}; expected a complete picture") from None


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Silence Pillow's warnings: the relevant ones are errors or notes of this package."""
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _one_line(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:160] or type(error).__name__
