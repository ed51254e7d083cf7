"""Form fields -> a validated request."""

from __future__ import annotations

import re
from collections.abc import Sequence

from diffplugin.errors import RequestError
from diffplugin.runtime.photos.write import output_suffixes

_SUFFIXES = {"png": ".png", "jpeg": ".jpg", "jpg": ".jpg", "webp": ".webp", "tiff": ".tif", "avif": ".avif"}
# Pillow's format of the input -> suffix of the result
_OF_FORMATS = {
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "TIFF": ".tif",
    "AVIF": ".avif",
    "BMP": ".bmp",
    "GIF": ".gif",
    "HEIF": ".heic",
}


def read_size(text: str) -> str | int | tuple[int, int]:
    """``native``, ``released``, ``512`` or ``640x480``.

    Raises:
        RequestError: none of these.
    """
    if text in ("native", "released"):
        return text
    match = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", text.strip().lower())
    if not match:
        raise RequestError(f"size {text!r} is not understood; expected native, released, N or WxH")
    return int(match[1]) if match[2] is None else (int(match[1]), int(match[2]))


def read_tile(text: str) -> str | int:
    """``auto``, ``off`` or a number of pixels.

    Raises:
        RequestError: none of these.
    """
    if text in ("auto", "off"):
        return text
    if not text.isascii() or not text.isdecimal() or len(text) > 6:
        raise RequestError(f"tile {text!r} is not understood; expected auto, off or a number of pixels")
    return int(text)


def read_plugins(values: Sequence[str]) -> tuple[str, ...]:
    """Plugins of a field that may come several times or hold names with commas between."""
    return tuple(name.strip() for value in values for name in value.split(",") if name.strip())


def read_format(text: str | None) -> str:
    """Suffix of the result's format; "": the input's.

    Raises:
        RequestError: the format cannot be written.
    """
    if text in (None, "", "input"):
        return ""
    if text not in _SUFFIXES:
        raise RequestError(f"format {text!r} is not written here; expected input, {', '.join(_SUFFIXES)}")
    return _SUFFIXES[text]


def suffix_of(format_name: str) -> str:
    """Suffix of the result for an input of Pillow's ``format_name``; PNG if that format can only be read."""
    suffix = _OF_FORMATS.get(format_name, ".png")
    return suffix if suffix in output_suffixes() else ".png"
