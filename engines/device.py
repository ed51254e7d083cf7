"""The interface to a device with its own memory: addresses, streams and graphs. It depends on no library."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from math import prod
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from diffplugin.engines.base import Engine
from diffplugin.errors import EngineError
from diffplugin.spec import DTYPES, Array, GraphSpec

if TYPE_CHECKING:
    from diffplugin.bundle import Bundle

_log = logging.getLogger("diffplugin")
ALIGNMENT = 256  # bytes: what a bound address must be a multiple of
_KEPT_SHAPES = 2  # shapes of one graph that keep a context for plain runs


class Driver(Protocol):
    """Memory, streams and graphs of one device. Handles and addresses are integers; streams run their work in order.

    Every call raises EngineError with the call's name, the library's message and the remedy; ``malloc`` raises
    DeviceMemoryFull if memory is short.
    """

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes of the device's memory."""

    def malloc(self, size: int) -> int:
        """Address of ``size`` new bytes, aligned to ``ALIGNMENT``."""

    def free(self, address: int) -> None: ...

    def upload(self, address: int, array: Array, stream: int) -> None:
        """Copy a C-contiguous array to the device. It may be changed as soon as the call returns."""

    def download(self, array: Array, address: int, stream: int) -> None:
        """Fill a C-contiguous array from the device; its values are there once the stream is synchronised."""

    def open_stream(self) -> int: ...

    def close_stream(self, stream: int) -> None: ...

    def synchronize(self, stream: int) -> None:
        """Wait until the stream has done its work; raises any error of that work."""

    def begin_capture(self, stream: int) -> None:
        """From this call on, work given to the stream by this thread is recorded and not run."""

    def end_capture(self, stream: int) -> int:
        """The recorded graph."""

    def instantiate(self, graph: int) -> int:
        """An executable of a graph. The graph may be released afterwards."""

    def launch(self, executable: int, stream: int) -> None: ...

    def destroy_graph(self, graph: int) -> None: ...

    def destroy_executable(self, executable: int) -> None: ...


