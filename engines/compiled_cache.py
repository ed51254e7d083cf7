"""Compiled models on disk: written whole, checked before use, bounded in number."""

from __future__ import annotations

import os
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from diffplugin.files import write_bytes
from diffplugin.spec import Array

LIMIT = 2 * 2**30  # bytes of compiled models that a cache keeps
_CHECK = 4  # bytes of CRC-32 at the end: damage is found at 4 GB/s; SHA-256 cost half a second per start


def _check(blob: bytes | memoryview) -> bytes:
    return zlib.crc32(blob).to_bytes(_CHECK)


def write_blob(path: Path, blob: bytes | memoryview) -> None:
    """Write ``blob`` and its CRC-32 in one step, so that two writers do not collide.

    Raises:
        OSError: the folder cannot be written.
    """
    write_bytes(path, blob, _check(blob))


def read_blob(path: Path) -> Array | None:
    """The blob that :func:`write_blob` wrote, uint8 [n], mapped read-only; None: there is none, or it is damaged."""
    try:
        content = np.memmap(path, mode="r", dtype=np.uint8)
    except (OSError, ValueError):  # ValueError: an empty file
        return None
    blob = content[:-_CHECK]
    if _check(blob.data) != content[-_CHECK:].tobytes():
        return None
    with suppress(OSError):
        os.utime(path)  # what was used last goes last
    return blob


def trim(folder: Path, limit: int = LIMIT) -> None:
    """Remove the least recently used files of ``folder`` until the others take no more than ``limit`` bytes."""
    files = []
    for path in folder.iterdir():
        with suppress(OSError):  # another process may trim as well
            files.append((path.stat().st_mtime, path.stat().st_size, path))
    total = 0
    for _, size, path in sorted(files, reverse=True):
        total += size
        if total > limit:
            with suppress(OSError):
                path.unlink()
