"""Reading: any file, Pillow image or array -> one upright 8-bit RGB :class:`Photo`, or one clear line.

What becomes of each kind of input:

* EXIF orientation is applied (as ``PIL.ImageOps.exif_transpose`` does) and reset.
* 16-bit grey is scaled to 8 bits by value / 257, rounded; Pillow itself keeps the high byte of 16-bit RGB.
* CMYK and grey files with an ICC profile are converted to sRGB through it; without one, by Pillow's formulas.
* RGB values are kept as they are, as the release does, and their ICC profile goes on to the output.
* Transparency (alpha, or a transparent palette entry) becomes ``Photo.alpha``; colours under it are kept.
* Of several frames or pages the first is used, and ``Photo.notes`` says so.
* Floating-point and 32-bit pixels are refused: their scale is unknown.

Limits: a side has at least ``MIN_SIDE`` pixels (one latent pixel), a picture at most ``MAX_PIXELS`` (adjustable by
argument or by the environment variable ``DIFFPLUGIN_MAX_PIXELS``); the header is checked before anything is decoded.
"""

from __future__ import annotations

import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from diffplugin.errors import ImageError, RequestError
from diffplugin.runtime.photos.metadata import colour_space, portable_exif, to_srgb

Pixels = NDArray[np.uint8]

MIN_SIDE = 8
MAX_PIXELS = 100_000_000
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")  # no EPS: it runs programs
_SIGNATURES = (b"\x89PNG", b"\xff\xd8", b"GIF8", b"II*\0", b"MM\0*", b"RIFF", b"BM", b"\0\0\0\x0cjP")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_lock = threading.Lock()  # Pillow's pixel limit and Python's warning filters belong to the whole process


@dataclass(frozen=True, kw_only=True, eq=False)
class Photo:
    """An upright 8-bit picture with what its file needs again when it is written.

    rgb: uint8 [H, W, 3], read-only. alpha: uint8 [H, W] (0 = transparent), or None where the input had none.
    icc: the RGB profile that ``rgb`` is in, or None for sRGB. exif: a block without orientation, thumbnail or sizes.
    notes: what was lost on the way in, one short phrase each.
    """

    rgb: Pixels
    alpha: Pixels | None = None
    path: Path | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.rgb.shape[1], self.rgb.shape[0]


def read_photo(path: str | os.PathLike[str], *, max_pixels: int | None = None, name: str | None = None) -> Photo:
    """The picture in a file.

    Args:
        path: a PNG, JPEG, WebP, TIFF, BMP, GIF, PPM, JPEG 2000 or AVIF file; the content decides, not the suffix.
        max_pixels: most pixels to decode; None: ``DIFFPLUGIN_MAX_PIXELS`` or ``MAX_PIXELS``.
        name: of the file in messages; None: its path.

    Raises:
        ImageError: one line naming the file, what it is and what was expected: it is missing, a folder, empty, not a
            picture, truncated or damaged, smaller than ``MIN_SIDE`` or larger than ``max_pixels``.
        RequestError: ``DIFFPLUGIN_MAX_PIXELS`` is not a positive whole number.
    """
    limit = pixel_limit(max_pixels)
    with _opened(path, name) as (image, shown):
        _check_size(image.size, shown, limit)
        photo = _decode(image, shown)
    return replace(photo, path=Path(path))


def read_header(path: str | os.PathLike[str], *, name: str | None = None) -> tuple[str, tuple[int, int]]:
    """(Pillow's name of the format, (width, height) as stored) of a file; no pixel is decoded.

    Raises:
        ImageError: as :func:`read_photo`, as far as the header tells; there is no upper limit of pixels here.
    """
    with _opened(path, name) as (image, shown):
        _check_size(image.size, shown, None)
        return image.format or "", image.size


