"""One plugin over one image on a device: encode, SCB, steps, and decoder or change head as one graph that is captured
and replayed.

The loop is that of ``runtime.sampling.loop.sample``: its arithmetic is in the graph ``step``, its bookkeeping in
addresses. Latents and history rotate through buffers that are bound, never copied; the inputs of a request (image,
noise, tokens, time table, step weights) are uploaded into fixed buffers before each launch. So one capture serves any
photo, seed, sampler and prompt of its size, steps and plugin.
"""

from __future__ import annotations

import logging
import threading
import time as clock
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from math import prod

import numpy as np

from diffplugin.engines.device import ALIGNMENT, DeviceContext, DeviceEngine, Driver, allocate, release
from diffplugin.errors import EngineError
from diffplugin.spec import RESIDUALS, Array

_log = logging.getLogger("diffplugin")


@dataclass(frozen=True, kw_only=True)
class CaptureKey:
    """The settings that a stage is captured for.

    Attributes:
        h, w: latent sides.
        batch: timesteps that the SCB takes at once; it runs just before the steps that need it.
        head: the plugin's head ends the stage, with the change of the image; else the decoder, with an image.
    """

    plugin: str
    steps: int
    h: int
    w: int
    batch: int = 1
    head: bool = False

    @property
    def last(self) -> str:
        """The graph that ends the stage."""
        return f"head/{self.plugin}" if self.head else "vae_decoder"


@dataclass(frozen=True, kw_only=True, eq=False)
class StageInputs:
    """The inputs of one restoration, float32.

    Attributes:
        image: [1,3,H,W] in [-1, 1].
        noise: standard normal [1,4,h,w].
        tokens: the plugin's TPB output [1,256,D].
        time: sinusoidal features of the steps [n, F].
        weights: of ``runtime.sampling.loop.step_weights``, one row per step [n, 13].
    """

    image: Array
    noise: Array
    tokens: Array
    time: Array
    weights: Array


@dataclass(frozen=True)
class _Enqueue:
    """One run of a graph: ``moving`` are the addresses that differ from its runs before; the others stay bound."""

    graph: str
    context: DeviceContext
    moving: Mapping[str, int]


