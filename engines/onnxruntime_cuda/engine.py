"""ONNX Runtime on an NVIDIA GPU, behind the device protocol: a whole photo's stage can run as one CUDA graph.

The requirements of a capture with ONNX Runtime 1.31 were found by running its provider on a recording stand-in for CUDA
(tests/engines/standin):

- one stream for all sessions, since a session's is fixed when it is loaded, and no synchronisation after a run;
- fixed sides: with free ones, host temporaries are copied inside the capture and read again at every replay;
- no memory pattern, else the second run allocates;
- no node on the processor: such a node reads and writes between the GPU's kernels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from diffplugin.engines.base import check_names, one_line
from diffplugin.engines.device import DeviceEngine
from diffplugin.engines.onnxruntime_cuda.driver import OneStream
from diffplugin.engines.onnxruntime_cuda.variants import NAME, missing_cuda_variant, variant_of
from diffplugin.engines.onnxruntime_install import cuda_session, meant
from diffplugin.errors import DeviceMemoryFull, DiffPluginError, EngineError
from diffplugin.spec import DTYPES

if TYPE_CHECKING:
    from diffplugin.bundle import Bundle

_SETTLING = 8  # runs until the arena needs no more
SETTINGS = {  # of the provider, for every graph
    "prefer_nhwc": "1",
    "fuse_conv_bias": "1",
    "use_tf32": "0",
    "arena_extend_strategy": "kSameAsRequested",  # the other one doubles what it takes
}
_FULL = ("Failed to allocate memory", "out of memory", "CUDA failure 2:", "CUDNN_STATUS_ALLOC_FAILED")


class _Session:
    """A graph loaded for one set of sizes. Its stream lives as long as it does."""

    def __init__(self, engine: OnnxRuntimeCudaEngine, sizes: Mapping[str, int]) -> None:
        import onnxruntime as ort

        self._driver = engine.driver
        stream = self._driver.open_stream()
        try:
            self.run: Any = _session(ort, engine, sizes, stream)
        except BaseException:
            self._driver.close_stream(stream)
            raise
        self._stream = stream

    def __del__(self) -> None:
        if (stream := getattr(self, "_stream", None)) is not None:
            self.run = None
            self._driver.close_stream(stream)


def _session(ort: Any, engine: OnnxRuntimeCudaEngine, sizes: Mapping[str, int], stream: int) -> Any:
    options = ort.SessionOptions()
    options.enable_mem_pattern = False
    if engine.fused:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    for axis, size in sizes.items():
        options.add_free_dimension_override_by_name(axis, size)
    given = {**SETTINGS, "device_id": str(engine.driver.device), "user_compute_stream": str(stream)}
    try:
        with engine.reading() as path, engine.driver.lock:  # it copies its weights on the stream
            made = cuda_session(ort, path, options, given)
    except DiffPluginError:
        raise
    except Exception as error:  # the library raises a dozen kinds for one fact
        raise _failure(f"{engine.path}: ONNX Runtime cannot load it", error) from None
    names = (i.name for i in made.get_inputs()), (o.name for o in made.get_outputs())
    check_names(engine.spec, engine.path, *names)
    return made


def _failure(what: str, error: BaseException) -> EngineError:
    text = one_line(error)
    if any(word in text for word in _FULL):
        wanted = re.search(r"buffer of size (\d+)", text)
        lacking = f"no {wanted[1]} bytes left" if wanted else "no memory left"
        return DeviceMemoryFull(
            f"{what}: {lacking} on the device; take a smaller photo or tile, or stop other programs on the device"
        )
    return EngineError(f"{what} ({meant(error)})")


class OnnxRuntimeCudaContext:
    """A session at fixed sizes, and the addresses that are bound to it."""

    scratch = 0  # ONNX Runtime keeps its working memory itself

    def __init__(self, engine: OnnxRuntimeCudaEngine, sizes: Mapping[str, int]) -> None:
        self._engine = engine
        self._session: _Session | None = engine.session(sizes)
        self._io = self._session.run.io_binding()
        spec, every = engine.spec, engine.sizes(sizes)
        self._shapes = {t.name: tuple(_side(axis, every) for axis in t.axes) for t in (*spec.inputs, *spec.outputs)}
        self._bind = {t.name: (self._io.bind_input, DTYPES[t.dtype].type) for t in spec.inputs}
        self._bind |= {t.name: (self._io.bind_output, DTYPES[t.dtype].type) for t in spec.outputs}

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def bind_scratch(self, address: int, size: int) -> None:
        """It has none."""

    def bind(self, name: str, address: int) -> None:
        bind, kind = self._bind[name]
        bind(name, "cuda", self._engine.driver.device, kind, list(self._shapes[name]), address)

    def enqueue(self, stream: int) -> None:
        if self._session is None:
            raise EngineError(f"{self._engine.spec.graph}: this context is closed")
        with self._engine.driver.lock:
            try:
                self._session.run.run_with_iobinding(self._io, self._engine.run_options)
            except Exception as error:
                raise _failure(f"{self._engine.spec.graph}: ONNX Runtime failed", error) from None

    def capture_blocker(self, stream: int) -> str | None:
        """None once a trial run allocates nothing, because an allocation ends a capture.

        The arena places requests into its free memory as they come. With all of it free at the start, a second run may
        place them differently from the first and need more. A run that allocated nothing repeats in the same way from
        then on.
        """
        if self._engine.capture_blocker is not None:
            return self._engine.capture_blocker
        for _ in range(_SETTLING):
            if self._records(stream):
                return None
            self.enqueue(stream)
            self._engine.driver.synchronize(stream)
        return f"{self._engine.spec.graph}: ONNX Runtime still allocates after {_SETTLING} runs"

    def _records(self, stream: int) -> bool:
        """Whether a run can be captured; the capture is discarded."""
        driver, recorded = self._engine.driver, True
        driver.begin_capture(stream)
        try:
            self.enqueue(stream)
        except EngineError:
            recorded = False
        try:
            driver.destroy_graph(driver.end_capture(stream))
        except EngineError:
            recorded = False
        return recorded

    def close(self) -> None:
        self._bind, self._io, self._session = {}, None, None


def _side(axis: int | str, sizes: Mapping[str, int]) -> int:
    """A number; a name; or a name and one more (``p+1``)."""
    if isinstance(axis, int):
        return axis
    name, _, more = axis.partition("+")
    return sizes[name] + int(more or 0)


class OnnxRuntimeCudaEngine(DeviceEngine):
    """One graph, loaded separately for every set of sizes of its contexts, and kept while such a context exists.

    Attributes:
        driver: shared by all engines of a bundle.
        path, reading: the graph's file, and the context manager that keeps it unchanged while it is loaded.
        fused: the graph is in this engine's form; the provider then runs all of it.
        capture_blocker: why it can only be enqueued; None: it may be captured.

    Raises:
        BundleError: the bundle has no such graph.
    """

    name = NAME

    def __init__(self, bundle: Bundle, key: str, driver: OneStream, precision: str) -> None:
        import onnxruntime as ort

        super().__init__(bundle.spec(key), precision, lambda: driver)
        lacking = missing_cuda_variant(bundle, precision)
        self.path = bundle.graph_file(key, variant_of(bundle, precision))
        self.reading = partial(bundle.reading, key, variant_of(bundle, precision))
        self.driver, self.fused = driver, lacking is None
        self.capture_blocker = lacking
        self.run_options = ort.RunOptions()
        self.run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._factor = bundle.manifest.dims.factor
        self._sessions: WeakValueDictionary[tuple[tuple[str, int], ...], _Session] = WeakValueDictionary()

    def sizes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """Sizes of all free axes, from those of the inputs."""
        every = dict(sizes)
        for latent, pixels in (("h", "H"), ("w", "W")):
            if latent in sizes:
                every[pixels] = sizes[latent] * self._factor
            elif pixels in sizes:
                every[latent] = sizes[pixels] // self._factor
        return every

    def session(self, sizes: Mapping[str, int]) -> _Session:
        """The session for these sizes; it is released with its last user."""
        key = tuple(sorted(sizes.items()))
        with self.driver.lock:
            session = self._sessions.get(key)
            if session is None:
                session = self._sessions[key] = _Session(self, sizes)
            return session

    def has(self, sizes: Mapping[str, int]) -> bool:
        return True

    def context(self, sizes: Mapping[str, int]) -> OnnxRuntimeCudaContext:
        if self._closed:
            raise EngineError(f"{self.spec.graph}: this engine is closed")
        return OnnxRuntimeCudaContext(self, sizes)
