"""Plans: chains, sizes, tiles, memory."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from diffplugin.bench.full_width import DIMS
from diffplugin.errors import RequestError
from diffplugin.plugins.cards import shipped_cards
from diffplugin.runtime.options import RestoreOptions
from diffplugin.runtime.photos.mask import Mask, region_mask
from diffplugin.runtime.planning.memory import Footprint
from diffplugin.runtime.planning.pieces import work
from diffplugin.runtime.planning.plan import Plan, make_plan, plan_stages
from diffplugin.runtime.planning.quality import EXACT, Quality
from diffplugin.runtime.planning.tiles import Tile, blend_weights
from diffplugin.spec import ModelDims

LIGHT = Footprint(weights=1000, per_latent_pixel=1)
LESS = Quality(name="less", description="", steps=10, deep_every=2, scb_every=4)


def _plan(width: int, height: int, available: int | None = None, memory: Footprint = LIGHT, **options: Any) -> Plan:
    quality = options.pop("quality", EXACT)
    chain = plan_stages(["deblur"], shipped_cards(), quality)
    return make_plan(
        (width, height), chain, RestoreOptions(plugins=["deblur"], **options),
        dims=DIMS, memory=memory, available=available, engine="fake", precision="fp32", quality=quality,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("steps", "expected"), [(None, [20, 3, 3]), (50, [50, 3, 3]), (3, [3, 3, 3]), (2, [2, 2, 2]), (1, [1, 1, 1])]
)
def test_chained_plugins_take_few_steps(steps: int | None, expected: list[int]) -> None:
    chain = plan_stages(["derain", "lowlight", "deblur"], shipped_cards(), steps=steps)
    assert [stage.steps for stage in chain] == expected
    assert [stage.start for stage in chain] == ["noised_input", "noise", "noised_input"]


@pytest.mark.parametrize(("sampler", "most"), [("unipc", 999), ("ddim", 1000)])
def test_more_steps_than_a_sampler_can_take(sampler: str, most: int) -> None:
    assert plan_stages(["derain"], shipped_cards(), steps=most, sampler=sampler)[0].steps == most
    with pytest.raises(RequestError, match=rf"derain, which starts at t = 999: steps is .*, expected .* 1 to {most}"):
        plan_stages(["derain"], shipped_cards(), steps=most + 1, sampler=sampler)


@pytest.mark.parametrize(
    ("steps", "expected"), [(None, [10, 3]), (50, [50, 3]), (20, [20, 3]), (2, [2, 2]), (1, [1, 1])]
)
def test_a_quality_limits_only_steps_that_nobody_asked_for(steps: int | None, expected: list[int]) -> None:
    assert [stage.steps for stage in plan_stages(["derain", "deblur"], shipped_cards(), LESS, steps=steps)] == expected


def test_a_quality_says_which_steps_run_everything() -> None:
    exact = plan_stages(["derain"], shipped_cards(), steps=4)[0]
    assert exact.full_steps == exact.scb_steps == (0, 1, 2, 3)
    first, second = plan_stages(["derain", "deblur"], shipped_cards(), LESS)
    assert (first.full_steps, first.scb_steps) == ((0, 2, 4, 6, 8), (0, 4, 8, 9))
    assert (second.full_steps, second.scb_steps) == ((0, 2), (0, 2))


def test_native_size_pads_to_the_factor_and_comes_back() -> None:
    plan = _plan(333, 500)
    assert (plan.working_size, plan.border) == ((333, 500), 16) and plan.area == Tile(-16, -16, 536, 368)
    assert (plan.latent_size, plan.output_size) == ((46, 67), (333, 500))
    assert len(plan.tiles) == 1 and (plan.tiles[0].height, plan.tiles[0].width) == (67, 46)


def test_released_size_and_outputs() -> None:
    plan = _plan(123, 91, size="released", output_size="working")
    assert plan.working_size == plan.output_size == (688, 512) and plan.area == Tile(0, 0, 512, 688)
    assert _plan(123, 91, size="released").output_size == (123, 91)
    with pytest.raises(RequestError, match="output size 'big'"):
        _plan(100, 100, output_size="big")


@pytest.mark.parametrize(
    ("width", "height", "pieces"),
    [(512, 768, 1), (768, 512, 1), (640, 640, 1), (512, 960, 2), (1024, 1024, 4), (2000, 300, 2)],
)
def test_auto_tiles_follow_the_area(width: int, height: int, pieces: int) -> None:
    plan = _plan(width, height)
    assert len(plan.tiles) == pieces, plan.tiling
    assert ("native 512 px" in plan.tiling) == (pieces > 1)
    assert max(tile.height * tile.width for tile in plan.tiles) <= 1.75 * 64**2


@pytest.mark.parametrize("dims", [DIMS, replace(DIMS, factor=4, native_latent=128)], ids=["factor 8", "factor 4"])
def test_pieces_cost_what_they_cover(dims: ModelDims) -> None:
    """At most 1.2 times the photo's pixels, border included, from 512x512 on; one shape; nothing is left out."""
    rng = np.random.default_rng(0)
    sizes = [
        (512, 512),
        (640, 640),
        (1024, 768),
        (4000, 3000),
        (8000, 6000),
        *rng.integers(512, 3000, (60, 2)).tolist(),
    ]
    for width, height in sizes:
        made = make_plan(
            (width, height), (), RestoreOptions(plugins=["deblur"]),
            dims=dims, memory=LIGHT, available=None, engine="fake", precision="fp32",
        )  # fmt: skip
        ratio = work(made.tiles) * dims.factor**2 / (width * height)
        assert ratio <= 1.2, f"{width}x{height}: {len(made.tiles)} {made.tiling}, {ratio:.3f} times the pixels"
        assert len({(tile.height, tile.width) for tile in made.tiles}) == 1
        if len(made.tiles) > 1:  # raises if they are no grid that covers
            blend_weights(made.tiles[:1], *made.latent_size[::-1], made.tiles)


