"""The CUDA driver: what it calls, and what it makes of errors. Without a GPU the real library answers with one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from diffplugin.engines import cuda
from diffplugin.engines.cuda import CudaDriver
from diffplugin.engines.device import Driver
from diffplugin.errors import DeviceMemoryFull, EngineError, EngineUnavailable

ARRAY = np.zeros((2, 3), np.float32)
CALLS: dict[str, Callable[[CudaDriver], object]] = {
    "cudaMemGetInfo": lambda d: d.memory(),
    "cudaMalloc": lambda d: d.malloc(256),
    "cudaFree": lambda d: d.free(4096),
    "cudaMemcpyAsync": lambda d: d.upload(4096, ARRAY, 5),
    "cudaStreamCreateWithFlags": lambda d: d.open_stream(),
    "cudaStreamDestroy": lambda d: d.close_stream(5),
    "cudaStreamSynchronize": lambda d: d.synchronize(5),
    "cudaStreamBeginCapture": lambda d: d.begin_capture(5),
    "cudaStreamEndCapture": lambda d: d.end_capture(5),
    "cudaGraphInstantiate": lambda d: d.instantiate(6),
    "cudaGraphLaunch": lambda d: d.launch(7, 5),
    "cudaGraphExecDestroy": lambda d: d.destroy_executable(7),
    "cudaDeviceGetAttribute": lambda d: d.capability(),
    "cudaGetDeviceProperties": lambda d: d.describe(),
}


CONSTANTS = {
    "cudaStreamNonBlocking": 1,
    "cudaMemcpyKind": SimpleNamespace(cudaMemcpyHostToDevice="up", cudaMemcpyDeviceToHost="down"),
    "cudaStreamCaptureMode": SimpleNamespace(cudaStreamCaptureModeThreadLocal="thread"),
    "cudaDeviceAttr": SimpleNamespace(
        cudaDevAttrComputeCapabilityMajor="major", cudaDevAttrComputeCapabilityMinor="minor"
    ),
}


class Runtime:
    """Stands for ``cuda.bindings.runtime``: answers as told, records what it was asked."""

    def __init__(self, **answers: Any) -> None:
        self.answers, self.asked = answers, list[tuple[Any, ...]]()

    def __getattr__(self, name: str) -> Any:
        if name in CONSTANTS:
            return CONSTANTS[name]

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.asked.append((name, *arguments))
            answer = self.answers.get(name, (0,))
            given: tuple[Any, ...] = answer(*arguments) if callable(answer) else answer
            return given

        return call


def _failing(name: str, error: str, number: int) -> CudaDriver:
    kind = type("Error", (int,), {"name": error})
    return CudaDriver(Runtime(**{name: (kind(number), None), "cudaGetErrorString": (0, b"words of the library")}))


def test_it_is_a_driver() -> None:
    driver: Driver = CudaDriver()
    assert driver is not None


def test_without_a_gpu_the_reason_names_call_error_and_remedy() -> None:
    pytest.importorskip("cuda.bindings", reason="needs the extra [cuda]")
    reason = CudaDriver().unavailable_reason()
    if reason is None:
        pytest.skip("this machine has a GPU")
    assert "cudaGetDeviceCount failed with cudaError" in reason and "NVIDIA" in reason and "\n" not in reason


@pytest.mark.parametrize("name", CALLS)
def test_every_call_reaches_the_real_library(name: str) -> None:
    """Names and kinds of arguments are the library's: it refuses only because there is no GPU."""
    pytest.importorskip("cuda.bindings", reason="needs the extra [cuda]")
    driver = CudaDriver()
    if driver.unavailable_reason() is None:
        pytest.skip("this machine has a GPU")
    with pytest.raises(EngineUnavailable, match=f"{name} failed with cudaError(InsufficientDriver|NoDevice)"):
        CALLS[name](driver)


def test_without_the_package_the_reason_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda._runtime.cache_clear()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    reason = CudaDriver().unavailable_reason()
    assert reason is not None and "cuda-python" in reason and "pip install 'diffplugin[cuda]'" in reason


