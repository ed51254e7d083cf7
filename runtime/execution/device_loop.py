"""Stages that run completely on a device: which ones can, the batches of the SCB, and the captured stages kept."""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from diffplugin.engines.device import ALIGNMENT, DeviceBuilder, DeviceEngine, Driver
from diffplugin.errors import BundleError, DeviceMemoryFull, EngineError
from diffplugin.runtime.execution.captured_stage import CapturedStage, CaptureKey, Difference, StageInputs
from diffplugin.runtime.execution.engine_pool import EnginePool
from diffplugin.runtime.planning.engine_sizes import EngineSizes
from diffplugin.runtime.planning.memory import Footprint
from diffplugin.runtime.planning.plan import Plan, Stage
from diffplugin.runtime.sampling.loop import step_weights
from diffplugin.runtime.sampling.samplers import StepTable
from diffplugin.shapes import parse_shapes
from diffplugin.spec import Array, ModelDims

if TYPE_CHECKING:
    from diffplugin.runtime.execution.run import Run

_log = logging.getLogger("diffplugin")
_CLOSED = "this restorer is closed; load the bundle again"
_KEPT = 4  # captured stages; a chain needs one per plugin
# Of the memory that was free at the start, what the SCB's batch may take.
_SCB_SHARE = 8
# Float32 maps of the SCB's width that one timestep of a batch needs: two residuals, and nine while it runs.
# TensorRT-RTX 1.7 reports, in half precision and for 20 timesteps at 64x64, 8.4 for the embedded model (131 MB) and 6.8
# at Stable Diffusion's widths (716 MB).
_SCB_MAPS = 11


def device_loop(pool: EnginePool) -> DeviceLoop | None:
    """The loop on the device of the pool's engines; None if they have no device."""
    return DeviceLoop(pool, pool.builder.driver()) if isinstance(pool.builder, DeviceBuilder) else None


