"""PyTorch graph -> ONNX file with the names and axes of the spec, and weights at half size if that is exact."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from diffplugin.export.simplify import drop_zero_terms, split_upsampling
from diffplugin.plugins.networks.form import Form, has_group_normalization, traced_as
from diffplugin.spec import DTYPES, Array, GraphSpec

if TYPE_CHECKING:
    import onnx_ir as ir

OPSET = 20
GROUP_NORM_OPSET = 21  # the first with a group norm of one weight per channel
# A protobuf file ends at 2 GiB; well before that, weights beside the graph can be mapped instead of parsed.
EXTERNAL_ABOVE = 512 * 2**20
# Free axes while tracing: odd, unequal latent sides, so that nothing specialises on them.
_TRACE_SIZES = {"h": 11, "w": 13, "n": 2, "p": 3, "p+1": 4}


def example_inputs(spec: GraphSpec, sizes: dict[str, int], *, ids_below: int = 1, seed: int = 0) -> dict[str, Array]:
    """Random inputs of a graph: unit normal, or token ids under ``ids_below``, ending as a prompt does."""
    random = np.random.default_rng(seed)
    inputs: dict[str, Array] = {}
    for tensor in spec.inputs:
        shape = [sizes[axis] if isinstance(axis, str) else axis for axis in tensor.axes]
        if tensor.dtype == "i64":
            ids = random.integers(0, max(ids_below - 2, 1), shape)
            ids[:, shape[1] // 2 :] = ids_below - 1  # the end-of-text token has the highest id
            inputs[tensor.name] = ids.astype(DTYPES["i64"])
        else:
            inputs[tensor.name] = random.standard_normal(shape, dtype=np.float32)
    return inputs


def export_graph(module: torch.nn.Module, spec: GraphSpec, path: Path, *, factor: int) -> None:
    """Trace ``module`` and write ``path`` (and ``path`` + ".data" if the weights are large).

    Args:
        factor: picture pixels per latent pixel, for the axes ``H W``.
    """
    model = trace(module, spec, factor=factor)
    split_upsampling(model)
    if weights_bytes(model) <= EXTERNAL_ABOVE:
        halve_weights(model)
    save(model, path)


def load(path: Path) -> ir.Model:
    """A graph that may be written elsewhere: small weights beside it are in memory."""
    import onnx_ir as ir

    model = ir.load(path)
    if weights_bytes(model) <= EXTERNAL_ABOVE:
        ir.external_data.load_to_model(model)
    return model


def save(model: ir.Model, path: Path, *, beside: bool = False) -> None:
    """Write a graph, with its weights beside it if they are large, or, with ``beside``, in any case."""
    import onnx_ir as ir

    path.parent.mkdir(parents=True, exist_ok=True)
    ir.save(model, path, external_data=f"{path.name}.data" if beside or weights_bytes(model) > EXTERNAL_ABOVE else None)


def trace(module: torch.nn.Module, spec: GraphSpec, *, factor: int, form: Form | None = None) -> ir.Model:
    """``module`` as a graph with the spec's names and axes, float32, without notes on the exporting machine.

    Args:
        form: the form in which it is written (:mod:`diffplugin.plugins.networks.form`); None: that of the caller's
            context.
    """
    if form is not None:
        with traced_as(form):
            return trace(module, spec, factor=factor)
    sizes = _TRACE_SIZES | {"H": _TRACE_SIZES["h"] * factor, "W": _TRACE_SIZES["w"] * factor}
    inputs = example_inputs(spec, sizes, ids_below=8)
    free = tuple(
        {i: torch.export.Dim.DYNAMIC for i, axis in enumerate(t.axes) if isinstance(axis, str)} or None
        for t in spec.inputs
    )
    with _quiet():
        program = torch.onnx.export(
            module,
            tuple(torch.from_numpy(inputs[t.name]) for t in spec.inputs),
            input_names=[t.name for t in spec.inputs],
            output_names=[t.name for t in spec.outputs],
            opset_version=GROUP_NORM_OPSET if has_group_normalization() else OPSET,
            dynamic_shapes=free,
            dynamo=True,
            verify=False,
        )
    if program is None:
        raise RuntimeError(f"{spec.graph}: the ONNX exporter returned nothing")
    model = program.model
    drop_zero_terms(model)
    _apply_spec(model, spec)
    _strip(model)
    return model


@contextlib.contextmanager
def _quiet() -> Any:
    """Silence the exporter, which prints its stages and warns of packages that we do not use."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)


def _apply_spec(model: ir.Model, spec: GraphSpec) -> None:
    """Name the axes of inputs and outputs as in the spec; the tracer's own names are removed."""
    import onnx_ir as ir

    for values, tensors in ((model.graph.inputs, spec.inputs), (model.graph.outputs, spec.outputs)):
        for value, tensor in zip(values, tensors, strict=True):
            value.name = tensor.name
            value.shape = ir.Shape(tensor.axes)
    boundary = {id(value) for value in (*model.graph.inputs, *model.graph.outputs)}
    for node in model.graph:
        for value in node.outputs:
            if id(value) not in boundary:
                value.shape = None


def _strip(model: ir.Model) -> None:
    """Drop the tracer's notes: stack traces with the exporting machine's paths, and anything that makes files
    differ.
    """
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.doc_string = model.doc_string = None
    model.producer_name, model.producer_version = "diffplugin", None
    model.graph.name = "graph"
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def halve_weights(model: ir.Model) -> None:
    """Store float32 weights as float16 plus a cast where every value survives the round trip.

    Engines fold the cast when they load; a checkpoint in half precision then costs its own size. Large graphs are not
    changed: their weights are mapped from the file, and a folded cast would be a second copy.
    """
    import onnx_ir as ir

    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or value.dtype != ir.DataType.FLOAT or tensor.size < 16:
            continue
        full = tensor.numpy()
        with np.errstate(over="ignore"):
            half = full.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), full):
            continue
        name = value.name or ""
        stored = ir.Value(name=f"{name}.half", shape=value.shape, type=ir.TensorType(ir.DataType.FLOAT16))
        stored.const_value = ir.tensor(half, name=stored.name)
        cast = ir.node("Cast", [stored], attributes={"to": int(ir.DataType.FLOAT)})
        cast.outputs[0].shape, cast.outputs[0].type = value.shape, value.type
        value.replace_all_uses_with(cast.outputs[0])
        del model.graph.initializers[name]
        cast.outputs[0].name = name
        model.graph.register_initializer(stored)
        model.graph.insert_before(model.graph[0], cast)


def weights_bytes(model: ir.Model) -> int:
    """Bytes of a graph's weights as they will be stored."""
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
