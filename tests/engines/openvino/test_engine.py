"""One graph run by OpenVINO: numbers, memory, threads, shapes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openvino", reason="needs the extra [openvino]")

from diffplugin.bundle import Bundle, list_files
from diffplugin.engines.openvino import library
from diffplugin.engines.openvino.builder import OpenVinoBuilder
from diffplugin.errors import BundleDamaged, EngineError, ShapeMismatch
from tests.engines.checks import check_any_memory_layout, check_threads_share
from tests.engines.openvino.conftest import load

Make = Callable[..., Any]
Worst = Callable[[Any, Any], float]
NATIVE = OpenVinoBuilder().precisions()


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_equal_to_numpy_at_any_size(make: Make, worst: Worst, half: bool, external: bool) -> None:
    tiny = make(half=half, external=external)
    engine = load(tiny)
    for size in ((8, 8), (5, 11), (16, 3), (8, 8)):
        inputs = tiny.inputs(*size)
        outputs = engine.run(inputs)
        assert list(outputs) == ["eps", "deep"] and outputs["eps"].dtype == np.float32
        assert worst(outputs["eps"], tiny.expected(inputs)) < 1e-5


def test_outputs_belong_to_the_caller(tiny: Any) -> None:
    engine = load(tiny)
    first = engine.run(tiny.inputs(seed=1))["eps"]
    kept = first.copy()
    engine.run(tiny.inputs(seed=2))
    np.testing.assert_array_equal(first, kept)


def test_nothing_is_copied_between_engine_and_loop(tiny: Any) -> None:
    engine, inputs = load(tiny), tiny.inputs()
    made = engine.run(inputs)
    (request, _), *_ = engine._requests.values()
    for name, array in made.items():
        assert np.shares_memory(request.get_tensor(name).data, array), f"{name} was copied out of the engine"
    for name, array in inputs.items():
        assert np.shares_memory(request.get_tensor(name).data, array), f"{name} was copied into the engine"


def test_arrays_that_are_not_contiguous_or_read_only(tiny: Any) -> None:
    check_any_memory_layout(load(tiny), tiny.inputs(6, 4), "eps")


def test_several_threads_and_shapes_share_one_engine(tiny: Any) -> None:
    engine = load(tiny)
    cases = [tiny.inputs(4 + i % 3, 8, seed=i) for i in range(24)]
    check_threads_share(engine, cases)


def test_few_shapes_are_kept_and_one_of_a_large_graph(make: Make) -> None:
    for weights, kept in ((1000, 4), (2**29, 2), (2**32, 1)):
        tiny = make(f"weights-{weights}", weights_bytes=weights)
        engine = load(tiny)
        for side in (4, 5, 6, 7, 4, 8):
            engine.run(tiny.inputs(side, 4))
        # those that were used last
        assert list(engine._requests) == ["h=6,w=4", "h=7,w=4", "h=4,w=4", "h=8,w=4"][-kept:]


def test_wrong_inputs_are_named_at_once(tiny: Any) -> None:
    inputs = tiny.inputs()
    del inputs["residual_2"]
    inputs["tokens"] = inputs["tokens"].astype(np.float64)
    with pytest.raises(ShapeMismatch, match=r"tokens is float64 .*residual_2 is missing"):
        load(tiny).run(inputs)


def test_a_closed_engine_says_so(tiny: Any) -> None:
    engine = load(tiny)
    engine.run(tiny.inputs())
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="unet: this engine is closed"):
        engine.run(tiny.inputs())


@pytest.mark.skipif("bf16" not in NATIVE, reason="this processor has no native bf16")
def test_bf16_is_close_and_is_bf16(tiny: Any) -> None:
    inputs = tiny.inputs(16, 16)
    expected = tiny.expected(inputs)
    found = load(tiny, precision="bf16").run(inputs)["eps"]
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    print(f"relative error {error:.1e}")
    assert 1e-5 < error < 3e-2


@pytest.mark.parametrize("content", [b"", b"no graph"])
def test_an_unreadable_graph_is_one_line(tiny: Any, content: bytes) -> None:
    path = tiny.bundle.path / "onnx" / "unet.onnx"
    path.write_bytes(content)
    with pytest.raises(BundleDamaged, match="contents changed") as caught:
        load(tiny).run(tiny.inputs())
    assert "\n" not in str(caught.value) and "unet.onnx" in str(caught.value)
    graphs = {"unet": replace(tiny.bundle.manifest.graphs["unet"], file="onnx/unet.xml")}
    path.rename(path.with_suffix(".xml"))
    bundle = Bundle(tiny.bundle.path, replace(tiny.bundle.manifest, graphs=graphs, files=list_files(tiny.bundle.path)))
    with pytest.raises(EngineError, match="OpenVINO cannot load it") as unread:
        load(replace(tiny, bundle=bundle)).run(tiny.inputs())
    assert "\n" not in str(unread.value) and "unet.xml" in str(unread.value)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_weights_are_not_resident_twice(make: Make, resident: Callable[[Path], int]) -> None:
    tiny = make(external=True)
    data = tiny.bundle.path / "onnx" / "unet.onnx.data"
    mapped = library.core().read_model(tiny.bundle.graph_file("unet"))  # what holds the mapping, as a reader would
    weight = next(op for op in mapped.get_ops() if op.get_type_name() == "Constant" and op.data.size > 100)
    assert weight.data.sum() != 0 and resident(data) > 0
    load(tiny).run(tiny.inputs())
    assert resident(data) == 0


def quantized(tiny: Any) -> Any:
    """The bundle with an int8 form of its UNet, calibrated on a few inputs."""
    pytest.importorskip("nncf", reason="quantises with the package nncf")
    from diffplugin.export.quantize import quantize_bundle

    items = [tiny.inputs(seed=seed) for seed in range(3)]
    being_written = replace(tiny.bundle, manifest=replace(tiny.bundle.manifest, files={}))
    entries = quantize_bundle(being_written, OpenVinoBuilder(), {"unet": items}, budget=1.0)
    manifest = replace(tiny.bundle.manifest, variants={"int8": entries}, files=list_files(tiny.bundle.path))
    return replace(tiny, bundle=replace(tiny.bundle, manifest=manifest))


def test_int8_runs_the_quantised_graph_and_is_close(tiny: Any, tmp_path: Path) -> None:
    ready = quantized(tiny)
    entry = ready.bundle.manifest.variants["int8"]["unet"]
    assert entry.file == "int8/unet.xml" and entry.sha256 != ready.bundle.graph("unet").sha256
    for sides in ((8, 8), (16, 9)):
        inputs = ready.inputs(*sides)
        engine = load(ready, precision="int8", cache=tmp_path / "cache")
        found, exact = engine.run(inputs)["eps"], load(ready).run(inputs)["eps"]
        error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
        print(f"{sides}: relative error {error:.1e}")
        assert 1e-5 < error < 0.2
        again = load(ready, precision="int8", cache=tmp_path / "cache").run(inputs)["eps"]
        assert np.array_equal(found, again)  # from the compiled model


_CLOSED = """
import gc, re, sys
import numpy as np
from pathlib import Path
import diffplugin

def threads():
    return int(re.search(r"Threads:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def private():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024

photo = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
facts = []
for _ in range(2):
    with diffplugin.load(engine="openvino", precision="fp32", threads=2) as restorer:
        restorer.restore(photo, plugins=["derain"])
        living = threads(), private()
    gc.collect()
    facts += [living, (threads(), private())]
print(*(number for pair in facts for number in pair))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_closing_gives_threads_and_memory_back() -> None:
    done = subprocess.run([sys.executable, "-c", _CLOSED], capture_output=True, text=True, check=True)
    numbers = [int(number) for number in done.stdout.split()]
    (living, used), (left, kept), (again, _), (left_again, kept_again) = zip(numbers[::2], numbers[1::2], strict=True)
    print(f"threads {living} -> {left}, {again} -> {left_again}; MiB {used} -> {kept} -> {kept_again}")
    assert left_again <= left < 10 < living
    assert kept < 0.5 * used and kept_again < kept + 16