class DeviceLoop:
    """Captured stages of one bundle, by :class:`CaptureKey`. Safe to share between threads.

    Requests for the same key wait for each other; different ones run at the same time, each with its own stream,
    buffers and contexts. If more than ``kept`` are needed or memory is short, the least recently used idle one is
    released first.

    Attributes:
        kept: the largest number of captured stages.
        replay: False: plain enqueues only.
        compared: None, or a list: then every replay is done again by plain enqueues, and the difference appended.
        free: bytes of device memory that were free when the loop was created; plans use this number.
    """

    def __init__(self, pool: EnginePool, driver: Driver, *, kept: int = _KEPT) -> None:
        self.kept, self.replay = kept, True
        self.compared: list[Difference] | None = None
        self.free, _ = driver.memory()
        self._pool, self._driver = pool, driver
        self._batches: dict[tuple[str, int, int, int], int] = {}
        self._stages: OrderedDict[CaptureKey, CapturedStage] = OrderedDict()
        self._users: Counter[CapturedStage] = Counter()
        self._lock, self._making = threading.Lock(), threading.Lock()
        self._closed = False

    @property
    def engine_sizes(self) -> tuple[EngineSizes, ...]:
        """Latent sides that the bundle's engines accept."""
        bundle, name, precision = self._pool.bundle, self._pool.builder.name, self._pool.precision
        found = (
            parse_shapes(entry.shapes)
            for entry in bundle.manifest.engines
            if (entry.graph, entry.engine, entry.precision) == ("unet", name, precision)
        )
        return tuple(EngineSizes(shapes["h"], shapes["w"]) for shapes in found)

    def planned(self, plan: Plan) -> Plan:
        """The plan, marked as run by this loop, or with the reason why it is not."""
        width, height = plan.latent_size
        reason = self._why_not(plan, height, width)
        if reason is not None:
            return replace(plan, loop="host", loop_reason=reason)
        chain = tuple(replace(s, scb_batch=self._batch(s.plugin, s.steps, height, width)) for s in plan.chain)
        return replace(
            plan,
            chain=chain,
            memory=self._with_batches(plan.memory, chain),
            loop="device",
            loop_reason="each plugin's whole stage as one CUDA graph",
        )

    def _with_batches(self, memory: Footprint, chain: Sequence[Stage]) -> Footprint:
        """The estimate with what the largest batch of SCB timesteps takes, float32."""
        maps = max(stage.scb_batch for stage in chain) * _SCB_MAPS if chain else 0
        batch = 4 * maps * self._pool.bundle.manifest.dims.residual_channels
        return replace(memory, kept_per_latent_pixel=memory.kept_per_latent_pixel + batch)

    def _why_not(self, plan: Plan, height: int, width: int) -> str | None:
        if len(plan.tiles) > 1:
            return f"{len(plan.tiles)} pieces are blended at every step"
        if any(len(stage.full_steps) < stage.steps or len(stage.scb_steps) < stage.steps for stage in plan.chain):
            return f"quality {plan.quality} reuses features between steps"
        factor = self._pool.bundle.manifest.dims.factor
        sides = {"h": height, "w": width}
        whole = {"H": height * factor, "W": width * factor}
        needed = {"step": sides, "vae_encoder": whole}
        for stage in plan.chain:
            needed[f"scb/{stage.plugin}"] = sides | {"n": 1}
            needed |= {f"head/{stage.plugin}": sides | whole} if stage.output == "head" else {"vae_decoder": sides}
        try:
            lacking = [key for key, sizes in needed.items() if not self._engine(key).has(sizes)]
        except BundleError as error:  # it has no graph of this kind
            return str(error)
        return f"the bundle has no engine of {', '.join(lacking)} for latents of {width}x{height}" if lacking else None

    def _engine(self, key: str) -> DeviceEngine:
        engine = self._pool.get(key)
        if not isinstance(engine, DeviceEngine):
            raise EngineError(f"{key}: engine {engine.name} does not run on a device")
        return engine

    def _batch(self, plugin: str, steps: int, height: int, width: int) -> int:
        """Timesteps that the SCB takes at once."""
        asked = (plugin, steps, height, width)
        if asked not in self._batches:
            scb, sides = self._engine(f"scb/{plugin}"), {"h": height, "w": width}
            possible = [n for n in range(1, steps + 1) if scb.has({"n": n, **sides})]
            dims, budget = self._pool.bundle.manifest.dims, self.free // _SCB_SHARE
            self._batches[asked] = scb_batch(steps, possible, height, width, dims, budget)
        return self._batches[asked]

    def restore(
        self, run: Run, stage: Stage, image: Array, *, table: StepTable, time: Array, tokens: Array
    ) -> Array | None:
        """One plugin over one image [1,3,H,W], or the change of it where the stage's output is its head's; None: the
        device has too little free memory.

        It cannot be cancelled after its launch: cancelling is checked before. Its steps are counted at the end.

        Raises:
            Cancelled: the caller stopped the run.
            EngineError: the device failed. The captured stage is released; the next request starts with a new one.
        """
        run.check_cancelled()
        height, width = run.noise.shape[2:]
        weights = [step_weights(table, i, stage.start, stage.renoise_from_t) for i in range(stage.steps)]
        request = StageInputs(image=image, noise=run.noise, tokens=tokens, time=time, weights=np.stack(weights))
        key = CaptureKey(
            plugin=stage.plugin,
            steps=stage.steps,
            h=height,
            w=width,
            batch=stage.scb_batch,
            head=stage.output == "head",
        )
        try:
            restored = self._run(key, request)
        except DeviceMemoryFull as error:
            _log.warning("%s: step by step instead: %s", key, error)
            return None
        for _ in range(stage.steps):
            run.tick(stage.plugin)
        return restored

    def _run(self, key: CaptureKey, request: StageInputs) -> Array:
        while True:
            with self._lease(key) as captured:
                restored = captured.restore(request, replay=self.replay)
                if restored is None:  # it failed in another thread's hands: take a new one
                    continue
                if self.compared is not None and captured.replays:
                    replayed, plain = (captured.restore(request, replay=replay) for replay in (True, False))
                    if replayed is not None and plain is not None:
                        self.compared.append(Difference.between(replayed, plain))
                return restored

    def seconds(self, key: CaptureKey, request: StageInputs) -> dict[str, list[float]]:
        """:meth:`CapturedStage.seconds` of the stage for ``key``."""
        with self._lease(key) as captured:
            return captured.seconds(request)

    @contextmanager
    def _lease(self, key: CaptureKey) -> Iterator[CapturedStage]:
        """The captured stage for a key, which is not evicted while in use. A failed one is closed and removed."""
        captured = self._taken(key) or self._made(key)
        try:
            yield captured
        except BaseException:
            with self._lock:
                if self._stages.get(key) is captured:
                    del self._stages[key]
            captured.close()
            raise
        finally:
            with self._lock:
                self._users[captured] -= 1
                if not self._users[captured]:
                    del self._users[captured]

    def _taken(self, key: CaptureKey) -> CapturedStage | None:
        """The captured stage for a key, if there is one, with its count of users raised by one."""
        with self._lock:
            if self._closed:
                raise EngineError(_CLOSED)
            captured = self._stages.get(key)
            if captured is not None:
                self._stages.move_to_end(key)
                self._users[captured] += 1
            return captured

    def _made(self, key: CaptureKey) -> CapturedStage:
        """A new captured stage for a key, with one user. Only one is created at a time; other requests continue."""
        with self._making:
            if (captured := self._taken(key)) is not None:  # another thread was quicker
                return captured
            self._evict(self.kept - 1)
            try:
                captured = CapturedStage(self._driver, self._engine, key)
            except DeviceMemoryFull:
                if not self._evict(0):
                    raise
                captured = CapturedStage(self._driver, self._engine, key)
            with self._lock:
                closed = self._closed
                if not closed:
                    self._stages[key] = captured
                    self._users[captured] += 1
            if closed:
                captured.close()
                raise EngineError(_CLOSED)
            return captured

    def _evict(self, most: int) -> int:
        """Close idle stages, least recently used first, until ``most`` are left; returns the number released."""
        with self._lock:
            idle = [key for key, captured in self._stages.items() if not self._users[captured]]
            gone = [self._stages.pop(key) for key in idle[: max(0, len(self._stages) - most)]]
        for captured in gone:
            captured.close()
        return len(gone)

    def close(self) -> None:
        """Release everything, after running requests have ended; the loop cannot be used again."""
        with self._lock:
            self._closed = True
            stages = list(self._stages.values())
            self._stages.clear()
        for captured in stages:
            captured.close()


def scb_batch(steps: int, possible: Sequence[int], height: int, width: int, dims: ModelDims, budget: int) -> int:
    """How many of ``steps`` timesteps the SCB takes at once: as many as fit, in batches as even as possible.

    All at once means before the loop; 1 means step by step.

    Args:
        possible: batch sizes that an engine accepts, including 1.
        height, width: latent sides.
        budget: bytes for residuals and working memory of a batch.
    """
    pixels = dims.residual_channels * height * width * 4
    sliceable = pixels % ALIGNMENT == 0  # a step binds its part of a batch's residuals
    for count in range(1, steps):
        batch = -(-steps // count)
        rest = steps - (count - 1) * batch
        fits = sliceable and batch * _SCB_MAPS * pixels <= budget
        if fits and batch in possible and (rest in possible if rest > 0 else False):
            return batch
    return 1
