"""Which engine an export builds, and what it refuses before the work begins."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra [export]")

from diffplugin.engines.base import BuildOptions
from diffplugin.engines.tensorrt.builder import TensorRtBuilder
from diffplugin.errors import EngineUnavailable, RequestError
from diffplugin.export import cli
from diffplugin.export.prebuild import choose_builder


def test_fp16_alone_makes_graphs_and_proves_them_here() -> None:
    builder, precision, reason = choose_builder("auto", "fp16", BuildOptions())
    assert (builder.name, precision) == ("onnxruntime", "fp16") and "--engine tensorrt-rtx" in reason
    assert "fp16" in builder.precisions() and not builder.prebuilt_only


def test_other_engines_are_those_that_run_here() -> None:
    assert choose_builder("onnxruntime", "auto", BuildOptions())[:2][1] == "fp32"
    with pytest.raises(EngineUnavailable, match=r"fp16 does not run natively on cpu.*fp16 needs a GPU"):
        choose_builder("onnxruntime", "fp16", BuildOptions())
    with pytest.raises(RequestError, match="onnxruntime: --gpus is for TensorRT engines; leave it out"):
        choose_builder("onnxruntime", "fp32", BuildOptions(gpus=("sm_89",)))


def test_tensorrt_rtx_needs_no_gpu_here() -> None:
    if reason := TensorRtBuilder("tensorrt-rtx").build_unavailable_reason():
        pytest.skip(reason)
    options = BuildOptions(gpus=("sm_86", "sm_120"))
    for precision in ("auto", "fp16"):
        builder, chosen, _ = choose_builder("tensorrt-rtx", precision, options)
        assert (builder.name, chosen) == ("tensorrt-rtx", "fp16")
    with pytest.raises(EngineUnavailable, match="tensorrt-rtx: builds fp16 alone; use --precision fp16"):
        choose_builder("tensorrt-rtx", "int8", options)
    with pytest.raises(RequestError, match="sm_99 is not among"):
        choose_builder("tensorrt-rtx", "fp16", BuildOptions(gpus=("sm_99",)))


def test_tensorrt_needs_its_library_and_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TensorRtBuilder, "unavailable_reason", lambda self: "there is no GPU here")
    with pytest.raises(EngineUnavailable, match="engine tensorrt: there is no GPU here"):
        choose_builder("tensorrt", "auto", BuildOptions())


def test_the_command_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert cli.main(["--engine", "onnxruntime", "--gpus", "sm_89", "--weight-streaming", "--out", out]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    said = "engine onnxruntime: --gpus, --weight-streaming is for TensorRT engines; leave it out, or use --engine"
    assert line == f"dp-export: {said} tensorrt-rtx"
    assert list(tmp_path.iterdir()) == []