@pytest.mark.parametrize("fault", [RuntimeError("Failed to dlopen\nlibcudart.so.13"), OSError("file too short")])
def test_a_library_that_is_damaged_is_one_line(fault: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the package is imported, or at the first call."""

    def fail(*_: object) -> None:
        raise fault

    monkeypatch.setattr(cuda, "importlib", SimpleNamespace(import_module=fail))
    cuda._runtime.cache_clear()
    at_import, at_call = CudaDriver(), CudaDriver(SimpleNamespace(cudaGetDeviceCount=fail))
    for reason in (at_import.unavailable_reason(), at_call.unavailable_reason()):
        assert reason and "\n" not in reason and reason.endswith("pip install 'diffplugin[cuda]'"), reason
        assert " ".join(str(fault).split()) in reason


def test_what_is_copied_and_which_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CudaDriver, "_several", False)
    runtime = Runtime()
    driver = CudaDriver(runtime)
    driver.upload(4096, ARRAY, 5)
    driver.download(ARRAY, 8192, 6)
    place = ARRAY.ctypes.data
    assert runtime.asked == [
        ("cudaMemcpyAsync", 4096, place, 24, "up", 5),
        ("cudaMemcpyAsync", place, 8192, 24, "down", 6),
    ]
    with pytest.raises(EngineError, match="not contiguous"):
        driver.upload(4096, ARRAY.T, 5)


def test_values_of_calls() -> None:
    runtime = Runtime(
        cudaGetDeviceCount=(0, 1),
        cudaMemGetInfo=(0, 10, 20),
        cudaMalloc=(0, 4096),
        cudaStreamCreateWithFlags=(0, 5),
        cudaStreamEndCapture=(0, 6),
        cudaGraphInstantiate=(0, 7),
        cudaDriverGetVersion=(0, 13040),
        cudaRuntimeGetVersion=(0, 12090),
        cudaGetDeviceProperties=(0, SimpleNamespace(name=b"A card")),
        cudaDeviceGetAttribute=lambda kind, _: (0, {"major": 12, "minor": 0}[kind]),
    )
    driver = CudaDriver(runtime)
    assert driver.unavailable_reason() is None
    assert (driver.memory(), driver.malloc(1), driver.open_stream()) == ((10, 20), 4096, 5)
    driver.begin_capture(5)
    assert (driver.end_capture(5), driver.instantiate(6)) == (6, 7)
    assert driver.describe() == {
        "name": "A card", "capability": "sm_120", "driver": "13.4", "runtime": "12.9", "memory": 20
    }  # fmt: skip
    assert ("cudaStreamBeginCapture", 5, "thread") in runtime.asked, "other threads may allocate during a capture"
    assert ("cudaStreamCreateWithFlags", 1) in runtime.asked, "the stream must not wait for the default one"


@pytest.mark.parametrize(
    ("error", "number", "kind", "says"),
    [
        ("cudaErrorMemoryAllocation", 2, DeviceMemoryFull, "smaller picture"),
        ("cudaErrorNoDevice", 100, EngineUnavailable, "CUDA_VISIBLE_DEVICES"),
        ("cudaErrorInsufficientDriver", 35, EngineUnavailable, "install an NVIDIA driver"),
        ("cudaErrorIllegalAddress", 700, EngineError, "start it again"),
        ("cudaErrorStreamCaptureInvalidated", 901, EngineError, r"\(words of the library\)$"),
    ],
)
def test_errors_have_the_kind_the_words_and_the_remedy(
    error: str, number: int, kind: type[EngineError], says: str
) -> None:
    driver = _failing("cudaMalloc", error, number)
    with pytest.raises(kind, match=says) as caught:
        driver.malloc(1)
    assert type(caught.value) is kind
    assert str(caught.value).startswith(f"CUDA: cudaMalloc failed with {error} (words of the library)")


def test_a_second_device_is_named_to_every_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CudaDriver, "_several", False)
    runtime = Runtime(cudaMalloc=(0, 4096), cudaGetDeviceCount=(0, 2), cudaMemGetInfo=(0, 10, 20))
    first, second, third = (CudaDriver(runtime, device) for device in (0, 1, 2))
    for driver in (second, first):
        driver.malloc(256)
    assert runtime.asked == [("cudaSetDevice", 1), ("cudaMalloc", 256), ("cudaSetDevice", 0), ("cudaMalloc", 256)]
    assert second.unavailable_reason() is None
    assert third.unavailable_reason() == (
        "there is no device cuda:2 here, only cuda:0 to cuda:1; name another, or leave out --device"
    )
