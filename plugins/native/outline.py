"""Operators of our own in ONNX graphs: model-local functions, which every engine can run, under a plugin's name.

An engine runs a function by its body. Standard TensorRT takes a plugin of the same name instead, where one is loaded
(``plugins/native/``) and ``OnnxParserFlag.ENABLE_PLUGIN_OVERRIDE`` is set. Bundles do not need it: TensorRT fuses the
body by itself (docs/decisions/0004-native-operators.md). To try the plugin on a float16 graph of a bundle::

    python -m diffplugin.plugins.native.outline BUNDLE/fp16/unet.onnx unet.onnx
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import helper, parser

from diffplugin.errors import DiffPluginError, EngineError

DOMAIN = "diffplugin"
GROUP_NORM_SILU = "GroupNormSilu"
OPSET = 21  # GroupNormalization with statistics in float32
# TensorRT's parser binds a function's inputs by name over the caller's tensors, hence names that no caller has.
_BODY = f"""
<ir_version: 10, opset_import: ["" : {OPSET}]>
main () => () {{}}
<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>
{GROUP_NORM_SILU} <groups, epsilon> (gns_x, gns_scale, gns_bias) => (gns_y) {{
    gns_normal = GroupNormalization <num_groups: int = @groups, epsilon: float = @epsilon, stash_type = 1>
        (gns_x, gns_scale, gns_bias)
    gns_gate = Sigmoid (gns_normal)
    gns_y = Mul (gns_normal, gns_gate)
}}
"""


def group_norm_silu() -> onnx.FunctionProto:
    """silu(group_norm(x) * scale + bias) with statistics in float32: x [n,c,h,w], scale [c], bias [c] -> [n,c,h,w], all
    float32 or all float16. Attributes ``groups`` (int), ``epsilon`` (float). arXiv:1803.08494, arXiv:1606.08415."""
    return parser.parse_model(_BODY).functions[0]


def outline(model: onnx.ModelProto) -> int:
    """Put :func:`group_norm_silu` in place of every GroupNormalization that a SiLU follows; the model is changed.

    Weights that lie beside the model need not be loaded.

    Returns:
        How many there were.
    """
    graph = model.graph
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    kept = {value.name for value in graph.output}
    replaced: dict[str, onnx.NodeProto] = {}  # by the name of the SiLU's result
    gone: set[str] = set()
    for norm in graph.node:
        product = _silu(norm, users, kept) if norm.op_type == "GroupNormalization" else None
        if product is not None:
            replaced[product.output[0]] = _call(norm, product)
            gone |= {norm.output[0], *product.input}
    if not replaced:
        return 0
    nodes = [replaced.get(node.output[0], node) for node in graph.node if node.output[0] not in gone]
    del graph.node[:]
    graph.node.extend(nodes)
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    model.functions.append(group_norm_silu())
    return len(replaced)


def _silu(norm: onnx.NodeProto, users: dict[str, list[onnx.NodeProto]], kept: set[str]) -> onnx.NodeProto | None:
    """The Mul of x * Sigmoid(x), x being the norm's result, where nothing else uses either of them."""
    name = norm.output[0]
    both = {node.op_type: node for node in users.get(name, [])}
    if len(users.get(name, [])) != 2 or set(both) != {"Mul", "Sigmoid"}:
        return None
    gate, product = both["Sigmoid"].output[0], both["Mul"]
    alone = set(product.input) == {name, gate} and len(users.get(gate, [])) == 1 and not kept & {name, gate}
    return product if alone else None


def _call(norm: onnx.NodeProto, product: onnx.NodeProto) -> onnx.NodeProto:
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in norm.attribute}
    return helper.make_node(
        GROUP_NORM_SILU,
        list(norm.input),
        list(product.output),
        name=f"{norm.name}.{GROUP_NORM_SILU}",
        domain=DOMAIN,
        groups=given["num_groups"],
        epsilon=given.get("epsilon", 1e-5),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m diffplugin.plugins.native.outline``; the exit status: 0 done, 1 nothing to do or failed."""
    arguments = argparse.ArgumentParser(description="Put GroupNormSilu in place of group norms that a SiLU follows.")
    arguments.add_argument("graph", type=Path, metavar="GRAPH.onnx", help="of a bundle's float16 variant")
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
        raise EngineError(f"{graph}: no ONNX graph ({' '.join(str(error).split())})") from None
    count = outline(model)
    if not count:
        raise EngineError(
            f"{graph}: no GroupNormalization with a SiLU behind it; float16 graphs of UNet, SCB and VAE have them "
            "(dp-export --precision fp16)"
        )
    weights = f"{out.name}.data"
    out.with_name(weights).unlink(missing_ok=True)  # onnx appends to it
    onnx.save(model, out, save_as_external_data=True, location=weights)
    return count


if __name__ == "__main__":
    sys.exit(main())
