"""Emulates a float16 graph on a processor: every result of its float16 operators is rounded to float16.

ONNX Runtime's processor kernels have no float16 for most operators. It inserts casts around them and then removes
adjacent ones, so that a float16 graph is computed in float32 and nothing overflows: this proves nothing about the
precision. This module rewrites the graph to float32 operators with a cast to float16 and back after each, which ONNX
Runtime does not remove. As on a GPU, sums inside an operator are float32; a GPU that fuses operators rounds less often.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffplugin.engines.base import OnnxBuilder, check_precision
from diffplugin.engines.onnxruntime import OnnxRuntimeEngine
from diffplugin.engines.threads import thread_count
from diffplugin.export.onnx import load, save
from diffplugin.export.written_out import write_out
from diffplugin.spec import GraphSpec

if TYPE_CHECKING:
    import onnx_ir as ir

    from diffplugin.bundle import Bundle

# Operators that move values and change none.
_MOVES = {"Concat", "Expand", "Flatten", "Gather", "GatherElements", "Identity", "ReduceMax", "Reshape", "Resize"}
_MOVES |= {"Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}


def emulated(model: ir.Model, *, rounding: bool = True) -> None:
    """Rewrite a float16 graph, in place, to a float32 one that rounds as it does, or only its weights.

    Fused operators that processors lack are expanded; like them, the expanded form computes internally in float32.
    """
    import onnx_ir as ir

    full, half = ir.DataType.FLOAT, ir.DataType.FLOAT16
    graph = model.graph
    inside = write_out(model)
    for value in graph.initializers.values():
        if value.dtype == half:
            _widen(value)
    for node in list(graph):
        rounded = [value for value in node.outputs if value.dtype == half]
        for value in node.outputs:
            if value.dtype == half:
                value.dtype = full
        if rounded and node.op_type in ("Constant", "ConstantOfShape"):
            full_value = node.attributes["value"].as_tensor().numpy().astype(np.float32)
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(full_value))
        if node.op_type == "Cast":
            node.attributes["to"] = ir.AttrInt64("to", int(node.outputs[0].dtype or full))
        if rounding and node.op_type not in _MOVES and id(node) not in inside:
            for value in rounded:
                _round(graph, node, value)


def _widen(value: ir.Value) -> None:
    import onnx_ir as ir

    stored, name = value.const_value, value.name or ""
    assert stored is not None

    def convert() -> Any:
        return ir.tensor(stored.numpy().astype(np.float32), name=name)

    value.dtype = ir.DataType.FLOAT
    value.const_value = ir.LazyTensor(convert, dtype=ir.DataType.FLOAT, shape=stored.shape, name=name)


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Cast to float16 and back, for all users of ``value``."""
    import onnx_ir as ir

    down = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT16)}, name=f"{value.name}.round")
    down.outputs[0].name = f"{value.name}.rounded.half"
    up = ir.node("Cast", [down.outputs[0]], {"to": int(ir.DataType.FLOAT)}, name=f"{value.name}.back")
    up.outputs[0].name = f"{value.name}.rounded"
    up.outputs[0].type, up.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), value.shape
    for user, index in list(value.uses()):
        user.replace_input_with(index, up.outputs[0])
    down.replace_input_with(0, value)
    graph.insert_after(node, [down, up])


class EmulatedFp16(OnnxBuilder):
    """Engines of a bundle's fp16 graphs on this processor, as in :func:`emulated`; float32 graphs are not changed."""

    name = "onnxruntime"

    def version(self) -> str:
        import onnxruntime

        return str(onnxruntime.__version__)

    def device(self) -> str:
        return "cpu"

    def precisions(self) -> tuple[str, ...]:
        return ("fp16", "fp32")

    def variant(self, precision: str) -> str:
        """The bundle's graphs for a precision."""
        return precision

    def load(
        self, bundle: Bundle, key: str, *, precision: str, threads: int | None, cache: Path | None
    ) -> OnnxRuntimeEngine:
        check_precision(self, precision, bundle)
        spec, path, count = bundle.spec(key), bundle.graph_file(key, precision), thread_count(threads)
        if precision == "fp32":
            return OnnxRuntimeEngine(spec, path, count, weights_bytes=bundle.graph(key).weights_bytes)
        return self.load_file(spec, path, threads=count)

    def load_file(self, spec: GraphSpec, path: Path, *, threads: int, precision: str = "fp16") -> OnnxRuntimeEngine:
        """The engine of a float16 graph, or of one whose fused operators are to be expanded."""

        model = load(path)
        emulated(model)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "graph.onnx"
            save(model, file)
            return OnnxRuntimeEngine(spec, file, threads, precision=precision)
