"""What the engines share."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffplugin.engines.base import check_names, check_precision, one_line
from diffplugin.engines.onnxruntime import OnnxRuntimeBuilder
from diffplugin.errors import BundleDamaged, EngineUnavailable
from diffplugin.spec import GraphSpec, TensorSpec

SPEC = GraphSpec(
    "scb",
    (TensorSpec("time", "f32", ("n", 6)), TensorSpec("cond", "f32", (1, 4, "h", "w"))),
    (TensorSpec("residual_0", "f32", (1, 8, "h", "w")), TensorSpec("scores", "f32", (1, "p+1"))),
)


def test_foreign_tensors_are_refused_with_both_sides() -> None:
    check_names(SPEC, Path("x"), ["cond", "time"], ["scores", "residual_0"])
    with pytest.raises(BundleDamaged) as caught:
        check_names(SPEC, Path("x.onnx"), ["a"], ["b"])
    for part in ("x.onnx", "scb", "inputs are a, expected cond, time", "outputs are b, expected residual_0, scores"):
        assert part in str(caught.value)


def test_a_precision_that_does_not_run_is_refused_with_the_reason_and_the_remedy() -> None:
    check_precision(OnnxRuntimeBuilder(), "fp32")
    with pytest.raises(EngineUnavailable, match=r"onnxruntime: bf16 .* only fp32 .*AVX512-BF16.*use --precision fp32"):
        check_precision(OnnxRuntimeBuilder(), "bf16")


def test_one_line() -> None:
    error = RuntimeError("\nfirst \n\n last\n")
    assert one_line(error) == "first"
    assert one_line(error, last=True) == "last"
    assert one_line(ValueError()) == "ValueError"
