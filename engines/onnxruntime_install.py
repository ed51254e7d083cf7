"""Which ONNX Runtime is installed, and whether it is whole: two packages bring one module and overwrite each other."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.metadata
import importlib.util
import io
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

CUDA = "CUDAExecutionProvider"
_CPU, _GPU = "onnxruntime", "onnxruntime-gpu"  # packages
# What the provider of 1.31 needs of CUDA 13, in the order in which one needs the other.
_LIBRARIES = ("libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", "libcudnn.so.9")
# An ONNX model of one Identity, float32 [1]: ir_version 8, opset 13.
_SMALLEST = bytes.fromhex(
    "08083a370a100a017812017922084964656e746974791201675a0f0a0178120a"
    "0a08080112040a020801620f0a0179120a0a08080112040a02080142040a00100d"
)


def nvidia_driver() -> bool:
    """Whether an NVIDIA driver is installed: a sign that a GPU may be meant."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def why_broken() -> str | None:
    """None: ONNX Runtime can be used, at least on processors. Else what is wrong, and the commands that mend it."""
    here = _packages()
    try:
        module = importlib.import_module("onnxruntime")
        reason = None if hasattr(module, "InferenceSession") else "the module is empty"
    except (ImportError, OSError, AttributeError) as error:
        reason = " ".join(str(error).split())
    if reason is None:
        return None
    if not here and not _leftovers():
        return f"ONNX Runtime is not installed ({reason}); pip install 'diffplugin[cpu]', or 'diffplugin[gpu]'"
    what = " and ".join(here) or "what is left of an uninstalled onnxruntime"
    return f"ONNX Runtime is broken ({what}: {reason}); {_mend('gpu' if _GPU in here else 'cpu')}"


def why_no_cuda(device: int, driver: Callable[[], str | None]) -> str | None:
    """None: ONNX Runtime can run on this GPU. Else the reason and the remedy.

    Args:
        driver: why the GPU itself cannot be used; asked once the package is found to be the right one.
    """
    if reason := why_broken():
        return reason
    here = _packages()
    ort = importlib.import_module("onnxruntime")
    if CUDA not in ort.get_available_providers():
        if _GPU in here and _CPU in here:
            return f"{_CPU} and {_GPU} are both installed and {_CPU} has replaced {_GPU}; {_mend('gpu')}"
        if _GPU in here:
            return f"{_GPU} is broken: its module has no {CUDA}; {_mend('gpu')}"
        return f"this ONNX Runtime has no {CUDA}; {_mend('gpu')}"
    if reason := driver():
        return reason
    if hasattr(ort, "preload_dlls"):
        with _quiet(ort):
            ort.preload_dlls()
    for name in _LIBRARIES:
        try:
            ctypes.CDLL(name)
        except OSError as error:
            return f"{CUDA} needs {name} ({error}); pip install 'diffplugin[gpu]', or install CUDA 13 and cuDNN 9"
    return _tried(ort, device)


def _tried(ort: Any, device: int) -> str | None:
    """A session of one node: that the provider is listed does not say that it can be loaded."""
    try:
        cuda_session(ort, _SMALLEST, ort.SessionOptions(), {"device_id": str(device)})
    except Exception as error:  # the library raises a dozen kinds for one fact
        return f"{CUDA} cannot be loaded ({' '.join(str(error).split())[:200]}); check driver, CUDA 13 and cuDNN 9"
    return None


def cuda_session(ort: Any, model: Any, options: Any, settings: Mapping[str, str]) -> Any:
    """A session on the GPU alone: where the provider fails, so does this.

    Raises:
        Exception: of ONNX Runtime's many kinds.
    """
    options.log_severity_level = 4
    with _quiet(ort):
        session = ort.InferenceSession(model, options, providers=[(CUDA, dict(settings))], enable_fallback=0)
    if session.get_providers()[0] != CUDA:
        raise RuntimeError(f"ONNX Runtime fell back to {session.get_providers()[0]}")
    return session


@contextlib.contextmanager
def _quiet(ort: Any) -> Iterator[None]:
    """What the library prints and logs beside its errors is no line of ours."""
    ort.set_default_logger_severity(4)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        ort.set_default_logger_severity(2)  # its own default


def _packages() -> tuple[str, ...]:
    """Installed packages that bring the module."""
    found = []
    for name in (_CPU, _GPU):
        try:
            importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found.append(name)
    return tuple(found)


def _leftovers() -> bool:
    """A folder of the module without its files: what uninstalling one of the two packages leaves of the other."""
    spec = importlib.util.find_spec("onnxruntime")
    return spec is not None


def _mend(extra: str) -> str:
    return f"pip uninstall -y {_CPU} {_GPU} && pip install 'diffplugin[{extra}]'"