def test_tiles_overlap_and_cover() -> None:
    plan = _plan(2000, 1500)
    width, height = plan.latent_size
    lefts = sorted({(tile.left, tile.width) for tile in plan.tiles})
    tops = sorted({(tile.top, tile.height) for tile in plan.tiles})
    for spans, length in ((lefts, width), (tops, height)):
        assert spans[0][0] == 0 and sum(spans[-1]) == length
        assert all(a + n - b >= 5 for (a, n), (b, _) in itertools.pairwise(spans)), spans


def test_memory_decides_too() -> None:
    heavy = Footprint(weights=1_000, per_latent_pixel=100)
    assert len(_plan(512, 512, 1_000 + 68 * 68 * 100, heavy).tiles) == 1
    less = _plan(512, 512, 1_000 + 68 * 68 * 100 - 1, heavy)
    assert len(less.tiles) > 1 and less.tiling.endswith("px: memory")
    assert less.estimated_bytes <= 1_000 + 68 * 68 * 100 - 1
    none = _plan(512, 512, 10, heavy)  # nothing fits: the smallest pieces, and the estimate says so
    assert none.tiles[0].height <= 17 and none.estimated_bytes > 10


def test_what_all_pieces_keep_decides_too() -> None:
    """Smaller pieces overlap more, so what all of them keep grows as the largest shrinks."""
    keeping = Footprint(weights=0, per_latent_pixel=1000, kept_per_latent_pixel=100)
    plan = _plan(1024, 1024, memory=keeping)
    piece = plan.tiles[0].height * plan.tiles[0].width
    assert plan.estimated_bytes == 1000 * piece + 100 * len(plan.tiles) * piece
    assert _plan(512, 512, 68 * 68 * 1100, keeping).tiling == "one piece"
    tight = _plan(512, 512, 68 * 68 * 1100 - 1, keeping)
    assert len(tight.tiles) > 1 and tight.estimated_bytes < 68 * 68 * 1100
    # nothing fits, and what is kept is all that counts: no storm of the smallest pieces
    hopeless = _plan(1024, 1024, 10, Footprint(weights=0, per_latent_pixel=0, kept_per_latent_pixel=100))
    areas = {side: _plan(1024, 1024, tile=8 * side, memory=keeping).tiles for side in (16, 64, 72)}
    kept = {side: sum(t.height * t.width for t in tiles) for side, tiles in areas.items()}
    assert sum(t.height * t.width for t in hopeless.tiles) <= min(kept.values()) < kept[16]


def test_asked_tiles() -> None:
    assert len(_plan(4000, 4000, tile="off").tiles) == 1
    plan = _plan(512, 512, tile=256)
    assert plan.tiles[0].height == 32 and len(plan.tiles) == 9 and "as asked" in plan.tiling
    assert len(_plan(200, 200, tile=256).tiles) == 1
    for wrong in (0, 127, -5, "some", True):
        with pytest.raises(RequestError, match=r"tile .* at least (1|128) pixels"):
            _plan(100, 100, tile=wrong)


