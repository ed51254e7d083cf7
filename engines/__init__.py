"""Engines behind one protocol (``engines.base``). Libraries are imported when an engine is used, not before."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from diffplugin.errors import EngineUnavailable

if TYPE_CHECKING:
    from diffplugin.engines.base import EngineBuilder

# Name -> module and class. ``auto`` looks at them in this order.
_BUILDERS = {
    "openvino": ("diffplugin.engines.openvino", "OpenVinoBuilder"),
    "onnxruntime": ("diffplugin.engines.onnxruntime", "OnnxRuntimeBuilder"),
}
ENGINES = tuple(_BUILDERS)


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
    ONNX Runtime in fp32, which ties with OpenVINO there and starts faster.

    Raises:
        EngineUnavailable: what was asked for cannot run here.
    """
    if engine != "auto":
        builder = builder_named(engine)
        if reason := builder.why_unavailable():
            raise EngineUnavailable(f"engine {engine}: {reason}")
        return builder, _precision(builder, precision), "as asked"
    reasons = []
    for name in _BUILDERS:
        builder = builder_named(name)
        if reason := builder.why_unavailable():
            reasons.append(f"{name}: {reason}")
            continue
        here = builder.precisions()
        if precision != "auto" and precision not in here:
            reasons.append(f"{name}: {precision} does not run natively here, only {', '.join(here)}")
        elif name == "openvino" and precision == "auto" and here[0] == "fp32":
            reasons.append("openvino: no native bf16 on this CPU, so no faster than onnxruntime")
        else:
            return builder, here[0] if precision == "auto" else precision, "; ".join(reasons) or "the fastest usable"
    raise EngineUnavailable(f"no engine runs {precision} here: {'; '.join(reasons)}")


def _precision(builder: EngineBuilder, wanted: str) -> str:
    here = builder.precisions()
    if wanted == "auto":
        return here[0]
    if wanted not in here:
        raise EngineUnavailable(
            f"engine {builder.name}: {wanted} does not run natively on this machine ({builder.device()}), "
            f"only {', '.join(here)}; use --precision {here[0]}"
        )
    return wanted
