"""ONNX Runtime on the CPU."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from diffplugin.engines.base import BuildOptions
from diffplugin.engines.onnxruntime import OnnxRuntimeBuilder, OnnxRuntimeEngine
from diffplugin.errors import BundleDamaged, EngineError, EngineUnavailable, RequestError, ShapeMismatch
from diffplugin.shapes import Range
from tests.engines.checks import check_any_memory_layout, check_threads_share

Make = Callable[..., Any]
Worst = Callable[[Any, Any], float]


def load(tiny: Any, builder: OnnxRuntimeBuilder | None = None, **options: Any) -> OnnxRuntimeEngine:
    settings: dict[str, Any] = {"precision": "fp32", "threads": 1, "cache": None} | options
    return (builder or OnnxRuntimeBuilder()).load(tiny.bundle, "unet", **settings)


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("weights_bytes", [0, 2**40])  # with and without blocked convolutions
def test_equal_to_numpy_at_any_size(make: Make, worst: Worst, half: bool, external: bool, weights_bytes: int) -> None:
    tiny = make(half=half, external=external, weights_bytes=weights_bytes)
    engine = load(tiny)
    for size in ((8, 8), (5, 11), (16, 3)):
        inputs = tiny.inputs(*size)
        outputs = engine.run(inputs)
        assert list(outputs) == ["eps", "deep"] and outputs["eps"].dtype == np.float32
        assert worst(outputs["eps"], tiny.expected(inputs)) < 1e-5


def test_casts_of_half_weights_are_gone_after_loading(make: Make, tmp_path: Path) -> None:
    import onnx

    tiny = make(half=True)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    path = tiny.bundle.graph_file("unet")
    assert "Cast" in {node.op_type for node in onnx.load(path).graph.node}
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert "Cast" not in kinds, kinds
    assert "MultiHeadAttention" in kinds, f"attention is not fused: {kinds}"


def test_arrays_that_are_not_contiguous_or_read_only(tiny: Any) -> None:
    check_any_memory_layout(load(tiny), tiny.inputs(6, 4), "eps")


def test_several_threads_share_one_engine(tiny: Any) -> None:
    engine = load(tiny)
    cases = [tiny.inputs(4 + i % 3, 8, seed=i) for i in range(24)]
    check_threads_share(engine, cases)


def test_wrong_inputs_are_named_at_once(tiny: Any) -> None:
    inputs = tiny.inputs()
    del inputs["residual_2"]
    inputs["tokens"] = inputs["tokens"].astype(np.float64)
    inputs["more"] = inputs["time"]
    inputs["residual_1"] = inputs["residual_1"][:, :, :-1]
    with pytest.raises(ShapeMismatch) as caught:
        load(tiny).run(inputs)
    for part in ("residual_2 is missing", "tokens is float64", "more is unknown", "residual_1 is float32 1x8x7x8"):
        assert part in str(caught.value)


def test_a_closed_engine_says_so(tiny: Any) -> None:
    engine = load(tiny)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="unet: this engine is closed"):
        engine.run(tiny.inputs())


def test_only_fp32(tiny: Any) -> None:
    assert OnnxRuntimeBuilder().precisions() == ("fp32",)
    for precision in ("bf16", "fp16"):
        with pytest.raises(EngineUnavailable, match=f"{precision} does not run natively"):
            load(tiny, precision=precision)


def test_threads(tiny: Any) -> None:
    load(tiny, threads=None).run(tiny.inputs())
    with pytest.raises(RequestError, match="threads is 0"):
        load(tiny, threads=0)


@pytest.mark.parametrize("content", [b"", b"no graph", None])
def test_an_unreadable_graph_is_one_line(tiny: Any, content: bytes | None) -> None:
    path = tiny.bundle.path / "onnx" / "unet.onnx"
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    cases: tuple[tuple[Callable[[], object], type[Exception], str], ...] = (
        (lambda: load(tiny), BundleDamaged, "contents changed"),
        (lambda: OnnxRuntimeEngine(tiny.bundle.spec("unet"), path, 1), EngineError, "ONNX Runtime cannot load it"),
    )
    for run, error, said in cases:
        with pytest.raises(error, match=said) as caught:
            run()
        assert "\n" not in str(caught.value) and "unet.onnx" in str(caught.value)


def test_missing_weights_are_one_line(make: Make) -> None:
    tiny = make(external=True)
    (tiny.bundle.path / "onnx" / "unet.onnx.data").unlink()
    with pytest.raises(BundleDamaged, match=r"unet\.onnx: takes weights from 'unet\.onnx\.data'") as caught:
        load(tiny)
    assert "\n" not in str(caught.value)


def test_another_graph_in_the_file_is_refused(tiny: Any) -> None:
    spec = tiny.bundle.spec("vae_decoder")
    with pytest.raises(BundleDamaged, match=r"no vae_decoder graph.*expected latents.*expected image"):
        OnnxRuntimeEngine(spec, tiny.bundle.graph_file("unet"), 1)


def test_nothing_is_built_ahead(tiny: Any, tmp_path: Path) -> None:
    builder, out = OnnxRuntimeBuilder(), tmp_path / "out"
    profile = {"h": Range.of(8), "w": Range.of(8)}

    def build(options: BuildOptions) -> object:
        return builder.build(tiny.bundle, "unet", precision="fp32", profile=profile, out=out, options=options)

    assert build(BuildOptions()) is None and builder.build_unavailable_reason() is None
    with pytest.raises(RequestError, match=r"onnxruntime: --gpus, --weight-streaming is for TensorRT engines"):
        build(BuildOptions(gpus=("sm_89",), weight_streaming=True))
    assert not (tmp_path / "out").exists()
    assert builder.unavailable_reason() is None and builder.version() == ort.__version__ and builder.device() == "cpu"


_MEMORY = """
import sys
from pathlib import Path
import numpy as np
from diffplugin.engines.onnxruntime import OnnxRuntimeEngine
from diffplugin.spec import GraphSpec, TensorSpec

