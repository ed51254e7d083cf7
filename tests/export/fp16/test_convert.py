"""Float32 graph -> float16 graph: types, islands, weights; and the processor's emulation of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra [export]")
onnx = pytest.importorskip("onnx", reason="needs the extra [export]")

import onnx_ir as ir
import onnxruntime as ort
import torch

from diffplugin.errors import CheckpointError
from diffplugin.export.fp16.convert import LARGEST, Island, half, to_fp16
from diffplugin.export.fp16.emulate import emulated
from diffplugin.export.fp16.first_layer import first_beyond, layer_errors
from diffplugin.export.onnx import save, trace
from diffplugin.plugins.networks.form import portable
from diffplugin.spec import GraphSpec, TensorSpec

SPEC = GraphSpec("small", (TensorSpec("x", "f32", (1, 4, "h")),), (TensorSpec("y", "f32", (1, 4, "h")),))


class _Small(torch.nn.Module):
    """Up by 300 and down again, through a sine that is not to be rounded."""

    def __init__(self, gain: float = 300.0) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.full((4, 1), gain))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.sin(x * self.gain * self.gain) + x + x.new_zeros(x.shape[2])
        return y.reshape(1, 4, x.shape[2]) / (self.gain * 0.5)


def _model(gain: float = 300.0, islands: tuple[Island, ...] = ()) -> Any:
    with portable():
        model = trace(_Small(gain), SPEC, factor=8)
    found = to_fp16(model, "small", islands)
    assert set(found) == {island.name for island in islands}
    return model


def _run(model: Any, folder: Path, x: Any) -> Any:
    save(model, folder / "graph.onnx")
    return ort.InferenceSession(folder / "graph.onnx").run(None, {"x": x})[0]


SINE = Island(name="sine", holds=lambda node: node.op_type in ("Sin", "Mul"), why="a test")


@pytest.mark.parametrize("islands", [(), (SINE,)])
def test_every_tensor_has_its_one_type(tmp_path: Path, islands: tuple[Island, ...]) -> None:
    """ONNX's own checker finds mixed types; inputs and outputs keep float32."""
    save(_model(islands=islands), tmp_path / "graph.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "graph.onnx"), full_check=True)
    model = ir.load(tmp_path / "graph.onnx")
    for value in (*model.graph.inputs, *model.graph.outputs):
        assert value.dtype == ir.DataType.FLOAT, value.name
    for node in model.graph:
        floats = {v.dtype for v in node.outputs} & {ir.DataType.FLOAT, ir.DataType.FLOAT16}
        if node.op_type == "Cast" or not floats:
            continue
        expected = ir.DataType.FLOAT if any(island.holds(node) for island in islands) else ir.DataType.FLOAT16
        assert floats == {expected}, f"{node.name} ({node.op_type})"


def test_an_island_belongs_to_its_kinds() -> None:
    other = Island(name="other", kinds=("unet",), holds=lambda node: True, why="a test")
    with portable():
        model = trace(_Small(), SPEC, factor=8)
    assert to_fp16(model, "small", (other,)) == {}


def test_the_emulation_overflows_where_float16_does(tmp_path: Path) -> None:
    """x * 300 * 300 is beyond 65504 from 0.73 on. ONNX Runtime by itself computes on in float32."""
    x = np.linspace(0, 2, 4 * 5, dtype=np.float32).reshape(1, 4, 5)
    model = _model()
    assert np.isfinite(_run(model, tmp_path, x)).all(), "ONNX Runtime rounds now: the emulation is not needed any more"
    emulated(model)
    made = _run(model, tmp_path, x)
    assert np.array_equal(np.isfinite(made), x * 300 * 300 <= LARGEST), made
    exact = _model(islands=(SINE,))
    emulated(exact)
    assert np.isfinite(_run(exact, tmp_path, x)).all()


def test_without_rounding_only_the_weights_are_rounded(tmp_path: Path) -> None:
    x = np.full((1, 4, 2), 1e-3, np.float32)
    gain = np.float32(1.0001)
    model = _model(float(gain))
    emulated(model, rounding=False)
    rounded = np.float32(np.float16(gain))
    expected = (np.sin(x * rounded * rounded) + x) / (rounded * np.float32(0.5))
    np.testing.assert_allclose(_run(model, tmp_path, x), expected, rtol=2e-6)


def test_the_first_layer_beyond_a_budget_is_named(tmp_path: Path) -> None:
    save(_model(), tmp_path / "graph.onnx")
    inputs = {"x": np.full((1, 4, 3), 0.3, np.float32)}
    errors = layer_errors(tmp_path / "graph.onnx", inputs)
    sine = next(name for name, (error, _) in errors.items() if error > 1e-2)
    said = first_beyond(tmp_path / "graph.onnx", inputs, 1e-2)
    assert said.startswith(f"{sine} leaves it first") and "sin" in sine, (said, errors)
    assert "the weights" in first_beyond(tmp_path / "graph.onnx", inputs, 1e9)


def test_weights_beyond_float16_are_refused_and_masks_are_not() -> None:
    with pytest.raises(CheckpointError, match=r"w: has values up to 7e\+04, float16 ends at 65504"):
        half(np.array([1.0, 7e4], np.float32), "w")
    mask = half(np.array([0.0, np.finfo(np.float32).min, -np.inf], np.float32), "mask")
    assert mask.tolist() == [0, -LARGEST, -LARGEST]
