"""The OpenVINO library: its core, its version, and what it says of this machine's devices."""

from __future__ import annotations

import importlib.metadata
import threading
import weakref
from functools import cache
from typing import Any

from diffplugin.engines.base import one_line

CPU = "CPU"

_core_lock = threading.Lock()
_living_core: weakref.ref[Any] | None = None


def core() -> Any:
    """OpenVINO's core, shared by all living engines. It keeps threads and memory of every model that it compiled, so it
    is released with the last engine."""
    import openvino

    global _living_core  # noqa: PLW0603
    with _core_lock:
        found = _living_core() if _living_core is not None else None
        if found is None:
            found = openvino.Core()
            _living_core = weakref.ref(found)
        return found


@cache
def version() -> str:
    """Version of the installed package."""
    return importlib.metadata.version("openvino")


@cache
def facts(target: str) -> tuple[str, tuple[str, ...]]:
    """(name, capabilities) of a device, which OpenVINO calls ``target`` ("CPU", "GPU.0"), as it reports them.

    Raises:
        RuntimeError: OpenVINO does not find the device.
    """
    shared = core()
    name = str(shared.get_property(target, "FULL_DEVICE_NAME"))
    return name, tuple(sorted(shared.get_property(target, "OPTIMIZATION_CAPABILITIES")))


def device_key(target: str) -> str:
    """What a compiled model is tied to: it holds code for the instruction set, which the capabilities name."""
    name, abilities = facts(target)
    return f"{name} [{' '.join(abilities)}]"


def message(error: RuntimeError) -> str:
    """OpenVINO's error message on one line."""
    said = one_line(error, last=True)
    if "temporarily unavailable" in said:  # what the system answers where no thread can be started
        said += ": a limit on processes; raise pids.max of the container, or ulimit -u"
    return said
