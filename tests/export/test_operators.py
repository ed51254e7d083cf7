"""The custom operator: its portable body is the formula, it changes no graph's result, and TensorRT-RTX fuses it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx", reason="needs the extra [export]")
pytest.importorskip("torch", reason="needs the extra [export]")
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper

from diffplugin.bundle import default_bundle, open_bundle
from diffplugin.export.measures import relative_error
from diffplugin.export.onnx import example_inputs
from diffplugin.export.operators import DOMAIN, GROUP_NORM_SILU, group_norm_silu, main, outline
from diffplugin.spec import Array


def _model(shape: tuple[int, ...], groups: int, epsilon: float, dtype: int) -> onnx.ModelProto:
    channels = shape[1]
    node = helper.make_node(
        GROUP_NORM_SILU, ["x", "scale", "bias"], ["y"], domain=DOMAIN, groups=groups, epsilon=epsilon
    )
    inputs = [helper.make_tensor_value_info("x", dtype, shape)]
    inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, [channels]) for name in ("scale", "bias")]
    graph = helper.make_graph([node], "graph", inputs, [helper.make_tensor_value_info("y", dtype, shape)])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=[group_norm_silu(20)])
    onnx.checker.check_model(model, full_check=True)
    return model


def _formula(x: Array, scale: Array, bias: Array, groups: int, epsilon: float) -> Array:
    """In double precision."""
    members = x.astype(np.float64).reshape(x.shape[0], groups, -1)
    normal = (members - members.mean(-1, keepdims=True)) / np.sqrt(members.var(-1, keepdims=True) + epsilon)
    sides = (-1, *(1 for _ in x.shape[2:]))
    value = normal.reshape(x.shape) * scale.reshape(sides) + bias.reshape(sides)
    result: Array = value / (1 + np.exp(-value))
    return result


@pytest.mark.parametrize(("dtype", "bound"), [(np.float32, 1e-6), (np.float16, 6e-4)], ids=["float32", "float16"])
@pytest.mark.parametrize(
    ("shape", "groups"), [((1, 32, 8, 8), 32), ((2, 6, 5, 7), 3), ((1, 7, 1, 1), 1), ((1, 320, 15, 17), 32)]
)
def test_the_body_is_the_formula(shape: tuple[int, ...], groups: int, dtype: type, bound: float) -> None:
    random = np.random.default_rng(0)
    x = (random.standard_normal(shape) * 3 + 1).astype(dtype)
    scale, bias = random.standard_normal((2, shape[1])).astype(np.float32)
    model = _model(shape, groups, 1e-5, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    found = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x, "scale": scale, "bias": bias})[0]
    assert found.dtype == dtype
    off = relative_error(found, _formula(x, scale, bias, groups, 1e-5))
    assert off <= bound, f"{shape}: {off:.1e}"


def test_statistics_of_half_precision_do_not_overflow() -> None:
    x = np.full((1, 4, 64, 64), 60000, np.float16)
    x[..., ::2] = -60000
    model = _model(x.shape, 2, 1e-5, TensorProto.FLOAT16)
    ones = np.ones(4, np.float32)
    found = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x, "scale": ones, "bias": 0 * ones})[0]
    assert np.abs(found - _formula(x, ones, 0 * ones, 2, 1e-5)).max() < 1e-3


# graph of the embedded model -> (group norms with a SiLU behind them, those without)
GRAPHS = {"unet": (35, 6), "unet_shallow": (11, 0), "scb/derain": (4, 2), "clip_text": (0, 0)}


@pytest.mark.parametrize("key", GRAPHS)
def test_an_outlined_graph_computes_the_same(key: str) -> None:
    bundle = open_bundle(default_bundle())
    model = onnx.load(bundle.graph_file(key))
    assert outline(model) == GRAPHS[key][0]
    kinds = Counter(node.op_type for node in model.graph.node)
    assert (kinds[GROUP_NORM_SILU], kinds["InstanceNormalization"]) == GRAPHS[key]
    onnx.checker.check_model(model)
    inputs = example_inputs(bundle.spec(key), {"h": 11, "w": 13, "n": 2}, ids_below=8)
    found, expected = (
        ort.InferenceSession(file).run(None, inputs)
        for file in (model.SerializeToString(), str(bundle.graph_file(key)))
    )
    off = [relative_error(a, b) for a, b in zip(found, expected, strict=True)]
    assert max(off) <= 1e-6, off


class _Block(torch.nn.Module):
    """Two group norms with their SiLUs between convolutions, as in a ResNet block. TensorRT fuses a SiLU with its norm
    where the map comes from a convolution, in its layout; behind a graph's own input it makes two kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = torch.nn.ModuleList(torch.nn.GroupNorm(8, 64) for _ in range(2))
        self.convolutions = torch.nn.ModuleList(torch.nn.Conv2d(64, 64, 3, padding=1) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.convolutions[0](x)
        for norm, convolution in zip(self.norms, self.convolutions[1:], strict=True):
            x = convolution(torch.nn.functional.silu(norm(x)))
        return x


def _exported_block() -> onnx.ModelProto:
    program = torch.onnx.export(_Block().half().eval(), (torch.zeros(1, 64, 32, 32).half(),), opset_version=20)
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    return model


def _kernels(model: onnx.ModelProto) -> list[str]:
    """Layers of a TensorRT-RTX engine, as its builder reports them."""
    import tensorrt_rtx as trt

    lines: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc]
        def log(self, severity: object, message: str) -> None:
            lines.append(message)

    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(model.SerializeToString()), [str(parser.get_error(i)) for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    assert builder.build_serialized_network(network, config) is not None
    return re.findall(r"^Name: ([^,]*), LayerType", "\n".join(lines), re.MULTILINE)


@pytest.mark.filterwarnings("ignore")
def test_tensorrt_rtx_makes_one_kernel_of_it() -> None:
    """Outlined or not: what decision 4 rests on. Both spellings of the kernel are its own: with and without casts."""
    pytest.importorskip("tensorrt_rtx", reason="needs the extra [tensorrt]")
    plain, outlined = _exported_block(), _exported_block()
    assert outline(outlined) == 2
    for what, model in (("plain", plain), ("outlined", outlined)):
        names = _kernels(model)
        norms = [name for name in names if re.search("Silu(Cast)?Gnor", name)]
        loose = [name for name in names if re.search("Silu|Sigmoid|Gnor|Mean|Sqrt", name) and name not in norms]
        assert len(norms) == 2 and not loose, f"{what}: {names}"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = open_bundle(default_bundle())
    out = tmp_path / "scb.onnx"
    for _ in range(2):  # twice, over what is there
        assert main([str(bundle.graph_file("scb/derain")), str(out)]) == 0
        assert "4 x GroupNormSilu" in capsys.readouterr().out
    inputs = example_inputs(bundle.spec("scb/derain"), {"h": 8, "w": 8, "n": 1})
    assert len(ort.InferenceSession(str(out)).run(None, inputs)) == 3
    for graph, said in ((bundle.graph_file("selector"), "no group norm"), (tmp_path / "none.onnx", "none.onnx")):
        assert main([str(graph), str(tmp_path / "x.onnx")]) == 1
        complaint = capsys.readouterr().err
        assert said in complaint and complaint.count("\n") == 1
    assert not (tmp_path / "x.onnx").exists()
