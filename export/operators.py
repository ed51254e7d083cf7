"""Operators of our own in ONNX graphs: model-local functions, which every engine can run, under a plugin's name.

An engine runs a function by its body. Standard TensorRT takes a plugin of the same name instead, where one is loaded
(``plugins/native/``) and ``OnnxParserFlag.ENABLE_PLUGIN_OVERRIDE`` is set. Bundles do not need it: TensorRT fuses the
body by itself (docs/decisions/0004-native-operators.md). To try the plugin on a graph of a bundle::

    python -m diffplugin.export.operators GRAPH.onnx OUT.onnx
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import helper, parser

from diffplugin.errors import DiffPluginError, EngineError

DOMAIN = "diffplugin"
GROUP_NORM_SILU = "GroupNormSilu"
# TensorRT's parser binds a function's inputs by name over the caller's tensors, hence names that no caller has.
# The statistics are InstanceNormalization's in float32: TensorRT makes one kernel of this body, and three of one with
# means and variances written out.
_BODY = """
<ir_version: 9, opset_import: ["" : {opset}]>
main () => () {{}}
<domain: "diffplugin", opset_import: ["" : {opset}]>
GroupNormSilu <groups, epsilon> (gns_x, gns_scale, gns_bias) => (gns_y) {{
    gns_shape = Shape (gns_x)
    gns_float = Cast <to = 1> (gns_x)
    gns_groups = Constant <value_int: int = @groups> ()
    gns_first = Constant <value_ints = [1]> ()
    gns_count = Reshape (gns_groups, gns_first)
    gns_batch = Constant <value_ints = [0]> ()
    gns_rest = Constant <value_ints = [-1]> ()
    gns_grouped = Concat <axis = 0> (gns_batch, gns_count, gns_rest)
    gns_members = Reshape (gns_float, gns_grouped)
    gns_one = Constant <value_float = 1.0> ()
    gns_zero = Constant <value_float = 0.0> ()
    gns_ones = Expand (gns_one, gns_count)
    gns_zeros = Expand (gns_zero, gns_count)
    gns_normal = InstanceNormalization <epsilon: float = @epsilon> (gns_members, gns_ones, gns_zeros)
    gns_back = Reshape (gns_normal, gns_shape)
    gns_sides = Constant <value_ints = [-1, 1, 1]> ()
    gns_scales = Reshape (gns_scale, gns_sides)
    gns_biases = Reshape (gns_bias, gns_sides)
    gns_scaled = Mul (gns_back, gns_scales)
    gns_moved = Add (gns_scaled, gns_biases)
    gns_gate = Sigmoid (gns_moved)
    gns_gated = Mul (gns_moved, gns_gate)
    gns_y = CastLike (gns_gated, gns_x)
}}
"""


def group_norm_silu(opset: int) -> onnx.FunctionProto:
    """silu(group_norm(x) * scale + bias), statistics in float32: x [n,c,h,w] f32 or f16, scale and bias f32 of c
    values -> like x. Attributes ``groups`` (int), ``epsilon`` (float). arXiv:1803.08494, arXiv:1606.08415."""
    return parser.parse_model(_BODY.format(opset=opset)).functions[0]


def outline(model: onnx.ModelProto) -> int:
    """Put :func:`group_norm_silu` in place of every group norm that a SiLU follows; the model is changed.

    Weights that lie beside the model need not be loaded.

    Returns:
        How many there were.
    """
    graph = model.graph
    matches = _Graph(graph).matches()
    for match in matches:
        place = list(graph.node).index(match.last)
        for node in match.nodes(len(graph.node)):
            graph.node.insert(place, node)
            place += 1
        graph.node.remove(match.last)
    _prune(graph)
    if matches:
        opset = next(entry.version for entry in model.opset_import if not entry.domain)
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
        model.functions.append(group_norm_silu(opset))
    return len(matches)


@dataclass(frozen=True)
class _Match:
    """A group norm and its SiLU: ``last`` gives the result."""

    x: str
    scale: onnx.TensorProto
    bias: onnx.TensorProto
    groups: int
    epsilon: float
    last: onnx.NodeProto

    def nodes(self, number: int) -> list[onnx.NodeProto]:
        weights, made = [], []
        for tensor in (self.scale, self.bias):
            weights.append(tensor.name)
            if tensor.data_type != onnx.TensorProto.FLOAT:
                weights[-1] = f"{tensor.name}.float.{number}"
                made.append(helper.make_node("Cast", [tensor.name], weights[-1:], to=onnx.TensorProto.FLOAT))
        made.append(
            helper.make_node(
                GROUP_NORM_SILU,
                [self.x, *weights],
                list(self.last.output),
                name=f"{GROUP_NORM_SILU}.{self.last.output[0]}",
                domain=DOMAIN,
                groups=self.groups,
                epsilon=self.epsilon,
            )
        )
        return made


class _Graph:
    """Who makes and who uses each tensor."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes = graph.node
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output}
        self.users: dict[str, list[onnx.NodeProto]] = {value.name: [] for value in graph.output}
        for node in graph.node:
            for name in node.input:
                self.users.setdefault(name, []).append(node)
        self.kept = {value.name for value in graph.output}

    def matches(self) -> list[_Match]:
        found = (self._match(node) for node in self.nodes if node.op_type == "InstanceNormalization")
        return [match for match in found if match is not None]

    def _match(self, norm: onnx.NodeProto) -> _Match | None:
        """As PyTorch's exporter writes it: Reshape, InstanceNormalization, Reshape, Mul, Add, then x * Sigmoid(x);
        casts may stand anywhere between."""
        entry = self._maker(norm.input[0])
        back = self._user(norm.output[0])
        scaled = self._user(back.output[0]) if back is not None and back.op_type == "Reshape" else None
        moved = self._user(scaled.output[0]) if scaled is not None and scaled.op_type == "Mul" else None
        if entry is None or entry.op_type != "Reshape" or moved is None or moved.op_type != "Add" or scaled is None:
            return None
        last = self._silu(moved.output[0])
        scale, bias = self._weight(scaled), self._weight(moved)
        ones = self._root(norm.input[1])
        if last is None or scale is None or bias is None or ones is None:
            return None
        epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
        return _Match(self._before_casts(entry.input[0]), scale, bias, ones.dims[0], epsilon, last)

    def _silu(self, name: str) -> onnx.NodeProto | None:
        """The Mul of x * Sigmoid(x) where nothing else uses x."""
        users = self.users.get(name, [])
        while len(users) == 1 and users[0].op_type == "Cast" and name not in self.kept:
            name = users[0].output[0]
            users = self.users.get(name, [])
        if name in self.kept or sorted(node.op_type for node in users) != ["Mul", "Sigmoid"]:
            return None
        gate, product = sorted(users, key=lambda node: node.op_type, reverse=True)
        return product if set(product.input) == {name, gate.output[0]} and self._user(gate.output[0]) else None

    def _user(self, name: str) -> onnx.NodeProto | None:
        """The only user, casts passed over."""
        while len(users := self.users.get(name, [])) == 1 and name not in self.kept:
            if users[0].op_type != "Cast":
                return users[0]
            name = users[0].output[0]
        return None

    def _maker(self, name: str) -> onnx.NodeProto | None:
        return self.makers.get(self._before_casts(name))

    def _before_casts(self, name: str) -> str:
        while (maker := self.makers.get(name)) is not None and maker.op_type == "Cast":
            name = maker.input[0]
        return name

    def _weight(self, node: onnx.NodeProto) -> onnx.TensorProto | None:
        """The operand of a Mul or Add that is a weight of one value a channel."""
        roots = [root for name in node.input if (root := self._root(name)) is not None]
        return roots[0] if len(roots) == 1 else None

    def _root(self, name: str) -> onnx.TensorProto | None:
        """The weight that a tensor is made of by casts and new axes: a vector, or one over the channels of a map."""
        while (maker := self.makers.get(name)) is not None and maker.op_type in ("Cast", "Unsqueeze", "Reshape"):
            name = maker.input[0]
        tensor = self.weights.get(name)
        return tensor if tensor is not None and tuple(tensor.dims[1:]) in ((), (1, 1)) else None


