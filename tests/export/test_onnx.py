"""What the exporter writes: the spec's names, no traces of the machine, exact weights, the same bytes twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra [export]")
onnx = pytest.importorskip("onnx", reason="needs the extra [export]")

import torch

from diffplugin.bundle import default_bundle, open_bundle
from diffplugin.engines.onnxruntime import OnnxRuntimeEngine
from diffplugin.export import onnx as exporter
from diffplugin.export.checkpoints import Checkpoint, embedded_checkpoint, find
from diffplugin.export.graphs import graph_keys, kind_of, module_for
from diffplugin.export.measures import relative_error
from diffplugin.export.reference import TorchEngine
from diffplugin.plugins.networks.blocks import PictureNorm
from diffplugin.spec import GraphSpec, TensorSpec, graph_specs


@pytest.fixture(scope="module")
def checkpoint(oracle: Path) -> Checkpoint:
    root = oracle / "checkpoint"
    return find(root / "stable-diffusion", root / "clip", root / "pre-trained")


@pytest.fixture(scope="module")
def scb(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "scb.onnx"
    exporter.export_graph(module_for(checkpoint, "scb/deblur"), graph_specs(checkpoint.dims)["scb"], path, factor=8)
    return path


def test_names_axes_and_dtypes_are_the_spec_s(scb: Path, checkpoint: Checkpoint) -> None:
    spec = graph_specs(checkpoint.dims)["scb"]
    graph = onnx.load(scb).graph
    for found, tensors in ((graph.input, spec.inputs), (graph.output, spec.outputs)):
        shapes = [tuple(d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim) for v in found]
        assert [v.name for v in found] == [t.name for t in tensors]
        assert shapes == [t.axes for t in tensors]


def test_attention_is_one_operator(scb: Path) -> None:
    kinds = [node.op_type for node in onnx.load(scb).graph.node]
    assert kinds.count("MultiHeadAttention") == 4, "two layers of self- and cross-attention"
    assert "Softmax" not in kinds


def test_nothing_of_the_exporting_machine_is_in_the_file(scb: Path) -> None:
    content = scb.read_bytes()
    for trace in (str(Path(exporter.__file__).parent), "site-packages", ".py"):
        assert trace.encode() not in content, f"{trace} is in {scb.name}"


def test_the_same_bytes_twice(scb: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    again = tmp_path / "scb.onnx"
    exporter.export_graph(module_for(checkpoint, "scb/deblur"), graph_specs(checkpoint.dims)["scb"], again, factor=8)
    assert again.read_bytes() == scb.read_bytes()


@pytest.mark.parametrize("sides", [(8, 8), (9, 17), (23, 5)])
@pytest.mark.parametrize("steps", [1, 3])
def test_free_axes_are_free(scb: Path, checkpoint: Checkpoint, sides: tuple[int, int], steps: int) -> None:
    spec = graph_specs(checkpoint.dims)["scb"]
    inputs = exporter.example_inputs(spec, {"h": sides[0], "w": sides[1], "n": steps})
    expected = TorchEngine(spec, module_for(checkpoint, "scb/deblur")).run(inputs)
    found = OnnxRuntimeEngine(spec, scb, 2).run(inputs)
    for name, value in expected.items():
        error = relative_error(found[name], value)
        assert error <= 1e-5, f"{name} at {sides}, {steps} steps: {error:.1e}"


@pytest.mark.parametrize("sides", [(16, 16), (9, 17)])
def test_the_outermost_blocks_in_onnx_runtime(sides: tuple[int, int]) -> None:
    """The embedded bundle's graph meets PyTorch, and with the step's own deep feature the whole UNet."""
    bundle, model = open_bundle(default_bundle()), embedded_checkpoint([])[0]
    whole, shallow = bundle.spec("unet"), bundle.spec("unet_shallow")
    inputs = exporter.example_inputs(whole, {"h": sides[0], "w": sides[1]})
    made = OnnxRuntimeEngine(whole, bundle.graph_file("unet"), 2).run(inputs)
    inputs["deep"] = made["deep"]
    expected = TorchEngine(shallow, module_for(model, "unet_shallow")).run(inputs)["eps"]
    found = OnnxRuntimeEngine(shallow, bundle.graph_file("unet_shallow"), 2).run(inputs)["eps"]
    for other, what in ((expected, "PyTorch"), (made["eps"], "the whole UNet")):
        error = relative_error(found, other)
        assert error <= 1e-5, f"{error:.1e} from {what} at {sides}"


def test_the_outermost_blocks_carry_no_other_weights(checkpoint: Checkpoint) -> None:
    names = {name for name, _ in module_for(checkpoint, "unet_shallow").named_parameters()}
    parts = {".".join(name.split(".")[1:3]) for name in names if "blocks" in name}
    assert parts == {"down_blocks.0", "up_blocks.0"} and not any("sampler" in name for name in names)
    assert any(name.startswith("unet.time_embedding") for name in names)


class _Scale(torch.nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


_SCALE = GraphSpec("scale", (TensorSpec("x", "f32", (1, 64)),), (TensorSpec("y", "f32", (1, 64)),))


@pytest.mark.parametrize(("values", "stored"), [("half", "FLOAT16"), ("full", "FLOAT")])
def test_weights_are_halved_only_where_that_is_exact(tmp_path: Path, values: str, stored: str) -> None:
    weight = torch.linspace(0.1, 3, 64)
    weight = weight.half().float() if values == "half" else weight
    path = tmp_path / "scale.onnx"
    exporter.export_graph(_Scale(weight), _SCALE, path, factor=8)
    kinds = [onnx.TensorProto.DataType.Name(i.data_type) for i in onnx.load(path).graph.initializer]
    assert kinds == [stored]
    x = np.ones((1, 64), np.float32)
    assert np.array_equal(OnnxRuntimeEngine(_SCALE, path, 1).run({"x": x})["y"][0], weight.numpy())


def test_large_weights_lie_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "EXTERNAL_ABOVE", 100)
    path = tmp_path / "scale.onnx"
    weight = torch.linspace(0.1, 3, 64)
    exporter.export_graph(_Scale(weight), _SCALE, path, factor=8)
    assert path.with_name("scale.onnx.data").is_file()
    x = np.ones((1, 64), np.float32)
    assert np.array_equal(OnnxRuntimeEngine(_SCALE, path, 1).run({"x": x})["y"][0], weight.numpy())


def test_large_maps_are_normalised_as_well_as_pytorch_does(tmp_path: Path) -> None:
    """One float32 sum over the whole map loses three digits."""
    norm = PictureNorm(2, 4, eps=1e-6).eval()
    torch.manual_seed(0)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    spec = GraphSpec("norm", (TensorSpec("x", "f32", (1, 4, "H", "W")),), (TensorSpec("y", "f32", (1, 4, "H", "W")),))
    path = tmp_path / "norm.onnx"
    exporter.export_graph(norm, spec, path, factor=8)
    x = (torch.randn(1, 4, 512, 600) * 0.1 + 2).numpy()
    exact = torch.nn.functional.group_norm(
        torch.from_numpy(x).double(), 2, norm.weight.double(), norm.bias.double(), 1e-6
    )
    error = relative_error(OnnxRuntimeEngine(spec, path, 2).run({"x": x})["y"], exact.detach().numpy())
    assert error <= 3e-6, f"{error:.1e}"


def test_every_graph_of_a_checkpoint_has_a_key(checkpoint: Checkpoint) -> None:
    keys = graph_keys(checkpoint)
    derived, optional = {"step"}, {"tiny_encoder", "tiny_decoder"}
    assert {kind_of(key) for key in keys} == set(graph_specs(checkpoint.dims)) - derived - optional - {"head"}
    with_tiny = graph_keys(replace(checkpoint, tiny_vae=Path("tiny_vae")))
    assert set(with_tiny) - set(keys) == optional
    assert [key for key in keys if key.startswith("scb/")] == ["scb/deblur", "scb/derain", "scb/lowlight"]
