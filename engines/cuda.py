"""The CUDA runtime through cuda-python: the only file that calls it. Behind ``engines.device.Driver``."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

from diffplugin.errors import DeviceMemoryFull, EngineError, EngineUnavailable
from diffplugin.spec import Array

_EXTRA = "pip install 'diffplugin[cuda]'"
# What to do about an error, by CUDA's name of it. Those of the last line leave the process without a usable device.
_NO_DEVICE = "use a machine with an NVIDIA GPU, and check CUDA_VISIBLE_DEVICES"
_LOST = "the process cannot use the device any more: start it again"
_REMEDIES = {
    "cudaErrorInsufficientDriver": "install an NVIDIA driver that knows this CUDA version, or use a machine that has "
    "one",
    "cudaErrorNoDevice": _NO_DEVICE,
    "cudaErrorInvalidDevice": _NO_DEVICE,
    "cudaErrorMemoryAllocation": "take a smaller picture or tile, or stop other programs that use the device",
    **dict.fromkeys(("cudaErrorIllegalAddress", "cudaErrorLaunchFailure", "cudaErrorLaunchTimeout"), _LOST),
}


@cache
def _runtime() -> Any:
    """cuda-python's module.

    Raises:
        EngineUnavailable: it is not installed, or a library that it loads is missing or damaged.
    """
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except Exception as error:  # it loads CUDA's libraries, and raises what it likes if one is not whole
        what = " ".join(str(error).split())
        raise EngineUnavailable(f"the package cuda-python cannot be imported ({what}); {_EXTRA}") from None


def _version(number: int) -> str:
    """13040 -> ``13.4``."""
    return f"{number // 1000}.{number % 1000 // 10}"


class CudaDriver:
    """``engines.device.Driver`` on one GPU. The GPU is not used before the first call.

    Args:
        runtime: cuda-python's module ``cuda.bindings.runtime``; None: imported at first use.
        device: number of the GPU among those that CUDA_VISIBLE_DEVICES leaves.
    """

    _several = False  # whether this process uses another device than the first, so that threads must say which

    def __init__(self, runtime: Any = None, device: int = 0) -> None:
        self._given, self.device = runtime, device
        CudaDriver._several |= device > 0

    @property
    def _cuda(self) -> Any:
        return self._given if self._given is not None else _runtime()

    def _call(self, name: str, *arguments: Any) -> Any:
        """The value of a call; a tuple if it has several.

        Raises:
            DeviceMemoryFull, EngineUnavailable, EngineError: it failed; the message names call, error and remedy.
        """
        calls = [(name, arguments)]
        if CudaDriver._several:  # the current device is the thread's, and libraries change it
            calls.insert(0, ("cudaSetDevice", (self.device,)))
        for call, given in calls:
            error, *values = getattr(self._cuda, call)(*given)
            if int(error) != 0:
                raise self._failure(call, error)
        return values[0] if len(values) == 1 else tuple(values)

    def _failure(self, call: str, error: Any) -> EngineError:
        self._cuda.cudaGetLastError()  # else the next library to ask in this thread takes it for its own
        name = str(getattr(error, "name", error))
        said, text = self._cuda.cudaGetErrorString(error)
        words = text.decode() if int(said) == 0 and isinstance(text, bytes) else "no description"
        message = f"CUDA: {call} failed with {name} ({words})"
        if name in _REMEDIES:
            message = f"{message}; {_REMEDIES[name]}"
        if name == "cudaErrorMemoryAllocation":
            return DeviceMemoryFull(message)
        missing = name in ("cudaErrorInsufficientDriver", "cudaErrorNoDevice", "cudaErrorInvalidDevice")
        return EngineUnavailable(message) if missing else EngineError(message)

    def unavailable_reason(self) -> str | None:
        """None if there is a GPU and a driver for it, else what is missing, and the remedy."""
        try:
            error, count = self._cuda.cudaGetDeviceCount()  # of a device that is not here no other call can be made
            if int(error) != 0:
                raise self._failure("cudaGetDeviceCount", error)
            if not self.device < int(count):
                here = f"cuda:0 to cuda:{int(count) - 1}" if count > 1 else "cuda:0"
                return f"there is no device cuda:{self.device} here, only {here}; name another, or leave out --device"
            self._call("cudaMemGetInfo")
        except EngineError as error:
            return str(error)
        except (AttributeError, OSError, RuntimeError) as error:  # a library that it loads at the first call
            what = " ".join(str(error).split())
            return f"cuda-python cannot use CUDA's libraries ({what}); check the driver and CUDA 13, or {_EXTRA}"
        return None

    def capability(self) -> str:
        """Compute capability in the form that engines use: ``sm_89``."""
        kinds = self._cuda.cudaDeviceAttr
        major, minor = (
            self._call("cudaDeviceGetAttribute", kind, self.device)
            for kind in (kinds.cudaDevAttrComputeCapabilityMajor, kinds.cudaDevAttrComputeCapabilityMinor)
        )
        return f"sm_{major}{minor}"

    def describe(self) -> dict[str, str | int]:
        """Name, capability, CUDA versions of driver and runtime, and bytes of memory, for reports."""
        name = self._call("cudaGetDeviceProperties", self.device).name
        return {
            "name": name.decode() if isinstance(name, bytes) else str(name),
            "capability": self.capability(),
            "driver": _version(self._call("cudaDriverGetVersion")),
            "runtime": _version(self._call("cudaRuntimeGetVersion")),
            "memory": self.memory()[1],
        }

    def memory(self) -> tuple[int, int]:
        free, total = self._call("cudaMemGetInfo")
        return int(free), int(total)

    def malloc(self, size: int) -> int:
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def upload(self, address: int, array: Array, stream: int) -> None:
        # from pageable memory the call returns once the array has been staged
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, _contiguous(array), array.nbytes, kind, stream)

    def download(self, array: Array, address: int, stream: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", _contiguous(array), address, array.nbytes, kind, stream)

    def open_stream(self) -> int:
        # apart from the default stream, which waits for everything and cannot be captured
        return int(self._call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking))

    def close_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", stream)

    def begin_capture(self, stream: int) -> None:
        # other threads may allocate meanwhile
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> int:
        return int(self._call("cudaStreamEndCapture", stream))

    def instantiate(self, graph: int) -> int:
        return int(self._call("cudaGraphInstantiate", graph, 0))

    def launch(self, executable: int, stream: int) -> None:
        self._call("cudaGraphLaunch", executable, stream)

    def destroy_graph(self, graph: int) -> None:
        self._call("cudaGraphDestroy", graph)

    def destroy_executable(self, executable: int) -> None:
        self._call("cudaGraphExecDestroy", executable)


def _contiguous(array: Array) -> int:
    """Address of an array's values."""
    if not array.flags.c_contiguous:
        raise EngineError(f"CUDA: an array {array.shape} is not contiguous; copy it first")
    return int(array.ctypes.data)
