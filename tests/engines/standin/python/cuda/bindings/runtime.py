"""``cuda.bindings.runtime`` over the stand-in library, as far as ``engines.cuda`` uses it."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_int, c_size_t, c_void_p
from types import SimpleNamespace
from typing import Any

library = ctypes.CDLL("libcudart.so.13")
library.cudaGetErrorName.restype = library.cudaGetErrorString.restype = ctypes.c_char_p
library.standin_used.restype = c_size_t

cudaStreamNonBlocking = 1  # noqa: N816
cudaDeviceAttr = SimpleNamespace(  # noqa: N816
    cudaDevAttrComputeCapabilityMajor=75, cudaDevAttrComputeCapabilityMinor=76
)
cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N816
cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N816


class _Error(int):
    @property
    def name(self) -> str:
        return str(library.cudaGetErrorName(int(self)).decode())


# call -> (kinds of its arguments, kinds of its results, which stand first in C); missing: it takes and gives nothing
_CALLS: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "cudaGetDeviceCount": ((), (c_int,)),
    "cudaGetLastError": ((), ()),
    "cudaSetDevice": ((c_int,), ()),
    "cudaDriverGetVersion": ((), (c_int,)),
    "cudaRuntimeGetVersion": ((), (c_int,)),
    "cudaMemGetInfo": ((), (c_size_t, c_size_t)),
    "cudaDeviceGetAttribute": ((c_int, c_int), (c_int,)),
    "cudaMalloc": ((c_size_t,), (c_void_p,)),
    "cudaFree": ((c_void_p,), ()),
    "cudaMemcpyAsync": ((c_void_p, c_void_p, c_size_t, c_int, c_void_p), ()),
    "cudaStreamCreateWithFlags": ((c_int,), (c_void_p,)),
    "cudaStreamDestroy": ((c_void_p,), ()),
    "cudaStreamSynchronize": ((c_void_p,), ()),
    "cudaStreamBeginCapture": ((c_void_p, c_int), ()),
    "cudaGraphInstantiate": ((c_void_p, c_int), (c_void_p,)),
    "cudaGraphLaunch": ((c_void_p, c_void_p), ()),
    "cudaGraphDestroy": ((c_void_p,), ()),
    "cudaGraphExecDestroy": ((c_void_p,), ()),
}


def _call(name: str) -> Any:
    takes, gives = _CALLS[name]

    def call(*arguments: Any) -> tuple[Any, ...]:
        results = [kind() for kind in gives]
        given = [kind(value) for kind, value in zip(takes, arguments, strict=True)]
        error = getattr(library, name)(*map(byref, results), *given)
        return (_Error(error), *(result.value or 0 for result in results))

    return call


def __getattr__(name: str) -> Any:
    if name in _CALLS:
        return _call(name)
    raise AttributeError(name)


def cudaStreamEndCapture(stream: int) -> tuple[Any, ...]:  # noqa: N802
    graph = c_void_p()
    error = library.cudaStreamEndCapture(c_void_p(stream), byref(graph))
    return _Error(error), graph.value or 0


def cudaGetErrorString(error: int) -> tuple[Any, ...]:  # noqa: N802
    return _Error(0), library.cudaGetErrorString(int(error))


def cudaGetDeviceProperties(device: int) -> tuple[Any, ...]:  # noqa: N802
    properties = ctypes.create_string_buffer(1008)
    error = library.cudaGetDeviceProperties(properties, c_int(device))
    return _Error(error), SimpleNamespace(name=properties.value)
