"""OpenVINO on the CPU, on machines with and without bf16."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openvino", reason="needs the extra [openvino]")

from diffplugin.bundle import ENGINES, Bundle, list_files
from diffplugin.engines import openvino as module
from diffplugin.engines.base import BuildOptions
from diffplugin.engines.choice import choose
from diffplugin.engines.compiled_cache import write_blob
from diffplugin.engines.devices import Device
from diffplugin.engines.openvino import OpenVinoBuilder, OpenVinoEngine
from diffplugin.errors import BundleDamaged, EngineError, EngineUnavailable, RequestError, ShapeMismatch
from diffplugin.manifest import EngineEntry, fingerprint
from diffplugin.shapes import Range
from tests.lesser import openvino_below, run_tests

Make = Callable[..., Any]
Worst = Callable[[Any, Any], float]
NATIVE = OpenVinoBuilder().precisions()


def load(tiny: Any, **options: Any) -> OpenVinoEngine:
    settings: dict[str, Any] = {"precision": "fp32", "threads": 1, "cache": None} | options
    return OpenVinoBuilder().load(tiny.bundle, "unet", **settings)


def forbid_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(*args: object) -> None:
        raise AssertionError("compiled although it need not")

    monkeypatch.setattr(module, "compile_graph", compiled)


def blobs(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.blob"))


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


def test_casts_of_half_weights_are_gone_after_loading(make: Make) -> None:
    tiny = make(half=True)
    path = tiny.bundle.graph_file("unet")
    properties = module._properties(path, "f32", 1)
    compiled = module.compile_graph(path, tiny.bundle.spec("unet"), {"h": 8, "w": 8}, properties)
    kinds = {op.get_rt_info()["layerType"].astype(str) for op in compiled.get_runtime_model().get_ops()}
    assert "Convolution" in kinds and "Convert" not in kinds, kinds


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


def test_arrays_that_are_not_contiguous_or_read_only(tiny: Any, worst: Worst) -> None:
    inputs = tiny.inputs(6, 4)
    expected = tiny.expected(inputs)
    inputs["latents"] = np.asfortranarray(inputs["latents"])
    inputs["tokens"].flags.writeable = False
    assert worst(load(tiny).run(inputs)["eps"], expected) < 1e-5


def test_several_threads_and_shapes_share_one_engine(tiny: Any) -> None:
    engine = load(tiny)
    cases = [tiny.inputs(4 + i % 3, 8, seed=i) for i in range(24)]
    alone = [engine.run(case)["eps"] for case in cases]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda case: engine.run(case)["eps"], cases))
    for i, (a, b) in enumerate(zip(alone, together, strict=True)):
        np.testing.assert_array_equal(a, b, err_msg=f"case {i}")


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


def test_threads(tiny: Any) -> None:
    load(tiny, threads=None).run(tiny.inputs())
    with pytest.raises(RequestError, match="threads is -1"):
        load(tiny, threads=-1)


def test_bf16_is_refused_where_it_would_be_float32(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here where the processor has no native bf16, else below in a process that is denied it."""
    if "bf16" in NATIVE:
        pytest.skip("this processor computes bf16: test_a_lesser_processor runs this one")
    with pytest.raises(EngineUnavailable, match=r"bf16 does not run natively on .*AVX512-BF16.*--precision fp32"):
        load(tiny, precision="bf16")
    # Past that gate OpenVINO takes the hint. Without AVX-512 it computes in float32 and says so only when asked; with
    # it, it computes in bf16 by emulation, slower than float32.
    emulated = "WINOGRAD" in module._core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")  # reported with AVX-512
    with monkeypatch.context() as patch:
        patch.setattr(OpenVinoBuilder, "precisions", lambda self: ("bf16", "fp32"))
        if emulated:
            assert load(tiny, precision="bf16").run(tiny.inputs())["eps"].shape == (1, 4, 8, 8)
        else:
            with pytest.raises(EngineUnavailable, match="asked for bf16, it computes in f32"):
                load(tiny, precision="bf16").run(tiny.inputs())
    with pytest.raises(EngineUnavailable, match="bf16 does not run natively"):
        OpenVinoBuilder().build(
            tiny.bundle,
            "unet",
            precision="bf16",
            profile={"h": Range.of(8), "w": Range.of(8)},
            out=tmp_path / "out",
            options=BuildOptions(),
        )
    assert not (tmp_path / "out").exists()


