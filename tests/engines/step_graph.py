"""The graph ``step`` made of a bundle's float32 ``unet``: what the fp16 variant has, for engines that run float32."""

from __future__ import annotations

from pathlib import Path

from diffplugin.spec import STEP_WEIGHTS, GraphSpec


def write_step(unet: Path, spec: GraphSpec, out: Path) -> None:
    """Put the sampler's arithmetic (``diffplugin.spec.graph_specs``) around the UNet of a file."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(unet)
    graph = model.graph
    for node in graph.node:
        node.input[:] = ["mixed" if name == "latents" else name for name in node.input]
    nodes = [helper.make_node("Split", ["weights"], [f"w{i}" for i in range(STEP_WEIGHTS)], num_outputs=STEP_WEIGHTS)]
    used = 0

    def weighted(result: str, *names: str) -> None:
        nonlocal used
        products = [f"{result}_{i}" for i in range(len(names))]
        for name, product in zip(names, products, strict=True):
            nodes.append(helper.make_node("Mul", [f"w{used}", name], [product]))
            used += 1
        nodes.append(helper.make_node("Sum", products, [result]))

    weighted("mixed", "latents", "cond", "noise")
    nodes += graph.node
    weighted("next_x0", "mixed", "eps")
    weighted("next_last", "last", "mixed", "next_x0", "x0_1", "x0_2")
    weighted("next_latents", "next_last", "next_x0", "x0_1")
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    for place, tensors in ((graph.input, spec.inputs), (graph.output, spec.outputs)):
        place.extend(helper.make_tensor_value_info(t.name, TensorProto.FLOAT, t.axes) for t in tensors)
    onnx.save(model, out)
