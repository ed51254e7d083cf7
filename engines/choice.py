"""The choice of an engine. Libraries are imported only when an engine is used."""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any, Literal

from diffplugin.engines.base import NEEDS, check_precision, missing_variant, one_line
from diffplugin.engines.device import DeviceBuilder, OwnGraphs, OwnMemory
from diffplugin.engines.devices import Device
from diffplugin.engines.onnxruntime_install import nvidia_driver
from diffplugin.errors import DiffPluginError, EngineUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffplugin.bundle import Bundle
    from diffplugin.engines.base import EngineBuilder

_log = logging.getLogger("diffplugin")

EngineName = Literal["auto", "tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "openvino", "onnxruntime", "ncnn"]
Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]

# Name -> module, class, its arguments, and the kinds of devices that it runs on, its own first. ``auto`` looks at them
# in this order.
_BUILDERS: dict[str, tuple[str, str, tuple[str, ...], tuple[str, ...]]] = {
    "tensorrt": ("diffplugin.engines.tensorrt.builder", "TensorRtBuilder", ("tensorrt",), ("cuda",)),
    "tensorrt-rtx": ("diffplugin.engines.tensorrt.builder", "TensorRtBuilder", ("tensorrt-rtx",), ("cuda",)),
    "onnxruntime-cuda": ("diffplugin.engines.onnxruntime_cuda.builder", "OnnxRuntimeCudaBuilder", (), ("cuda",)),
    "openvino": ("diffplugin.engines.openvino.builder", "OpenVinoBuilder", (), ("cpu", "gpu", "npu")),
    "onnxruntime": ("diffplugin.engines.onnxruntime", "OnnxRuntimeBuilder", (), ("cpu",)),
    "ncnn": ("diffplugin.engines.ncnn", "NcnnBuilder", (), ("cpu",)),
}
ENGINES = tuple(_BUILDERS)
_ONNXRUNTIME_CUDA = "onnxruntime-cuda"
_BUILT_AHEAD = ("tensorrt", "tensorrt-rtx")  # run no ONNX: ``auto`` looks at them where a bundle has their engines
_OWN_FORM = "ncnn"  # ``auto`` looks at it where a bundle has its graphs, which variant is called as it is
FULL = "fp32"
ENTRY_POINTS = "diffplugin.engines"  # group under which other packages bring engines


def get_builder(name: str, device: Device | None = None) -> EngineBuilder:
    """The builder of an engine, for its first device or for ``device``.

    Raises:
        EngineUnavailable: there is no engine of this name, or it does not run on such a device.
    """
    if name not in _BUILDERS:
        return _from_other_package(name, device)
    module, attribute, arguments, kinds = _BUILDERS[name]
    kind: Any = getattr(importlib.import_module(module), attribute)
    if device is None or device == Device(kinds[0]):
        made: EngineBuilder = kind(*arguments)
    elif device.kind in kinds:
        made = kind(*arguments, device=device.number if len(kinds) == 1 else device)
    else:
        others = ", ".join(other for other in ENGINES if device.kind in _BUILDERS[other][-1])
        raise EngineUnavailable(
            f"engine {name}: runs on {', '.join(kinds)}, not on {device}; leave out --device, or use --engine {others}"
        )
    return made


def _from_other_package(name: str, device: Device | None) -> EngineBuilder:
    """An engine from another installed package (docs/adding-an-engine.md). ``auto`` never takes one."""
    import importlib.metadata  # only here: its import takes 24 ms

    entries = importlib.metadata.entry_points(group=ENTRY_POINTS)
    if name not in entries.names:
        known = ", ".join((*_BUILDERS, *sorted(entries.names)))
        raise EngineUnavailable(f"engine {name!r}: unknown; expected auto or one of {known}")
    if device is not None:
        raise EngineUnavailable(f"engine {name}: comes from another package and takes no --device; leave it out")
    try:
        made: EngineBuilder = entries[name].load()()
    except Exception as error:  # another package's code
        raise EngineUnavailable(
            f"engine {name}: its package cannot be loaded ({one_line(error)}); repair or uninstall it"
        ) from None
    return made