@contextmanager
def _opened(path: str | os.PathLike[str], name: str | None) -> Iterator[tuple[Image.Image, str]]:
    """(the file's image, its header read; its name in messages). Every fault becomes an ImageError."""
    name = printable(path if name is None else name)
    _check_is_file(path, name)
    # decoders raise errors of any type on hostile bytes, hence the last handler
    try:
        with Path(path).open("rb") as file, _quiet_pillow():
            yield Image.open(file, formats=_known_formats()), name
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{name}: {_unidentified(path)}; expected {_format_names()}") from None
    except PermissionError:
        raise ImageError(f"{name}: may not be read (permission denied)") from None
    except MemoryError:
        raise ImageError(f"{name}: does not fit into memory; make the picture smaller") from None
    except Exception as error:
        raise ImageError(f"{name}: truncated or damaged ({_one_line(error)}); expected a complete picture") from None


def photo_from(image: Photo | Image.Image | Pixels | str | os.PathLike[str]) -> Photo:
    """A :class:`Photo` from what a Python caller has at hand.

    Args:
        image: a path; a Pillow image of any mode; a uint8 array [H, W], [H, W, 1], [H, W, 2] (grey, alpha),
            [H, W, 3] or [H, W, 4] (RGB, alpha), copied; or a Photo, returned as it is.

    Raises:
        ImageError: as :func:`read_photo`, or the array is not of these shapes and uint8.
    """
    if isinstance(image, Photo):
        return image
    if isinstance(image, str | os.PathLike):
        return read_photo(image)
    if isinstance(image, np.ndarray):
        channels = image.shape[2] if image.ndim == 3 else 1
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or not 1 <= channels <= 4:
            shape = "x".join(map(str, image.shape))
            raise ImageError(
                f"array is {image.dtype} {shape}, expected uint8 HxW or HxWxC with 1 to 4 channels, 0 to 255"
            )
        _check_size((image.shape[1], image.shape[0]), "array", None)
        planes = image.reshape(*image.shape[:2], channels)
        rgb = planes[..., :3] if channels >= 3 else np.repeat(planes[..., :1], 3, axis=2)
        return Photo(rgb=_frozen(rgb), alpha=_frozen(planes[..., -1]) if channels in (2, 4) else None)
    if not isinstance(image, Image.Image):
        raise ImageError(
            f"cannot make a picture of {type(image).__name__}; expected a path, a Pillow image or an array"
        )
    _check_size(image.size, "image", None)
    try:
        with _quiet_pillow():
            return _decode(image, "image")
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"image: truncated or damaged ({_one_line(error)}); expected a complete picture") from None


def pixel_limit(max_pixels: int | None = None) -> int:
    """Most pixels a picture may have: the argument, else ``DIFFPLUGIN_MAX_PIXELS``, else ``MAX_PIXELS``."""
    if max_pixels is not None:
        return max_pixels
    value = os.environ.get("DIFFPLUGIN_MAX_PIXELS", "").strip()
    if value and (not value.isdecimal() or int(value) < 1):
        raise RequestError(f"DIFFPLUGIN_MAX_PIXELS is {value!r}, expected a positive whole number such as {MAX_PIXELS}")
    return int(value) if value else MAX_PIXELS


def printable(path: str | os.PathLike[str]) -> str:
    """A path as it stands in a one-line message: control characters escaped, shortened to 200 characters."""
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
        raise ImageError(f"{name}: empty (0 bytes), expected {_format_names()}")


def _check_size(size: tuple[int, int], name: str, limit: int | None) -> None:
    width, height = size
    if min(size) < MIN_SIDE:
        raise ImageError(f"{name}: {width}x{height} pixels, expected at least {MIN_SIDE}x{MIN_SIDE}")
    if limit is not None and width * height > limit:
        raise ImageError(
            f"{name}: {width}x{height} is {width * height:,} pixels, expected at most {limit:,}; "
            "make it smaller, or set DIFFPLUGIN_MAX_PIXELS if the file is trusted and memory allows"
        )


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Pillow without warnings (what matters in them is an error here) and without its own pixel limit, which has a
    second, unadjustable threshold; :func:`_check_size` stands between the header and the pixels instead."""
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _known_formats() -> tuple[str, ...]:
    """The formats that this Pillow can read; an unregistered name would be a KeyError in ``Image.open``."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _format_names() -> str:
    return "a PNG, JPEG, WebP, TIFF, BMP, GIF, PPM, JPEG 2000 or AVIF file"