class CapturedStage:
    """Stream, contexts, buffers and captured graph of one :class:`CaptureKey`. They are created and released together.

    The first request runs as plain enqueues, which TensorRT needs before a capture; then the graph is captured, and
    every later request is one launch. One request at a time: threads wait for each other.

    Args:
        engine: gives the engine of a graph key ("step", "scb/deblur").

    Attributes:
        plain_reason: why requests run as plain enqueues instead of a graph; None: they do not, or not yet.

    Raises:
        DeviceMemoryFull, EngineError: it cannot be created; everything allocated for it is released.
    """

    def __init__(self, driver: Driver, engine: Callable[[str], DeviceEngine], key: CaptureKey) -> None:
        self.key = key
        self.plain_reason: str | None = None
        self._driver = driver
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._executable: int | None = None
        self._closed = False
        try:
            self._stream = driver.open_stream()
            self._stack.callback(driver.close_stream, self._stream)
            self._make(engine)
        except BaseException:
            release(driver, None, self._stack)
            raise

    def _make(self, engine: Callable[[str], DeviceEngine]) -> None:
        key, factor = self.key, engine("vae_encoder").spec.factor
        sides = {"h": key.h, "w": key.w}
        whole = {"H": key.h * factor, "W": key.w * factor}
        self._contexts: list[DeviceContext] = []

        def context(name: str, sizes: Mapping[str, int]) -> DeviceContext:
            made = engine(name).context(sizes)
            self._stack.callback(made.close)
            self._contexts.append(made)
            return made

        self._step, self._last = context("step", sides), context(key.last, sides | (whole if key.head else {}))
        self._encoder = context("vae_encoder", whole)
        groups = dict.fromkeys(min(key.batch, key.steps - first) for first in range(0, key.steps, key.batch))
        self._scb = {size: context(f"scb/{key.plugin}", {"n": size, **sides}) for size in groups}
        self._allocate()
        self._bind()
        self._program = tuple(self._enqueues())

    def _allocate(self) -> None:
        """Every buffer, once. Names are the step graph's; those that rotate have a number."""
        key, step, scb = self.key, self._step, self._scb[min(self.key.batch, self.key.steps)]
        self._groups = -(-key.steps // key.batch)
        self._rows = {"weights": _row(_bytes(step, "weights")), "time": _row(_bytes(step, "time"))}
        self._rows |= {"scb_time": _row(_bytes(scb, "time"))}
        self._slice = _bytes(step, RESIDUALS[1])
        if key.batch > 1 and self._slice % ALIGNMENT:
            raise EngineError(f"scb/{key.plugin}: residuals of {self._slice} bytes cannot be cut out of a batch")
        image, latent = _bytes(self._encoder, "image"), _bytes(step, "latents")
        sizes = {"image": image, "tokens": _bytes(step, "tokens")}
        rotating = ("latents0", "latents1", "last0", "last1", "x00", "x01", "x02")
        sizes |= dict.fromkeys(("cond", "noise", *rotating), latent)
        sizes |= {name: _bytes(scb, name) for name in RESIDUALS}
        sizes |= {name: key.steps * self._rows[name] for name in ("weights", "time")}
        sizes |= {"scb_time": self._groups * self._rows["scb_time"], "restored": image}
        self._at = {name: allocate(self._driver, self._stack, size) for name, size in sizes.items()}
        self.bytes = sum(sizes.values())
        scratch = max(context.scratch for context in self._contexts)
        if scratch:  # one graph runs at a time: all share it
            address = allocate(self._driver, self._stack, scratch)
            self.bytes += scratch
            for context in self._contexts:
                context.bind_scratch(address, scratch)

    def _bind(self) -> None:
        """Bind the addresses that do not change."""
        at = self._at
        fixed: list[tuple[DeviceContext, dict[str, int]]] = [
            (self._encoder, {"image": at["image"], "cond": at["cond"]}),
            (self._last, {"latents": at[f"latents{(self.key.steps - 1) % 2}"]}),
            (self._last, {"image": at["image"], "cond": at["cond"], "change": at["restored"]})
            if self.key.head
            else (self._last, {"image": at["restored"]}),
            (self._step, {name: at[name] for name in ("cond", "noise", "tokens", RESIDUALS[0])}),
        ]
        entering = {name: at[name] for name in ("tokens", "cond", *RESIDUALS)}
        fixed += [(context, entering) for context in self._scb.values()]
        for context, addresses in fixed:
            for name, address in addresses.items():
                context.bind(name, address)

    def _enqueues(self) -> Iterator[_Enqueue]:
        """The stage from end to end."""
        key, at = self.key, self._at
        yield _Enqueue("vae_encoder", self._encoder, {})
        for group, first in enumerate(range(0, key.steps, key.batch)):
            size = min(key.batch, key.steps - first)
            moving = {"time": at["scb_time"] + group * self._rows["scb_time"]}
            yield _Enqueue("scb", self._scb[size], moving)
            for place in range(size):
                yield _Enqueue("step", self._step, self._of_step(first + place, place))
        yield _Enqueue(self.key.last, self._last, {})

    def _of_step(self, i: int, place: int) -> dict[str, int]:
        """Addresses of step ``i``, the ``place``-th of its SCB batch. History that does not exist yet has weight 0:
        the noise stands there, since it is finite."""
        at = self._at

        def before(name: str, back: int, count: int) -> int:
            return at["noise"] if i < back else at[f"{name}{(i - back) % count}"]

        return {
            "latents": before("latents", 1, 2),
            "last": before("last", 1, 2),
            "x0_1": before("x0", 1, 3),
            "x0_2": before("x0", 2, 3),
            "weights": at["weights"] + i * self._rows["weights"],
            "time": at["time"] + i * self._rows["time"],
            **{name: at[name] + place * self._slice for name in RESIDUALS[1:]},
            "next_latents": at[f"latents{i % 2}"],
            "next_last": at[f"last{i % 2}"],
            "next_x0": at[f"x0{i % 3}"],
        }

    @property
    def replays(self) -> bool:
        """Whether requests are launches of the captured graph."""
        return self._executable is not None

    def restore(self, inputs: StageInputs, *, replay: bool = True) -> Array | None:
        """The restored image [1,3,H,W], float32, nominally in [-1, 1], or its change where the head ends the stage;
        None: this object was closed meanwhile.

        Args:
            replay: launch the captured graph, capturing it first if needed; False: plain enqueues.

        Raises:
            EngineError: something failed on the device. Its state is then unknown: close this object.
        """
        with self._lock:
            if self._closed:
                return None
            self._upload(inputs)
            if replay and self._executable is not None:
                self._driver.launch(self._executable, self._stream)
            else:
                for run in self._program:
                    self._enqueue(run)
            restored = np.empty(self._encoder.shape("image"), np.float32)
            self._driver.download(restored, self._at["restored"], self._stream)
            self._driver.synchronize(self._stream)
            if replay and self._executable is None and self.plain_reason is None:
                self._capture()
            return restored

    def seconds(self, inputs: StageInputs) -> dict[str, list[float]]:
        """Seconds of every run by graph, in order, as plain enqueues, each waited for: for measurements."""
        taken: dict[str, list[float]] = {}
        with self._lock:
            if self._closed:
                raise EngineError(f"{self.key}: closed")
            self._upload(inputs)
            self._driver.synchronize(self._stream)
            for run in self._program:
                began = clock.perf_counter()
                self._enqueue(run)
                self._driver.synchronize(self._stream)
                taken.setdefault(run.graph, []).append(clock.perf_counter() - began)
        return taken

    def _enqueue(self, run: _Enqueue) -> None:
        for name, address in run.moving.items():
            run.context.bind(name, address)
        run.context.enqueue(self._stream)

    def _upload(self, inputs: StageInputs) -> None:
        key = self.key
        grouped = np.zeros((self._groups * key.batch, inputs.time.shape[1]), np.float32)
        grouped[: key.steps] = inputs.time
        arrays = {
            "image": inputs.image,
            "noise": inputs.noise,
            "tokens": inputs.tokens,
            "time": _padded(inputs.time, self._rows["time"]),
            "scb_time": _padded(grouped.reshape(self._groups, -1), self._rows["scb_time"]),
            "weights": _padded(inputs.weights, self._rows["weights"]),
        }
        for name, array in arrays.items():
            self._driver.upload(self._at[name], np.ascontiguousarray(array), self._stream)

    def _capture(self) -> None:
        """Record the stage as a graph. If that fails, plain enqueues continue, and ``plain_reason`` has the reason."""
        try:
            self.plain_reason = next(filter(None, (c.capture_blocker(self._stream) for c in self._contexts)), None)
            if self.plain_reason is None:
                graph = self._record()
                try:
                    executable = self._driver.instantiate(graph)
                finally:
                    self._driver.destroy_graph(graph)
                self._stack.callback(self._driver.destroy_executable, executable)
                self._executable = executable
        except EngineError as error:
            self.plain_reason = str(error)
        if self.plain_reason is not None:
            _log.warning("%s: no CUDA graph, plain enqueues instead: %s", self.key, self.plain_reason)

    def _record(self) -> int:
        self._driver.begin_capture(self._stream)
        try:
            for run in self._program:
                self._enqueue(run)
        except BaseException:
            with suppress(EngineError):  # the stream must leave capture; what was recorded is of no use
                self._driver.destroy_graph(self._driver.end_capture(self._stream))
            raise
        return self._driver.end_capture(self._stream)

    def close(self) -> None:
        """Release everything, after a running request has ended."""
        with self._lock:
            if self._closed:
                return
            self._closed, self._executable = True, None
            release(self._driver, self._stream, self._stack)


def _bytes(context: DeviceContext, name: str) -> int:
    """Of a float32 tensor."""
    return prod(context.shape(name)) * 4


def _row(size: int) -> int:
    """Bytes from one row of a table to the next, so that every row may be bound."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def _padded(rows: Array, stride: int) -> Array:
    """Rows float32 [n, k] as they lie on the device, [n, stride / 4]."""
    padded = np.zeros((len(rows), stride // 4), np.float32)
    padded[:, : rows.shape[1]] = rows
    return padded


@dataclass(frozen=True)
class Difference:
    """Two results of the same request, bit for bit."""

    values: int
    different: int
    largest: float

    @classmethod
    def between(cls, one: Array, other: Array) -> Difference:
        """Args:
        one, other: float32 arrays of one shape. A NaN is equal to the same NaN.
        """
        unequal = one.view(np.uint32) != other.view(np.uint32)
        largest = float(np.abs(one[unequal] - other[unequal]).max()) if unequal.any() else 0.0
        return cls(one.size, int(unequal.sum()), largest)
