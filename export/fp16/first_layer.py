"""The first layer of a float16 graph that exceeds an error budget: every value is compared with the same graph without
rounding.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from diffplugin.export.fp16.emulate import emulated
from diffplugin.export.measures import relative_error
from diffplugin.export.onnx import load, save
from diffplugin.spec import Array


def layer_errors(path: Path, inputs: Mapping[str, Array]) -> dict[str, tuple[float, float]]:
    """Values of a float16 graph in order: (relative error of rounding, largest magnitude without it).

    Args:
        path: the graph.
        inputs: the graph's inputs by name.
    """
    rounded, exact = (_values(path, inputs, rounding=rounding) for rounding in (True, False))
    return {
        name: (relative_error(rounded[name], value), float(abs(value).max(initial=0)))
        for name, value in exact.items()
        if name in rounded and value.dtype.kind == "f"
    }


def first_beyond(path: Path, inputs: Mapping[str, Array], budget: float) -> str:
    """A sentence for an error message: the first value whose error is over ``budget``."""
    for name, (error, largest) in layer_errors(path, inputs).items():
        if not error <= budget:
            return f"{name} leaves it first: {error:.1e}, values up to {largest:.3g}"
    return "no layer leaves it by rounding alone: the weights do not fit float16"


def _values(path: Path, inputs: Mapping[str, Array], *, rounding: bool) -> dict[str, Array]:
    """Every floating-point value of the graph, in the order in which it is computed.

    Polygraphy's per-layer comparison passes the model to ONNX Runtime as bytes: full widths are beyond 2 GiB.
    """
    import onnx_ir as ir
    import onnxruntime as ort

    model = load(path)
    emulated(model, rounding=rounding)
    wanted = {v.name: v for node in model.graph for v in node.outputs if v.dtype == ir.DataType.FLOAT}
    model.graph.outputs.clear()
    model.graph.outputs.extend(wanted.values())
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "graph.onnx"
        save(model, file)
        session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        return dict(zip(wanted, session.run(list(wanted), dict(inputs)), strict=True))
