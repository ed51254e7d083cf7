"""The restorer: takes a photo and a request, returns the restored photo."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack

import numpy as np

from diffplugin.engines.threads import thread_count
from diffplugin.plugins.general_wishes import AUTO
from diffplugin.runtime.execution.clock import Clock
from diffplugin.runtime.execution.device_loop import DeviceLoop, device_loop
from diffplugin.runtime.execution.engine_pool import EnginePool
from diffplugin.runtime.execution.run import Observer, Run
from diffplugin.runtime.frame import restore_frame, start_noise
from diffplugin.runtime.options import OptionFields, RestoreOptions, complete_options
from diffplugin.runtime.photos.mask import Mask, MaskSource, as_mask
from diffplugin.runtime.photos.pixels import working_size
from diffplugin.runtime.photos.read import Photo, PhotoLike, photo_from
from diffplugin.runtime.planning.concurrency import memory_share, restorations_at_once
from diffplugin.runtime.planning.memory import Footprint, memory_shares
from diffplugin.runtime.planning.pieces import MAX_WHOLE_AREAS
from diffplugin.runtime.planning.plan import Plan, Stage, chain_footprint, make_plan, plan_stages
from diffplugin.runtime.planning.quality import EXACT, Quality
from diffplugin.runtime.planning.tiles import Tile
from diffplugin.runtime.progress import Progress, RunCounter
from diffplugin.runtime.request.diagnosis import Finding, diagnose
from diffplugin.runtime.request.encoders import Encoders
from diffplugin.runtime.request.selection import Selection, select_found, select_named
from diffplugin.runtime.request.selector import Selector
from diffplugin.runtime.restoration import Restoration
from diffplugin.runtime.sampling.noise_schedule import NoiseSchedule
from diffplugin.runtime.sampling.start_noise import normal
from diffplugin.runtime.stages import Stages
from diffplugin.spec import Array

if TYPE_CHECKING:
    from diffplugin.bundle import Bundle
    from diffplugin.engines.base import EngineBuilder


class Restorer:
    """A loaded bundle, created by :func:`diffplugin.load`. Engines are loaded when first needed and stay loaded.

    Several threads may use one restorer: every run has its own state.

    Attributes:
        bundle: the loaded bundle.
        engine, precision, reason: the engine and precision in use ("onnxruntime", "fp32"), and why they were chosen.
        quality: how much of the work it does.
        concurrency: restorations that its plans expect to run at once, sharing cores and memory.
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
        fallback: tuple[EngineBuilder, str] | None = None,
    ) -> None:
        self.bundle, self.quality, self._reason = bundle, quality, reason
        self.cards = bundle.cards()
        self.dims = bundle.manifest.dims
        self._schedule = NoiseSchedule.from_config(bundle.manifest.scheduler)
        self.device: DeviceLoop | None = None
        cores = thread_count(threads)
        stages, shares = plan_stages(list(self.cards), self.cards, quality), memory_shares(builder, precision)
        self.concurrency = restorations_at_once(
            concurrency,
            builder,
            cores=cores,
            memory=chain_footprint(bundle.manifest, stages, shares),
            piece=round(MAX_WHOLE_AREAS * self.dims.native_latent**2),
        )
        threads = max(1, cores // self.concurrency) if self.concurrency > 1 else threads
        self._pool = EnginePool(bundle, builder, precision, threads=threads, cache=cache, fallback=fallback)
        self._encoders = Encoders(self._pool)
        self._selector = Selector(self._pool, self._encoders)
        self.device = device_loop(self._pool)
        # a captured stage has the base's own autoencoder
        there = "tiny_decoder" in bundle.manifest.graphs
        self._tiny = quality.tiny_autoencoder and there and self.device is None

    @property
    def engine(self) -> str:
        return self._pool.builder.name

    @property
    def precision(self) -> str:
        return self._pool.precision

    @property
    def reason(self) -> str:
        return self._pool.fallback_reason or self._reason

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
        mask: Mask | MaskSource | None = None,
        on_plan: Callable[[Plan, Selection], None] | None = None,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
        observe: Observer | None = None,
        **options: Unpack[OptionFields],
    ) -> Restoration:
        """Restore a photo, with all its frames, by ``request``. The first frame decides which plugins run.

        Args:
            photo: a path, the bytes of a file, a file object, Pillow image, uint8 array [H,W], [H,W,3] or [H,W,4], or
                Photo.
            request: the words, or complete options; None or "auto": the photo itself says which plugins run, and one
                that needs none stays untouched (:meth:`diagnose`).
            mask: where to restore, white on black: a path, Pillow image or array of any size, or a Mask
                (``runtime.photos.mask``). The rest stays identical, bit for bit. The plugins see the whole photo, but
                only the parts that the mask touches run.
            on_plan: called once with the plan and the selection, before the work begins.
            progress: called before the first and after every UNet run.
            cancelled: called before every graph of the loop, or before every plugin if the plan's loop is "device"; if
                it returns True, the run ends with Cancelled.
            observe: receives intermediate tensors (``runtime.execution.run.Run``); for parity checks. The loop then
                runs from the host, whatever the plan has.
            options: fields of :class:`~diffplugin.runtime.options.RestoreOptions`, in place of those of ``request``.

        Raises:
            ImageError: the photo cannot be used.
            RequestError: the request cannot be understood, or names a plugin that is not in the bundle.
            NotFinite: the engine did not produce a valid picture.
            Cancelled: ``cancelled`` returned True.
            EngineError, BundleError: the bundle cannot run.
        """
        complete = complete_options(request, options)
        clock = Clock()
        with clock("prepare"):
            photo = photo_from(photo)
            mask = as_mask(mask, photo)
            plan, selection, tokens = self._decide(photo, complete, clock, mask)
        if on_plan is not None:
            on_plan(plan, selection)
        if not plan.chain:
            return Restoration(photo=photo, plan=plan, selection=selection, timings=clock.seconds, untouched=True)
        plans = [plan, *(self._plan(frame.size, complete, selection.chosen, mask) for frame in photo.frames)]
        counter = RunCounter(sum(each.unet_runs for each in plans), progress)
        frames: list[Photo] = []
        strength, strengths = complete.strength, []
        for frame, its_plan in zip((photo, *photo.frames), plans, strict=True):
            seen = tokens if frame is photo else self._encoders.tokens(frame, selection.chosen, clock)
            run = self._run(clock, its_plan.tiles, start_noise(its_plan, self.dims), its_plan.grid)
            run = replace(run, tick=counter.tick, cancelled=cancelled, observe=observe)
            stages = self._stages(run, its_plan, seen, counter)
            made, used = restore_frame(
                frame,
                its_plan,
                stages,
                size=complete.size,
                mask=mask,
                strength=strength,
                colour=any(self.cards[stage.plugin].colour for stage in its_plan.chain),
                clock=clock,
                at_full=stages.at_full,
            )
            frames.append(made)
            strengths.append(used)
            if not photo.has_pages:  # "auto" decides once, so that an animation does not flicker
                strength = used
        return Restoration(
            photo=replace(frames[0], frames=tuple(frames[1:])),
            plan=plan,
            selection=selection,
            timings=clock.seconds,
            untouched=False,
            strength=strengths[0],
        )

    def plan(
        self,
        photo: PhotoLike,
        request: str | RestoreOptions | None = None,
        *,
        mask: Mask | MaskSource | None = None,
        **options: Unpack[OptionFields],
    ) -> tuple[Plan, Selection]:
        """The plan that :meth:`restore` would run with the same arguments. Runs only the selector, and only if
        needed.
        """
        photo = photo_from(photo)
        mask = as_mask(mask, photo)
        plan, selection, _ = self._decide(photo, complete_options(request, options), Clock(), mask)
        return plan, selection

    def selections(self, photo: PhotoLike, prompts: Sequence[str]) -> list[Selection]:
        """What the selector chooses for each of several requests in words for one photo, which is encoded once."""
        clock = Clock()
        tokens = self._encoders.tokens(photo_from(photo), self.cards, clock)
        return [self._selector.select(prompt, tokens, clock) for prompt in prompts]

    def diagnose(self, photo: PhotoLike) -> tuple[Finding, ...]:
        """What a photo needs, seen in its first frame: a finding of every task, with probability and strength.

        Raises:
            ImageError: the photo cannot be used.
            RequestError: the bundle has no diagnosis.
        """
        return diagnose(self._pool, photo_from(photo), Clock())

    def plan_for_size(self, size: tuple[int, int], options: RestoreOptions) -> Plan:
        """The most that :meth:`restore` may run for any photo of ``size`` (width, height): with the options' plugins,
        else with all of the bundle's. Reads no photo and runs no graph.

        Raises:
            RequestError, ImageError: the request cannot run.
        """
        return self._plan(size, options, select_named(options.plugins or list(self.cards), self.cards).chosen)

    def prepare(self, size: tuple[int, int], *, plugins: Sequence[str] | None = None) -> Plan:
        """Load the engines and run them once as for a photo of ``size``, so that the first restoration takes no longer
        than later ones.

        Args:
            size: (width, height) in pixels.
            plugins: plugins whose engines are loaded; None: all of the bundle's.

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
        tokens = self._encoders.tokens(photo, chosen, clock)
        if self.bundle.manifest.selector and plugins is None:
            self._selector.select("prepare", tokens, clock)
        if self.bundle.manifest.diagnosis and plugins is None:
            diagnose(self._pool, photo, clock)
        piece = Tile(0, 0, plan.tiles[0].height, plan.tiles[0].width)
        noise = normal(0, (1, self.dims.latent_channels, piece.height, piece.width))
        stages = self._stages(self._run(clock, (piece,), noise), plan, tokens, RunCounter(0, None))
        image = np.zeros((1, 3, piece.height * self.dims.factor, piece.width * self.dims.factor), np.float32)
        stages(plan.chain[0], image)
        for plugin in chosen:
            self._pool.get(f"scb/{plugin}")
            if self.cards[plugin].output == "head":
                self._pool.get(f"head/{plugin}")
        if self.device is not None and plan.loop == "device":  # a graph is captured for a plugin, too
            for plugin in chosen[1 : self.device.kept]:
                stages(self._plan(size, RestoreOptions(plugins=(plugin,)), (plugin,)).chain[0], image)
        return plan

    def _decide(
        self, photo: Photo, options: RestoreOptions, clock: Clock, mask: Mask | None = None
    ) -> tuple[Plan, Selection, dict[str, Array]]:
        """(plan, selection, prompt tokens by plugin)."""
        working_size(*photo.size, options.size)  # refused before anything runs
        tokens = None
        if options.plugins:
            selection = select_named(options.plugins, self.cards)
        elif options.automatic and (self.bundle.manifest.diagnosis or options.prompt == AUTO):
            selection = select_found(diagnose(self._pool, photo, clock), list(self.cards))
        else:
            tokens = self._encoders.tokens(photo, self.cards, clock)
            selection = self._selector.select(options.prompt or "", tokens, clock)
        plan = self._plan(photo.size, options, selection.chosen, mask)
        if tokens is None:
            tokens = self._encoders.tokens(photo, selection.chosen, clock) if selection.chosen else {}
        return plan, selection, tokens

    def _plan(
        self, size: tuple[int, int], options: RestoreOptions, chosen: Sequence[str], mask: Mask | None = None
    ) -> Plan:
        chain = plan_stages(
            chosen, self.cards, self.quality, steps=options.steps, sampler=options.sampler, tiny=self._tiny
        )
        memory = self._footprint(chain)
        plan = make_plan(
            size,
            chain,
            options,
            dims=self.dims,
            memory=memory,
            available=memory_share(memory, self.concurrency) if self.device is None else self.device.free,
            engine=self.engine,
            precision=self.precision,
            quality=self.quality,
            engine_sizes=() if self.device is None else self.device.engine_sizes,
            mask=mask,
        )
        return plan if self.device is None else self.device.planned(replace(plan, fine=()))

    def _footprint(self, chain: Sequence[Stage]) -> Footprint:
        memory = chain_footprint(self.bundle.manifest, chain, memory_shares(self._pool.builder, self.precision))
        # of a device the free memory is its own; the picture stays with the host
        return memory if self.device is None else replace(memory, photo_per_latent_pixel=0)

    def _run(self, clock: Clock, tiles: tuple[Tile, ...], noise: Array, grid: tuple[Tile, ...] = ()) -> Run:
        return Run(pool=self._pool, clock=clock, tiles=tiles, factor=self.dims.factor, noise=noise, grid=grid or None)

    def _stages(self, run: Run, plan: Plan, tokens: Mapping[str, Array], counter: RunCounter) -> Stages:
        return Stages(
            run=run,
            plan=plan,
            tokens=tokens,
            manifest=self.bundle.manifest,
            schedule=self._schedule,
            device=self.device,
            counter=counter,
        )
