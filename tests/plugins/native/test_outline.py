"""The custom operator: its portable body is the formula, it changes no graph's result, and TensorRT-RTX fuses it."""

from __future__ import annotations

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
from diffplugin.engines.tensorrt.build_process import BuildSpec
from diffplugin.engines.tensorrt.builder import input_shapes, run_build
from diffplugin.export.checkpoints import embedded_checkpoint
from diffplugin.export.fp16.convert import to_fp16
from diffplugin.export.graphs import module_for
from diffplugin.export.measures import relative_error
from diffplugin.export.onnx import example_inputs, save, trace
from diffplugin.plugins.native.outline import DOMAIN, GROUP_NORM_SILU, OPSET, group_norm_silu, main, outline
from diffplugin.plugins.networks.blocks import ResnetBlock
from diffplugin.plugins.networks.form import portable
from diffplugin.shapes import Range
from diffplugin.spec import Array, GraphSpec, TensorSpec, graph_specs

PAIRS = 4  # of an SCB


def _model(shape: tuple[int, ...], groups: int, epsilon: float, dtype: int) -> onnx.ModelProto:
    node = helper.make_node(
        GROUP_NORM_SILU, ["x", "scale", "bias"], ["y"], domain=DOMAIN, groups=groups, epsilon=epsilon
    )
    inputs = [helper.make_tensor_value_info("x", dtype, shape)]
    inputs += [helper.make_tensor_value_info(name, dtype, shape[1:2]) for name in ("scale", "bias")]
    graph = helper.make_graph([node], "graph", inputs, [helper.make_tensor_value_info("y", dtype, shape)])
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=[group_norm_silu()])
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


@pytest.mark.parametrize(("dtype", "bound"), [(np.float32, 1e-6), (np.float16, 1e-3)], ids=["float32", "float16"])
@pytest.mark.parametrize(
    ("shape", "groups"), [((1, 32, 8, 8), 32), ((2, 6, 5, 7), 3), ((1, 7, 1, 1), 1), ((1, 320, 15, 17), 32)]
)
def test_the_body_is_the_formula(shape: tuple[int, ...], groups: int, dtype: type, bound: float) -> None:
    random = np.random.default_rng(0)
    x: Array = (random.standard_normal(shape) * 3 + 1).astype(dtype)
    scale, bias = random.standard_normal((2, shape[1])).astype(dtype)
    model = _model(shape, groups, 1e-5, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    found = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x, "scale": scale, "bias": bias})[0]
    assert found.dtype == dtype
    off = relative_error(found, _formula(x, scale, bias, groups, 1e-5))
    assert off <= bound, f"{shape}: {off:.1e}"


def test_statistics_of_half_precision_do_not_overflow() -> None:
    x = np.full((1, 4, 64, 64), 60000, np.float16)
    x[..., ::2] = -60000
    model = _model(x.shape, 2, 1e-5, TensorProto.FLOAT16)
    ones = np.ones(4, np.float16)
    found = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x, "scale": ones, "bias": 0 * ones})[0]
    assert np.abs(found - _formula(x, ones, 0 * ones, 2, 1e-5)).max() < 1e-3


@pytest.fixture(scope="module")
def half_scb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The float16 graph of the embedded model's SCB for derain, as a bundle has it."""
    checkpoint, _, _ = embedded_checkpoint(["derain"])
    with portable():
        model = trace(module_for(checkpoint, "scb/derain"), graph_specs(checkpoint.dims)["scb"], factor=8)
    to_fp16(model, "scb")
    path = tmp_path_factory.mktemp("scb") / "scb.onnx"
    save(model, path)
    return path


