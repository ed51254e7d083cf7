"""Small files of photographs, made byte by byte or by Pillow."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffplugin.runtime.photos.read import Photo, read_photo

WIDTH, HEIGHT = 24, 16


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def rows_of(samples: np.ndarray) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in samples)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def read(folder: Path, data: bytes, name: str = "picture.png", **options: Any) -> Photo:
    path = folder / name
    path.write_bytes(data)
    return read_photo(path, **options)
