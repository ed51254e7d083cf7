"""TIFF files: pages of 8 or 16 bits in any lossless compression, with profile, EXIF and other metadata.

Pillow writes either compressed files or the blocks inside EXIF, and no 16-bit colour. TIFF revision 6.0, little-endian.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffplugin.errors import ImageError
from diffplugin.runtime.photos.photo import Pixels

DEFAULT = "tiff_adobe_deflate"
_CODES = {"raw": 1, "tiff_lzw": 5, "tiff_adobe_deflate": 8, "tiff_deflate": 32946, "packbits": 32773}
_DEFLATE, _PREDICTED = (8, 32946), (5, 8, 32946)
_BYTE, _ASCII, _SHORT, _LONG, _RATIONAL, _UNDEFINED = 1, 2, 3, 4, 5, 7
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_SWAPPED = {3: "H", 4: "I", 5: "I", 8: "H", 9: "I", 10: "I", 11: "I", 12: "Q", 13: "I"}
_BLOCKS = (0x8769, 0x8825)  # the EXIF and GPS directories
_OWN = (0x0128, 0x011A, 0x011B, 0x02BC, 0x83BB, 0x8773)  # resolution, XMP, IPTC, ICC: told apart from EXIF
_STRIP_BYTES = 1 << 18

_Entry = tuple[int, int, bytes]  # (type, count, little-endian data)
_Directory = dict[int, "_Entry | _Directory"]


@dataclass(frozen=True, kw_only=True)
class Page:
    """One picture of a TIFF file.

    Attributes:
        levels: uint8 or uint16 [H, W, C]: grey, grey and alpha, RGB or RGBA; or the indices of a palette [H, W, 1].
        palette: uint8 [256, 3] for indices.
        compression: Pillow's name; one that :func:`write_tiff` does not support (:func:`is_written`) becomes
            ``DEFAULT``.
    """

    levels: NDArray[Any]
    palette: Pixels | None = None
    compression: str = DEFAULT
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    dpi: tuple[float, float] | None = None


def is_written(compression: str) -> bool:
    """Whether :func:`write_tiff` supports a compression (Pillow's name)."""
    return compression in _CODES


def write_tiff(file: IO[bytes], pages: Sequence[Page]) -> None:
    """Write a file of one or more pages from its current position 0.

    Raises:
        ImageError: it would be longer than 4 GiB.
    """
    file.write(b"II*\0" + struct.pack("<I", 8))
    place, pointer = 8, 4
    for page in pages:
        directory, strips = _page(page)
        body, strip_offsets = _encoded(directory, place)
        data_begin = place + len(body)
        offsets = np.cumsum([data_begin, *map(len, strips)])[:-1]
        body = _patched(body, strip_offsets - place, offsets)
        end = data_begin + sum(map(len, strips))
        if end >= 2**32:
            raise ImageError("longer than the 4 GiB that a TIFF file can hold; write a .png")
        if place != 8:
            file.seek(pointer)
            file.write(struct.pack("<I", place))
            file.seek(place)
        file.write(body)
        for strip in strips:
            file.write(strip)
        file.write(b"\0" * (end % 2))
        pointer = place + 2 + 12 * len(directory)
        place = end + end % 2


def _page(page: Page) -> tuple[_Directory, list[bytes]]:
    height, width, channels = page.levels.shape
    bits = page.levels.dtype.itemsize * 8
    code = _CODES.get(page.compression, _CODES[DEFAULT])
    rows = max(1, _STRIP_BYTES // max(1, width * channels * bits // 8))
    predict = code in _PREDICTED and page.palette is None
    strips = [_strip(page.levels[y : y + rows], code, predict) for y in range(0, height, rows)]
    photometric = 3 if page.palette is not None else 2 if channels >= 3 else 1
    made: _Directory = {
        256: _longs(width),
        257: _longs(height),
        258: _shorts(*[bits] * channels),
        259: _shorts(code),
        262: _shorts(photometric),
        273: _longs(*[0] * len(strips)),
        277: _shorts(channels),
        278: _longs(rows),
        279: _longs(*map(len, strips)),
        284: _shorts(1),
    }
    if predict:
        made[317] = _shorts(2)
    if page.palette is not None:
        made[320] = _shorts(*(page.palette.astype(int) * 257).T.ravel().tolist())
    if channels in (2, 4):
        made[338] = _shorts(2)  # alpha, the colours not multiplied by it
    if page.dpi is not None:
        made |= {282: _rational(page.dpi[0]), 283: _rational(page.dpi[1]), 296: _shorts(2)}
    for tag, kind, data in ((700, _BYTE, page.xmp), (33723, _UNDEFINED, page.iptc), (34675, _UNDEFINED, page.icc)):
        if data:
            made[tag] = (kind, len(data), data)
    kept = exif_entries(page.exif) if page.exif else {}
    return kept | made, strips


def _strip(levels: NDArray[Any], code: int, predict: bool) -> bytes:
    if predict:  # TIFF 6.0, section 14: differences to the pixel on the left
        levels = np.concatenate((levels[:, :1], np.diff(levels, axis=1)), axis=1)
    raw = np.ascontiguousarray(levels, levels.dtype.newbyteorder("<")).tobytes()
    if code == 1:
        return raw
    if code in _DEFLATE:
        return zlib.compress(raw, 6 if len(raw) < _STRIP_BYTES // 4 else 3)
    name = next(name for name, other in _CODES.items() if other == code)
    return _by_pillow(raw, levels.shape[0], name)


def _by_pillow(raw: bytes, rows: int, compression: str) -> bytes:
    """``raw`` compressed as one strip: as a grey picture whose rows are these bytes, out of the file that Pillow makes
    of it."""
    out = io.BytesIO()
    picture = Image.frombytes("L", (len(raw) // rows, rows), raw)
    picture.save(out, "TIFF", compression=compression, tiffinfo={278: rows}, strip_size=len(raw))
    data = out.getvalue()
    entries = _parsed(data, struct.unpack("<I", data[4:8])[0], "<")
    offsets, counts = (_numbers(entries[tag]) for tag in (273, 279))
    if len(offsets) != 1:
        raise ImageError(f"{compression} came in {len(offsets)} strips, expected one")
    return data[offsets[0] : offsets[0] + counts[0]]


def exif_entries(block: bytes) -> _Directory:
    """The directory of an EXIF block (with or without ``Exif\\0\\0``) as it stands in a TIFF file."""
    data = block.removeprefix(b"Exif\0\0")
    order = ">" if data[:2] == b"MM" else "<"
    made = _parsed(data, struct.unpack(order + "I", data[4:8])[0], order)
    for tag in _BLOCKS:
        if tag in made:
            made[tag] = _parsed(data, _numbers(made[tag])[0], order)
    return {tag: entry for tag, entry in made.items() if tag not in _OWN}


def _parsed(data: bytes, place: int, order: str) -> _Directory:
    (count,) = struct.unpack_from(order + "H", data, place)
    made: _Directory = {}
    for i in range(count):
        tag, kind, number = struct.unpack_from(order + "HHI", data, place + 2 + 12 * i)
        length = number * _TYPE_BYTES.get(kind, 1)
        begin = place + 10 + 12 * i
        if length > 4:
            (begin,) = struct.unpack_from(order + "I", data, begin)
        value = data[begin : begin + length]
        if order == ">" and kind in _SWAPPED:
            letters = len(value) // struct.calcsize(_SWAPPED[kind])
            value = struct.pack(f"<{letters}{_SWAPPED[kind]}", *struct.unpack(f">{letters}{_SWAPPED[kind]}", value))
        made[tag] = (kind, number, value)
    return made


def _encoded(directory: _Directory, place: int) -> tuple[bytes, int]:
    """(a directory as it stands in a file at ``place``, where its strip offsets stand)."""
    table, beyond = b"", b""
    begin = place + 2 + 12 * len(directory) + 4
    strips = 0
    for i, (tag, entry) in enumerate(sorted(directory.items())):
        at = begin + len(beyond)
        if isinstance(entry, dict):
            beyond += _encoded(entry, at)[0]
            kind, number, field = _LONG, 1, struct.pack("<I", at)
        else:
            kind, number, data = entry
            if len(data) <= 4:
                field, at = data.ljust(4, b"\0"), place + 2 + 12 * i + 8
            else:
                field = struct.pack("<I", at)
                beyond += data + b"\0" * (len(data) % 2)
        strips = at if tag == 273 else strips
        table += struct.pack("<HHI", tag, kind, number) + field
    return struct.pack("<H", len(directory)) + table + b"\0\0\0\0" + beyond, strips


def _patched(body: bytes, at: int, offsets: NDArray[Any]) -> bytes:
    values = struct.pack(f"<{len(offsets)}I", *(int(offset) & 0xFFFFFFFF for offset in offsets))
    return body[:at] + values + body[at + len(values) :]


def _numbers(entry: Any) -> tuple[int, ...]:
    kind, number, data = entry
    letter = {_SHORT: "H", _LONG: "I", 13: "I"}[kind]
    return struct.unpack(f"<{number}{letter}", data[: number * _TYPE_BYTES[kind]])


def _shorts(*values: int) -> _Entry:
    return _SHORT, len(values), struct.pack(f"<{len(values)}H", *values)


def _longs(*values: int) -> _Entry:
    return _LONG, len(values), struct.pack(f"<{len(values)}I", *values)


def _rational(value: float) -> _Entry:
    exact = Fraction(value).limit_denominator(10_000)
    return _RATIONAL, 1, struct.pack("<II", exact.numerator, exact.denominator)
