"""Harmless faults: a JPEG file without its end marker, a PNG file with a broken chunk other than its pixels."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from diffplugin.runtime.photos.deep import png_chunks, sealed_chunk

NO_END = "the JPEG's end marker was missing; nothing else was"
BROKEN_PARTS = "damaged parts beside the pixels are left out ({})"
_PNG = b"\x89PNG\r\n\x1a\n"
_END = b"\xff\xd9"
_START_OF_SCAN, _RESTARTS = 0xDA, range(0xD0, 0xD8)
_PROGRESSIVE, _FRAMES = (0xC2, 0xCA), (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)


def mended(data: bytes, open_image: Callable[[io.BytesIO], Image.Image]) -> tuple[bytes, str] | None:
    """(a file that decoders accept, the repair) if a fault of ``data`` is harmless; None: it is not."""
    if data.startswith(_PNG):
        return _without_broken_parts(data)
    whole = with_end_marker(data, open_image) if data.startswith(b"\xff\xd8") else None
    return None if whole is None else (whole, NO_END)


def _without_broken_parts(data: bytes) -> tuple[bytes, str] | None:
    """A PNG without those chunks that a decoder need not know (PNG specification, 5.4) and whose checksum is wrong."""
    kept, dropped = [_PNG], []
    for kind, chunk, checksum in png_chunks(io.BytesIO(data)):
        if kind[:1].islower() and checksum != zlib.crc32(kind + chunk):
            dropped.append(kind.decode("ascii", "replace"))
        else:
            kept.append(sealed_chunk(kind, chunk, checksum))
    named = ", ".join(dict.fromkeys(name for name in dropped if name.isalpha()))
    return (b"".join(kept), BROKEN_PARTS.format(named or "unknown")) if dropped else None


def with_end_marker(data: bytes, open_jpeg: Callable[[io.BytesIO], Image.Image]) -> bytes | None:
    """``data`` with the missing end marker (EOI) added, if nothing else is missing; else None.

    A decoder silently fills missing data with grey. So the picture is decoded twice, with different bytes in place of
    the missing ones: if nothing is missing, the decoder never reads them.
    """
    if not data.startswith(b"\xff\xd8") or data.rstrip(b"\0").endswith(_END) or not _all_scans(data):
        return None
    stem = data.rstrip(b"\0").rstrip(b"\xff")
    views = [np.asarray(open_jpeg(io.BytesIO(stem + filler + _END))) for filler in (b"\x00" * 64, b"\xa9\x36" * 32)]
    return stem + _END if np.array_equal(views[0], views[1]) else None


def _all_scans(data: bytes) -> bool:
    """Whether every component is there to its last bit: a progressive file cut between two scans looks complete."""
    components, progressive = set[int](), False
    missing: dict[int, set[int]] = {}
    for marker, body in _segments(data):
        if marker in _FRAMES and len(body) > 5:
            components = {body[6 + 3 * i] for i in range(body[5]) if 6 + 3 * i < len(body)}
            progressive = marker in _PROGRESSIVE
            missing = {component: set(range(64)) for component in components}
        elif marker == _START_OF_SCAN and body:
            count = body[0]
            first, last, bits = body[1 + 2 * count : 4 + 2 * count].ljust(3, b"\xff")
            if not progressive or bits & 15 == 0:
                done = range(first, last + 1) if progressive else range(64)
                for component in body[1 : 1 + 2 * count : 2]:
                    missing.get(component, set()).difference_update(done)
    return bool(components) and not any(missing.values())


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(marker, body) of each segment; coded data between them are skipped."""
    place = 2
    while 0 <= (place := data.find(b"\xff", place)) < len(data) - 3:
        marker = data[place + 1]
        if marker in (0x00, 0x01, 0xFF, 0xD8, 0xD9) or marker in _RESTARTS:
            place += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        yield marker, data[place + 4 : place + 2 + length]
        place += 2 + max(length, 2)
