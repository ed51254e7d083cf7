"""The form in which networks are written into an ONNX graph: for engines on processors, portable, or fused for CUDA."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import torch

Form = Literal["processors", "portable", "cuda-fp16", "cuda-fp32"]
_form: ContextVar[Form] = ContextVar("form", default="processors")


@contextmanager
def traced_as(form: Form) -> Iterator[None]:
    """The form of graphs traced inside.

    processors: operators and accuracy of engines on processors. portable: ONNX's own operators alone, in the patterns
    that compilers for GPUs fuse. cuda-fp16, cuda-fp32: the fused operators that ONNX Runtime's CUDA provider has, rows
    and norms with channels last; with fp32 the norms of maps as large as the picture stay exact.
    """
    token = _form.set(form)
    try:
        yield
    finally:
        _form.reset(token)


@contextmanager
def portable() -> Iterator[None]:
    """:func:`traced_as` portable."""
    with traced_as("portable"):
        yield


def has_group_normalization() -> bool:
    """What is traced here needs an opset whose group norm has one weight per channel."""
    return _form.get() != "processors"


def in_portable() -> bool:
    """A portable graph is being traced."""
    return torch.onnx.is_in_onnx_export() and _form.get() == "portable"


def for_processors() -> bool:
    """A graph is being traced that engines on processors will run: their operators and their accuracy count."""
    return torch.onnx.is_in_onnx_export() and _form.get() == "processors"


def for_cuda() -> bool:
    """A graph is being traced for ONNX Runtime's CUDA provider."""
    return torch.onnx.is_in_onnx_export() and _form.get() in ("cuda-fp16", "cuda-fp32")


def for_cuda_fp32() -> bool:
    """As :func:`for_cuda`, and the graph computes in float32."""
    return torch.onnx.is_in_onnx_export() and _form.get() == "cuda-fp32"
