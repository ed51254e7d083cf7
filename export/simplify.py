"""Exact rewrites of traced graphs: arithmetic that can change nothing, and upsampling that repeats it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from diffplugin.spec import Array

if TYPE_CHECKING:
    import onnx_ir as ir

_MOVES = ("Cast", "Expand", "Identity", "Reshape", "Transpose", "Unsqueeze")  # a zero stays a zero


def drop_zero_terms(model: ir.Model) -> int:
    """Remove sums with a term that is zero because constant weights are, and all that only this term needs: an
    attention whose output weights were never trained costs its keys and scores for nothing. It is exact for finite
    values.

    Needs the shapes that the tracer gave: a zero that widens the other term stays.

    Returns:
        The number of sums removed.
    """
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    zeros = {id(value) for value in model.graph.initializers.values() if _is_zero(value)}
    dropped = 0
    for node in list(model.graph):
        if _gives_zero(node, zeros):
            zeros.update(id(value) for value in node.outputs)
        elif node.op_type in ("Add", "Sub") and (kept := _other_term(node, zeros)) is not None:
            if node.outputs[0].is_graph_output() or kept.shape is None or kept.shape != node.outputs[0].shape:
                continue
            node.outputs[0].replace_all_uses_with(kept)
            dropped += 1
    if dropped:
        RemoveUnusedNodesPass()(model)
    return dropped


def _is_zero(value: ir.Value) -> bool:
    tensor = value.const_value
    return tensor is not None and tensor.dtype.is_floating_point() and not tensor.numpy().any()


def _gives_zero(node: ir.Node, zeros: set[int]) -> bool:
    entering = [value is None or id(value) in zeros for value in node.inputs]
    if node.op_type in _MOVES:
        return entering[0]
    if node.op_type in ("MatMul", "Mul"):
        return any(entering)
    if node.op_type in ("Conv", "Gemm"):
        return any(entering[:2]) and all(entering[2:])
    return node.op_type in ("Add", "Sub") and all(entering)


def _other_term(node: ir.Node, zeros: set[int]) -> ir.Value | None:
    first, second = node.inputs
    if second is not None and id(second) in zeros:
        return first
    return second if node.op_type == "Add" and first is not None and id(first) in zeros else None


# Row (or column) 2i + a of a map upsampled by nearest neighbour sees the rows i - 1 + a and i + a of the small one:
# these are the sums of the three taps that fall on each.
_TAPS = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float64)
_UPSAMPLING = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
_CONVOLUTION: dict[str, Any] = {"group": 1, "pads": (1, 1, 1, 1), "strides": (1, 1), "dilations": (1, 1)}


def phases(weight: Array) -> dict[tuple[int, int], Array]:
    """The 3x3 kernels float32 [o, i, 3, 3] of a convolution after nearest-neighbour upsampling x 2, as four kernels
    [o, i, 2, 2] on the small map: one for each (row, column) parity of the result, with 4/9 of the products."""
    exact = weight.astype(np.float64)
    return {
        (a, b): np.einsum("oiyx,py,qx->oipq", exact, _TAPS[a], _TAPS[b]).astype(np.float32)
        for a, b in product((0, 1), repeat=2)
    }


def split_upsampling(model: ir.Model) -> int:
    """Compute nearest-neighbour upsampling x 2 and the 3x3 convolution behind it on the small map, phase by phase.

    The phases stand side by side in the channels, which engines that block channels interleave without unpacking. The
    result differs by the rounding of the summed weights.

    Returns:
        The number of convolutions rewritten.
    """
    found = [node for node in model.graph if node.op_type == "Conv" and _is_upsampled(node)]
    for node in found:
        _split(model, node)
    return len(found)


def _is_upsampled(conv: ir.Node) -> bool:
    source = conv.inputs[0]
    resize = None if source is None else source.producer()
    weight = conv.inputs[1].const_value if conv.inputs[1] is not None else None
    if resize is None or resize.op_type != "Resize" or weight is None or tuple(weight.shape)[2:] != (3, 3):
        return False
    scales = resize.inputs[2].const_value if resize.inputs[2] is not None else None
    return (
        scales is not None
        and scales.numpy().tolist() == [1, 1, 2, 2]
        and _has(resize, _UPSAMPLING)
        and _has(conv, _CONVOLUTION)
        and len(source.uses()) == 1
    )


def _has(node: ir.Node, settings: Mapping[str, Any]) -> bool:
    def value(name: str) -> Any:
        found = node.attributes[name].value if name in node.attributes else None
        return tuple(found) if isinstance(found, list | tuple) else found

    return all(value(name) == wanted for name, wanted in settings.items())


def _split(model: ir.Model, conv: ir.Node) -> None:
    import onnx_ir as ir

    name, resize = conv.outputs[0].name or conv.name or "", conv.inputs[0].producer()
    assert resize is not None
    weight: Any = conv.inputs[1].const_value
    made: list[ir.Node] = []
    for (a, b), kernel in phases(weight.numpy()).items():
        value = ir.Value(name=f"{name}.weight_{a}{b}", shape=ir.Shape(kernel.shape), type=conv.inputs[1].type)
        value.const_value = ir.tensor(kernel, name=value.name)
        model.graph.register_initializer(value)
        made.append(
            ir.node(
                "Conv",
                [resize.inputs[0], value, *conv.inputs[2:]],
                {"pads": [1 - a, 1 - b, a, b], "kernel_shape": [2, 2]},
                name=f"{name}.phase_{a}{b}",
            )
        )
    made.append(ir.node("Concat", [node.outputs[0] for node in made], {"axis": 1}, name=f"{name}.phases"))
    made.append(ir.node("DepthToSpace", [made[-1].outputs[0]], {"blocksize": 2, "mode": "DCR"}, name=f"{name}.whole"))
    for node in made:
        node.outputs[0].name, node.outputs[0].type = node.name, conv.outputs[0].type
    model.graph.insert_before(conv, made)
    whole, constants = made[-1].outputs[0], (conv.inputs[1], resize.inputs[2])
    whole.shape = conv.outputs[0].shape
    conv.outputs[0].replace_all_uses_with(whole, replace_graph_outputs=True)
    model.graph.remove([conv, resize], safe=True)
    for value in constants:
        if value is not None and not value.uses() and value.name in model.graph.initializers:
            del model.graph.initializers[value.name]
    whole.name = name
