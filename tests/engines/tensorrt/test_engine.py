"""TensorRT engines over the recording fake: what is called, in which order, and what fails how."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffplugin.bundle import Bundle, list_files
from diffplugin.engines.device import DeviceBuilder, DeviceEngine
from diffplugin.engines.onnxruntime import OnnxRuntimeBuilder
from diffplugin.engines.tensorrt import engine as tensorrt_engine
from diffplugin.engines.tensorrt.engine import TensorRtEngine
from diffplugin.errors import (
    BundleDamaged,
    DeviceMemoryFull,
    EngineError,
    EngineUnavailable,
    ForeignEngine,
    ShapeMismatch,
)
from diffplugin.shapes import Range, full_profile
from diffplugin.spec import DTYPES, Array
from tests.engines.fake_driver import FakeDriver
from tests.engines.fake_tensorrt import SCRATCH, FakeTensorRt, FakeTensorRtBuilder, fake_engines

Load = Callable[[str], TensorRtEngine]


@pytest.fixture
def load(device_bundle: Bundle, driver: FakeDriver, library: FakeTensorRt) -> Load:
    builder = FakeTensorRtBuilder(driver, library)
    return lambda key: builder.load(device_bundle, key, precision="fp32", threads=None, cache=None)


def _inputs(bundle: Bundle, key: str, **sizes: int) -> dict[str, Array]:
    random = np.random.default_rng(0)
    sizes = {"h": 8, "w": 16, "n": 1, "p": len(bundle.cards()), "H": 32, "W": 64} | sizes
    made = {}
    for t in bundle.spec(key).inputs:
        shape = [sizes[axis] if isinstance(axis, str) else axis for axis in t.axes]
        whole = np.full(shape, 7) if t.dtype == "i64" else random.standard_normal(shape)
        made[t.name] = whole.astype(DTYPES[t.dtype])
    return made


def test_it_is_a_device_engine_of_a_device_builder(load: Load, driver: FakeDriver) -> None:
    assert isinstance(load("unet"), DeviceEngine) and isinstance(FakeTensorRtBuilder(driver), DeviceBuilder)
    assert not isinstance(OnnxRuntimeBuilder(), DeviceBuilder)


@pytest.mark.parametrize("key", ["clip_text", "clip_vision", "tpb/derain", "selector", "scb/dehaze", "unet", "step"])
def test_a_plain_run_gives_what_the_graph_gives(
    device_bundle: Bundle, load: Load, driver: FakeDriver, key: str
) -> None:
    inputs = _inputs(device_bundle, key, n=3)
    expected = OnnxRuntimeBuilder().load(device_bundle, key, precision="fp32", threads=1, cache=None).run(inputs)
    engine = load(key)
    found = engine.run(inputs)
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    engine.close()
    assert driver.live() == {}


def test_order_of_calls_of_a_first_run_and_of_one_more(device_bundle: Bundle, load: Load, driver: FakeDriver) -> None:
    engine = load("vae_decoder")
    assert driver.calls == [], "nothing is touched before the first run"
    engine.run(_inputs(device_bundle, "vae_decoder"))
    assert driver.names() == [
        "deserialize", "context", "open_stream", "malloc", "malloc", "malloc", "bind_scratch", "bind", "bind",
        "upload", "enqueue", "download", "synchronize",
    ]  # fmt: skip
    latents, image, scratch = (call[1] for call in driver.calls if call[0] == "malloc")
    assert (latents, image, scratch) == (4 * 8 * 16 * 4, 3 * 32 * 64 * 4, SCRATCH)
    done = len(driver.calls)
    engine.run(_inputs(device_bundle, "vae_decoder"))
    assert driver.names()[done:] == ["upload", "enqueue", "download", "synchronize"]
    done = len(driver.calls)
    engine.close()
    assert driver.names()[done:] == ["synchronize", "free", "free", "free", "close_stream"]


def test_few_shapes_are_kept(device_bundle: Bundle, load: Load, driver: FakeDriver, library: FakeTensorRt) -> None:
    engine = load("vae_decoder")
    for width in (8, 9, 8, 10, 8, 9):
        engine.run(_inputs(device_bundle, "vae_decoder", w=width))
    assert driver.live() == {"memory": 6, "streams": 2}
    assert driver.counted()["context"] == 4, "8 stayed, 9 was made twice"
    assert len(library.created) == 1, "the engine has a range: one for all"


def test_a_foreign_engine_is_named_and_nothing_is_touched(device_bundle: Bundle, driver: FakeDriver) -> None:
    builder = FakeTensorRtBuilder(driver, device="sm_75")
    engine = builder.load(device_bundle, "unet", precision="fp32", threads=None, cache=None)
    with pytest.raises(ForeignEngine, match=r"engine of unet was built .* on sm_89.*; here are .* sm_75.*--prune"):
        engine.run(_inputs(device_bundle, "unet"))
    assert driver.calls == []


def test_sizes_without_an_engine(device_bundle: Bundle, load: Load) -> None:
    engine = load("unet")
    assert engine.has({"h": 8, "w": 32}) and not engine.has({"h": 8, "w": 33})
    with pytest.raises(EngineUnavailable, match=r"no tensorrt-fake fp32 engine of unet for h=8, w=33.*--size"):
        engine.run(_inputs(device_bundle, "unet", w=33))
    with pytest.raises(ShapeMismatch, match="tokens is missing"):
        engine.run({k: v for k, v in _inputs(device_bundle, "unet").items() if k != "tokens"})


def test_a_file_that_the_library_refuses_is_named_with_its_words(
    device_bundle: Bundle, load: Load, library: FakeTensorRt
) -> None:
    library.refuses = True
    with pytest.raises(EngineError, match=r"unet\.engine: tensorrt_fake cannot load it \(Serialization .*device\)$"):
        load("unet").run(_inputs(device_bundle, "unet"))


@pytest.mark.parametrize("fault", ["missing", "other graph"])
def test_damaged_bundles(device_bundle: Bundle, driver: FakeDriver, tmp_path: Path, fault: str) -> None:
    files = {e.graph: e.files for e in device_bundle.manifest.engines}
    swapped = ("engines/none/unet.engine",) if fault == "missing" else files["scb/derain"]
    engines = tuple(replace(e, files=swapped) if e.graph == "unet" else e for e in device_bundle.manifest.engines)
    bundle = replace(device_bundle, manifest=replace(device_bundle.manifest, engines=engines))
    engine = FakeTensorRtBuilder(driver).load(bundle, "unet", precision="fp32", threads=None, cache=None)
    with pytest.raises(BundleDamaged, match=r"unet\.engine: missing" if fault == "missing" else "is no unet graph"):
        engine.run(_inputs(bundle, "unet"))
    assert driver.live() == {}


def test_tensors_of_another_type_are_refused(device_bundle: Bundle, load: Load, library: FakeTensorRt) -> None:
    library.float32 = "HALF"
    with pytest.raises(BundleDamaged, match=r"is no unet engine: latents is FLOAT, expected HALF; time is FLOAT"):
        load("unet").run(_inputs(device_bundle, "unet"))


@pytest.mark.parametrize(("free", "wanted", "kept"), [(2**33, None, 2**31), (2**31, None, 2**29), (2**33, 5, 5)])
def test_weights_are_streamed_where_they_do_not_fit(
    device_bundle: Bundle, free: int, wanted: int | None, kept: int
) -> None:
    driver = FakeDriver(free)
    library = FakeTensorRt(driver)
    library.streamable = 2**31
    builder = FakeTensorRtBuilder(driver, library)
    engine = TensorRtEngine(device_bundle, "vae_decoder", builder, precision="fp32", weights_budget=wanted)
    engine.run(_inputs(device_bundle, "vae_decoder"))
    assert [made.weight_streaming_budget_v2 for made in library.engines] == [kept]


@pytest.mark.parametrize("rtx", [True, False])
@pytest.mark.parametrize("old", [True, False])
def test_tensorrt_with_and_without_runtime_configs(
    device_bundle: Bundle, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, rtx: bool, old: bool
) -> None:
    library = FakeTensorRt(driver, rtx=rtx)
    if old:
        from tests.engines import fake_tensorrt

        def create(engine: Any, strategy: str) -> Any:
            assert strategy == "user"
            return (fake_tensorrt._RtxContext if rtx else fake_tensorrt._Context)(engine)

        monkeypatch.delattr(fake_tensorrt._Engine, "create_runtime_config")
        monkeypatch.setattr(fake_tensorrt._Engine, "create_execution_context", create)
    builder = FakeTensorRtBuilder(driver, library)
    engine = builder.load(device_bundle, "vae_decoder", precision="fp32", threads=None, cache=None)
    assert np.isfinite(engine.run(_inputs(device_bundle, "vae_decoder"))["image"]).all()
    context = engine.context({"h": 8, "w": 8})
    assert context.capture_blocker(1) is None
    library.capturable = False
    why = context.capture_blocker(1)
    assert why is None if not rtx else why is not None and "vae_decoder allocates by itself" in why


@pytest.mark.parametrize("call", ["deserialize", "context", "open_stream", "malloc", "enqueue", "synchronize"])
def test_after_a_failure_nothing_leaks_and_the_next_run_works(
    device_bundle: Bundle, load: Load, driver: FakeDriver, call: str
) -> None:
    inputs, engine = _inputs(device_bundle, "vae_decoder"), load("vae_decoder")
    driver.fail(call, after=1 if call == "malloc" else 0)
    with pytest.raises(EngineError, match=r"out of luck|made to fail|kernel launch failed"):
        engine.run(inputs)
    assert driver.live() == {}
    assert np.isfinite(engine.run(inputs)["image"]).all()


def test_closed(device_bundle: Bundle, load: Load, driver: FakeDriver) -> None:
    engine = load("vae_decoder")
    engine.run(_inputs(device_bundle, "vae_decoder"))
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run(_inputs(device_bundle, "vae_decoder"))
    with pytest.raises(EngineError, match="closed"):
        engine.context({"h": 8, "w": 8})
    assert driver.live() == {}


def test_runs_from_several_threads(device_bundle: Bundle, load: Load) -> None:
    engine = load("vae_decoder")
    pictures = [_inputs(device_bundle, "vae_decoder", w=8 + i % 3) for i in range(6)]
    alone = [engine.run(one)["image"] for one in pictures]
    together: dict[int, Array] = {}

    def work(i: int) -> None:
        for _ in range(3):
            together[i] = engine.run(pictures[i])["image"]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(pictures))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(together[i], one) for i, one in enumerate(alone))


def test_kernels_are_compiled_once_per_machine(device_bundle: Bundle, tmp_path: Path) -> None:
    """Two processes, as it were; then a damaged file, one of another card, and a folder that cannot be written."""

    def compiled(kernels: bytes = b"kernels of this card", cache: Path | None = tmp_path / "cache") -> int:
        driver = FakeDriver()
        library = FakeTensorRt(driver)
        library.kernels = kernels
        builder = FakeTensorRtBuilder(driver, library)
        engine = builder.load(device_bundle, "vae_decoder", precision="fp32", threads=None, cache=cache)
        for width in (8, 9):
            engine.run(_inputs(device_bundle, "vae_decoder", w=width))
        engine.close()
        return driver.counted()["compile"]

    assert [compiled(), compiled()] == [1, 0]
    (file,) = (tmp_path / "cache").iterdir()
    assert file.name.endswith("-sm_89.kernels")
    file.write_bytes(file.read_bytes()[:-5])
    assert [compiled(), compiled()] == [1, 0], "damaged: compiled and written again"
    assert [compiled(b"kernels too"), compiled(b"kernels too"), compiled()] == [1, 0, 0], "what is new is added"
    (tmp_path / "file").write_text("")
    assert compiled(cache=tmp_path / "file" / "cache") == 1
    assert compiled(cache=None) == 0, "without a folder the library has no cache to fill"


def test_what_the_library_says_is_kept_until_it_is_told(library: FakeTensorRt) -> None:
    words = tensorrt_engine.error_log(library)
    severity = library.ILogger.Severity
    for kind, text in ((severity.ERROR, "one\n thing"), (severity.WARNING, "mere"), (severity.VERBOSE, "chatter")):
        words.logger.log(kind, text)
    assert [str(words.error("failed")) for _ in range(2)] == ["failed (one thing)", "failed (it said nothing)"]


@pytest.mark.parametrize("call", ["deserialize", "context"])
def test_memory_that_is_short_is_told_apart(
    device_bundle: Bundle, load: Load, driver: FakeDriver, library: FakeTensorRt, call: str
) -> None:
    library.complaint = "Error Code 2: OutOfMemory (no further information)"
    driver.fail(call)
    with pytest.raises(DeviceMemoryFull, match="OutOfMemory"):
        load("unet").run(_inputs(device_bundle, "unet"))


def test_weights_are_loaded_once_and_leave_with_their_last_context(device_bundle: Bundle, driver: FakeDriver) -> None:
    """Two sizes with an engine each: both while contexts live, then the one used last, then none."""
    profiles = [full_profile(Range.of(h), Range.of(8), device_bundle.manifest.dims, batch=1, plugins=3) for h in (8, 9)]
    engines = fake_engines(device_bundle, profiles)
    bundle = replace(
        device_bundle, manifest=replace(device_bundle.manifest, engines=engines, files=list_files(device_bundle.path))
    )
    library = FakeTensorRt(driver)
    builder = FakeTensorRtBuilder(driver, library)
    engine = builder.load(bundle, "step", precision="fp32", threads=None, cache=None)
    contexts = [engine.context({"h": h, "w": 8}) for h in (8, 9, 8, 9, 8)]
    assert library.created == ["step", "step"] and len(library.engines) == 2
    for context in contexts:
        context.close()
    del contexts, context
    assert len(library.engines) == 1
    engine.context({"h": 9, "w": 8}).close()
    assert len(library.created) == 3 and len(library.engines) == 1, "the one before made room"
    engine.close()
    assert len(library.engines) == 0


def test_the_real_library_refuses_a_broken_file_with_its_own_words(tmp_path: Path) -> None:
    library = pytest.importorskip("tensorrt_rtx", reason="needs the extra [tensorrt-rtx]")
    file = tmp_path / "broken.engine"
    file.write_bytes(b"no engine" * 100)
    with pytest.raises(EngineError, match=r"broken\.engine: tensorrt_rtx cannot load it \(.+\)"):
        tensorrt_engine.deserialize(library, file)


def test_what_is_used_of_the_real_library_is_there() -> None:
    """Names only: none of it can run without a GPU."""
    library = pytest.importorskip("tensorrt_rtx", reason="needs the extra [tensorrt-rtx]")
    used = {
        library.ICudaEngine: "create_execution_context create_runtime_config get_tensor_dtype get_tensor_mode "
        "get_tensor_name get_weight_streaming_automatic_budget num_io_tensors streamable_weights_size "
        "weight_streaming_budget_v2",
        library.IExecutionContext: "execute_async_v3 get_tensor_shape is_stream_capturable set_device_memory "
        "set_input_shape set_tensor_address update_device_memory_size_for_shapes",
        library.IRuntimeConfig: "create_runtime_cache dynamic_shapes_kernel_specialization_strategy "
        "set_execution_context_allocation_strategy set_runtime_cache",
        library.IRuntimeCache: "deserialize serialize",
        library.ExecutionContextAllocationStrategy: "USER_MANAGED",
        library.DynamicShapesKernelSpecializationStrategy: "EAGER",
        library.TensorIOMode: "INPUT OUTPUT",
        library.ILogger.Severity: "INTERNAL_ERROR ERROR",
        library: "Runtime float32 int64",
    }
    missing = [
        f"{kind.__name__}.{name}" for kind, names in used.items() for name in names.split() if not hasattr(kind, name)
    ]
    assert not missing
