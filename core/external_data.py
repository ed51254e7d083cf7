"""The files that an ONNX graph takes its weights from, found without the package onnx.

ONNX Runtime opens whatever path a tensor names, in some versions outside the model's folder, or even an address in
memory. So the names are checked first, by reading only the messages of onnx.proto that lead to a tensor.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Iterator
from pathlib import Path

# Message -> {field: message}, of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
_CHILDREN: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
    "Entry": {},
}
_MAX_DEPTH = 64
_LOCATION = b"location"
_Buffer = memoryview


def locations(path: Path) -> set[str]:
    """Names of the files that tensors of a graph are stored in, as the graph gives them; empty: all tensors are in the
    graph.

    Raises:
        ValueError: it is not an ONNX graph.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise ValueError("the file is empty") from None
    with mapped, memoryview(mapped) as content:
        if mapped.find(_LOCATION) >= 0:
            return set(_walk(content, "Model", 0, len(content), 0))
        for field, start, stop in _fields(content, 0, len(content)):  # no tensor names a file
            if field in _CHILDREN["Model"] and stop >= 0:
                deque(_fields(content, start, stop), maxlen=0)
        return set()


def _walk(data: _Buffer, message: str, at: int, end: int, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        raise ValueError(f"messages are nested more than {_MAX_DEPTH} deep")
    if message == "Entry":
        yield from _location(data, at, end)
        return
    children = _CHILDREN[message]
    for field, start, stop in _fields(data, at, end):
        if field in children and stop >= 0:
            yield from _walk(data, children[field], start, stop, depth + 1)


def _location(data: _Buffer, at: int, end: int) -> Iterator[str]:
    """The value of a key-value pair whose key is that of a file name."""
    pair = {1: b"", 2: b""}
    for field, start, stop in _fields(data, at, end):
        if field in pair and stop >= 0:
            pair[field] = bytes(data[start:stop])
    if pair[1] == _LOCATION:
        yield pair[2].decode("utf-8", "backslashreplace")


def _fields(data: _Buffer, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, begin, end) of every field of a message; end is -1 unless it is a message, text or bytes."""
    while at < end:
        tag, at = _number(data, at, end)
        field, kind = tag >> 3, tag & 7
        stop = -1
        if kind == 0:
            _, after = _number(data, at, end)
        elif kind == 2:
            size, at = _number(data, at, end)
            after = stop = at + size
        elif kind in (1, 5):
            after = at + (8 if kind == 1 else 4)
        else:
            raise ValueError(f"a field is of the unknown kind {kind}")
        if after > end or not field:
            raise ValueError("a field ends outside its message")
        yield field, at, stop
        at = after


def _number(data: _Buffer, at: int, end: int) -> tuple[int, int]:
    """A variable-length integer and the position of its end."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("a number does not end")
