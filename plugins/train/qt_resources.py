"""Qt resource files, in which a package keeps its pictures."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from diffplugin.errors import CheckpointError


def read_rcc(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Files of a Qt resource file, as (path, content); zstd-compressed entries (no photographs) are skipped.

    Layout: header of magic and offsets; tree nodes of name offset, flags and either children or data offset.
    """
    if data[:4] != b"qres":
        raise CheckpointError(f"not a Qt resource file: starts with {data[:4]!r}, expected b'qres'")
    version, tree, payload, names = struct.unpack(">4I", data[4:20])
    size = 14 if version == 1 else 22

    def name(offset: int) -> str:
        (length,) = struct.unpack_from(">H", data, names + offset)
        return data[names + offset + 6 : names + offset + 6 + 2 * length].decode("utf-16-be")

    def walk(node: int, path: str) -> Iterator[tuple[str, bytes]]:
        name_offset, flags = struct.unpack_from(">IH", data, tree + node * size)
        path = f"{path}/{name(name_offset)}" if node else ""
        if flags & 2:
            count, first = struct.unpack_from(">II", data, tree + node * size + 6)
            for child in range(first, first + count):
                yield from walk(child, path)
            return
        (offset,) = struct.unpack_from(">I", data, tree + node * size + 10)
        (length,) = struct.unpack_from(">I", data, payload + offset)
        content = data[payload + offset + 4 : payload + offset + 4 + length]
        if flags & 1:
            content = zlib.decompress(content[4:])
        if not flags & 4:
            yield path, content

    yield from walk(0, "")
