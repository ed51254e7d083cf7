"""The cases of single operators: their graphs, written out for a processor, compute what is expected of a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra [bench]")
ir = pytest.importorskip("onnx_ir", reason="needs the extra [bench]")

from diffplugin.bench.gpu_acceptance import operators
from diffplugin.bench.gpu_acceptance.operators import BOUNDS, CASES
from diffplugin.export.fp16.emulate import emulated
from diffplugin.export.onnx import save


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("operators") / "graphs"
    operators.write(made)
    assert sum(file.stat().st_size for file in made.iterdir()) < 3 * 2**20
    return made


@pytest.mark.parametrize("name", CASES)
def test_a_graph_computes_what_is_expected(name: str, folder: Path, tmp_path: Path) -> None:
    """In float16 on the values that it holds; the formulas in double precision are independent of both."""
    import onnxruntime as ort

    number, case = [*CASES].index(name), CASES[name]
    for precision in case.precisions:
        model = ir.load(folder / f"{number}-{precision}.onnx")
        for value in model.graph.inputs:  # which hold what float16 holds
            value.dtype = ir.DataType.FLOAT
        emulated(model)
        save(model, tmp_path / "graph.onnx")
        drawn = case.draw(precision)
        given = {key: array.astype(np.float32) for key, array in drawn.items() if key not in case.weights}
        (found,) = ort.InferenceSession(tmp_path / "graph.onnx").run(["y"], given)
        off = operators.error(case, drawn, found)
        print(f"{name} {precision}: {off:.1e}")
        assert off <= BOUNDS[precision] / 2, f"{off:.1e}"


@pytest.mark.parametrize("name", ["Conv 3x3", "MultiHeadAttention, self", "MatMul"])
def test_tf32_would_be_seen(name: str) -> None:
    """Inputs with ten bits of mantissa, as TF32 takes them: off by more than float32's bound."""
    case = CASES[name]
    drawn = case.draw("fp32")
    cut = {key: (array.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32) for key, array in drawn.items()}
    found = case.result(*(array.astype(np.float64) for array in cut.values()))
    assert operators.error(case, drawn, found) > 2 * BOUNDS["fp32"]


def test_a_result_of_another_shape_is_off() -> None:
    case = CASES["MatMul"]
    assert operators.error(case, case.draw("fp32"), np.zeros(3)) == float("inf")
