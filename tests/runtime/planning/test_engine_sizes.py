"""Pictures of any size on engines of a few."""

from __future__ import annotations

from dataclasses import replace

import pytest

from diffplugin.errors import RequestError
from diffplugin.runtime.options import RestoreOptions, Tiling
from diffplugin.runtime.planning.engine_sizes import EngineSizes
from diffplugin.runtime.planning.memory import Footprint
from diffplugin.runtime.planning.plan import Plan, make_plan
from diffplugin.shapes import Range
from tests.runtime.conftest import DIMS

SD = replace(DIMS, native_latent=64)


def _built(h: int | tuple[int, int, int], w: int | tuple[int, int, int]) -> EngineSizes:
    return EngineSizes(*(Range.of(side) if isinstance(side, int) else Range(*side) for side in (h, w)))


SQUARE, TALL, ANY = _built(64, 64), _built(128, 96), _built((32, 64, 96), (32, 64, 96))


def _plan(
    width: int, height: int, *engine_sizes: EngineSizes, tile: Tiling = "auto", available: int | None = None
) -> Plan:
    return make_plan(
        (width, height),
        (),
        RestoreOptions(plugins=["deblur"], tile=tile),
        dims=SD,
        memory=Footprint(weights=0, per_latent_pixel=1),
        available=available,
        engine="tensorrt",
        precision="fp16",
        engine_sizes=engine_sizes,
    )


@pytest.mark.parametrize(
    ("picture", "engine_sizes", "latent", "pieces"),
    [
        ((512, 512), [SQUARE], (64, 64), [(64, 64)]),
        ((300, 200), [SQUARE], (64, 64), [(64, 64)]),
        ((513, 512), [SQUARE], (69, 68), [(64, 64)] * 4),
        ((1000, 300), [SQUARE], (129, 64), [(64, 64)] * 3),
        ((768, 1024), [SQUARE, TALL], (96, 128), [(128, 96)]),
        ((600, 700), [SQUARE, TALL], (96, 128), [(128, 96)]),
        ((500, 500), [TALL, SQUARE], (64, 64), [(64, 64)]),
        ((1024, 768), [SQUARE, TALL], (132, 100), [(64, 64)] * 6),
        ((300, 260), [ANY], (42, 37), [(37, 42)]),
        ((100, 100), [ANY], (32, 32), [(32, 32)]),
        ((2000, 200), [ANY], (254, 32), [(32, 72)] * 4),
        ((1000, 1000), [_built(128, 128), _built(32, 32)], (128, 128), [(128, 128)]),
        ((1100, 1100), [_built(96, 96), _built(32, 32)], (142, 142), [(96, 96)] * 4),
        ((300, 300), [_built(24, 24), _built(32, 32)], (42, 42), [(32, 32)] * 4),
    ],
)
def test_pictures_are_grown_or_cut_to_what_engines_take(
    picture: tuple[int, int], engine_sizes: list[EngineSizes], latent: tuple[int, int], pieces: list[tuple[int, int]]
) -> None:
    plan = _plan(*picture, *engine_sizes)
    assert plan.latent_size == latent and (plan.area.width, plan.area.height) == (latent[0] * 8, latent[1] * 8)
    found = [(tile.height, tile.width) for tile in plan.tiles]
    assert all(any(one.takes(h, w) for one in engine_sizes) for h, w in found)
    assert found == pieces, plan.tiling
    assert plan.working_size == picture and plan.tiling.endswith("what engines were built for")
    assert ("grown" in plan.tiling) == (latent != tuple(-(-(side + 2 * plan.border) // 8) for side in picture))


@pytest.mark.parametrize(
    ("side", "engines", "border"),
    [(512, [SQUARE], 0), (480, [SQUARE], 16), (496, [SQUARE], 8), (500, [TALL, SQUARE], 0), (512, [ANY], 16)],
)
def test_a_photo_that_fits_an_engine_stays_in_one_piece_with_what_border_fits(
    side: int, engines: list[EngineSizes], border: int
) -> None:
    plan = _plan(side, side, *engines)
    assert plan.border == border and len(plan.tiles) == 1, plan.tiling


def test_far_beyond_the_native_size_a_range_is_cut_into_pieces() -> None:
    """As without built sizes: attention grows with the square of the area."""
    large = _built((32, 64, 128), (32, 64, 128))
    assert len(_plan(600, 600, large).tiles) == 1
    plan = _plan(1024, 1024, large)
    assert len(plan.tiles) > 1 and {(tile.height, tile.width) for tile in plan.tiles} == {(72, 72)}


def test_memory_decides_where_there_is_a_choice() -> None:
    assert len(_plan(640, 480, ANY).tiles) == 1
    plan = _plan(640, 480, ANY, available=3000)
    assert len(plan.tiles) > 1 and plan.tiles[0].height * plan.tiles[0].width <= 3000
    assert len(_plan(512, 512, SQUARE, available=1).tiles) == 1, "nothing fits: the only way there is"


def test_tiles_as_asked() -> None:
    assert {(t.height, t.width) for t in _plan(1024, 1024, ANY, SQUARE, tile=512).tiles} == {(64, 64)}
    assert len(_plan(512, 768, ANY, tile="off").tiles) == 1
    for tile, says in (("off", "as one piece"), (384, "in pieces of 384 px")):
        with pytest.raises(RequestError, match=rf"no engine takes .*936x1056 px {says}; .* for 512x512 px: .*--tile"):
            _plan(900, 1024, SQUARE, tile=tile)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"1136x1136 px; .*768x1024"):
        _plan(1100, 1100, TALL)
