"""Exact rewrites of graphs: what they remove, and that the numbers stay."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra [export]")
onnx = pytest.importorskip("onnx", reason="needs the extra [export]")

import torch
from torch import Tensor, nn

from diffplugin.engines.onnxruntime import OnnxRuntimeEngine
from diffplugin.export.measures import relative_error
from diffplugin.export.onnx import export_graph
from diffplugin.export.reference import TorchEngine
from diffplugin.plugins.networks.attention import SpatialTransformer
from diffplugin.plugins.networks.blocks import Upsample
from diffplugin.spec import Array, GraphSpec, TensorSpec

_MAP = TensorSpec("x", "f32", (1, 8, "h", "w"))
_TOKENS = TensorSpec("tokens", "f32", (1, 5, 6))


def _exported(module: nn.Module, spec: GraphSpec, path: Path, inputs: dict[str, Array]) -> tuple[Counter[str], float]:
    """Its operators, and how far ONNX Runtime's result is from PyTorch's."""
    export_graph(module, spec, path, factor=1)
    made = OnnxRuntimeEngine(spec, path, 1).run(inputs)["y"]
    error = relative_error(made, TorchEngine(spec, module).run(inputs)["y"])
    return Counter(node.op_type for node in onnx.load(path).graph.node), error


def _zero(module: nn.Module, *names: str) -> None:
    for name in names:
        nn.init.zeros_(module.get_parameter(f"transformer_blocks.0.attn1.to_out.0.{name}"))


@pytest.mark.parametrize("trained", [False, True])
def test_an_attention_with_output_weights_of_zero_leaves_the_graph(tmp_path: Path, trained: bool) -> None:
    torch.manual_seed(0)
    module = SpatialTransformer(8, 6, heads=2, groups=4, linear_projection=False, only_cross=False).eval()
    if not trained:
        _zero(module, "weight", "bias")
    spec = GraphSpec("block", (_MAP, _TOKENS), (TensorSpec("y", "f32", (1, 8, "h", "w")),))
    random = np.random.default_rng(0)
    inputs = {
        "x": random.standard_normal((1, 8, 5, 7), np.float32),
        "tokens": random.standard_normal((1, 5, 6), np.float32),
    }
    operators, error = _exported(module, spec, tmp_path / "block.onnx", inputs)
    assert operators["MultiHeadAttention"] == 1 + trained
    assert operators["LayerNormalization"] == 2 + trained, "its norm serves nothing else"
    assert error <= 1e-6, f"{error:.1e}"


def test_an_output_bias_that_was_trained_is_kept(tmp_path: Path) -> None:
    module = SpatialTransformer(8, 6, heads=2, groups=4, linear_projection=False, only_cross=False).eval()
    _zero(module, "weight")
    spec = GraphSpec("block", (_MAP, _TOKENS), (TensorSpec("y", "f32", (1, 8, "h", "w")),))
    inputs = {"x": np.ones((1, 8, 5, 7), np.float32), "tokens": np.ones((1, 5, 6), np.float32)}
    _, error = _exported(module, spec, tmp_path / "block.onnx", inputs)
    assert error <= 1e-6, f"{error:.1e}"


class _Widened(nn.Module):
    """A column plus a map of zeros: the sum has the map's shape."""

    def __init__(self) -> None:
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(1, 8, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return (x.mean((2, 3), keepdim=True) + self.zero) * x[:, :, :1, :1]


def test_a_zero_that_widens_the_other_term_is_kept(tmp_path: Path) -> None:
    spec = GraphSpec("widened", (_MAP,), (TensorSpec("y", "f32", (1, 8, 4, 4)),))
    inputs = {"x": np.random.default_rng(0).standard_normal((1, 8, 5, 7), np.float32)}
    operators, error = _exported(_Widened(), spec, tmp_path / "widened.onnx", inputs)
    assert operators["Add"] == 1
    assert error <= 1e-6, f"{error:.1e}"


class _Up(nn.Module):
    def __init__(self, like: int = 0) -> None:
        super().__init__()
        self.up, self.like = Upsample(8), like

    def forward(self, x: Tensor) -> Tensor:
        like = x.new_zeros(1, 8, 2 * x.shape[2] - 1, 2 * x.shape[3]) if self.like else None
        made: Tensor = self.up(x.tanh(), like=like)
        return made


@pytest.mark.parametrize("sides", [(5, 7), (6, 4), (1, 1)])
def test_upsampling_is_computed_in_phases(tmp_path: Path, sides: tuple[int, int]) -> None:
    torch.manual_seed(0)
    spec = GraphSpec("up", (_MAP,), (TensorSpec("y", "f32", (1, 8, "H", "W")),), factor=2)
    inputs = {"x": np.random.default_rng(0).standard_normal((1, 8, *sides), np.float32)}
    operators, error = _exported(_Up().eval(), spec, tmp_path / "up.onnx", inputs)
    assert (operators["Resize"], operators["Conv"], operators["DepthToSpace"]) == (0, 4, 1)
    assert error <= 5e-7, f"{error:.1e}"


def test_upsampling_that_is_cut_to_an_odd_side_stays(tmp_path: Path) -> None:
    """Its last row sees the border and not the row that was cut off."""
    torch.manual_seed(0)
    spec = GraphSpec("up", (_MAP,), (TensorSpec("y", "f32", (1, 8, "H", "W")),), factor=2)
    module, path = _Up(like=1).eval(), tmp_path / "up.onnx"
    export_graph(module, spec, path, factor=2)
    assert "Resize" in {node.op_type for node in onnx.load(path).graph.node}
