"""The graph ``step``: a whole step of the sampler's loop around a UNet graph (:func:`diffplugin.spec.graph_specs`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from diffplugin.spec import STEP_WEIGHTS, GraphSpec

if TYPE_CHECKING:
    import onnx_ir as ir


def to_step(model: ir.Model, spec: GraphSpec) -> None:
    """Turn the graph ``unet`` into the graph ``step``, in place; its weights are not moved.

    The sums are float32: a step divides by alpha, which is 0.07 at the first one, and its errors are carried on to the
    last.
    """
    import onnx_ir as ir

    graph = model.graph
    unet = {value.name: value for value in graph.inputs}
    latents, eps, first = unet["latents"], graph.outputs[0], graph[0]
    real = ir.TensorType(ir.DataType.FLOAT)
    inputs = {t.name: unet.get(t.name) or ir.Value(name=t.name, shape=ir.Shape(t.axes), type=real) for t in spec.inputs}
    users = list(latents.uses())
    split = ir.node("Split", [inputs["weights"]], {"axis": 0, "num_outputs": STEP_WEIGHTS}, num_outputs=STEP_WEIGHTS)
    weights = _named(split.outputs, "weight")
    before: list[ir.Node] = [split]
    after: list[ir.Node] = []
    x = _weighted("x", weights, [inputs[name] for name in ("latents", "cond", "noise")], before)
    x0 = _weighted("next_x0", weights, [x, eps], after)
    history = [inputs[name] for name in ("last", "x0_1", "x0_2")]
    last = _weighted("next_last", weights, [history[0], x, x0, *history[1:]], after)
    made = _weighted("next_latents", weights, [last, x0, history[1]], after)
    for node, index in users:
        node.replace_input_with(index, x)
    graph.insert_before(first, before)
    graph.extend(after)
    graph.inputs.clear()
    graph.inputs.extend(inputs.values())
    unused = list(graph.outputs)[1:]
    graph.outputs.clear()
    graph.outputs.extend([made, last, x0])
    for value, tensor in zip(graph.outputs, spec.outputs, strict=True):
        value.shape = ir.Shape(tensor.axes)
    for value in unused:  # the deep feature: the cast that made it, where nothing else uses it
        if (node := value.producer()) is not None and not value.uses():
            graph.remove(node, safe=True)


def _named(values: Sequence[ir.Value], name: str) -> Iterator[ir.Value]:
    for i, value in enumerate(values):
        value.name = f"{name}_{i}"
        yield value


def _weighted(name: str, weights: Iterator[ir.Value], values: Sequence[ir.Value], nodes: list[ir.Node]) -> ir.Value:
    """The sum of the values, each times the next weight; its nodes are appended to ``nodes``."""
    import onnx_ir as ir

    total: ir.Value | None = None
    for i, value in enumerate(values):
        term = ir.node("Mul", [value, next(weights)], name=f"{name}.term_{i}")
        nodes.append(term)
        term.outputs[0].name, term.outputs[0].type = term.name, ir.TensorType(ir.DataType.FLOAT)
        if total is None:
            total = term.outputs[0]
            continue
        add = ir.node("Add", [total, term.outputs[0]], name=f"{name}.sum_{i}")
        nodes.append(add)
        add.outputs[0].name, add.outputs[0].type = add.name, ir.TensorType(ir.DataType.FLOAT)
        total = add.outputs[0]
    assert total is not None
    total.name = name
    return total