def test_a_cached_model_of_another_hint_is_refused(tiny: Any) -> None:
    """The gate itself, on every processor: what OpenVINO says that it computes in is compared with what was asked."""
    path = tiny.bundle.graph_file("unet")
    compiled = module.compile_graph(
        path, tiny.bundle.spec("unet"), {"h": 8, "w": 8}, module._properties(path, "f32", 1)
    )
    module._check_hint(compiled, {"INFERENCE_PRECISION_HINT": "f32"})
    with pytest.raises(EngineUnavailable, match="asked for bf16, it computes in f32; use --precision fp32"):
        module._check_hint(compiled, {"INFERENCE_PRECISION_HINT": "bf16"})


LESSER = (  # what a processor decides in this file
    "test_bf16_is_refused_where_it_would_be_float32",
    "test_equal_to_numpy_at_any_size",
    "test_the_builder_names_its_machine",
)
INT8 = "test_int8_runs_the_quantised_graph_and_is_close"


@pytest.mark.parametrize(
    ("ceiling", "names"),
    [
        ("AVX2", LESSER),
        pytest.param("AVX2", (INT8,), marks=pytest.mark.slow),
        pytest.param("AVX512_CORE_VNNI", (*LESSER, INT8), marks=pytest.mark.slow),
    ],
)
def test_a_lesser_processor(ceiling: str, names: tuple[str, ...], tmp_path: Path) -> None:
    """The tests above on a processor without bf16, and without or with AVX-512."""
    run_tests(openvino_below(ceiling), __file__, *names, cache=tmp_path)


@pytest.mark.parametrize(
    ("abilities", "order", "floats"),
    [
        (["FP32", "INT8"], None, ("fp32",)),
        (["BF16", "FP32", "INT8"], ("bf16", "fp32"), ("bf16", "fp32")),
        (["BF16", "FP32", "INT8"], ("fp32", "bf16"), ("fp32", "bf16")),
    ],
)
def test_precisions_are_what_the_processor_can_in_the_order_of_their_speed(
    monkeypatch: pytest.MonkeyPatch, abilities: list[str], order: tuple[str, ...] | None, floats: tuple[str, ...]
) -> None:
    """Processors that cannot be simulated, such as one with bf16 where this one has none, by what they report."""

    class Core:
        def get_property(self, device: str, name: str) -> object:
            return abilities if name == "OPTIMIZATION_CAPABILITIES" else "some processor"

    def measured(name: str, precisions: tuple[str, ...], runner: object) -> tuple[str, ...]:
        assert order is not None, "nothing to measure"
        assert set(precisions) == {"bf16", "fp32"} and "BF16" in name
        return order

    module._facts.cache_clear()
    monkeypatch.setattr(module, "_core", Core)
    monkeypatch.setattr(module, "fastest_first", measured)
    monkeypatch.setattr(module, "_facts", module._facts.__wrapped__)
    builder = OpenVinoBuilder()
    assert builder.precisions() == (*floats, "int8")
    assert builder.hint("int8") == builder.hint(floats[0]) == {"fp32": "f32", "bf16": "bf16"}[floats[0]]


@pytest.mark.skipif("bf16" not in NATIVE, reason="this processor has no native bf16")
def test_bf16_is_close_and_is_bf16(tiny: Any) -> None:
    inputs = tiny.inputs(16, 16)
    expected = tiny.expected(inputs)
    found = load(tiny, precision="bf16").run(inputs)["eps"]
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    print(f"relative error {error:.1e}")
    assert 1e-5 < error < 3e-2


@pytest.mark.parametrize("external", [False, True])
def test_the_second_load_takes_the_compiled_model(make: Make, monkeypatch: pytest.MonkeyPatch, external: bool) -> None:
    tiny = make(external=external)
    cache = tiny.bundle.path.parent / "cache"
    inputs = tiny.inputs()
    first = load(tiny, cache=cache).run(inputs)["eps"]
    assert len(blobs(cache)) == 1
    forbid_compiling(monkeypatch)
    np.testing.assert_array_equal(load(tiny, cache=cache).run(inputs)["eps"], first)
    with pytest.raises(AssertionError, match="compiled"):
        load(tiny, cache=cache).run(tiny.inputs(9, 9))  # another shape is another compiled model
    with pytest.raises(AssertionError, match="compiled"):
        other = replace(tiny.bundle.manifest.graphs["unet"], sha256="0" * 64)
        manifest = replace(tiny.bundle.manifest, graphs={"unet": other})
        load(replace(tiny, bundle=Bundle(tiny.bundle.path, manifest)), cache=cache).run(inputs)