def choose(
    engine: str = "auto",
    precision: str = "auto",
    *,
    bundle: Bundle | None = None,
    prefer: Sequence[str] = (),
    device: str = "auto",
) -> tuple[EngineBuilder, str, str]:
    """(builder, precision, reason) for ``--engine``, ``--precision`` and ``--device``.

    ``auto``: TensorRT if ``bundle`` has engines of it and the machine has a GPU; else ONNX Runtime on an NVIDIA GPU if
    there is one that can hold ``bundle``, in float16 if ``bundle`` has graphs for it; else the first precision of
    ``prefer`` that an engine and ``bundle`` have; else OpenVINO if it is installed and a floating-point precision other
    than fp32 is the fastest on this machine; else fp32: with ncnn if ``bundle`` was exported for it and it is faster
    here; else with ONNX Runtime, which is as fast as OpenVINO there, starts faster and needs half the memory.

    Raises:
        EngineUnavailable: the requested engine or precision cannot run on this machine.
        RequestError: there is no such device.
    """
    builders, faults = _usable(engine, bundle, None if device == "auto" else Device.parse(device))
    if not builders:
        raise EngineUnavailable("; ".join(faults))
    on_gpu = [builder for builder in builders if isinstance(builder, DeviceBuilder)]  # they stand first in the table
    if engine == precision == "auto" and on_gpu:
        how = "the bundle has engines for a GPU, and there is one" if on_gpu[0].prebuilt_only else "there is a GPU"
        return on_gpu[0], _first(on_gpu[0], bundle), how
    wishes = tuple(prefer) if precision == "auto" else (precision,)
    for wish in wishes:
        # in fp32 the last one is the fastest or the lightest; else the first one is the fastest
        others = [b for b in (reversed(_best_last(builders, bundle)) if wish == FULL else builders) if b not in on_gpu]
        for builder in (*on_gpu, *others):
            if wish in builder.precisions() and not _missing(builder, bundle, wish):
                return builder, wish, "as asked" if precision != "auto" else f"this quality prefers {wish}"
    if precision != "auto":
        for builder in builders:
            if len(builders) == 1 or precision in builder.precisions():
                check_precision(builder, precision)
                if reason := _missing(builder, bundle, precision):
                    raise EngineUnavailable(reason)
        here = [f"{b.name}: {precision} does not run natively here, only {', '.join(b.precisions())}" for b in builders]
        remedy = NEEDS.get(precision, "unknown precision")
        raise EngineUnavailable(
            f"no engine runs {precision} here: {'; '.join(here + faults)} ({remedy}); use --precision {FULL}"
        )
    if engine != "auto":
        return builders[0], _first(builders[0], bundle), "as asked"
    for builder in builders:
        if (first := _first(builder, bundle)) != FULL:
            return builder, first, f"{first} is the fastest here"
    faults += [f"{b.name}: {reason}" for b in builders if (reason := _missing(b, bundle, FULL))]
    *slower, best = [b for b in _best_last(builders, bundle) if not _missing(b, bundle, FULL)] or builders
    return best, FULL, "; ".join([f"{b.name}: no faster in {FULL}" for b in slower] + faults) or "the only engine here"


def _best_last(builders: list[EngineBuilder], bundle: Bundle | None) -> list[EngineBuilder]:
    """The builders with the one to take in fp32 at the end, where ncnn stands in the table: it changes places with ONNX
    Runtime where that is faster."""
    *others, last = builders
    if not others or bundle is None or last.name != _OWN_FORM or _missing(last, bundle, FULL):
        return builders
    try:
        faster: bool = last.faster_than(others[-1], bundle)  # type: ignore[attr-defined]
    except DiffPluginError as error:  # told when it is loaded
        _log.debug("not measured: %s", error)
        faster = True
    return builders if faster else [*others[:-1], last, others[-1]]


def choose_fallback(
    builder: EngineBuilder, engine: str, precision: str, device: str = "auto"
) -> tuple[EngineBuilder, str] | None:
    """(builder, precision) to continue with if the library of ``builder`` cannot load a graph; None: the user named
    this engine, or there is no other."""
    if not engine == precision == device == "auto" or isinstance(builder, DeviceBuilder):
        return None
    other = get_builder("onnxruntime")
    return (other, FULL) if builder.name != other.name and other.unavailable_reason() is None else None


def _first(builder: EngineBuilder, bundle: Bundle | None) -> str:
    """The engine's best precision that the bundle has graphs for; its best one if there are none."""
    precisions = builder.precisions()
    return next((p for p in precisions if not _missing(builder, bundle, p)), precisions[0])


def _missing(builder: EngineBuilder, bundle: Bundle | None, precision: str) -> str | None:
    if isinstance(builder, OwnGraphs):
        return builder.missing_variant(bundle, precision)
    return missing_variant(bundle, precision)


def _usable(engine: str, bundle: Bundle | None, device: Device | None = None) -> tuple[list[EngineBuilder], list[str]]:
    """Builders that can run on this machine, in the table's order, and the reasons why the others cannot."""
    builders, faults = [], []
    for name in _looked_at(bundle, device) if engine == "auto" else [engine]:
        builder = get_builder(name, device)
        reason = builder.unavailable_reason()
        if reason is None and bundle is not None and isinstance(builder, OwnMemory):
            reason = builder.too_small_reason(bundle)
        if reason is not None:
            faults.append(f"{builder.name}: {reason}" if engine == "auto" else f"engine {builder.name}: {reason}")
        else:
            builders.append(builder)
    return builders, faults


def _looked_at(bundle: Bundle | None, device: Device | None) -> list[str]:
    """Engines that ``auto`` considers: those of the device; for a GPU, only those that may find a GPU or built
    engines.
    """
    built = {entry.engine for entry in bundle.manifest.engines} | set(bundle.manifest.variants) if bundle else set()
    names = [name for name in ENGINES if name not in (*_BUILT_AHEAD, _OWN_FORM) or name in built]
    if device is not None:
        return [name for name in names if device.kind in _BUILDERS[name][-1]]
    return [name for name in names if name != _ONNXRUNTIME_CUDA or nvidia_driver()]