def _unidentified(path: str | os.PathLike[str]) -> str:
    """What a file is that no decoder wants, from its first bytes."""
    with Path(path).open("rb") as file:
        head = file.read(24)
    if head[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1"):
        return "an HEIC picture, which is not read here"
    if head[4:8] == b"ftyp" or head.startswith(_SIGNATURES):
        return "truncated or damaged (its header cannot be read)"
    text = " ".join(head.decode("latin-1").split())
    return f"not a picture (begins with {text!r})" if text and text.isprintable() else "not a picture"


def _one_line(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:160] or type(error).__name__


def _decode(image: Image.Image, name: str) -> Photo:
    """Decode, turn upright and bring to RGB. May raise whatever Pillow's decoders raise."""
    # the further pictures of an MPO file (a phone's JPEG) are previews and depth maps
    several = image.format != "MPO" and getattr(image, "is_animated", False)
    image.load()
    exif = image.getexif()  # after load(): TIFF turns itself upright there, PNG may carry it behind the pixels
    upright = _UPRIGHT.get(exif.get(0x0112, 1))
    icc = image.info.get("icc_profile") or None
    rgb, alpha = _rgb_and_alpha(image, icc, name)
    if upright is not None:
        rgb = rgb.transpose(upright)
        alpha = None if alpha is None else alpha.transpose(upright)
    return Photo(
        rgb=_frozen(np.asarray(rgb)),
        alpha=None if alpha is None else _frozen(np.asarray(alpha)),
        icc=icc if icc and colour_space(icc) == "RGB" and image.mode != "CMYK" else None,
        exif=portable_exif(exif),
        notes=("only the first frame or page is used",) if several else (),
    )


def _rgb_and_alpha(image: Image.Image, icc: bytes | None, name: str) -> tuple[Image.Image, Image.Image | None]:
    """Colours in mode RGB; alpha in mode L or None."""
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep_grey(image, icc, name)
    alpha = None
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA") if image.mode not in ("L", "LA", "La", "1") else image.convert("LA")
        alpha = image.getchannel("A")
        image = image.convert("RGB" if image.mode == "RGBA" else "L")
    converted = to_srgb(image, icc) if icc and image.mode in ("CMYK", "L") else None
    try:
        return converted or image.convert("RGB"), alpha
    except ValueError:
        raise ImageError(f"{name}: colour mode {image.mode} is not supported; convert it to RGB first") from None


def _from_deep_grey(image: Image.Image, icc: bytes | None, name: str) -> tuple[Image.Image, Image.Image | None]:
    """Grey of more than 8 bits: modes I;16*, and I, as which Pillow opens 16-bit PPM (and 16-bit PNG once did)."""
    values = np.asarray(image)
    # in a TIFF, I and F are 32-bit measurements of unknown scale: a guess would be a black picture
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format != "TIFF")
    if not sixteen or values.min() < 0 or values.max() > 65535:
        raise ImageError(
            f"{name}: {values.dtype} pixels from {values.min():g} to {values.max():g}, "
            "expected 8 or 16 unsigned bits a channel; convert it first"
        )
    grey = Image.fromarray(((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8))
    clear = image.info.get("transparency")
    alpha = Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)) if isinstance(clear, int) else None
    return (to_srgb(grey, icc) if icc else None) or grey.convert("RGB"), alpha


def _frozen(array: Pixels) -> Pixels:
    """A read-only contiguous copy, so that nobody's later change reaches the photo."""
    copy = np.array(array, dtype=np.uint8, order="C")
    copy.setflags(write=False)
    return copy
