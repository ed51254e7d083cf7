"""How a picture is cut: one piece, or overlapping pieces of one shape, together little more than the picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from diffplugin.runtime.options import Tiling, check_tiling
from diffplugin.runtime.planning.area import whole_area
from diffplugin.runtime.planning.engine_sizes import EngineSizes, best_fit, fits, no_fit
from diffplugin.runtime.planning.memory import Footprint
from diffplugin.runtime.planning.tiles import Tile, grid, spans
from diffplugin.spec import ModelDims

# Largest area of a piece, in native areas: beyond it attention explodes. With a native size of 512 px, 768x512 and
# 640x640 with their borders are less.
MAX_WHOLE_AREAS = 1.75
MULTIPLES = (8, 4, 2, 1)  # of a cut side, in latent pixels, the best first: the UNet halves it up to three times
MIN_TILE = 16  # smallest side of a piece, in latent pixels
_SHARED = 5 / 64  # of the native side: 40 of 512 px
_NEAR = 1.02  # times the least work: as good
_SHRINK = 0.8  # from one largest area to the next, where memory is short

Shape = tuple[int, int]  # (height, width), latent pixels


def choose_pieces(
    latent: tuple[int, int], dims: ModelDims, memory: Footprint, available: int | None, tile: Tiling, card: int = 0
) -> tuple[tuple[Tile, ...], str]:
    """(pieces of a picture of ``latent`` (width, height), reason). All have one shape, since an engine may have to be
    compiled for each.

    ``tile="auto"``: one piece if its area is at most ``MAX_WHOLE_AREAS`` and the estimate fits into ``available``
    bytes; else the pieces up to that area that are the least work, or smaller ones that fit into memory. An int: pieces
    with sides of at most so many pixels. ``card``: so many, as a plugin's card says, for "auto".
    """
    whole, factor = (latent[1], latent[0]), dims.factor
    if tile == "off":
        return pieces(latent, whole, dims), "one piece: tiles are off"
    if tile != "auto" or card:
        side = asked_side(card if tile == "auto" else tile, factor)
        shape = fitted(latent[1], side, dims), fitted(latent[0], side, dims)
        whose = "its card says" if tile == "auto" else "asked"
        return pieces(latent, shape, dims), f"pieces of {_pixels(shape, factor)}, as {whose}"
    most = MAX_WHOLE_AREAS * dims.native_latent**2
    small = latent[0] * latent[1] <= most
    if small and (available is None or memory.total(latent[0] * latent[1]) <= available):
        return pieces(latent, whole, dims), "one piece"
    made, short = _auto(latent, dims, memory, available)
    reason = "memory" if small or short else f"larger than the model's native {dims.native_size} px"
    return made, f"pieces of {_pixels((made[0].height, made[0].width), factor)}: {reason}"


def pieces(latent: tuple[int, int], shape: Shape, dims: ModelDims) -> tuple[Tile, ...]:
    """Pieces of one shape, or of the picture's sides where those are less, over ``latent`` (width, height)."""
    rows, columns = (
        spans(length, min(side, length), overlap(side, dims))
        for length, side in zip((latent[1], latent[0]), shape, strict=True)
    )
    return grid(rows, columns)


