"""Engines behind one protocol (``engines.base``). Libraries are imported when an engine is used, not before."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from diffplugin.engines.base import NEEDS, check_precision
from diffplugin.errors import EngineUnavailable

if TYPE_CHECKING:
    from diffplugin.engines.base import EngineBuilder

# Name -> module and class. ``auto`` looks at them in this order.
_BUILDERS = {
    "openvino": ("diffplugin.engines.openvino", "OpenVinoBuilder"),
    "onnxruntime": ("diffplugin.engines.onnxruntime", "OnnxRuntimeBuilder"),
}
ENGINES = tuple(_BUILDERS)
FULL = "fp32"
_NOT_CHOSEN = {"auto": "no native bf16 here, and no faster in fp32", FULL: "no faster in fp32"}


def builder_named(name: str) -> EngineBuilder:
    """Raises:
    EngineUnavailable: no engine of this name.
    """
    if name not in _BUILDERS:
        raise EngineUnavailable(f"engine {name!r}: unknown; expected auto or one of {', '.join(_BUILDERS)}")
    module, attribute = _BUILDERS[name]
    made: EngineBuilder = getattr(importlib.import_module(module), attribute)()
    return made


def choose(engine: str = "auto", precision: str = "auto") -> tuple[EngineBuilder, str, str]:
    """(builder, precision, reason) for ``--engine`` and ``--precision``.

    ``auto``: OpenVINO where it is installed and the CPU computes bf16 natively, which halves the time of a step; else
    fp32 with ONNX Runtime, which ties with OpenVINO there, starts faster and needs half the memory.

    Raises:
        EngineUnavailable: what was asked for cannot run here.
    """
    if engine != "auto":
        builder = builder_named(engine)
        if reason := builder.why_unavailable():
            raise EngineUnavailable(f"engine {engine}: {reason}")
        wanted = builder.precisions()[0] if precision == "auto" else precision
        check_precision(builder, wanted)
        return builder, wanted, "as asked"
    usable, reasons = [], dict[str, str]()
    for name in _BUILDERS:
        builder = builder_named(name)
        if reason := builder.why_unavailable():
            reasons[name] = f"{name}: {reason}"
            continue
        here = builder.precisions()
        if here[0] != FULL and precision in ("auto", here[0]):
            return builder, here[0], f"{here[0]} runs natively here"
        usable.append(builder)
        reasons[name] = f"{name}: {_NOT_CHOSEN.get(precision, f'{precision} does not run natively here')}"
    if not usable or precision not in ("auto", FULL):
        raise EngineUnavailable(
            f"no engine runs {precision} here: {'; '.join(reasons.values())} "
            f"({NEEDS.get(precision, 'unknown precision')}); use --precision {FULL}"
        )
    chosen = usable[-1]  # in fp32 they tie, so the order turns round: the last one is the lightest
    return chosen, FULL, "; ".join(reason for name, reason in reasons.items() if name != chosen.name)
