"""TensorRT and TensorRT-RTX engines: one code path over their common API (10.x, 11.x; RTX 1.x)."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping
from functools import cache as cached
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakValueDictionary

import numpy as np

from diffplugin.engines.base import check_names, one_line
from diffplugin.engines.device import DeviceEngine, Driver
from diffplugin.engines.tensorrt.kernel_cache import KernelCache
from diffplugin.errors import BundleDamaged, DeviceMemoryFull, EngineError, EngineUnavailable
from diffplugin.manifest import EngineEntry
from diffplugin.spec import GraphSpec

if TYPE_CHECKING:
    from diffplugin.bundle import Bundle

_log = logging.getLogger("diffplugin")
_MEMORY_WORDS = ("out of memory", "outofmemory", "cudaerrormemoryallocation")  # how TensorRT says so in its log
_SPARE = 2**30  # bytes of device memory to leave free beside weights before they are streamed


class Flavour(Protocol):
    """The part of ``engines.tensorrt.builder.TensorRtBuilder`` that an engine needs."""

    name: str

    def version(self) -> str: ...

    def device(self) -> str: ...

    def library(self) -> Any:
        """The module ``tensorrt`` or ``tensorrt_rtx``."""

    def driver(self) -> Driver: ...


class _Loaded:
    """A deserialised engine: its weights are on the device as long as this object lives."""

    def __init__(self, engine: Any, kernels: KernelCache) -> None:
        self.engine, self.kernels = engine, kernels


class TensorRtEngine(DeviceEngine):
    """One graph: the bundle's engines for it, each deserialised when its sizes are first used.

    An engine stays on the device as long as one of its contexts does; the one used last is kept for the next context.

    Args:
        cache: a folder for kernels that are compiled when an engine first runs; None: they are not kept.
        weights_budget: bytes of weights that stay in device memory if the engine was built for weight streaming; None:
            all if they fit, else the number that TensorRT proposes.

    Raises:
        ForeignEngine: (when used) the engines are for another device, version or graph; nothing was loaded.
        EngineUnavailable: (when used) the bundle has none for these sizes.
        EngineError, BundleDamaged: (when used) it cannot be loaded, or it is not this graph's.
    """

    def __init__(
        self,
        bundle: Bundle,
        key: str,
        flavour: Flavour,
        *,
        precision: str,
        cache: Path | None = None,
        weights_budget: int | None = None,
    ) -> None:
        super().__init__(bundle.spec(key), precision, flavour.driver)
        self.name = flavour.name
        self._bundle, self._key, self._flavour = bundle, key, flavour
        self._cache, self._budget = cache, weights_budget
        self._loaded: WeakValueDictionary[str, _Loaded] = WeakValueDictionary()
        self._last: _Loaded | None = None
        self._loading = threading.Lock()

    def has(self, sizes: Mapping[str, int]) -> bool:
        return self._entry(sizes) is not None

    def context(self, sizes: Mapping[str, int]) -> TensorRtContext:
        entry = self._entry(sizes)
        if entry is None:
            wanted = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
            raise EngineUnavailable(
                f"{self._bundle.path}: no {self.name} {self.precision} engine of {self._key} for {wanted or 'it'}; "
                f"export the bundle again with dp-export --engine {self.name} and this --size"
            )
        with self._loading:
            if self._closed:
                raise EngineError(f"{self.spec.graph}: this engine is closed")
            loaded = self._loaded.get(entry.fingerprint)
            if loaded is None:
                self._last = None  # unless it is in use, its weights make room first
                loaded = self._load(entry)
            self._last = self._loaded[entry.fingerprint] = loaded
        return TensorRtContext(self._flavour.library(), loaded, self.spec, sizes)

    def _entry(self, sizes: Mapping[str, int]) -> EngineEntry | None:
        flavour = self._flavour
        return self._bundle.engine(
            self._key,
            engine=self.name,
            precision=self.precision,
            sizes=sizes,
            version=flavour.version(),
            device=flavour.device(),
        )

    def _load(self, entry: EngineEntry) -> _Loaded:
        if not entry.files:
            raise BundleDamaged(f"{self._bundle.path}: engine {entry.fingerprint} lists no file; export it again")
        path = self._bundle.file(entry.files[0])
        engine = deserialize(self._flavour.library(), path)
        check_engine(self._flavour.library(), engine, self.spec, path)
        self._stream_weights(engine)
        name = f"{entry.fingerprint}-{self._flavour.device()}.kernels"
        return _Loaded(engine, KernelCache(self._cache / name if self._cache is not None else None))

    def _stream_weights(self, engine: Any) -> None:
        """Choose how many bytes of the weights stay on the device, before a context exists."""
        streamable = int(engine.streamable_weights_size)
        if not streamable:
            return
        free, _ = self._flavour.driver().memory()
        whole = streamable if free >= streamable + _SPARE else int(engine.get_weight_streaming_automatic_budget())
        budget = min(streamable, whole if self._budget is None else self._budget)
        engine.weight_streaming_budget_v2 = budget
        if budget < streamable:
            _log.info("%s: %d of %d MiB of weights stay on the device", self._key, budget >> 20, streamable >> 20)

    def _release(self) -> None:
        with self._loading:
            self._last = None
        super()._release()


class TensorRtContext:
    """An execution context at fixed sizes; the caller provides its working memory.

    Raises:
        EngineError: TensorRT cannot create it, or refuses the sizes.
    """

    def __init__(self, library: Any, loaded: _Loaded, spec: GraphSpec, sizes: Mapping[str, int]) -> None:
        self._spec, self._words = spec, error_log(library)
        self._context: Any = self._said(_new_context(library, loaded), "an execution context cannot be made")
        self._loaded: _Loaded | None = loaded  # must outlive its contexts
        for tensor in spec.inputs:
            shape = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in tensor.axes)
            self._said(self._context.set_input_shape(tensor.name, shape), f"{tensor.name} cannot be {shape}")
        self.scratch = int(self._context.update_device_memory_size_for_shapes())

    def _said(self, answer: Any, what: str) -> Any:
        """TensorRT's answer. If it is None or False, raise the error that TensorRT logged."""
        if answer is None or answer is False:
            raise self._words.error(f"{self._spec.graph}: {what}")
        return answer

    def shape(self, name: str) -> tuple[int, ...]:
        shape = tuple(self._context.get_tensor_shape(name))
        if any(side < 0 for side in shape):
            raise EngineError(f"{self._spec.graph}: {name} is {shape}: its shape does not follow from the inputs'")
        return shape

    def bind_scratch(self, address: int, size: int) -> None:
        self._context.set_device_memory(address, size)

    def bind(self, name: str, address: int) -> None:
        self._said(self._context.set_tensor_address(name, address), f"{name} cannot lie at {address:#x}")

    def enqueue(self, stream: int) -> None:
        self._said(self._context.execute_async_v3(stream), "a run cannot be enqueued")

    def capture_blocker(self, stream: int) -> str | None:
        ask = getattr(self._context, "is_stream_capturable", None)  # TensorRT-RTX's; TensorRT says so by failing
        if ask is None or ask(stream):
            return None
        return f"the engine of {self._spec.graph} allocates by itself; build it without --weight-streaming"

    def close(self) -> None:
        if self._loaded is not None:
            self._loaded.kernels.save()
        self._context = self._loaded = None


