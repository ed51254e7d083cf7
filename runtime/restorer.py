"""A photo and a request in, the restored photo out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack

import numpy as np

from diffplugin.engines.base import thread_count
from diffplugin.plugins.compounds import compound_table
from diffplugin.runtime.execution.clock import Clock
from diffplugin.runtime.execution.device_loop import DeviceLoop, device_loop
from diffplugin.runtime.execution.engine_pool import EnginePool
from diffplugin.runtime.execution.run import Observer, Run
from diffplugin.runtime.execution.stage import restore_stage
from diffplugin.runtime.options import OptionFields, RestoreOptions, complete_options
from diffplugin.runtime.photos.pixels import (
    crop,
    from_tensor,
    grow,
    resize,
    to_tensor,
    with_rgb,
    working_photo,
    working_size,
)
from diffplugin.runtime.photos.read import Photo, Pixels, photo_from
from diffplugin.runtime.planning.concurrency import memory_share, restorations_at_once
from diffplugin.runtime.planning.memory import Footprint
from diffplugin.runtime.planning.plan import (
    MAX_WHOLE_AREAS,
    Plan,
    Stage,
    chain_footprint,
    make_plan,
    plan_stages,
)
from diffplugin.runtime.planning.quality import EXACT, Quality
from diffplugin.runtime.planning.tiles import Tile
from diffplugin.runtime.request.encoders import Encoders
from diffplugin.runtime.request.selection import Selection, select, select_named
from diffplugin.runtime.restoration import Restoration
from diffplugin.runtime.sampling.noise_schedule import NoiseSchedule
from diffplugin.runtime.sampling.samplers import step_table
from diffplugin.runtime.sampling.start_noise import normal
from diffplugin.runtime.sampling.time_features import time_features
from diffplugin.spec import Array

if TYPE_CHECKING:
    import os

    from PIL import Image

    from diffplugin.bundle import Bundle
    from diffplugin.engines.base import EngineBuilder

    PhotoLike = Photo | Image.Image | Pixels | str | os.PathLike[str]

Progress = Callable[[int, int, str], None]  # (UNet runs done, in all, the plugin at work)


class Restorer:
    """A loaded bundle. Made by :func:`diffplugin.load`; engines are loaded when first needed and stay.

    One restorer may serve several threads: a run keeps all its state to itself.

    Attributes:
        bundle: what was loaded.
        engine, precision, reason: what runs it ("onnxruntime", "fp32"), and why that one.
        quality: how much of the work it does.
        concurrency: restorations that its plans expect to run at once, each on its part of cores and memory.
        cards: the installed plugins by id, in the order of a chain.
        dims: the model's widths.
        device: the loop on the engines' device; None: they run on the host.
    """

    def __init__(
        self,
        bundle: Bundle,
        builder: EngineBuilder,
        precision: str,
        *,
        reason: str = "",
        threads: int | None = None,
        cache: Path | None = None,
        quality: Quality = EXACT,
        concurrency: int | None = 1,
    ) -> None:
        self.bundle, self.quality = bundle, quality
        self.engine, self.precision, self.reason = builder.name, precision, reason
        self.cards = bundle.cards()
        self.dims = bundle.manifest.dims
        self._schedule = NoiseSchedule.from_config(bundle.manifest.scheduler)
        self._compounds = compound_table(bundle.path / "plugins")
        cores = thread_count(threads)
        self.concurrency = restorations_at_once(
            concurrency,
            builder,
            cores=cores,
            memory=self._footprint(plan_stages(list(self.cards), self.cards, quality)),
            piece=round(MAX_WHOLE_AREAS * self.dims.native_latent**2),
        )
        threads = max(1, cores // self.concurrency) if self.concurrency > 1 else threads
        self._pool = EnginePool(bundle, builder, precision, threads=threads, cache=cache)
        self._encoders = Encoders(self._pool)
        self.device = device_loop(self._pool)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the engines; the restorer cannot be used again."""
        if self.device is not None:
            self.device.close()
        self._pool.close()

    def restore(
        self,
        photo: PhotoLike,
        request: str | RestoreOptions | None = None,
        *,
        on_plan: Callable[[Plan, Selection], None] | None = None,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
        observe: Observer | None = None,
        **options: Unpack[OptionFields],
    ) -> Restoration:
        """Restore a photo as ``request`` says.

        Args:
            photo: a path, Pillow image, uint8 array [H,W], [H,W,3] or [H,W,4], or Photo.
            request: the words, or complete options.
            on_plan: called once with the plan and the selection, before the work begins.
            progress: called before the first and after every UNet run.
            cancelled: asked before every graph of the loop, or before every plugin where the plan's loop is "device";
                the run then ends with Cancelled.
            observe: sees intermediate tensors (``runtime.execution.run.Run``); for parity checks. The loop then runs
                from the host, whatever the plan says.
            options: fields of :class:`~diffplugin.runtime.options.RestoreOptions`, in place of those of ``request``.

        Raises:
            ImageError: the photo cannot be used.
            RequestError: the request cannot be understood, or names a plugin that is not in the bundle.
            NotFinite: the engine made no picture.
            Cancelled: ``cancelled`` said so.
            EngineError, BundleError: the bundle cannot run.
        """
        complete = complete_options(request, options)
        clock = Clock()
        with clock("prepare"):
            photo = photo_from(photo)
            plan, selection, tokens = self._decide(photo, complete, clock)
        if on_plan is not None:
            on_plan(plan, selection)
        if not plan.chain:
            return Restoration(photo=photo, plan=plan, selection=selection, timings=clock.seconds, untouched=True)
        ticks = _Ticks(plan.unet_runs, progress)
        run = self._run(clock, plan.tiles, plan.latent_size, plan.seed)
        run = replace(run, tick=ticks.tick, cancelled=cancelled, observe=observe)
        with clock("prepare"):
            image = grow(to_tensor(working_photo(photo, complete.size)), plan.padded_size)
        device = self.device if plan.loop == "device" and observe is None else None
        for i, stage in enumerate(plan.chain):
            ticks.begin(stage.plugin)
            if i:  # the release hands an 8-bit picture from plugin to plugin
                image = to_tensor(from_tensor(image))
            image = self._restore_stage(run, stage, image, plan.sampler, tokens, device)
        with clock("finish"):
            photo = with_rgb(photo, resize(from_tensor(crop(image, plan.working_size[::-1])), plan.output_size))
        return Restoration(photo=photo, plan=plan, selection=selection, timings=clock.seconds, untouched=False)

    def plan(
        self, photo: PhotoLike, request: str | RestoreOptions | None = None, **options: Unpack[OptionFields]
    ) -> tuple[Plan, Selection]:
        """What :meth:`restore` would run with the same arguments. Runs the selector if it is needed, and no more."""
        plan, selection, _ = self._decide(photo_from(photo), complete_options(request, options), Clock())
        return plan, selection

    def prepare(self, size: tuple[int, int], *, plugins: Sequence[str] | None = None) -> Plan:
        """Load the engines and run them once as for a photo of ``size``, so that the first restoration takes no longer
        than those that follow.

        Args:
            size: (width, height) in pixels.
            plugins: whose engines to load; None: all of the bundle's.

        Returns:
            The plan that such a photo would have with the first of them.

        Raises:
            RequestError: no such plugin.
            BundleError, EngineError: an engine cannot be loaded.
        """
        chosen = select_named(list(self.cards) if plugins is None else plugins, self.cards).chosen
        photo = Photo(rgb=np.zeros((size[1], size[0], 3), np.uint8))
        clock = Clock()
        steps: int | None = 1 if self.quality.deep_every == 1 else 2  # the second runs the outermost blocks
        if self.device is not None:  # a graph is captured for a number of steps
            steps = None
        plan, _, _ = self._decide(photo, RestoreOptions(plugins=chosen[:1], steps=steps), clock)
        if self.bundle.manifest.selector and plugins is None:
            tokens = self._encoders.tokens(photo, self.cards, clock)
            self._encoders.scores("prepare", tokens, list(self.cards), clock)
        else:
            tokens = self._encoders.tokens(photo, chosen, clock)
        piece = Tile(0, 0, plan.tiles[0].height, plan.tiles[0].width)
        run = self._run(clock, (piece,), (piece.width, piece.height), 0)
        device = self.device if plan.loop == "device" else None
        image = np.zeros((1, 3, piece.height * self.dims.factor, piece.width * self.dims.factor), np.float32)
        self._restore_stage(run, plan.chain[0], image, plan.sampler, tokens, device)
        for plugin in chosen:
            self._pool.get(f"scb/{plugin}")
        if device is not None:  # a graph is captured for a plugin, too
            for plugin in chosen[1 : device.kept]:
                stage = self._plan(photo, RestoreOptions(plugins=(plugin,)), (plugin,)).chain[0]
                self._restore_stage(run, stage, image, plan.sampler, tokens, device)
        return plan

    def _decide(self, photo: Photo, options: RestoreOptions, clock: Clock) -> tuple[Plan, Selection, dict[str, Array]]:
        """(plan, selection, prompt tokens by plugin)."""
        working_size(*photo.size, options.size)  # refused before anything runs
        if options.plugins:
            selection = select_named(options.plugins, self.cards)
            plan = self._plan(photo, options, selection.chosen)
            return plan, selection, self._encoders.tokens(photo, selection.chosen, clock)
        known, prompt = list(self.cards), options.prompt or ""
        tokens = self._encoders.tokens(photo, known, clock)
        scores = self._encoders.scores(prompt, tokens, known, clock)
        selection = select(scores, known, prompt, self._compounds, self.bundle.manifest.selector_threshold)
        if not self._encoders.fits_context(prompt):
            late = f"; only the first {self.dims.context - 2} word pieces of the request were read"
            selection = replace(selection, reason=selection.reason + late)
        return self._plan(photo, options, selection.chosen), selection, tokens

    def _plan(self, photo: Photo, options: RestoreOptions, chosen: Sequence[str]) -> Plan:
        chain = plan_stages(chosen, self.cards, self.quality, steps=options.steps, sampler=options.sampler)
        memory = self._footprint(chain)
        plan = make_plan(
            photo.size,
            chain,
            options,
            dims=self.dims,
            memory=memory,
            available=memory_share(memory, self.concurrency) if self.device is None else self.device.free,
            engine=self.engine,
            precision=self.precision,
            quality=self.quality.name,
            engine_sizes=() if self.device is None else self.device.engine_sizes,
        )
        return plan if self.device is None else self.device.planned(plan)

    def _footprint(self, chain: Sequence[Stage]) -> Footprint:
        return chain_footprint(self.bundle.manifest, chain, self.precision)

    def _run(self, clock: Clock, tiles: tuple[Tile, ...], latent_size: tuple[int, int], seed: int) -> Run:
        noise = normal(seed, (1, self.dims.latent_channels, latent_size[1], latent_size[0]))
        return Run(pool=self._pool, clock=clock, tiles=tiles, factor=self.dims.factor, noise=noise)

    def _restore_stage(
        self,
        run: Run,
        stage: Stage,
        image: Array,
        sampler: str,
        tokens: Mapping[str, Array],
        device: DeviceLoop | None,
    ) -> Array:
        table = step_table(sampler, self._schedule, stage.steps, stage.first_t)
        time = time_features(table.t, self.bundle.manifest)
        return restore_stage(run, stage, image, table=table, time=time, tokens=tokens[stage.plugin], device=device)


class _Ticks:
    """Counts UNet runs for a progress callback."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def begin(self, plugin: str) -> None:
        if self._progress is not None:
            self._progress(self._done, self._total, plugin)

    def tick(self, plugin: str) -> None:
        self._done += 1
        self.begin(plugin)
