"""Expands fused operators of ONNX Runtime's CUDA provider into operators that every engine has."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

FUSED = "com.microsoft"


def write_out(model: ir.Model) -> set[int]:
    """Replace GroupNorm and BiasSplitGelu, in place; attention stays, because processors have it.

    Returns:
        Python's ids of the new nodes whose results are internal to a fused operator, in float32.
    """
    inside: set[int] = set()
    for node in list(model.graph):
        parts = _PARTS.get(node.op_type) if node.domain == FUSED else None
        if parts is None:
            continue
        made = parts(node)
        result, last = node.outputs[0], made[-1].outputs[0]
        result.replace_all_uses_with(last, replace_graph_outputs=True)
        last.dtype, last.shape, name = result.dtype, result.shape, result.name
        model.graph.insert_before(node, made)
        model.graph.remove(node, safe=True)
        last.name = name
        result_of = next(part for part in reversed(made) if part.op_type != "Transpose")
        inside |= {id(part) for part in made if part is not result_of}
    return inside


def _group_norm(node: ir.Node) -> list[ir.Node]:
    """Channels last -> first, GroupNormalization, SiLU if it is requested, channels last again."""
    import onnx_ir as ir

    x, scale, bias = node.inputs
    name, dtype = node.outputs[0].name, node.outputs[0].dtype
    made: list[ir.Node] = []

    def add(op: str, inputs: list[ir.Value | None], attributes: dict[str, object] | None = None) -> ir.Value:
        part = ir.node(op, inputs, attributes or {}, name=f"{name}.{len(made)}.{op}")
        part.outputs[0].name, part.outputs[0].dtype = part.name, dtype
        made.append(part)
        return part.outputs[0]

    first = add("Transpose", [x], {"perm": [0, 3, 1, 2]})
    given = node.attributes
    if dtype == ir.DataType.FLOAT16:  # statistics and sums are float32 in both; its weights have one type
        scale, bias = (add("Cast", [value], {"to": int(ir.DataType.FLOAT16)}) for value in (scale, bias))
    y = add(
        "GroupNormalization",
        [first, scale, bias],
        {"num_groups": given["groups"].as_int(), "epsilon": given["epsilon"].as_float()},
    )
    if given["activation"].as_int():
        y = add("Mul", [y, add("Sigmoid", [y])])
    add("Transpose", [y], {"perm": [0, 2, 3, 1]})
    return made


def _bias_split_gelu(node: ir.Node) -> list[ir.Node]:
    """(x + bias) in two halves of its last axis: the first times GELU of the second."""
    import onnx_ir as ir

    x, bias = node.inputs
    name, dtype = node.outputs[0].name, node.outputs[0].dtype
    total = ir.node("Add", [x, bias], name=f"{name}.sum")
    halves = ir.node("Split", [total.outputs[0]], {"axis": -1, "num_outputs": 2}, num_outputs=2, name=f"{name}.halves")
    gate = ir.node("Gelu", [halves.outputs[1]], name=f"{name}.gate")
    product = ir.node("Mul", [halves.outputs[0], gate.outputs[0]], name=f"{name}.product")
    made = [total, halves, gate, product]
    for part in made:
        for i, value in enumerate(part.outputs):
            value.name, value.dtype = f"{part.name}.{i}", dtype
    return made


_PARTS: dict[str, Callable[[ir.Node], list[ir.Node]]] = {
    "GroupNorm": _group_norm,
    "BiasSplitGelu": _bias_split_gelu,
}