def anonymous():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("RssAnon"))

import onnxruntime
spec = GraphSpec("deep", (TensorSpec("x", "f32", (1, 512, "h", "w")),), (TensorSpec("y", "f32", (1, 512, "h", "w")),))
before = anonymous()
engine = OnnxRuntimeEngine(spec, Path(sys.argv[1]), 1, weights_bytes=2**40)
x = np.ones((1, 512, 4, 4), np.float32)
engine.run({"x": x}), engine.run({"x": x})
print(anonymous() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_large_weights_stay_in_their_file(tmp_path: Path) -> None:
    """Convolutions read the mapped file: the process's own memory holds no copy of 45 MB of weights."""
    onnx = pytest.importorskip("onnx", reason="makes its graphs with the package onnx")
    from onnx import TensorProto, helper, numpy_helper

    weights = [numpy_helper.from_array(np.full((512, 512, 3, 3), 1e-4, np.float32), f"w{i}") for i in range(5)]
    names = ["x", "a", "b", "c", "d", "y"]
    nodes = [helper.make_node("Conv", [names[i], f"w{i}"], [names[i + 1]], pads=[1, 1, 1, 1]) for i in range(5)]
    sides = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 512, "h", "w"]) for n in "xy"]
    model = helper.make_model(
        helper.make_graph(nodes, "deep", sides[:1], sides[1:], weights),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnx.save_model(model, tmp_path / "deep.onnx", save_as_external_data=True, location="deep.onnx.data")
    size = (tmp_path / "deep.onnx.data").stat().st_size / 1024
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", _MEMORY, str(tmp_path / "deep.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    grown = int(done.stdout)
    shutil.rmtree(tmp_path)
    assert grown < 0.5 * size, f"{grown} kB more for weights of {size:.0f} kB"


_SHARED = """
import resource, sys
import numpy as np
import diffplugin
from diffplugin.default_bundle import default_bundle

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt * resource.getpagesize() >> 20

photo = np.random.default_rng(0).integers(0, 255, (320, 320, 3), dtype=np.uint8)
with diffplugin.load(default_bundle(), engine="onnxruntime", precision="fp32", threads=1) as restorer:
    restorer.restore(photo, plugins=["deblur"])
    before = faults()
    restorer.restore(photo, plugins=["deblur"])
    print(faults() - before, resident())
print(resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_small_graphs_share_memory_and_give_it_back() -> None:
    """The second photo is given cleared pages for a tenth of what its graphs work on, about 700 MiB."""
    command = [sys.executable, "-P", "-c", _SHARED]
    again, kept, left = map(int, subprocess.run(command, capture_output=True, check=True).stdout.split())
    assert again < 100, f"{again} MiB of cleared pages for the second photo"
    assert left < kept - 60, f"{left} MiB of {kept} MiB are still there after the engines were closed"
