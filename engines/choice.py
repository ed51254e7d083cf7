"""Engines behind one protocol (``engines.base``). Libraries are imported when an engine is used, not before."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Literal

from diffplugin.engines.base import NEEDS, check_precision, missing_variant
from diffplugin.errors import EngineUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffplugin.bundle import Bundle
    from diffplugin.engines.base import EngineBuilder

EngineName = Literal["auto", "tensorrt", "tensorrt-rtx", "openvino", "onnxruntime"]
Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]

# Name -> module, class and its arguments. ``auto`` looks at them in this order.
_BUILDERS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "tensorrt": ("diffplugin.engines.tensorrt.builder", "TensorRtBuilder", ("tensorrt",)),
    "tensorrt-rtx": ("diffplugin.engines.tensorrt.builder", "TensorRtBuilder", ("tensorrt-rtx",)),
    "openvino": ("diffplugin.engines.openvino", "OpenVinoBuilder", ()),
    "onnxruntime": ("diffplugin.engines.onnxruntime", "OnnxRuntimeBuilder", ()),
}
ENGINES = tuple(_BUILDERS)
_BUILT_AHEAD = ("tensorrt", "tensorrt-rtx")  # run no ONNX: ``auto`` looks at them where a bundle has their engines
FULL = "fp32"


def get_builder(name: str) -> EngineBuilder:
    """Raises:
    EngineUnavailable: no engine of this name.
    """
    if name not in _BUILDERS:
        raise EngineUnavailable(f"engine {name!r}: unknown; expected auto or one of {', '.join(_BUILDERS)}")
    module, attribute, arguments = _BUILDERS[name]
    made: EngineBuilder = getattr(importlib.import_module(module), attribute)(*arguments)
    return made


def choose(
    engine: str = "auto", precision: str = "auto", *, bundle: Bundle | None = None, prefer: Sequence[str] = ()
) -> tuple[EngineBuilder, str, str]:
    """(builder, precision, reason) for ``--engine`` and ``--precision``.

    ``auto``: TensorRT where ``bundle`` has engines of it and a GPU is here; else the first precision of ``prefer``
    that an engine and ``bundle`` have; else OpenVINO where it is installed
    and another floating-point precision than fp32 is the fastest here; else fp32 with ONNX
    Runtime, which ties with OpenVINO there, starts faster and needs half the memory.

    Raises:
        EngineUnavailable: what was asked for cannot run here.
    """
    builders, faults = _usable(engine, bundle)
    if not builders:
        raise EngineUnavailable("; ".join(faults))
    if engine == precision == "auto" and builders[0].prebuilt_only:  # they stand first in the table
        return builders[0], builders[0].precisions()[0], "the bundle has engines for a GPU, and there is one"
    wishes = tuple(prefer) if precision == "auto" else (precision,)
    for wish in wishes:
        for builder in reversed(builders):  # where they tie, the last one is the lightest
            if wish in builder.precisions() and not missing_variant(bundle, wish):
                return builder, wish, "as asked" if precision != "auto" else f"this quality prefers {wish}"
    if precision != "auto":
        for builder in builders:
            if len(builders) == 1 or precision in builder.precisions():
                check_precision(builder, precision, bundle)
        here = [f"{b.name}: {precision} does not run natively here, only {', '.join(b.precisions())}" for b in builders]
        remedy = NEEDS.get(precision, "unknown precision")
        raise EngineUnavailable(
            f"no engine runs {precision} here: {'; '.join(here + faults)} ({remedy}); use --precision {FULL}"
        )
    if engine != "auto":
        return builders[0], builders[0].precisions()[0], "as asked"
    for builder in builders:
        if (first := builder.precisions()[0]) != FULL:
            return builder, first, f"{first} is the fastest here"
    others = [f"{b.name}: no faster in {FULL}" for b in builders[:-1]]
    return builders[-1], FULL, "; ".join(others + faults) or "the only engine here"


def _usable(engine: str, bundle: Bundle | None) -> tuple[list[EngineBuilder], list[str]]:
    """Builders that can run here, in the table's order, and why the others cannot."""
    built = {entry.engine for entry in bundle.manifest.engines} if bundle else set()
    auto = [name for name in ENGINES if name not in _BUILT_AHEAD or name in built]
    names = auto if engine == "auto" else [engine]
    builders, faults = [], []
    for builder in map(get_builder, names):
        if reason := builder.unavailable_reason():
            faults.append(f"{builder.name}: {reason}" if engine == "auto" else f"engine {builder.name}: {reason}")
        else:
            builders.append(builder)
    return builders, faults
