"""The process that builds an engine: small graphs, and what must go wrong in one line, leaving nothing."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from diffplugin.engines.tensorrt.build_process import BuildSpec, Refused, capability, check_shapes, make_network
from diffplugin.engines.tensorrt.builder import TensorRtBuilder, run_build
from diffplugin.errors import EngineError


@pytest.fixture(autouse=True)
def builds_here() -> None:
    if reason := TensorRtBuilder("tensorrt-rtx").build_unavailable_reason():
        pytest.skip(reason)


def _graph(path: Path, node: Any, *, half: Sequence[str] = (), axes: Sequence[Any] = (1, "h")) -> Path:
    """``y = node(a, b)``; inputs in ``half`` are float16."""
    onnx = pytest.importorskip("onnx", reason="makes its graphs with the package onnx")
    kind = {name: onnx.TensorProto.FLOAT16 if name in half else onnx.TensorProto.FLOAT for name in "ab"}
    made = onnx.helper.make_graph(
        [onnx.helper.make_node(node[0], ["a", "b"], ["y"], name="the_node", domain=node[1])],
        "g",
        [onnx.helper.make_tensor_value_info(name, kind[name], axes) for name in "ab"],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, axes)],
    )
    imports = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("elsewhere", 1)]
    onnx.save(onnx.helper.make_model(made, opset_imports=imports, ir_version=10), path)
    return path


ADD, FOREIGN = ("Add", ""), ("Frobnicate", "elsewhere")
FITS = {"a": ((1, 1), (1, 2), (1, 4)), "b": ((1, 1), (1, 2), (1, 4))}


def _job(path: Path, **changes: Any) -> BuildSpec:
    engine = str(path.parent / "out/g.engine")
    about = {"library": "tensorrt_rtx", "onnx": str(path), "engine": engine, "gpus": ("sm_89",), "shapes": FITS}
    return BuildSpec(**(about | changes))


def test_a_small_graph_builds(tmp_path: Path) -> None:
    lines: list[str] = []
    report = run_build("g", _job(_graph(tmp_path / "g.onnx", ADD)), lines.append)
    assert (tmp_path / "out/g.engine").is_file() and report["operators"] == {"Add": 1}
    assert lines[0] == "g: building for sm_89" and "MiB in" in lines[-1] and "GiB of memory" in lines[-1]


@pytest.mark.parametrize(
    ("node", "half", "changes", "said"),
    [
        (ADD, ("a",), {}, r"node the_node \(Add\): .*type"),
        (FOREIGN, (), {}, r"node the_node \(Frobnicate\): .*; export it from operators that TensorRT has"),
        (ADD, (), {"shapes": {"a": FITS["a"], "b": ((1, 4), (1, 2), (1, 4))}}, r"input b, axis 1: 4:2:4, expected ris"),
        (ADD, (), {"shapes": {"a": FITS["a"]}}, r"input b has free axes and no shapes; give its MIN:OPT:MAX"),
        (
            ADD,
            (),
            {"shapes": {"a": FITS["a"], "b": ((1, 2), (1, 2), (1, 8))}},
            r"axis h is 1:2:4 in a and 2:2:8 in b",
        ),
        (ADD, (), {"shapes": FITS | {"c": FITS["a"]}}, r"c is no input of it"),
        (ADD, (), {"gpus": ("sm_90",)}, r"tensorrt_rtx builds for sm_75, .*, not for sm_90"),
        (ADD, (), {"onnx": "/nowhere/g.onnx"}, r"g\.onnx"),
    ],
    ids=["mixed types", "operator", "profile", "no profile", "named dimension", "input", "gpu", "file"],
)
def test_what_cannot_be_built_is_one_line_and_leaves_nothing(
    tmp_path: Path, node: Any, half: Any, changes: dict[str, Any], said: str
) -> None:
    path = _graph(tmp_path / "g.onnx", node, half=half)
    with pytest.raises(EngineError, match=rf"^g: .*{said}") as caught:
        run_build("g", _job(path, **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_graph_that_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(b"not a graph at all")
    with pytest.raises(EngineError, match=r"^g: ") as caught:
        run_build("g", _job(tmp_path / "g.onnx"))
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the full disk is Linux's /dev/full")
def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/g.engine").symlink_to("/dev/full")
    with pytest.raises(EngineError, match=r"g: .*No space left on device"):
        run_build("g", _job(_graph(tmp_path / "g.onnx", ADD)))
    assert list((tmp_path / "out").iterdir()) == [] and Path("/dev/full").exists()


def _child(spec: str) -> int:
    """The process that builds, once it is there."""
    for _ in range(2000):
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = entry.read_bytes().split(b"\0")
                parent = int(entry.with_name("stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, ValueError):
                continue
            if parent == os.getpid() and spec.encode() in words:
                return int(entry.parent.name)
        time.sleep(0.005)
    raise AssertionError("no child")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the child in Linux's /proc")
@pytest.mark.parametrize(
    ("number", "said"),
    [(signal.SIGKILL, "the build was killed.*ran out of memory"), (signal.SIGABRT, "the build ended with SIGABRT")],
)
def test_a_killed_build_leaves_nothing(tmp_path: Path, number: int, said: str) -> None:
    spec = _job(_graph(tmp_path / "g.onnx", ADD))
    killer = threading.Thread(target=lambda: os.kill(_child("diffplugin.engines.tensorrt.build_process"), number))
    killer.start()
    with pytest.raises(EngineError, match=f"^g: {said}"):
        run_build("g", spec)
    killer.join()
    assert not (tmp_path / "out").exists()


def test_an_interrupt_ends_the_build(tmp_path: Path) -> None:
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_build("g", _job(_graph(tmp_path / "g.onnx", ADD)), interrupt)
    assert not (tmp_path / "out").exists()


class _Flags:
    """TensorRT as far as a network is made and configured; the real one is a GPU machine's."""

    def __init__(self, **flags: int) -> None:
        self.__name__ = "tensorrt"
        self.NetworkDefinitionCreationFlag = SimpleNamespace(**flags)