def overlap(side: int, dims: ModelDims) -> int:
    """Latent pixels that neighbours with such sides share at least: a part of the native side, but no more than a
    quarter of their own."""
    return max(1, min(side // 4, round(max(dims.native_latent, MIN_TILE) * _SHARED)))


def fitted(length: int, most: int, dims: ModelDims, multiple: int = MULTIPLES[0]) -> int:
    """The side of as few pieces of ``length`` as there are with sides up to ``most``, no larger than it must be: all of
    it, or a multiple."""
    if length <= most:
        return length
    most = most // multiple * multiple
    shared = overlap(most, dims)
    count = -(-(length - shared) // (most - shared))
    return min(most, -(-(length + (count - 1) * shared) // (count * multiple)) * multiple)


def work(made: Sequence[Tile]) -> int:
    """Latent pixels of all pieces together."""
    return sum(tile.height * tile.width for tile in made)


def estimate(memory: Footprint, made: Sequence[Tile]) -> int:
    """Bytes of a run over these pieces, of one shape."""
    picture = max(tile.top + tile.height for tile in made) * max(tile.left + tile.width for tile in made)
    return memory.total(made[0].height * made[0].width, work(made), picture)


def asked_side(tile: int, factor: int) -> int:
    """Latent pixels of the side of a piece that was asked for in pixels.

    Raises:
        RequestError: less than a piece may have.
    """
    check_tiling(tile, MIN_TILE * factor)
    return tile // factor // MULTIPLES[0] * MULTIPLES[0]


def _pixels(shape: Shape, factor: int) -> str:
    return f"{shape[1] * factor}x{shape[0] * factor} px"


def _auto(
    latent: tuple[int, int], dims: ModelDims, memory: Footprint, available: int | None
) -> tuple[tuple[Tile, ...], bool]:
    """(the pieces of the least work, whether memory made them smaller)."""
    tried: list[tuple[Tile, ...]] = []
    most = MAX_WHOLE_AREAS * max(dims.native_latent, MIN_TILE) ** 2
    while shapes := list(_shapes(latent, int(most), dims)):
        least = min(area for area, _, _ in shapes)
        near = [
            (_is_strip(shape, latent), place, max(shape) / min(shape), shape)
            for area, place, shape in shapes
            if area <= _NEAR * least
        ]
        shape = min(near)[-1]
        tried.append(pieces(latent, shape, dims))
        if available is None or estimate(memory, tried[-1]) <= available:
            return tried[-1], len(tried) > 1
        most *= _SHRINK
    # nothing fits: the least of all; small pieces overlap more, so where all are kept it need not be the smallest
    return min(tried, key=lambda made: estimate(memory, made)), True


def _is_strip(shape: Shape, latent: tuple[int, int]) -> bool:
    """Whether a piece is cut twice as long as wide, or more: it sees less of what is around it than a square."""
    return max(shape) >= 2 * min(shape) and min(shape) < min(latent)


def _shapes(latent: tuple[int, int], most: int, dims: ModelDims) -> Iterator[tuple[int, int, Shape]]:
    """(latent pixels of all pieces together, place of their multiple, shape): for every number of rows, as few columns
    as leave a piece at most ``most`` latent pixels."""
    width, height = latent
    for place, multiple in enumerate(MULTIPLES):
        sides = {fitted(height, side, dims, multiple) for side in range(min(height, MIN_TILE), height + 1)}
        for tall in sides:
            widest = most // tall
            if tall < min(height, MIN_TILE) or widest < min(width, MIN_TILE):
                continue
            wide = fitted(width, widest, dims, multiple)
            rows, columns = (
                len(spans(length, side, overlap(side, dims))) for length, side in ((height, tall), (width, wide))
            )
            yield rows * columns * tall * wide, place, (tall, wide)


def engine_pieces(
    latent: tuple[int, int],
    engine_sizes: Sequence[EngineSizes],
    dims: ModelDims,
    memory: Footprint,
    available: int | None,
    tile: Tiling,
) -> tuple[tuple[int, int], tuple[Tile, ...], str]:
    """(latent padded to a size that an engine accepts, pieces, reason).

    Raises:
        RequestError: no engine takes such a picture.
    """
    factor, largest = dims.factor, max(max(one.h.most, one.w.most) for one in engine_sizes)
    sides: Sequence[int] = range(MIN_TILE, largest + 1, MULTIPLES[0])
    if not isinstance(tile, str):
        sides = [asked_side(tile, factor)]

    def measure(grown: tuple[int, int], side: int) -> tuple[int, int]:
        made = pieces(grown, (side, side), dims)
        return estimate(memory, made), work(made)

    found = list(fits(latent, engine_sizes, sides, measure))
    if tile == "off":
        found = [fit for fit in found if fit.whole]
    elif tile != "auto":
        found = [fit for fit in found if fit.side == sides[0] or (fit.whole and fit.side < sides[0])]
    native = max(dims.native_latent // MULTIPLES[0] * MULTIPLES[0], MIN_TILE)
    fit = best_fit(found, available, native=native, most=MAX_WHOLE_AREAS * dims.native_latent**2)
    if fit is None:
        how = {"off": " as one piece", "auto": ""}.get(str(tile), f" in pieces of {tile} px")
        raise no_fit(f"a picture of {latent[0] * factor}x{latent[1] * factor} px{how}", engine_sizes, factor)
    grown = "" if fit.latent == latent else f" grown to {fit.latent[0] * factor}x{fit.latent[1] * factor} px"
    kind = "one piece" if fit.whole else f"pieces of {fit.side * factor} px"
    made = pieces(fit.latent, (fit.side, fit.side), dims)
    return fit.latent, made, f"{kind}{grown}: what engines were built for"


def engine_border(working: tuple[int, int], border: int, engine_sizes: Sequence[EngineSizes], dims: ModelDims) -> int:
    """As much of a border as the smallest engine that takes the photo in one piece has room for: pieces, or a larger
    engine, would take several times as long. All of it where no engine takes the photo in one piece."""

    def room(one: EngineSizes, border: int) -> bool:
        area = whole_area(working, border, dims.factor)
        return area.height <= one.h.most and area.width <= one.w.most

    taking = [one for one in engine_sizes if room(one, 0)]
    if not taking:
        return border
    smallest = min(taking, key=lambda one: one.h.most * one.w.most)
    return next(found for found in range(border, -1, -dims.factor) if room(smallest, found))