def test_an_outlined_graph_computes_the_same(half_scb: Path) -> None:
    model = onnx.load(half_scb)
    before = Counter(node.op_type for node in model.graph.node)
    assert outline(model) == PAIRS
    after = Counter(node.op_type for node in model.graph.node)
    assert before - after == Counter(GroupNormalization=PAIRS, Sigmoid=PAIRS, Mul=PAIRS)
    assert after - before == Counter({GROUP_NORM_SILU: PAIRS})
    onnx.checker.check_model(model)
    spec = graph_specs(open_bundle(default_bundle()).manifest.dims)["scb"]
    inputs = example_inputs(spec, {"h": 11, "w": 13, "n": 2})
    found, expected = (
        ort.InferenceSession(file).run(None, inputs) for file in (model.SerializeToString(), str(half_scb))
    )
    off = [relative_error(a, b) for a, b in zip(found, expected, strict=True)]
    assert max(off) <= 1e-3, off
    assert outline(model) == 0, "a second time"


def test_what_is_no_pair_stays() -> None:
    """A norm without a SiLU, one whose result leaves the graph, and one whose SiLU has another user."""
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    main (float[1,4,3,3] x, float[4] s, float[4] b) => (float[1,4,3,3] a, float[1,4,3,3] b1, float[1,4,3,3] c) {
        n0 = GroupNormalization <num_groups = 2> (x, s, b)
        a = Relu (n0)
        b1 = GroupNormalization <num_groups = 2> (x, s, b)
        g1 = Sigmoid (b1)
        m1 = Mul (b1, g1)
        n2 = GroupNormalization <num_groups = 2> (x, s, b)
        g2 = Sigmoid (n2)
        m2 = Mul (n2, g2)
        t = Add (m1, m2)
        c = Add (t, g2)
    }
    """
    model = onnx.parser.parse_model(text)
    before = model.SerializeToString()
    assert outline(model) == 0 and model.SerializeToString() == before


class _Block(torch.nn.Module):
    """A ResNet block between convolutions, of widths whose norms TensorRT has a kernel for."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = torch.nn.Conv2d(4, 64, 3, padding=1), torch.nn.Conv2d(64, 4, 3, padding=1)
        self.block = ResnetBlock(64, 64, time_width=0, groups=8, eps=1e-5)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.leave(self.block(self.enter(latents)))
        return made


def test_tensorrt_rtx_fuses_it_outlined_or_not(tmp_path: Path) -> None:
    """What decision 4 rests on: one kernel for each pair, in a bundle's graph and in the outlined one."""
    pytest.importorskip("tensorrt_rtx", reason="needs the extra [tensorrt-rtx]")
    axes = (1, 4, "h", "w")
    spec = GraphSpec("block", (TensorSpec("latents", "f32", axes),), (TensorSpec("eps", "f32", axes),))
    plain, outlined = tmp_path / "plain.onnx", tmp_path / "outlined.onnx"
    with portable():
        model = trace(_Block().eval(), spec, factor=8)
    to_fp16(model, "block")
    save(model, plain)
    assert main([str(plain), str(outlined)]) == 0
    reports = []
    for graph in (plain, outlined):
        wanted = BuildSpec(
            library="tensorrt_rtx",
            onnx=str(graph),
            engine=str(tmp_path / f"{graph.stem}.engine"),
            gpus=("sm_89",),
            shapes=input_shapes(spec, {"h": Range.of(32), "w": Range.of(32)}),
        )
        reports.append(run_build("block", wanted))
    assert reports[0]["group_norm_silu"] == {"of": 2, "fused": 2, "unfused": []}
    # a report goes by the nodes' names, and both calls of the function have the same ones inside: count the kernels
    assert reports[0]["layers"] == reports[1]["layers"]


def test_the_command(half_scb: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = open_bundle(default_bundle())
    out = tmp_path / "out.onnx"
    for _ in range(2):  # twice, over what is there
        assert main([str(half_scb), str(out)]) == 0
        assert f"{PAIRS} x GroupNormSilu" in capsys.readouterr().out
    inputs = example_inputs(bundle.spec("scb/derain"), {"h": 8, "w": 8, "n": 1})
    assert len(ort.InferenceSession(str(out)).run(None, inputs)) == 3
    for graph, said in ((bundle.graph_file("selector"), "no GroupNormalization"), (tmp_path / "none.onnx", "none")):
        assert main([str(graph), str(tmp_path / "x.onnx")]) == 1
        complaint = capsys.readouterr().err
        assert said in complaint and complaint.count("\n") == 1
    assert not (tmp_path / "x.onnx").exists()
