"""The main job: a photo and a request in, the restored photo out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from diffplugin.engines.base import thread_count
from diffplugin.errors import RequestError
from diffplugin.plugins.compounds import compound_table
from diffplugin.runtime.execution.clock import Clock
from diffplugin.runtime.execution.device_loop import DeviceLoop, device_loop
from diffplugin.runtime.execution.engine_pool import EnginePool
from diffplugin.runtime.execution.run import Observer, Run
from diffplugin.runtime.execution.stage import restore_stage
from diffplugin.runtime.photos.mask import Mask, MaskSource, as_mask, compose
from diffplugin.runtime.photos.pixels import Size, crop, from_tensor, grow, resize, to_tensor, with_rgb, working_photo
from diffplugin.runtime.photos.read import Photo, Pixels, photo_from
from diffplugin.runtime.planning.concurrency import memory_share, restorations_at_once
from diffplugin.runtime.planning.memory import Footprint, footprint, kept_bytes
from diffplugin.runtime.planning.plan import (
    MAX_WHOLE_AREAS,
    Options,
    OutputSize,
    Plan,
    Stage,
    Tiling,
    make_plan,
    plan_stages,
)
from diffplugin.runtime.planning.quality import EXACT, Quality
from diffplugin.runtime.planning.tiles import Tile
from diffplugin.runtime.request.encoders import Encoders
from diffplugin.runtime.request.selection import Selection, select, select_named
from diffplugin.runtime.request.tokenizer import validate_prompt
from diffplugin.runtime.restoration import Restoration
from diffplugin.runtime.sampling.noise_schedule import NoiseSchedule
from diffplugin.runtime.sampling.samplers import StepTable, step_table
from diffplugin.runtime.sampling.start_noise import normal
from diffplugin.runtime.sampling.time_features import sinusoidal
from diffplugin.spec import Array

if TYPE_CHECKING:
    import os

    from PIL import Image

    from diffplugin.bundle import Bundle
    from diffplugin.engines.base import EngineBuilder

    Picture = Photo | Image.Image | Pixels | str | os.PathLike[str]

Progress = Callable[[int, int, str], None]  # (UNet runs done, in all, the plugin at work)

_VALUE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}


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
        self._table = compound_table(bundle.path / "plugins")
        cores = thread_count(threads)
        self.concurrency = restorations_at_once(
            concurrency,
            builder,
            cores=cores,
            memory=self._footprint(plan_stages(list(self.cards), self.cards, None, quality)),
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
        image: Picture,
        prompt: str | None = None,
        *,
        plugins: Sequence[str] | None = None,
        seed: int = 42,
        steps: int | None = None,
        sampler: str = "unipc",
        size: Size = "native",
        tile: Tiling = "auto",
        output_size: OutputSize = "input",
        mask: Mask | MaskSource | None = None,
        on_plan: Callable[[Plan, Selection], None] | None = None,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
        observe: Observer | None = None,
    ) -> Restoration:
        """Restore a photo as ``prompt`` asks, or with ``plugins``.

        Args:
            image: a path, Pillow image, uint8 array [H,W], [H,W,3] or [H,W,4], or Photo.
            prompt: the request; the selector chooses plugins for it. Not read where ``plugins`` are named.
            plugins: ids or aliases, run in this order.
            seed: of the start noise; the same numbers as ``torch.Generator("cpu").manual_seed(seed)``.
            steps: of the first plugin; None: its card's (20 as released), or fewer as the quality says. Plugins that
                follow take at most 3.
            sampler: unipc (released), ddim, dpmpp_2m or euler.
            size: working size: "native", "released", N or (width, height) (``runtime.photos.pixels.working_size``).
            tile: "auto", "off" or the side of a piece in pixels (``runtime.planning.plan.make_plan``).
            output_size: "input": the input's size; "working": the size in which it was restored.
            mask: where to restore, white on black: a path, Pillow image or array of any size, or a Mask
                (``runtime.photos.mask``). The rest stays bit for bit. The plugins see the whole picture; what the mask
                does not touch is not run.
            on_plan: called once with the plan and the selection, before the work begins.
            progress: called before the first and after every UNet run.
            cancelled: asked before every graph of the loop, or before every plugin where the plan's loop is "device";
                the run then ends with Cancelled.
            observe: sees intermediate tensors (``runtime.execution.run.Run``); for parity checks. The loop then runs
                from the host, whatever the plan says.

        Raises:
            ImageError: the picture cannot be used.
            RequestError: no such plugin, sampler, size or tile, or neither request nor plugins.
            NotFinite: the engine made no picture.
            Cancelled: ``cancelled`` said so.
            EngineError, BundleError: the bundle cannot run.
        """
        options = Options(
            prompt=prompt,
            plugins=_names(plugins),
            seed=seed,
            steps=steps,
            sampler=sampler,
            size=size,
            tile=tile,
            output_size=output_size,
        )
        clock = Clock()
        with clock("prepare"):
            photo = photo_from(image)
            mask = as_mask(mask, photo.size)
            plan, selection, tokens = self._decide(photo, options, clock, mask)
        if on_plan is not None:
            on_plan(plan, selection)
        if not plan.chain:
            return Restoration(photo=photo, plan=plan, selection=selection, timings=clock.seconds, untouched=True)
        ticks = _Ticks(plan.unet_runs, progress)
        run = Run(
            pool=self._pool,
            clock=clock,
            tiles=plan.tiles,
            factor=self.dims.factor,
            grid=plan.grid or None,
            noise=self._noise(plan.seed, plan.latent_size) if mask is None else self._noise_of_area(plan),
            tick=ticks.tick,
            cancelled=cancelled,
            observe=observe,
        )
        device = self.device if plan.loop == "device" and observe is None else None
        with clock("prepare"):
            working = working_photo(photo, options.size)
            area = plan.area.cut(working.transpose(2, 0, 1)).transpose(1, 2, 0)
            picture = grow(to_tensor(area), plan.padded_size)
        for i, stage in enumerate(plan.chain):
            ticks.begin(stage.plugin)
            if i:  # the release hands an 8-bit picture from plugin to plugin
                picture = to_tensor(from_tensor(picture))
            picture = self._stage(run, stage, picture, plan.sampler, tokens, device)
        with clock("finish"):
            made = from_tensor(crop(picture, area.shape[:2]))
            if mask is None:
                made = resize(made, plan.output_size)
            else:
                before = resize(photo.rgb, plan.output_size)
                made = compose(before, made, (plan.area.top, plan.area.left), working, mask)
            photo = with_rgb(photo, made)
        return Restoration(photo=photo, plan=plan, selection=selection, timings=clock.seconds, untouched=False)

    def plan(
        self,
        image: Picture,
        prompt: str | None = None,
        *,
        plugins: Sequence[str] | None = None,
        mask: Mask | MaskSource | None = None,
        **options: Any,
    ) -> tuple[Plan, Selection]:
        """What :meth:`restore` would run with the same arguments. Runs the selector if it is needed, and no more."""
        complete = Options(prompt=prompt, plugins=_names(plugins), **options)
        photo = photo_from(image)
        plan, selection, _ = self._decide(photo, complete, Clock(), as_mask(mask, photo.size))
        return plan, selection

    def plan_for_size(
        self, photo_size: tuple[int, int], *, plugins: Sequence[str] | None = None, **options: Any
    ) -> Plan:
        """The most that :meth:`restore` may run for any photo of ``photo_size`` (width, height): with ``plugins``, else
        with all of the bundle's. Reads no photo and runs no graph.

        Raises:
            RequestError, ImageError: such a request cannot run.
        """
        complete = Options(plugins=_names(plugins), **options)
        chosen = select_named(complete.plugins or list(self.cards), self.cards).chosen
        step_table(complete.sampler, self._schedule, complete.steps or 1)
        normal(complete.seed, (0,))
        return self._plan(photo_size, complete, chosen)

    def prepare(self, height: int, width: int, *, plugins: Sequence[str] | None = None) -> Plan:
        """Load the engines and run them once as for a picture of ``height`` x ``width`` pixels, so that the first
        restoration takes no longer than those that follow.

        Args:
            plugins: whose engines to load; None: all of the bundle's.

        Returns:
            The plan that such a picture would have with the first of them.

        Raises:
            RequestError: no such plugin.
            BundleError, EngineError: an engine cannot be loaded.
        """
        chosen = select_named(list(self.cards) if plugins is None else plugins, self.cards).chosen
        photo = Photo(rgb=np.zeros((height, width, 3), np.uint8))
        clock = Clock()
        steps: int | None = 1 if self.quality.deep_every == 1 else 2  # the second runs the outermost blocks
        if self.device is not None:  # a graph is captured for a number of steps
            steps = None
        plan, _, _ = self._decide(photo, Options(plugins=chosen[:1], steps=steps), clock)
        if self.bundle.manifest.selector and plugins is None:
            tokens = self._encoders.tokens(photo, self.cards, clock)
            self._encoders.scores("prepare", tokens, list(self.cards), clock)
        else:
            tokens = self._encoders.tokens(photo, chosen, clock)
        piece = Tile(0, 0, plan.tiles[0].height, plan.tiles[0].width)
        run = Run(
            pool=self._pool,
            clock=clock,
            tiles=(piece,),
            factor=self.dims.factor,
            noise=self._noise(0, (piece.width, piece.height)),
        )
        device = self.device if plan.loop == "device" else None
        picture = np.zeros((1, 3, piece.height * self.dims.factor, piece.width * self.dims.factor), np.float32)
        self._stage(run, plan.chain[0], picture, plan.sampler, tokens, device)
        for plugin in chosen:
            self._pool.get(f"scb/{plugin}")
        if device is not None:  # a graph is captured for a plugin, too
            for plugin in chosen[1 : device.kept]:
                stage = self._plan(photo.size, Options(plugins=(plugin,)), (plugin,)).chain[0]
                self._stage(run, stage, picture, plan.sampler, tokens, device)
        return plan

    def _decide(
        self, photo: Photo, options: Options, clock: Clock, mask: Mask | None = None
    ) -> tuple[Plan, Selection, dict[str, Array]]:
        """(plan, selection, prompt tokens by plugin). Every fault of the request shows up here, before any work."""
        known = list(self.cards)
        named = select_named(options.plugins, self.cards) if options.plugins else None
        prompt = "" if named else validate_prompt(options.prompt or "")
        step_table(options.sampler, self._schedule, options.steps or 1)
        normal(options.seed, (0,))
        self._plan(photo.size, options, named.chosen if named else known, mask)
        if named:
            tokens = self._encoders.tokens(photo, named.chosen, clock)
            return self._checked(self._plan(photo.size, options, named.chosen, mask)), named, tokens
        tokens = self._encoders.tokens(photo, known, clock)
        scores = self._encoders.scores(prompt, tokens, known, clock)
        selection = select(scores, known, prompt, self._table)
        if not self._encoders.fits_context(prompt):
            late = f"; only the first {self.dims.context - 2} word pieces of the request were read"
            selection = replace(selection, reason=selection.reason + late)
        return self._checked(self._plan(photo.size, options, selection.chosen, mask)), selection, tokens

    def _checked(self, plan: Plan) -> Plan:
        """The plan, if each of its stages has so many steps."""
        for stage in plan.chain:
            try:
                step_table(plan.sampler, self._schedule, stage.steps, stage.first_t)
            except RequestError as error:
                raise RequestError(f"{stage.plugin}, which starts at t = {stage.first_t}: {error}") from None
        return plan

    def _plan(self, size: tuple[int, int], options: Options, chosen: Sequence[str], mask: Mask | None = None) -> Plan:
        chain = plan_stages(chosen, self.cards, options.steps, self.quality)
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
            quality=self.quality.name,
            engine_sizes=() if self.device is None else self.device.engine_sizes,
            mask=mask,
        )
        return plan if self.device is None else self.device.planned(plan)

    def _footprint(self, chain: Sequence[Stage]) -> Footprint:
        """What a run of this chain needs beyond the engines that are loaded already."""
        graphs = self.bundle.manifest.graphs
        deep = any(len(stage.full_steps) < stage.steps for stage in chain)
        shared = any(len(stage.scb_steps) < stage.steps for stage in chain)
        keys = ["clip_vision", "vae_encoder", "unet", *(["unet_shallow"] if deep else []), "vae_decoder"]
        keys += [f"{kind}/{stage.plugin}" for stage in chain for kind in ("tpb", "scb")]
        weights = {key: graphs[key].weights_bytes for key in keys}
        kept = kept_bytes(self.dims, deep=deep, residuals=shared)
        return footprint(self.dims, weights, bytes_per_value=_VALUE_BYTES.get(self.precision, 4), kept=kept)

    def _noise(self, seed: int, latent_size: tuple[int, int]) -> Array:
        return normal(seed, (1, self.dims.latent_channels, latent_size[1], latent_size[0]))

    def _noise_of_area(self, plan: Plan) -> Array:
        """The whole picture's noise, cut to the area: a mask does not change what is restored inside it."""
        factor, (width, height) = self.dims.factor, plan.working_size
        place = Tile(plan.area.top // factor, plan.area.left // factor, plan.latent_size[1], plan.latent_size[0])
        rows = max(-(-height // factor), place.top + place.height)
        columns = max(-(-width // factor), place.left + place.width)
        return np.ascontiguousarray(place.cut(self._noise(plan.seed, (columns, rows))))

    def _stage(
        self,
        run: Run,
        stage: Stage,
        picture: Array,
        sampler: str,
        tokens: Mapping[str, Array],
        device: DeviceLoop | None,
    ) -> Array:
        table = step_table(sampler, self._schedule, stage.steps, stage.first_t)
        time = self._time(table)
        return restore_stage(run, stage, picture, table=table, time=time, tokens=tokens[stage.plugin], device=device)

    def _time(self, table: StepTable) -> Array:
        """Sinusoidal features [n, F] of a sampler's steps."""
        settings = self.bundle.manifest.time_embedding
        flip, shift = bool(settings["flip_sin_to_cos"]), float(settings["freq_shift"])
        return sinusoidal(table.t, self.dims.time_features, flip_sin_to_cos=flip, freq_shift=shift)


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


def _names(plugins: Sequence[str] | None) -> tuple[str, ...]:
    if plugins is not None and not plugins:
        raise RequestError("plugins is empty: name at least one, or leave it out and give a request")
    return (plugins,) if isinstance(plugins, str) else tuple(plugins or ())