def test_json() -> None:
    made = json.loads(json.dumps(_plan(1024, 1024).to_json()))
    assert made["unet_runs"] == 4 * 20
    stage = {"plugin": "deblur", "steps": 20, "start": "noised_input", "first_t": 999, "renoise_from_t": 960}
    stage |= {"output": "decoded", "coring": 0, "coring_peak": 0, "work_size": 0, "piece_size": 0, "guided": False}
    stage |= {"fine": False, "tiny": False}
    every = list(range(20))
    assert made["chain"] == [stage | {"full_steps": every, "scb_steps": every, "scb_batch": 1}]
    assert made["quality"] == "exact" and made["loop"] == "host"
    assert (made["full_unet_runs"], made["shallow_unet_runs"], made["scb_runs"]) == (80, 0, 80)
    assert made["tiles"][0] == {"top": 0, "left": 0, "height": 69, "width": 69}
    assert made["estimated_bytes"] == 1000 + 69 * 69
    less = json.loads(json.dumps(_plan(1024, 1024, quality=LESS).to_json()))
    assert less["quality"] == "less" and less["chain"][0]["scb_steps"] == [0, 4, 8, 9]
    assert [less[f"{what}_runs"] for what in ("unet", "full_unet", "shallow_unet", "scb")] == [40, 20, 20, 16]


def test_the_tiny_autoencoder_gives_residuals() -> None:
    (own,), (tiny,) = (plan_stages(["deblur"], shipped_cards(), LESS, tiny=tiny) for tiny in (False, True))
    assert (own.output, own.tiny, tiny.output, tiny.tiny) == ("decoded", False, "residual", True)
    assert replace(tiny, output="decoded", tiny=False) == own


SCALED = replace(LESS, name="scaled", scaled=True, fine=True)


def _at_scale(width: int, height: int, *work: tuple[int, bool], **options: Any) -> Plan:
    """Of a chain of plugins with these work sizes, guided or not."""
    (stage,) = plan_stages(["deblur"], shipped_cards(), SCALED)
    chain = tuple(replace(stage, work_size=size, guided=guided) for size, guided in work)
    return make_plan(
        (width, height), chain, RestoreOptions(plugins=["deblur"], **options),
        dims=DIMS, memory=LIGHT, available=None, engine="fake", precision="fp32", quality=SCALED,
    )  # fmt: skip


def test_pieces_at_full_size_where_faults_may_be_fine() -> None:
    cards = {name: replace(card, work_size=512, fine=name == "derain") for name, card in shipped_cards().items()}

    def planned(plugins: list[str], mask: Mask | None = None, **options: Any) -> Plan:
        return make_plan(
            (4000, 3000), plan_stages(plugins, cards, SCALED), RestoreOptions(plugins=plugins, **options), dims=DIMS,
            memory=LIGHT, available=None, engine="fake", precision="fp32", quality=SCALED, mask=mask,
        )  # fmt: skip

    plan = planned(["derain"])
    exact = planned(["derain"], work_size="full")
    assert plan.working_size == (683, 512) and plan.fine == exact.tiles and not exact.fine
    assert planned(["derain"], tile="off").fine == exact.tiles, "the photo is never one piece"
    for none in (planned(["deblur"]), planned(["derain", "deblur"]), planned(["derain"], work_size=600)):
        assert not none.fine
    assert not planned(["derain"], region_mask((0, 0, 800, 800), (4000, 3000))).fine


def test_large_photos_run_at_the_scale_of_the_fault() -> None:
    plan = _at_scale(4000, 3000, (512, True))
    assert (plan.working_size, plan.carry, plan.output_size) == ((683, 512), "guided", (4000, 3000))
    assert plan.estimated_bytes >= 8 * 12_000_000, "the photo itself is in memory, too"
    assert _at_scale(4000, 3000, (512, True), (768, False)).working_size == (1024, 768)
    assert _at_scale(4000, 3000, (512, True), (768, False)).carry == "change"
    assert _at_scale(512, 700, (512, True)).carry == "picture", "it is no larger"
    for none in (_at_scale(4000, 3000, (512, True), (0, True)), _at_scale(4000, 3000, (512, True), work_size="full")):
        assert (none.working_size, none.carry) == ((4000, 3000), "picture")
    assert _at_scale(4000, 3000, (512, False), work_size=256).working_size == (341, 256)
    assert _at_scale(4000, 3000, (512, False), size=512).carry == "picture", "an explicit size is left alone"
    for wrong in ({"work_size": 10}, {"work_size": "big"}, {"work_size": 512, "size": 512}):
        with pytest.raises(RequestError, match="work size"):
            RestoreOptions(plugins=["deblur"], **wrong)
