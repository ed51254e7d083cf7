"""Which ONNX Runtime is installed, and whether it is complete: two packages install the same module and overwrite each
other.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import io
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

CUDA = "CUDAExecutionProvider"
_LONGEST = 200  # characters of an error that are told
_CPU, _GPU = "onnxruntime", "onnxruntime-gpu"  # packages
# What the provider of 1.31 needs of CUDA 13, in the order in which one needs the other.
_LIBRARIES = ("libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", "libcudnn.so.9")
_OPTIONAL = ("libnvrtc.so.13",)  # what cuDNN may look for
# An ONNX model of one Add, y = x + x, float32 [1]: ir_version 8, opset 13.
_SMALLEST = bytes.fromhex(
    "08083a350a0e0a01780a017812017922034164641201675a0f0a0178120a0a08"
    "080112040a020801620f0a0179120a0a08080112040a02080142040a00100d"
)


def nvidia_driver() -> bool:
    """Whether an NVIDIA driver is installed: a sign that the user may want the GPU."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def broken_reason() -> str | None:
    """None if ONNX Runtime can be used, at least on processors; else the fault, and the commands that fix it."""
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


def cuda_unavailable_reason(device: int, driver: Callable[[], str | None]) -> str | None:
    """None if ONNX Runtime can run on this GPU, else the reason and the remedy.

    Args:
        driver: returns why the GPU itself cannot be used; called once the right package is found.
    """
    if reason := broken_reason():
        return reason
    ort = importlib.import_module("onnxruntime")
    return _lacking_provider(ort) or driver() or _lacking_library(ort) or _refused_session(ort, device)


def _lacking_provider(ort: Any) -> str | None:
    """The fault of a module that was built without the provider."""
    if CUDA in ort.get_available_providers():
        return None
    here = _packages()
    if _GPU in here and _CPU in here:
        what = f"{_CPU} and {_GPU} are both installed, and {_CPU} has replaced {_GPU}"
    elif _GPU in here:
        what = f"{_GPU} is broken: its module has no {CUDA}"
    else:
        what = f"this ONNX Runtime has no {CUDA}"
    return f"{what}; {_mend('gpu')}"


def _lacking_library(ort: Any) -> str | None:
    """The first of CUDA's libraries that cannot be loaded. Those of NVIDIA's packages are loaded from these packages,
    wherever Python finds them: ONNX Runtime itself looks only beside its own folder.
    """
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # what it cannot find is said below, in one line
            ort.preload_dlls()
    if sys.platform != "linux":
        return None
    for name in _OPTIONAL:
        _load(name)
    for name in _LIBRARIES:
        if fault := _load(name):
            return f"{CUDA} needs {name} ({fault}); pip install 'diffplugin[gpu]', or install CUDA 13 and cuDNN 9"
    return None


def _load(name: str) -> str | None:
    """Load a library where the system or NVIDIA's packages have it; None, or why it cannot be loaded."""
    packages = importlib.util.find_spec("nvidia")
    folders = packages.submodule_search_locations if packages is not None else None
    inside = [str(file) for folder in folders or () for file in sorted(Path(folder).glob(f"*/lib/{name}"))]
    fault = None
    for file in (name, *inside):
        try:
            ctypes.CDLL(file)
            return None
        except OSError as error:
            fault = str(error)
    return fault


def _refused_session(ort: Any, device: int) -> str | None:
    """Run one kernel: a listed provider may still fail to load, or have no code for this GPU."""
    import numpy as np

    try:
        session = cuda_session(ort, _SMALLEST, ort.SessionOptions(), {"device_id": str(device)})
        session.run(["y"], {"x": np.ones(1, np.float32)})
    except Exception as error:  # the library raises a dozen kinds for one fact
        return f"{CUDA} cannot run here ({meant(error)}); check driver, CUDA 13 and cuDNN 9"
    return None


def meant(error: BaseException) -> str:
    """The message of an ONNX Runtime error, without the source file and function signature before it."""
    text = " ".join(str(error).split())
    if failed := re.search(r"\b(CUDA|CUBLAS\w*|CUDNN\w*) failure [^;]*", text):
        return failed[0].strip()
    return text if len(text) <= _LONGEST else f"… {text[-_LONGEST:]}"


def cuda_session(ort: Any, model: Any, options: Any, settings: Mapping[str, str]) -> Any:
    """A session on the GPU alone; it fails if the provider fails.

    Raises:
        Exception: any of ONNX Runtime's many kinds.
    """
    options.log_severity_level = 4
    ort.set_default_logger_severity(4)  # what it logs beside its errors is no line of ours
    try:
        session = ort.InferenceSession(model, options, providers=[(CUDA, dict(settings))], enable_fallback=0)
    finally:
        ort.set_default_logger_severity(2)  # its own default
    if session.get_providers()[0] != CUDA:
        raise RuntimeError(f"ONNX Runtime fell back to {session.get_providers()[0]}")
    return session


def _packages() -> tuple[str, ...]:
    """Installed packages that contain the module."""
    import importlib.metadata  # only here: its import takes 24 ms

    found = []
    for name in (_CPU, _GPU):
        try:
            importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found.append(name)
    return tuple(found)


def _leftovers() -> bool:
    """A folder of the module without its files: left over when one of the two packages is uninstalled."""
    return importlib.util.find_spec("onnxruntime") is not None


def _mend(extra: str) -> str:
    return f"pip uninstall -y {_CPU} {_GPU} && pip install 'diffplugin[{extra}]'"
