"""What the engines share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from diffplugin.engines import base
from diffplugin.engines.base import check_names, check_precision, one_line, thread_count, usable_cores
from diffplugin.engines.onnxruntime import OnnxRuntimeBuilder
from diffplugin.errors import BundleDamaged, EngineUnavailable, RequestError
from diffplugin.spec import GraphSpec, TensorSpec

SPEC = GraphSpec(
    "scb",
    (TensorSpec("time", "f32", ("n", 6)), TensorSpec("cond", "f32", (1, 4, "h", "w"))),
    (TensorSpec("residual_0", "f32", (1, 8, "h", "w")), TensorSpec("scores", "f32", (1, "p+1"))),
)


def test_usable_cores_are_those_that_the_process_may_use() -> None:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert 1 <= usable_cores() <= allowed


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processor affinity is Linux's")
def test_usable_cores_follow_the_affinity() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("text", "cores"), [("1", 1), ("1,4", 1), (" 2 ", 2), ("3", 3), ("99", 3), ("", 3), ("0", 3), ("-1", 3), ("x", 3)]
)
def test_omp_num_threads_is_respected(monkeypatch: pytest.MonkeyPatch, text: str, cores: int) -> None:
    monkeypatch.setattr(base, "_physical_cores", lambda: 3)
    monkeypatch.setattr(base, "cpu_quota", lambda: None)
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert usable_cores() == cores


def test_hyperthreads_of_one_core_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    siblings = {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(siblings), raising=False)
    monkeypatch.setattr(Path, "read_text", lambda path: siblings[int(path.parts[-3].removeprefix("cpu"))])
    assert base._physical_cores() == 2


def test_without_a_topology_every_processor_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    monkeypatch.setattr(Path, "read_text", absent)
    assert base._physical_cores() == 3


def test_thread_count() -> None:
    assert thread_count(3) == 3
    assert thread_count(None) == usable_cores()
    for wrong in (0, -1):
        with pytest.raises(RequestError, match=f"threads is {wrong}, expected 1 or more"):
            thread_count(wrong)


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