def _prune(graph: onnx.GraphProto) -> None:
    """Drop nodes and weights that nothing uses."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(weights)


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m diffplugin.export.operators``; the exit status: 0 done, 1 nothing to do or failed."""
    arguments = argparse.ArgumentParser(description="Put GroupNormSilu in place of group norms that a SiLU follows.")
    arguments.add_argument("graph", type=Path, metavar="GRAPH.onnx")
    arguments.add_argument("out", type=Path, metavar="OUT.onnx", help="its weights are written beside it")
    args = arguments.parse_args(argv)
    try:
        count = _rewrite(args.graph, args.out)
    except (DiffPluginError, OSError) as error:
        print(f"operators: {error}", file=sys.stderr)
        return 1
    print(f"{args.out}: {count} x {GROUP_NORM_SILU}")
    return 0


def _rewrite(graph: Path, out: Path) -> int:
    try:
        model = onnx.load(graph)
    except Exception as error:  # protobuf's own kinds
        raise EngineError(f"{graph}: no ONNX graph ({error})") from None
    count = outline(model)
    if not count:
        raise EngineError(f"{graph}: no group norm with a SiLU behind it; the UNet's and the SCBs' graphs have them")
    weights = f"{out.name}.data"
    out.with_name(weights).unlink(missing_ok=True)  # onnx appends to it
    onnx.save(model, out, save_as_external_data=True, location=weights)
    return count


if __name__ == "__main__":
    sys.exit(main())
