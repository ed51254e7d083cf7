"""The plan of a run: sizes, tiles, chain, engine, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from diffplugin.errors import RequestError
from diffplugin.manifest import Manifest
from diffplugin.plugins.cards import Output, PluginCard, Start
from diffplugin.runtime.options import RestoreOptions
from diffplugin.runtime.photos.mask import Mask
from diffplugin.runtime.photos.photo import MIN_SIDE
from diffplugin.runtime.photos.pixels import as_released, working_size
from diffplugin.runtime.planning.area import masked_area, touched_cells, whole_area
from diffplugin.runtime.planning.engine_sizes import EngineSizes
from diffplugin.runtime.planning.memory import CARRY_BYTES, PHOTO_BYTES, Footprint, Shares, footprint, kept_bytes
from diffplugin.runtime.planning.pieces import choose_pieces, engine_border, engine_pieces, estimate
from diffplugin.runtime.planning.quality import EXACT, Quality
from diffplugin.runtime.planning.tiles import Tile
from diffplugin.runtime.sampling.samplers import max_steps
from diffplugin.spec import ModelDims

Carry = Literal["picture", "change", "guided"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One plugin's run over the picture.

    Attributes:
        first_t: timestep of the first step.
        output, coring, coring_peak: how the picture is made, and which changes count (``plugins.cards.PluginCard``).
        full_steps: steps that run the whole UNet, the first among them; the others run only its outermost blocks.
        scb_steps: steps whose residuals are computed, the first and the last among them.
        work_size, piece_size, guided, fine: of its card.
        scb_batch: timesteps that the SCB takes at once; more than 1 only on a device.
        tiny: the tiny autoencoder encodes and decodes; the output is then a residual, which hides most of its error,
            or the head's change.
    """

    plugin: str
    steps: int
    start: Start
    first_t: int
    renoise_from_t: int
    output: Output
    coring: int
    coring_peak: int
    full_steps: tuple[int, ...]
    scb_steps: tuple[int, ...]
    scb_batch: int = 1
    work_size: int = 0
    piece_size: int = 0
    guided: bool = False
    fine: bool = False
    tiny: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of a run. Sizes are (width, height).

    Attributes:
        input_size: of the input picture, px.
        working_size: the size at which it is restored, px.
        border: pixels of reflected picture on every side of the photo; what is restored there is cropped off again.
        area: the part that runs, px of the photo: all of it with its border (so it begins at -border), or the part that
            a mask touches with some context; in multiples of the autoencoder's factor, or of a size that an engine
            accepts. What lies beyond the photo is its reflection.
        latent_size: of the area, px / factor.
        output_size: of the output picture, px.
        carry: how the photo gets the result where it is restored at another size: "picture": the result is resized;
            "change": what changed is enlarged and added to the photo; "guided": so by a guided filter.
        tiles: pieces of the area in latent pixels, in the order in which they run; one: the whole area.
        grid: all its pieces, if the mask touches only some of them; else empty.
        fine: pieces of the photo itself with its border, in latent pixels, of which samples are restored; those that
            need it are restored at full size besides (``runtime.fine``). Empty: none, so the copy is all that runs.
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
    latent_size: tuple[int, int]
    output_size: tuple[int, int]
    tiles: tuple[Tile, ...]
    grid: tuple[Tile, ...] = ()
    area: Tile
    border: int = 0
    carry: Carry = "picture"
    fine: tuple[Tile, ...] = ()
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
        pieces = replace(self.memory, photo_per_latent_pixel=0)  # one at a time; the photo is among what is carried
        fine = max((pieces.total(tile.height * tile.width) for tile in self.fine), default=0)
        return max(estimate(self.memory, self.tiles), fine)

    @property
    def unet_runs(self) -> int:
        """How often the UNet will run, whole or its outermost blocks: steps x tiles, over the chain; ``fine`` pieces
        come on top."""
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
    tiny: bool = False,
) -> tuple[Stage, ...]:
    """The stages of a chain, as released: all steps for the first plugin, few for later ones.

    Args:
        chosen: plugin ids in order.
        quality: decides which steps run everything.
        steps: of the first plugin; those that follow take ``min(steps, card.steps_chained)``. None: the cards', and
            no more than ``quality.steps``.
        tiny: with the tiny autoencoder.

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
                output="residual" if tiny and card.output == "decoded" else card.output,
                coring=card.coring,
                coring_peak=card.coring_peak,
                tiny=tiny,
                full_steps=quality.full_steps(count),
                scb_steps=quality.scb_steps(count),
                work_size=card.work_size,
                piece_size=card.piece_size,
                guided=card.guided,
                fine=card.fine,
            )
        )
    return tuple(stages)


def chain_footprint(manifest: Manifest, chain: Sequence[Stage], shares: Shares) -> Footprint:
    """Memory that a run of this chain needs beyond the engines that are already loaded."""
    deep = any(len(stage.full_steps) < stage.steps for stage in chain)
    shared = any(len(stage.scb_steps) < stage.steps for stage in chain)
    autoencoder = "tiny" if any(stage.tiny for stage in chain) else "vae"
    keys = ["clip_vision", "unet", *(["unet_shallow"] if deep else [])]
    keys += [f"{autoencoder}_encoder", f"{autoencoder}_decoder"]
    keys += [f"{kind}/{stage.plugin}" for stage in chain for kind in ("tpb", "scb")]
    keys += [f"head/{stage.plugin}" for stage in chain if stage.output == "head"]
    weights = {key: manifest.graphs[key].weights_bytes for key in keys}
    kept = kept_bytes(manifest.dims, deep=deep, residuals=shared)
    picture = max((PHOTO_BYTES[stage.output] for stage in chain), default=0)
    return footprint(manifest.dims, weights, shares=shares, kept=kept, picture=picture)


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
    quality: Quality = EXACT,
    engine_sizes: Sequence[EngineSizes] = (),
    mask: Mask | None = None,
) -> Plan:
    """Decide sizes and tiles.

    A photo gets a border of its reflection, unless ``options.size`` follows the released scripts: the autoencoder pads
    its convolutions with zeros, which darkens or brightens a frame of as many pixels. Pieces follow ``options.tile``:
    ``runtime.planning.pieces.choose_pieces``.

    Args:
        engine_sizes: sizes that the engines were built for, if they accept no others. The picture is then padded to one
            of them, or cut into pieces of one.
        mask: only the part that it touches is planned, with context around it.

    Raises:
        RequestError: the tile is smaller than a piece may be, or no engine takes such a photo.
        ImageError: the working size is larger than pictures may be.
    """
    working, carry = _working(input_size, chain, options, quality)
    if carry != "picture":
        memory = replace(memory, carried=CARRY_BYTES * input_size[0] * input_size[1])
    factor, border = dims.factor, 0 if as_released(options.size) else dims.border
    if engine_sizes:
        border = engine_border(working, border, engine_sizes, dims)
    touched = None if mask is None else touched_cells(mask, working, border, factor)
    area = whole_area(working, border, factor) if touched is None else masked_area(touched, dims.native_latent)
    latent = (area.width, area.height)
    if engine_sizes:
        latent, tiles, why = engine_pieces(latent, engine_sizes, dims, memory, available, options.tile)
    else:
        card = min((stage.piece_size for stage in chain if stage.piece_size and carry != "picture"), default=0)
        tiles, why = choose_pieces(latent, dims, memory, available, options.tile, card)
    grid = tiles
    if touched is not None:
        inside = area.cut(touched)
        tiles = tuple(tile for tile in grid if tile.cut(inside).any())
        if len(tiles) == 1:  # it is the area then
            area = tiles[0].moved(area.top, area.left)
            latent = (area.width, area.height)
            grid = tiles = (Tile(0, 0, area.height, area.width),)
        why += f"; {len(tiles)} of {len(grid)} touch the mask" if len(tiles) < len(grid) else "; what the mask touches"
    area = Tile(area.top, area.left, latent[1], latent[0]).scaled(factor).moved(-border, -border)
    return Plan(
        input_size=input_size,
        working_size=working,
        area=area,
        border=border,
        carry=carry,
        fine=_fine_pieces(input_size, carry, chain, options, quality, dims, memory, available, border)
        if mask is None and not engine_sizes
        else (),
        grid=grid if len(grid) > len(tiles) else (),
        latent_size=latent,
        output_size=input_size if options.output_size == "input" else working,
        tiles=tiles,
        tiling=why if len(tiles) > 1 or isinstance(options.tile, str) else "one piece: it fits into one tile",
        chain=chain,
        sampler=options.sampler,
        seed=options.seed,
        engine=engine,
        precision=precision,
        quality=quality.name,
        memory=memory,
        available=available,
    )


def _working(
    size: tuple[int, int], chain: Sequence[Stage], options: RestoreOptions, quality: Quality
) -> tuple[tuple[int, int], Carry]:
    """(the size at which a photo is restored, how it gets the result). Of a chain, the plugin that needs the largest
    copy decides, and one that needs the photo itself above all."""
    short = options.work_size if isinstance(options.work_size, int) else 0
    if options.work_size == "auto" and quality.scaled and options.size == "native":
        sizes = [stage.work_size for stage in chain]
        short = max(sizes, default=0) if all(sizes) else 0
    if not short or short >= min(size) or options.output_size == "working":
        return working_size(*size, options.size), "picture"
    width, height = (max(MIN_SIDE, round(side * short / min(size))) for side in size)
    return (width, height), "guided" if all(stage.guided for stage in chain) else "change"


def _fine_pieces(
    size: tuple[int, int],
    carry: Carry,
    chain: Sequence[Stage],
    options: RestoreOptions,
    quality: Quality,
    dims: ModelDims,
    memory: Footprint,
    available: int | None,
    border: int,
) -> tuple[Tile, ...]:
    """Pieces of the photo at full size, for faults that a copy of it may lose; none if the caller chose the copy."""
    if carry == "picture" or not quality.fine or options.work_size != "auto" or not all(stage.fine for stage in chain):
        return ()
    whole = whole_area(size, border, dims.factor)
    one = replace(memory, photo_per_latent_pixel=0)  # they run one after the other
    tile = "auto" if options.tile == "off" else options.tile
    return choose_pieces((whole.width, whole.height), dims, one, available, tile)[0]