class DeviceContext(Protocol):
    """A graph ready to run at one set of sizes: bind every address, then enqueue, any number of times.

    Attributes:
        scratch: bytes of working memory that it needs while it runs. Contexts that run one after another may share it.
    """

    scratch: int

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of an input or output."""

    def bind_scratch(self, address: int, size: int) -> None: ...

    def bind(self, name: str, address: int) -> None:
        """Set the address of a tensor from the next ``enqueue`` on."""

    def enqueue(self, stream: int) -> None:
        """Give one run to the stream, with the presently bound addresses."""

    def capture_blocker(self, stream: int) -> str | None:
        """None if ``enqueue`` may be captured once it has run, else the reason."""

    def close(self) -> None: ...


class DeviceEngine(Engine):
    """An engine that can also run on addresses. With arrays it runs through :class:`PlainRuns`."""

    def __init__(self, spec: GraphSpec, precision: str, driver: Callable[[], Driver]) -> None:
        super().__init__(spec, precision)
        self._plain = PlainRuns(driver, spec)

    def _run(self, inputs: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
        return self._plain.run(self, inputs, sizes)

    def _release(self) -> None:
        self._plain.close()

    @abstractmethod
    def has(self, sizes: Mapping[str, int]) -> bool:
        """Whether there is an engine for these sizes of the free input axes.

        Raises:
            ForeignEngine: there is one, but not for this machine.
        """

    @abstractmethod
    def context(self, sizes: Mapping[str, int]) -> DeviceContext:
        """A new context. Its engine stays in memory as long as it does.

        Raises:
            EngineError, BundleError: there is no engine for these sizes, or it cannot be loaded.
        """


@runtime_checkable
class DeviceBuilder(Protocol):
    """An engine builder whose engines are device engines."""

    def driver(self) -> Driver: ...


@runtime_checkable
class OwnGraphs(Protocol):
    """An engine builder that itself decides what a bundle must have for it."""

    def missing_variant(self, bundle: Bundle | None, precision: str) -> str | None:
        """None: the bundle, if there is one yet, has graphs for this precision. Else what it lacks, and the remedy."""


@runtime_checkable
class OwnMemory(Protocol):
    """An engine builder whose device has its own memory."""

    def too_small_reason(self, bundle: Bundle) -> str | None:
        """None if the device can hold the parts of the bundle that a photo needs, else the reason and the remedy. Loads
        nothing.
        """


@runtime_checkable
class OwnShares(Protocol):
    """An engine builder whose engines take another amount of memory than ONNX Runtime."""

    def memory_shares(self, precision: str) -> tuple[float, float, float]:
        """Memory of (weights, the UNet at work, the autoencoder at work), relative to float32 in ONNX Runtime."""


def allocate(driver: Driver, stack: ExitStack, size: int) -> int:
    """Address of new memory that ``stack`` frees."""
    address = driver.malloc(size)
    stack.callback(driver.free, address)
    return address


def release(driver: Driver, stream: int | None, stack: ExitStack) -> None:
    """Release everything that ``stack`` holds, once the stream has done its work.

    A failed release is logged and not raised: the error that caused it says more, and after most such errors the
    process has lost the device.
    """
    if stream is not None:
        with suppress(EngineError):  # what went wrong in the stream has been raised where it was waited for
            driver.synchronize(stream)
    try:
        stack.close()
    except EngineError as error:
        _log.warning("not all of the device's memory was given back: %s", error)


class _PlainRun:
    """One graph at one set of sizes with its own buffers."""

    def __init__(self, driver: Driver, spec: GraphSpec, context: DeviceContext) -> None:
        self._driver, self._spec, self._context = driver, spec, context
        self._stack = ExitStack()
        self._stack.callback(context.close)
        try:
            self._stream = driver.open_stream()
            self._stack.callback(driver.close_stream, self._stream)
            self._addresses = {
                t.name: allocate(driver, self._stack, prod(context.shape(t.name)) * DTYPES[t.dtype].itemsize)
                for t in (*spec.inputs, *spec.outputs)
            }
            if context.scratch:
                context.bind_scratch(allocate(driver, self._stack, context.scratch), context.scratch)
            for name, address in self._addresses.items():
                context.bind(name, address)
        except BaseException:
            release(driver, None, self._stack)
            raise

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        driver, stream = self._driver, self._stream
        for name, array in inputs.items():
            driver.upload(self._addresses[name], np.ascontiguousarray(array), stream)
        self._context.enqueue(stream)
        outputs = {t.name: np.empty(self._context.shape(t.name), DTYPES[t.dtype]) for t in self._spec.outputs}
        for name, array in outputs.items():
            driver.download(array, self._addresses[name], stream)
        driver.synchronize(stream)
        return outputs

    def close(self) -> None:
        release(self._driver, self._stream, self._stack)


class PlainRuns:
    """``Engine.run`` of a device engine: upload arrays, one enqueue, download arrays; few shapes are kept."""

    def __init__(self, driver: Callable[[], Driver], spec: GraphSpec) -> None:
        self._driver, self._spec = driver, spec
        self._runs: OrderedDict[tuple[tuple[str, int], ...], _PlainRun] = OrderedDict()

    def run(self, engine: DeviceEngine, inputs: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
        """Outputs of ``engine``. A shape whose run fails is set up again at the next run.

        Raises:
            EngineError: it failed.
        """
        key = tuple(sizes.items())
        if key not in self._runs:
            while len(self._runs) >= _KEPT_SHAPES:
                self._runs.popitem(last=False)[1].close()
            self._runs[key] = _PlainRun(self._driver(), self._spec, engine.context(sizes))
        self._runs.move_to_end(key)
        try:
            return self._runs[key](inputs)
        except BaseException:
            self._runs.pop(key).close()
            raise

    def close(self) -> None:
        while self._runs:
            self._runs.popitem()[1].close()