def _new_context(library: Any, loaded: _Loaded) -> Any:
    """A context without its own working memory. Kernels are chosen before the first run and do not change (by default
    TensorRT-RTX exchanges them in the background, which a captured graph would not see)."""
    engine, strategy = loaded.engine, library.ExecutionContextAllocationStrategy.USER_MANAGED
    if not hasattr(engine, "create_runtime_config"):  # TensorRT before 10.12
        return engine.create_execution_context(strategy)
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(strategy)
    if hasattr(library, "DynamicShapesKernelSpecializationStrategy"):
        config.dynamic_shapes_kernel_specialization_strategy = library.DynamicShapesKernelSpecializationStrategy.EAGER
    loaded.kernels.attach(config)
    return engine.create_execution_context(config)


def deserialize(library: Any, path: Path) -> Any:
    """An engine from its file, which is mapped and not copied.

    Raises:
        BundleDamaged: the file is missing.
        DeviceMemoryFull, EngineError: TensorRT refuses it; its own message is included.
    """
    try:
        data = np.memmap(path, np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise BundleDamaged(f"{path}: cannot be read ({one_line(error)}); export the bundle again") from None
    engine = _runtime(library).deserialize_cuda_engine(data)
    if engine is None:
        raise error_log(library).error(f"{path}: {library.__name__} cannot load it")
    return engine


def check_engine(library: Any, engine: Any, spec: GraphSpec, path: Path) -> None:
    """Refuse an engine whose tensors do not match the contract.

    Raises:
        BundleDamaged: naming both sides.
    """
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    enter = [name for name in names if engine.get_tensor_mode(name) == library.TensorIOMode.INPUT]
    check_names(spec, path, enter, (name for name in names if name not in enter))
    kinds = {"f32": library.float32, "i64": library.int64}
    wrong = [
        f"{t.name} is {engine.get_tensor_dtype(t.name)}, expected {kinds[t.dtype]}"
        for t in (*spec.inputs, *spec.outputs)
        if engine.get_tensor_dtype(t.name) != kinds[t.dtype]
    ]
    if wrong:
        raise BundleDamaged(f"{path}: is no {spec.graph} engine: {'; '.join(wrong)}; export the bundle again")


@cached
def _runtime(library: Any) -> Any:
    return library.Runtime(error_log(library).logger)


class _ErrorLog:
    """Forwards a library's log to this package's log and keeps its last errors, because calls fail without an
    exception.
    """

    def __init__(self, library: Any) -> None:
        errors: deque[str] = deque(maxlen=4)
        serious = (library.ILogger.Severity.INTERNAL_ERROR, library.ILogger.Severity.ERROR)

        class Logger(library.ILogger):  # type: ignore[misc]
            def log(self, severity: Any, message: str) -> None:
                if severity in serious:
                    errors.append(message.strip())
                _log.debug("%s: %s", library.__name__, message)

        self._errors = errors
        self.logger = Logger()

    def error(self, what: str) -> EngineError:
        """The exception for a call that failed, with the last logged error, which is removed."""
        said = " ".join(self._errors.pop().split()) if self._errors else "it said nothing"
        full = any(words in said.lower() for words in _MEMORY_WORDS)
        return (DeviceMemoryFull if full else EngineError)(f"{what} ({said})")


@cached
def error_log(library: Any) -> _ErrorLog:
    """One per library and process: a second runtime would keep the first one's logger anyway."""
    return _ErrorLog(library)
