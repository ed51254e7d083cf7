"""The form in which networks are written into an ONNX graph: for engines on processors, or portable."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_portable: ContextVar[bool] = ContextVar("portable", default=False)


@contextmanager
def portable() -> Iterator[None]:
    """Graphs traced inside hold ONNX's own operators alone, in the patterns that compilers for GPUs fuse."""
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)


def in_portable_form() -> bool:
    """What is traced here becomes a portable graph."""
    return _portable.get()


def in_portable() -> bool:
    """A portable graph is being traced."""
    return torch.onnx.is_in_onnx_export() and _portable.get()


def for_processors() -> bool:
    """A graph is being traced that engines on processors will run: their operators and their accuracy count."""
    return torch.onnx.is_in_onnx_export() and not _portable.get()
