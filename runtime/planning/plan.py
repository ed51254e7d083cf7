"""The plan of a run: sizes, tiles, chain, engine, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from diffplugin.errors import RequestError
from diffplugin.manifest import Manifest
from diffplugin.plugins.cards import Output, PluginCard, Start
from diffplugin.runtime.options import RestoreOptions, Tiling, check_tiling
from diffplugin.runtime.photos.mask import Mask
from diffplugin.runtime.photos.pixels import working_size
from diffplugin.runtime.planning.engine_sizes import EngineSizes, best_fit, fits, no_fit
from diffplugin.runtime.planning.memory import PHOTO_BYTES, Footprint, footprint, kept_bytes
from diffplugin.runtime.planning.quality import EXACT, Quality
from diffplugin.runtime.planning.tiles import Tile, plan_tiles
from diffplugin.runtime.sampling.samplers import max_steps
from diffplugin.spec import ModelDims

MAX_WHOLE_AREAS = 1.5  # largest area of a picture that runs whole, in native areas: beyond it attention explodes
MULTIPLE = 8  # sides of tiles, in latent pixels: the UNet halves them three times
MIN_TILE = 16  # smallest side of a tile, in latent pixels
_VALUE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One plugin's run over the picture.

    Attributes:
        first_t: timestep of the first step.
        output: "decoded" or "residual" (``plugins.cards.PluginCard``).
        full_steps: steps that run the whole UNet, the first among them; the others run only its outermost blocks.
        scb_steps: steps whose residuals are computed, the first and the last among them.
        scb_batch: timesteps that the SCB takes at once; more than 1 only on a device.
    """

    plugin: str
    steps: int
    start: Start
    first_t: int
    renoise_from_t: int
    output: Output
    full_steps: tuple[int, ...]
    scb_steps: tuple[int, ...]
    scb_batch: int = 1


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of a run. Sizes are (width, height).

    Attributes:
        input_size: of the input picture, px.
        working_size: the size at which it is restored, px.
        area: the part that runs, px: all of it, or the part that a mask touches with some context.
        padded_size: the area padded to multiples of the autoencoder's factor, or to a size that an engine accepts, px.
        latent_size: padded size / factor.
        output_size: of the output picture, px.
        tiles: pieces of the area in latent pixels, in the order in which they run; one: the whole area.
        grid: all its pieces, if the mask touches only some of them; else empty.
        tiling: why it runs whole or in pieces, for people.
        chain: plugins in order; empty: the picture stays untouched.
        sampler, seed, engine, precision: as used ("auto" resolved).
        quality: name of the quality that the stages follow.
        memory: estimate; compare ``estimated_bytes`` with ``available`` bytes (None: unknown).
        loop: "device": each stage runs completely on the device (``runtime.execution.captured_stage``); "host": graph
            by graph.
        loop_reason: the reason, if the engine could do both.
    """

    input_size: tuple[int, int]
    working_size: tuple[int, int]
    padded_size: tuple[int, int]
    latent_size: tuple[int, int]
    output_size: tuple[int, int]
    tiles: tuple[Tile, ...]
    grid: tuple[Tile, ...] = ()
    area: Tile
    tiling: str
    chain: tuple[Stage, ...]
    sampler: str
    seed: int
    engine: str
    precision: str
    quality: str
    memory: Footprint
    available: int | None
    loop: Literal["host", "device"] = "host"
    loop_reason: str = ""

    @property
    def estimated_bytes(self) -> int:
        """Estimated peak memory."""
        return _estimate(self.memory, self.tiles)

    @property
    def unet_runs(self) -> int:
        """How often the UNet will run, whole or its outermost blocks: steps x tiles, over the chain."""
        return sum(stage.steps for stage in self.chain) * len(self.tiles)

    @property
    def full_unet_runs(self) -> int:
        """How often the whole UNet will run."""
        return sum(len(stage.full_steps) for stage in self.chain) * len(self.tiles)

    @property
    def shallow_unet_runs(self) -> int:
        """How often the UNet's outermost blocks will run alone."""
        return self.unet_runs - self.full_unet_runs

    @property
    def scb_runs(self) -> int:
        """How often an SCB will run."""
        return sum(len(stage.scb_steps) for stage in self.chain) * len(self.tiles)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, texts, lists and tables."""
        counted = ("estimated_bytes", "unet_runs", "full_unet_runs", "shallow_unet_runs", "scb_runs")
        return asdict(self) | {name: getattr(self, name) for name in counted}


def plan_stages(
    chosen: Sequence[str],
    cards: Mapping[str, PluginCard],
    quality: Quality = EXACT,
    *,
    steps: int | None = None,
    sampler: str = "unipc",
) -> tuple[Stage, ...]:
    """The stages of a chain, as released: all steps for the first plugin, few for later ones.

    Args:
        chosen: plugin ids in order.
        quality: decides which steps run everything.
        steps: of the first plugin; those that follow take ``min(steps, card.steps_chained)``. None: the cards', and
            no more than ``quality.steps``.

    Raises:
        RequestError: the sampler cannot take so many steps from where a plugin starts.
    """
    stages = []
    for i, card in enumerate(cards[plugin] for plugin in chosen):
        own = card.steps_chained if i else card.steps_first
        if steps is None:
            own = min(own, quality.steps or own)
        count = own if steps is None else min(steps, own) if i else steps
        if count > (most := max_steps(sampler, card.first_t)):
            raise RequestError(
                f"{card.id}, which starts at t = {card.first_t}: steps is {count}, expected an integer from 1 to {most}"
            )
        stages.append(
            Stage(
                plugin=card.id,
                steps=count,
                start=card.start,
                first_t=card.first_t,
                renoise_from_t=card.renoise_from_t,
                output=card.output,
                full_steps=quality.full_steps(count),
                scb_steps=quality.scb_steps(count),
            )
        )
    return tuple(stages)


def chain_footprint(manifest: Manifest, chain: Sequence[Stage], precision: str) -> Footprint:
    """Memory that a run of this chain needs beyond the engines that are already loaded."""
    deep = any(len(stage.full_steps) < stage.steps for stage in chain)
    shared = any(len(stage.scb_steps) < stage.steps for stage in chain)
    keys = ["clip_vision", "vae_encoder", "unet", *(["unet_shallow"] if deep else []), "vae_decoder"]
    keys += [f"{kind}/{stage.plugin}" for stage in chain for kind in ("tpb", "scb")]
    weights = {key: manifest.graphs[key].weights_bytes for key in keys}
    kept = kept_bytes(manifest.dims, deep=deep, residuals=shared)
    picture = max((PHOTO_BYTES[stage.output] for stage in chain), default=0)
    share = _VALUE_BYTES.get(precision, 4)
    return footprint(manifest.dims, weights, bytes_per_value=share, kept=kept, picture=picture)


def make_plan(
    input_size: tuple[int, int],
    chain: tuple[Stage, ...],
    options: RestoreOptions,
    *,
    dims: ModelDims,
    memory: Footprint,
    available: int | None,
    engine: str,
    precision: str,
    quality: str = EXACT.name,
    engine_sizes: Sequence[EngineSizes] = (),
    mask: Mask | None = None,
) -> Plan:
    """Decide sizes and tiles.

    ``options.tile="auto"``: one piece where the padded picture's area is at most 1.5 x ``dims.native_size``^2 and the
    estimate fits into ``available`` bytes; else overlapping pieces of the native side or up to that area, whichever is
    the least work; or of the largest smaller side that fits into memory. An int is the side of a piece in pixels.
    Neighbours overlap by at least a quarter of the side, or of the native side if that is less.

    Args:
        engine_sizes: sizes that the engines were built for, if they accept no others. The picture is then padded to one
            of them, or cut into pieces of one.
        mask: only the part that it touches is planned, with context around it.

    Raises:
        RequestError: the tile is smaller than a piece may be, or no engine takes such a photo.
        ImageError: the working size is larger than pictures may be.
    """
    working = working_size(*input_size, options.size)
    factor = dims.factor
    latent = (-(-working[0] // factor), -(-working[1] // factor))
    touched = None if mask is None else mask.touched(*latent)
    area = Tile(0, 0, latent[1], latent[0]) if touched is None else masked_area(touched, dims.native_latent)
    latent = (area.width, area.height)
    if engine_sizes:
        latent, side, why = _engine_side(latent, engine_sizes, dims, memory, available, options.tile)
    else:
        side, why = _tile_side(latent, dims, memory, available, options.tile)
    grid = tiles = _pieces(latent, side, dims)
    if touched is not None:
        inside = area.cut(touched)
        tiles = tuple(tile for tile in grid if tile.cut(inside).any())
        if len(tiles) == 1:  # it is the area then
            area = Tile(area.top + tiles[0].top, area.left + tiles[0].left, tiles[0].height, tiles[0].width)
            latent = (area.width, area.height)
            grid = tiles = (Tile(0, 0, area.height, area.width),)
        why += f"; {len(tiles)} of {len(grid)} touch the mask" if len(tiles) < len(grid) else "; what the mask touches"
    return Plan(
        input_size=input_size,
        working_size=working,
        area=area.scaled(factor).clipped(working[1], working[0]),
        grid=grid if len(grid) > len(tiles) else (),
        padded_size=(latent[0] * factor, latent[1] * factor),
        latent_size=latent,
        output_size=input_size if options.output_size == "input" else working,
        tiles=tiles,
        tiling=why if len(tiles) > 1 or isinstance(options.tile, str) else "one piece: it fits into one tile",
        chain=chain,
        sampler=options.sampler,
        seed=options.seed,
        engine=engine,
        precision=precision,
        quality=quality,
        memory=memory,
        available=available,
    )


def masked_area(touched: NDArray[np.bool_], native: int) -> Tile:
    """The rectangle of latent pixels that runs for a mask: its bounding box with an eighth of the native side around
    it as context, at least half the native side long where the photo is, in multiples of ``MULTIPLE``.

    Args:
        touched: bool [h, w], with at least one True.
        native: side of the model's native latent.
    """
    spans = []
    for axis, length in enumerate(touched.shape):
        there = np.flatnonzero(touched.any(1 - axis))
        first, last = int(there[0]), int(there[-1]) + 1
        side = min(length, max(last - first + native // 8 * 2, native // 2))
        start = min(max(0, (first + last - side) // 2), length - side) // MULTIPLE * MULTIPLE
        end = min(length, -(-max(last, start + side) // MULTIPLE) * MULTIPLE)
        spans.append((start, end - start))
    (top, height), (left, width) = spans
    return Tile(top, left, height, width)


def _estimate(memory: Footprint, tiles: Sequence[Tile]) -> int:
    """Bytes of a run over these pieces, of one size."""
    together = sum(tile.height * tile.width for tile in tiles)
    picture = max(tile.top + tile.height for tile in tiles) * max(tile.left + tile.width for tile in tiles)
    return memory.total(tiles[0].height * tiles[0].width, together, picture)


def _pieces(latent: tuple[int, int], side: int, dims: ModelDims) -> tuple[Tile, ...]:
    overlap = min(side, max(dims.native_latent, MIN_TILE)) // 4
    return plan_tiles(latent[1], latent[0], side, overlap, multiple=MULTIPLE)


def _tile_side(
    latent: tuple[int, int], dims: ModelDims, memory: Footprint, available: int | None, tile: Tiling
) -> tuple[int, str]:
    """(longest side of a piece in latent pixels, reason)."""
    whole, factor = max(*latent, MULTIPLE), dims.factor
    if tile == "off":
        return whole, "one piece: tiles are off"
    if tile != "auto":
        side = _asked_side(tile, factor)
        return side, f"pieces of {side * factor} px, as asked"
    area = latent[0] * latent[1]
    small = area <= MAX_WHOLE_AREAS * dims.native_latent**2
    if small and (available is None or memory.total(area) <= available):
        return whole, "one piece"
    side = _auto_side(latent, dims, memory, available)
    reason = "memory" if small or side < dims.native_latent else f"larger than the model's native {dims.native_size} px"
    return side, f"pieces of {side * factor} px: {reason}"


def _asked_side(tile: int, factor: int) -> int:
    check_tiling(tile, MIN_TILE * factor)
    return tile // factor // MULTIPLE * MULTIPLE


def _engine_side(
    latent: tuple[int, int],
    engine_sizes: Sequence[EngineSizes],
    dims: ModelDims,
    memory: Footprint,
    available: int | None,
    tile: Tiling,
) -> tuple[tuple[int, int], int, str]:
    """(latent padded to a size that an engine accepts, longest side of a piece, reason)."""
    factor, largest = dims.factor, max(max(one.h.most, one.w.most) for one in engine_sizes)
    sides: Sequence[int] = range(MIN_TILE, largest + 1, MULTIPLE)
    if not isinstance(tile, str):
        sides = [_asked_side(tile, factor)]

    def measure(grown: tuple[int, int], side: int) -> tuple[int, int]:
        pieces = _pieces(grown, side, dims)
        return _estimate(memory, pieces), sum(piece.height * piece.width for piece in pieces)

    found = list(fits(latent, engine_sizes, sides, measure))
    if tile == "off":
        found = [fit for fit in found if fit.whole]
    elif tile != "auto":
        found = [fit for fit in found if fit.side == sides[0] or (fit.whole and fit.side < sides[0])]
    native = max(dims.native_latent // MULTIPLE * MULTIPLE, MIN_TILE)
    fit = best_fit(found, available, native=native, most=MAX_WHOLE_AREAS * dims.native_latent**2)
    if fit is None:
        pieces = {"off": " as one piece", "auto": ""}.get(str(tile), f" in pieces of {tile} px")
        raise no_fit(f"a picture of {latent[0] * factor}x{latent[1] * factor} px{pieces}", engine_sizes, factor)
    grown = "" if fit.latent == latent else f" grown to {fit.latent[0] * factor}x{fit.latent[1] * factor} px"
    kind = "one piece" if fit.whole else f"pieces of {fit.side * factor} px"
    return fit.latent, fit.side, f"{kind}{grown}: what engines were built for"


def _auto_side(latent: tuple[int, int], dims: ModelDims, memory: Footprint, available: int | None) -> int:
    """The side from the native one up to 1.5 native areas whose pieces are the least work; less if memory is short.

    Few different sides, since an engine may have to be compiled for each.
    """
    native = max(dims.native_latent // MULTIPLE * MULTIPLE, MIN_TILE)
    sides = range(MIN_TILE, int(MAX_WHOLE_AREAS**0.5 * native) + 1, MULTIPLE)
    together = {side: sum(t.height * t.width for t in _pieces(latent, side, dims)) for side in sides}
    needed = {side: memory.total(side * side, together[side], latent[0] * latent[1]) for side in sides}
    fitting = [side for side in sides if available is None or needed[side] <= available]
    work = {side: together[side] for side in fitting if side >= native}
    if work:
        return min(work, key=lambda side: (work[side], side))
    # nothing fits: the least of all; small pieces overlap more, so where all are kept it need not be the smallest
    return max(fitting, default=min(sides, key=lambda side: needed[side]))