@pytest.mark.parametrize(("flags", "expected"), [({"STRONGLY_TYPED": 1}, 2), ({}, 0)], ids=["TensorRT 10", "11"])
def test_networks_are_strongly_typed_with_every_version(flags: dict[str, int], expected: int) -> None:
    made: list[int] = []
    builder = SimpleNamespace(create_network=made.append)
    make_network(_Flags(**flags), builder)
    assert made == [expected]


def test_tensorrt_builds_for_its_own_gpu_alone() -> None:
    with pytest.raises(Refused, match="tensorrt builds for the GPU of this machine, not for sm_89"):
        capability(_Flags(), "sm_89")


def _network(**inputs: tuple[tuple[int, ...], tuple[str, ...]]) -> Any:
    def tensor(name: str) -> Any:
        shape, names = inputs[name]
        return SimpleNamespace(name=name, shape=shape, get_dimension_name=lambda i: names[i])

    tensors: list[Any] = [tensor(name) for name in inputs]
    get: Callable[[int], Any] = tensors.__getitem__
    return SimpleNamespace(num_inputs=len(tensors), get_input=get)


def test_all_faults_of_the_shapes_at_once() -> None:
    network = _network(a=((1, -1), ("", "h")), b=((-1, 8), ("h", "")), c=((-1,), ("n",)))
    shapes = {"a": ((1, 2), (1, 4), (1, 8)), "b": ((2, 8), (4, 8), (9, 7)), "d": ((1,),) * 3}
    with pytest.raises(Refused) as caught:
        check_shapes(network, shapes)
    for part in (
        "d is no input of it",
        "input b, axis 1: 8:8:7, expected 8",
        "axis h is 2:4:8 in a and 2:4:9 in b",
        "input c has free axes and no shapes",
    ):
        assert part in str(caught.value), caught.value
