"""Sixteen bits per channel, for formats that Pillow reads as eight bits or cannot write."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffplugin.runtime.photos.photo import Deep, Pixels

Layout = Literal["colour", "grey and alpha", "grey"]

_OTHER_BYTE = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
_PNG_GREY_ALPHA, _PNG_RGBA = 4, 6  # colour types, PNG specification 11.2.1
_GREY = np.array([19595, 38470, 7471], np.uint32)  # ITU-R BT.601 luma x 65536, as Pillow's convert("L")


def deep_layout(image: Image.Image) -> Layout | None:
    """How a Pillow image that is opened and not yet loaded holds 16 bits per channel; None: it does not, or only in a
    layout from which Pillow's 8 bits are read."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return "grey"
    if image.format not in ("PNG", "TIFF"):
        return None
    if getattr(image, "tag_v2", {}).get(284) == 2:  # a plane for each channel: the unpackers are others
        return None
    raw = [_raw_mode(tile) for tile in getattr(image, "tile", [])]
    if raw and all(mode == "LA;16B" for mode in raw):
        return "grey and alpha"
    colour = all(mode.partition(";16")[0] in ("RGB", "RGBA", "RGBX") and mode[-3:-1] == "16" for mode in raw)
    return "colour" if raw and colour else None


def is_misread(image: Image.Image) -> bool:
    """Whether Pillow takes the bytes of an opened TIFF for 8-bit samples that they are not: its uncompressed planes of
    16 bits."""
    bits = getattr(image, "tag_v2", {}).get(258, (8,))
    return max(bits) > 8 and any(_raw_mode(tile) in ("R", "G", "B", "A", "X") for tile in getattr(image, "tile", []))


def deep_pixels(image: Image.Image, layout: Layout, reopen: Callable[[], Image.Image]) -> Deep:
    """uint16 [H, W, C] of a loaded image; C: 1 (grey), 2 (grey, alpha), 3 or 4.

    Pillow's decoders take all 16 bits and its unpackers keep one byte of them, the high one; told the other byte
    order, they keep the low one.

    Args:
        reopen: opens the same picture again, not loaded.
    """
    if layout == "grey":
        return grey_levels(image)[..., None].astype(np.uint16)
    other = reopen()
    if layout == "grey and alpha":
        both = np.asarray(other, np.uint16)
        return np.ascontiguousarray(both[..., 0::2] << 8 | both[..., 1::2])
    other_tiles: Any = other
    other_tiles.tile = [_with_raw_mode(tile, _swapped(_raw_mode(tile))) for tile in other_tiles.tile]
    high, low = np.asarray(image), np.asarray(other)
    both_bytes: Deep = high.astype(np.uint16) << 8 | low
    return both_bytes


def as_rgba_png(file: IO[bytes]) -> io.BytesIO:
    """A PNG of 16-bit grey and alpha, as one of 8-bit RGBA: the same bytes in the same places, filters included."""
    file.seek(0)
    data = bytearray(file.read())
    data[24:26] = bytes((8, _PNG_RGBA))
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return io.BytesIO(bytes(b"".join(_without_transparency(bytes(data)))))


def _without_transparency(data: bytes) -> Iterator[bytes]:
    yield data[:8]
    for kind, chunk, _ in png_chunks(io.BytesIO(data)):
        if kind not in (b"tRNS", b"gAMA"):
            yield _chunk(kind, chunk)


def png_chunks(file: IO[bytes], *, until: bytes = b"") -> Iterator[tuple[bytes, bytes, int]]:
    """(type, data, checksum) of a PNG file's chunks, up to the first of type ``until`` or the end of what is there."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        kind = head[4:]
        if kind == until:
            return
        data = file.read(int.from_bytes(head[:4], "big"))
        yield kind, data, int.from_bytes(file.read(4), "big")


def write_deep_png(file: IO[bytes], levels: Deep, template: bytes, *, level: int) -> None:
    """uint16 [H, W, C] as a PNG file, with the chunks of another.

    Args:
        template: a PNG of 8 bits in the same colour type; its pixels are not used, all else is.
        level: of zlib.
    """
    height, width, channels = levels.shape
    file.write(template[:8])
    written = False
    for kind, data, _ in png_chunks(io.BytesIO(template)):
        if kind == b"IHDR":
            header = struct.pack(">IIB", width, height, 16) + bytes((_colour_type(channels), 0, 0, 0))
            file.write(_chunk(kind, header))
        elif kind != b"IDAT":
            file.write(_chunk(kind, data))
        elif not written:
            written = True
            for part in _compressed(levels, level):
                file.write(_chunk(kind, part))


def _compressed(levels: Deep, level: int) -> Iterator[bytes]:
    """zlib stream of the rows, each as its difference to the row above (filter type 2)."""
    packer = zlib.compressobj(level)
    above = np.zeros(levels[0].size * 2, np.uint8)
    pending: list[bytes] = []
    for row in levels:
        raw = np.ascontiguousarray(row, ">u2").view(np.uint8).ravel()
        pending.append(packer.compress(b"\2" + (raw - above).tobytes()))
        above = raw
        if sum(map(len, pending)) > 1 << 20:
            yield b"".join(pending)
            pending = []
    yield b"".join([*pending, packer.flush()])


def to_8_bits(levels: Deep) -> Pixels:
    """uint16 -> uint8: value / 257, rounded."""
    return ((levels.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def grey_of(levels: NDArray[Any]) -> NDArray[Any]:
    """Luma [H, W] of [H, W, 3], uint8 or uint16, as Pillow's ``convert("L")`` computes it."""
    total = (levels.astype(np.uint32) * _GREY).sum(-1, dtype=np.uint32) + np.uint32(0x8000)
    grey: NDArray[Any] = (total >> 16).astype(levels.dtype)
    return grey


def _colour_type(channels: int) -> int:
    return {1: 0, 2: _PNG_GREY_ALPHA, 3: 2, 4: _PNG_RGBA}[channels]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return sealed_chunk(kind, data, zlib.crc32(kind + data))


def sealed_chunk(kind: bytes, data: bytes, checksum: int) -> bytes:
    """A PNG chunk with this checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def grey_levels(image: Image.Image) -> NDArray[Any]:
    """Values [H, W] of a loaded image of 16 or more bits of grey; 12 bits of a TIFF are brought to 16."""
    values = np.asarray(image)
    if getattr(image, "tag_v2", {}).get(258) == (12,) and values.dtype == np.uint16:
        return ((values.astype(np.uint32) * 65535 + 2047) // 4095).astype(np.uint16)
    return values


def _raw_mode(tile: Any) -> str:
    arguments = tile[3]
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _with_raw_mode(tile: Any, mode: str) -> Any:
    arguments = (mode, *tile[3][1:]) if isinstance(tile[3], tuple) else mode
    return (*tile[:3], arguments) if type(tile) is tuple else tile._replace(args=arguments)


def _swapped(mode: str) -> str:
    return mode[:-1] + _OTHER_BYTE[mode[-1]]