def test_weights_beside_the_graph_are_not_copied_into_compiled_models(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {}
    for external in (False, True):
        tiny = make(f"external-{external}", external=external)
        load(tiny, cache=tiny.bundle.path / "cache").run(tiny.inputs())
        (blob,) = blobs(tiny.bundle.path / "cache")
        sizes[external] = blob.stat().st_size
    assert sizes[False] - sizes[True] > 2000, sizes  # 2.5 kB of weights
    # and a bundle may move after it was compiled
    moved = tiny.bundle.path.rename(tiny.bundle.path.with_name("moved"))
    forbid_compiling(monkeypatch)
    there = replace(tiny, bundle=Bundle(moved, tiny.bundle.manifest))
    assert load(there, cache=moved / "cache").run(there.inputs())["eps"].shape == (1, 4, 8, 8)


@pytest.mark.parametrize("damage", ["flipped", "cut", "foreign contents"])
def test_a_damaged_compiled_model_is_named_and_made_again(
    tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    cache = tmp_path / "cache"
    first = load(tiny, cache=cache).run(tiny.inputs())["eps"]
    (blob,) = blobs(cache)
    whole = blob.read_bytes()
    if damage == "foreign contents":
        write_blob(blob, b"whole, but no model")
    else:
        blob.write_bytes(whole[:500] + b"?" + whole[501:] if damage == "flipped" else whole[:500])
    with caplog.at_level(logging.WARNING, "diffplugin"):
        again = load(tiny, cache=cache).run(tiny.inputs())["eps"]
    np.testing.assert_array_equal(again, first)
    assert blob.name in caplog.text and "compiling unet again" in caplog.text
    forbid_compiling(monkeypatch)
    load(tiny, cache=cache).run(tiny.inputs())  # the new one is sound


def test_a_cache_that_cannot_be_written_costs_no_run(
    tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    with caplog.at_level(logging.WARNING, "diffplugin"):
        load(tiny, cache=tmp_path / "file").run(tiny.inputs())
    assert "compiled model not kept" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_weights_are_not_resident_twice(make: Make, resident: Callable[[Path], int]) -> None:
    tiny = make(external=True)
    data = tiny.bundle.path / "onnx" / "unet.onnx.data"
    mapped = module._core().read_model(tiny.bundle.graph_file("unet"))  # what holds the mapping, as a reader would
    weight = next(op for op in mapped.get_ops() if op.get_type_name() == "Constant" and op.data.size > 100)
    assert weight.data.sum() != 0 and resident(data) > 0
    load(tiny).run(tiny.inputs())
    assert resident(data) == 0


def built(tiny: Any, **changes: str) -> Any:
    """The bundle with an engine built ahead for 8x8, or one that says it was built elsewhere."""
    builder, bundle = OpenVinoBuilder(), tiny.bundle
    about = {"version": builder.version(), "device": builder.device()} | changes
    sha = bundle.graph("unet").sha256
    name = fingerprint(sha, "h=8,w=8", "fp32", "openvino", about["version"], (about["device"],))
    folder = bundle.path / ENGINES / name
    profile = {"h": Range.of(8), "w": Range.of(8)}
    made = builder.build(bundle, "unet", precision="fp32", profile=profile, out=folder, options=BuildOptions())
    assert made is not None
    entry = EngineEntry(
        fingerprint=name,
        engine="openvino",
        precision="fp32",
        shapes="h=8,w=8",
        graph="unet",
        graph_sha256=sha,
        files=tuple(file.relative_to(bundle.path).as_posix() for file in made.files),
        version=about["version"],
        devices=(about["device"],),
    )
    files = list_files(bundle.path)
    return replace(tiny, bundle=Bundle(bundle.path, replace(bundle.manifest, engines=(entry,), files=files)))


def test_an_engine_built_ahead_is_used(tiny: Any, worst: Worst, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = built(tiny)
    forbid_compiling(monkeypatch)
    inputs = ready.inputs()
    assert worst(load(ready).run(inputs)["eps"], ready.expected(inputs)) < 1e-5
    with pytest.raises(AssertionError, match="compiled"):
        load(ready).run(ready.inputs(9, 9))


@pytest.mark.parametrize("changes", [{"version": "1999.1"}, {"device": "another processor"}])
def test_a_foreign_engine_is_named_once_and_not_used(
    make: Make, worst: Worst, caplog: pytest.LogCaptureFixture, changes: dict[str, str]
) -> None:
    foreign = built(make(weights_bytes=2**32), **changes)  # keeps one shape, so that the first is loaded twice
    for path in blobs(foreign.bundle.path):
        path.write_bytes(b"must not be read")
    inputs = foreign.inputs()
    engine = load(foreign)
    with caplog.at_level(logging.WARNING, "diffplugin"):
        for again in (inputs, foreign.inputs(5, 5), inputs):
            assert worst(engine.run(again)["eps"], foreign.expected(again)) < 1e-5
        (said,) = [record.getMessage() for record in caplog.records]
    assert next(iter(changes.values())) in said and "dp-export --prune" in said and "Compiling again" in said


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


def test_another_graph_in_the_file_is_refused(tiny: Any) -> None:
    path, spec = tiny.bundle.graph_file("unet"), tiny.bundle.spec("vae_decoder")
    with pytest.raises(BundleDamaged, match=r"no vae_decoder graph.*expected latents.*expected image"):
        module.compile_graph(path, spec, {"h": 8, "w": 8}, {})


def test_the_builder_names_its_machine() -> None:
    builder = OpenVinoBuilder()
    assert builder.unavailable_reason() is None
    assert builder.version()[:2].isdigit()
    assert "FP32" in builder.device()
    *floats, last = builder.precisions()
    assert last == "int8" and set(floats) <= {"fp32", "bf16"} and "fp32" in floats
    assert builder.hint("int8") == builder.hint(floats[0])


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


def test_int8_without_int8_graphs_names_the_remedy(tiny: Any) -> None:
    with pytest.raises(EngineUnavailable, match="has no int8 graphs; export it with dp-export --precision int8"):
        load(tiny, precision="int8")


# Other devices: this machine has none of Intel's, so that they are refused, and how they would be asked is looked at.


@pytest.mark.parametrize(("device", "target"), [("gpu", "GPU.0"), ("gpu:1", "GPU.1"), ("npu", "NPU"), ("cpu", "CPU")])
def test_a_device_that_is_not_here_is_refused_by_name(device: str, target: str) -> None:
    builder = OpenVinoBuilder(Device.parse(device))
    here = module._core().available_devices
    reason = builder.unavailable_reason()
    assert builder.target == target
    if target in here or target.partition(".")[0] in here:
        assert reason is None
        return
    assert reason is not None and f"finds no device {target} here, only CPU" in reason and "Intel's driver" in reason
    with pytest.raises(EngineUnavailable, match=f"engine openvino: OpenVINO finds no device {target}"):
        choose("openvino", device=device)


def test_threads_are_for_processors(tiny: Any) -> None:
    path = tiny.bundle.graph_file("unet")
    assert "INFERENCE_NUM_THREADS" in module._properties(path, "f32", 2)
    assert module._properties(path, "f16", 2, "GPU.0") == {
        "INFERENCE_PRECISION_HINT": "f16",
        "PERFORMANCE_HINT": "LATENCY",
    }


@pytest.mark.parametrize(
    ("abilities", "precisions"),
    [(["FP32", "FP16", "INT8", "EXPORT_IMPORT"], ("fp16", "fp32", "int8")), (["FP16", "INT8"], ("fp16", "int8"))],
)
def test_precisions_are_what_the_device_says(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, abilities: list[str], precisions: tuple[str, ...]
) -> None:
    """Float16 there needs no graphs of its own: OpenVINO takes the float32 ones."""
    builder = OpenVinoBuilder(Device("gpu"))
    monkeypatch.setattr(OpenVinoBuilder, "_abilities", lambda self: abilities)
    assert builder.precisions() == precisions and builder.hint("fp16") == builder.hint("int8") == "f16"
    assert builder.missing_variant(tiny.bundle, "fp16") is None and builder.variant("fp16") == "fp32"
    assert "has no int8 graphs" in str(builder.missing_variant(tiny.bundle, "int8"))


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
