"""Float32 graph -> strongly typed float16 graph: float32 inputs and outputs, and float32 islands where they are worth
it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from diffplugin.errors import CheckpointError

if TYPE_CHECKING:
    import onnx_ir as ir

LARGEST = 65504.0  # of float16
_FULL_BESIDE = ("Resize", "GroupNorm")  # their first input alone is float16: scales, and a norm's weights, are float32
MASKED = -1e30  # what is below is a mask, and -LARGEST serves as well


@dataclass(frozen=True, kw_only=True)
class Island:
    """Nodes that stay in float32.

    Attributes:
        name: for reports.
        kinds: graphs that have it; empty: all.
        holds: whether a node belongs to it.
        why: the measurement that justifies it.
    """

    name: str
    kinds: tuple[str, ...] = ()
    holds: Callable[[ir.Node], bool]
    why: str


# Measured on the embedded trained model with every float16 result rounded (export.emulate). What did not pay: softmax,
# norms and time embedding (UNet 3.1e-4 with and without each); norms have float32 statistics by ONNX's definition.
ISLANDS = (
    Island(
        name="patches",
        kinds=("clip_vision",),
        holds=lambda node: node.op_type == "Conv",
        # measured on the embedded model's predecessor; on today's: 8.9e-4 without, 8.5e-4 with
        why="rounded pixels and patches: patches are off by 8.5e-3, in float32 by 1.1e-3; one convolution of 0.3 %",
    ),
    Island(
        name="selector",
        kinds=("selector",),
        holds=lambda node: True,
        why="it decides at score 0: scores are off by 3.4e-4, in float32 by nothing; two small products",
    ),
)


def to_fp16(model: ir.Model, kind: str, islands: tuple[Island, ...] = ISLANDS) -> dict[str, int]:
    """Turn a graph's float32 operators into float16 ones, in place.

    Inputs and outputs stay float32, with casts after and before them. Norms compute their statistics in float32 by
    ONNX's definition (``stash_type``). The sums of ``step`` are an island too: they are added around this graph
    (:mod:`diffplugin.export.step`).

    Returns:
        Nodes per island that was found.

    Raises:
        CheckpointError: a weight is beyond float16's range.
    """
    return _Converter(model.graph, [island for island in islands if not island.kinds or kind in island.kinds]).run()


class _Converter:
    def __init__(self, graph: ir.Graph, islands: list[Island]) -> None:
        import onnx_ir as ir

        self._ir, self._graph, self._islands = ir, graph, islands
        self._full, self._half = ir.DataType.FLOAT, ir.DataType.FLOAT16
        self._made: dict[tuple[int, Any], ir.Value] = {}
        self._found: dict[str, int] = {}

    def run(self) -> dict[str, int]:
        nodes = list(self._graph)
        floats = [[v is not None and v.dtype == self._full for v in node.inputs] for node in nodes]
        for node, is_float in zip(nodes, floats, strict=True):
            self._convert(node, is_float)
        for i, output in enumerate(list(self._graph.outputs)):
            if output.dtype == self._half:
                self._widen(i, output)
        for name, value in list(self._graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del self._graph.initializers[name]
        return self._found

    def _convert(self, node: ir.Node, is_float: list[bool]) -> None:
        kind = self._half
        for island in self._islands:
            if island.holds(node):
                kind = self._full
                self._found[island.name] = self._found.get(island.name, 0) + 1
                break
        if node.op_type in ("Shape", "Size"):  # they read no values
            return
        for i, value in enumerate(node.inputs):
            if not is_float[i] or value is None or (node.op_type in _FULL_BESIDE and i > 0):
                continue
            node.replace_input_with(i, self._as(value, kind, node))
        for output in node.outputs:
            if output.dtype == self._full:
                output.dtype = kind
        if node.op_type in ("Constant", "ConstantOfShape") and kind == self._half:
            self._constant(node)
        if node.op_type == "Cast" and node.attributes["to"].as_int() == self._full:
            node.attributes["to"] = self._ir.AttrInt64("to", int(kind))

    def _constant(self, node: ir.Node) -> None:
        """The value of a node that creates a constant; without it ONNX's default is a float32 zero."""
        value = node.attributes.get("value")
        full = np.zeros(1, np.float32) if value is None else value.as_tensor().numpy()
        if full.dtype == np.float32:
            made = self._ir.tensor(half(full, node.name or node.op_type))
            node.attributes["value"] = self._ir.AttrTensor("value", made)

    def _as(self, value: ir.Value, kind: Any, user: ir.Node) -> ir.Value:
        """``value`` in another type: itself, a weight converted, or a cast that all its users share."""
        if value.dtype == kind:
            return value
        key = (id(value), kind)
        if key not in self._made:
            if value.const_value is not None and value.name in self._graph.initializers:
                self._made[key] = self._weight(value)
            else:
                cast = self._cast(value, kind)
                producer = value.producer()
                if producer is None:  # an input of the graph
                    self._graph.insert_before(self._graph[0], cast)
                else:
                    self._graph.insert_after(producer, cast)
                self._made[key] = cast.outputs[0]
        return self._made[key]

    def _cast(self, value: ir.Value, kind: Any) -> ir.Node:
        node = self._ir.node("Cast", [value], attributes={"to": int(kind)}, name=f"{value.name}.{kind.name.lower()}")
        node.outputs[0].name = node.name
        node.outputs[0].dtype = kind
        return node

    def _weight(self, value: ir.Value) -> ir.Value:
        """A weight in float16, converted when it is written, because a large model would not fit into memory twice."""
        ir, full = self._ir, value.const_value
        assert full is not None
        name = f"{value.name}.float16"

        def convert() -> Any:
            return ir.tensor(half(full.numpy(), value.name or ""), name=name)

        made = ir.Value(name=name, shape=value.shape, type=ir.TensorType(self._half))
        made.const_value = ir.LazyTensor(convert, dtype=self._half, shape=full.shape, name=name)
        self._graph.register_initializer(made)
        return made

    def _widen(self, i: int, output: ir.Value) -> None:
        """A float32 output under its own name, after a cast."""
        name = output.name
        output.name = f"{name}.half"
        cast = self._cast(output, self._full)
        cast.outputs[0].name, cast.outputs[0].shape = name, output.shape
        self._graph.append(cast)
        self._graph.outputs[i] = cast.outputs[0]


def half(weight: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
    """A float32 weight rounded to float16; a mask's lowest values become float16's.

    Raises:
        CheckpointError: a value is beyond float16's range.
    """
    weight = np.where(weight < MASKED, np.float32(-LARGEST), weight)
    with np.errstate(over="ignore"):
        made = weight.astype(np.float16)
    if np.isinf(made).any() and not np.isinf(weight).any():
        raise CheckpointError(f"{name}: has values up to {np.abs(weight).max():.3g}, float16 ends at {LARGEST:g}")
    return made


def found_islands(found: Mapping[str, int]) -> str:
    """The islands found, for a report."""
    return ", ".join(f"{name} ({count})" for name, count in found.items()) or "none"
