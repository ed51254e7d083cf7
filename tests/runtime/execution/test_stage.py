"""What a stage runs and what it keeps between its steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from diffplugin.errors import Cancelled, RequestError
from diffplugin.runtime.execution.stage import _Kept, _residuals
from diffplugin.runtime.planning.quality import QUALITIES, Quality
from diffplugin.runtime.restoration import Restoration
from diffplugin.runtime.restorer import Restorer
from diffplugin.spec import Array

if TYPE_CHECKING:
    from diffplugin.bundle import Bundle
    from tests.runtime.conftest import FakeModel

Less = Callable[..., Restorer]
GRAPHS = ("unet", "unet_shallow", "scb/derain", "scb/deblur")


@pytest.fixture
def less(fake_bundle: Bundle, model: FakeModel) -> Less:
    """``less(deep_every, scb_every)``: the fake model at a quality of its own, over the same engines."""

    def make(deep_every: int, scb_every: int) -> Restorer:
        quality = Quality(name="less", description="", deep_every=deep_every, scb_every=scb_every)
        return Restorer(fake_bundle, model, "fp32", quality=quality)

    return make


def _photo(height: int = 64, width: int = 80) -> Array:
    return np.random.default_rng(3).integers(60, 190, (height, width, 3), np.uint8)


def _counted(restorer: Restorer, model: FakeModel, photo: Array, steps: int, *plugins: str) -> Restoration:
    """A run whose graphs ran as often as its plan says."""
    model.engines.clear()
    made = restorer.restore(photo, plugins=plugins or ["derain"], steps=steps)
    found = (model.runs("unet"), model.runs("unet_shallow"), model.runs("scb/derain") + model.runs("scb/deblur"))
    assert found == (made.plan.full_unet_runs, made.plan.shallow_unet_runs, made.plan.scb_runs)
    return made


@pytest.mark.parametrize("size", [(64, 80), (300, 200)], ids=["one piece", "pieces"])
@pytest.mark.parametrize(
    ("deep", "scb", "runs"), [(1, 1, (20, 0, 20)), (2, 1, (10, 10, 20)), (1, 2, (20, 0, 11)), (3, 4, (7, 13, 6))]
)
def test_graphs_run_as_often_as_planned(
    less: Less, model: FakeModel, size: tuple[int, int], deep: int, scb: int, runs: tuple[int, int, int]
) -> None:
    plan = _counted(less(deep, scb), model, _photo(*size), 20).plan
    pieces = len(plan.tiles)
    assert (pieces == 1) == (size == (64, 80))
    assert (plan.full_unet_runs, plan.shallow_unet_runs, plan.scb_runs) == tuple(n * pieces for n in runs)


def test_each_plugin_of_a_chain_begins_anew(less: Less, model: FakeModel) -> None:
    plan = _counted(less(2, 2), model, _photo(), 5, "derain", "deblur").plan
    assert [len(stage.full_steps) for stage in plan.chain] == [3, 2]
    assert (model.runs("scb/derain"), model.runs("scb/deblur")) == (3, 2)


def test_everything_at_every_step_is_the_exact_quality(restorer: Restorer, less: Less) -> None:
    photo = _photo(150, 200)
    exact = restorer.restore(photo, plugins=["derain", "lowlight"], steps=6)
    same = less(1, 1).restore(photo, plugins=["derain", "lowlight"], steps=6)
    assert np.array_equal(exact.array, same.array)
    assert replace(same.plan, quality="exact", available=None) == replace(exact.plan, available=None)


def test_no_shallow_engine_is_loaded_where_none_runs(restorer: Restorer, less: Less, model: FakeModel) -> None:
    restorer.restore(_photo(), plugins=["derain"], steps=4)
    less(2, 2).restore(_photo(), plugins=["derain"], steps=1)
    assert "unet_shallow" not in model.loads
    ready = less(2, 2)
    ready.prepare((80, 64), plugins=["derain"])
    loaded = list(model.loads)
    ready.restore(_photo(), plugins=["derain"], steps=4)
    assert "unet_shallow" in loaded and model.loads == loaded, "prepare left something to load"


@pytest.mark.parametrize("size", [(64, 80), (300, 200)], ids=["one piece", "pieces"])
def test_outer_blocks_get_the_deep_feature_of_their_own_piece_and_last_whole_step(
    less: Less, model: FakeModel, size: tuple[int, int]
) -> None:
    """Every feature says which run made it: piece by piece they come in the order of the whole runs."""
    made: list[Array] = []
    used: list[int] = []

    def whole(inputs: Mapping[str, Array]) -> dict[str, Array]:
        _, _, h, w = inputs["latents"].shape
        made.append(np.full((1, 6, h, w), len(made), np.float32))
        return {"eps": inputs["latents"], "deep": made[-1]}

    def outer(inputs: Mapping[str, Array]) -> dict[str, Array]:
        used.append(int(inputs["deep"][0, 0, 0, 0]))
        return {"eps": inputs["latents"]}

    model.swap("unet", whole)
    model.swap("unet_shallow", outer)
    pieces = len(less(3, 1).restore(_photo(*size), plugins=["derain"], steps=7).plan.tiles)
    first, second = list(range(pieces)), list(range(pieces, 2 * pieces))
    assert len(made) == 3 * pieces and used == [*first, *first, *second, *second]


@pytest.mark.parametrize("size", [(64, 80), (300, 200)], ids=["one piece", "pieces"])
def test_a_head_changes_the_photo_and_nothing_is_decoded(
    restorer: Restorer, model: FakeModel, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    """The fake head adds what the plugin added to the latents, as a residual of the fake decoder does."""
    made = {}
    for output in ("head", "residual"):
        monkeypatch.setitem(restorer.cards, "derain", replace(restorer.cards["derain"], output=output))
        made[output] = restorer.restore(_photo(*size), plugins=["derain"], steps=3)
        if output == "head":
            assert model.runs("head/derain") == len(made[output].plan.tiles) and "vae_decoder" not in model.loads
    assert np.abs(made["head"].array.astype(int) - made["residual"].array).max() <= 1
    assert np.abs(made["head"].array.astype(int) - _photo(*size)).mean() > 20


def test_prepare_loads_the_heads_of_all_plugins(
    restorer: Restorer, model: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for plugin in ("derain", "deblur"):
        monkeypatch.setitem(restorer.cards, plugin, replace(restorer.cards[plugin], output="head"))
    restorer.prepare((80, 64))
    assert {"head/derain", "head/deblur"} <= set(model.loads) and "head/lowlight" not in model.loads


def test_residuals_between_two_runs_are_interpolated_in_the_timestep(less: Less, model: FakeModel) -> None:
    calls = iter(range(100))

    def scb(inputs: Mapping[str, Array]) -> dict[str, Array]:
        value = np.full_like(inputs["cond"], next(calls))
        return {"residual_0": value + 7, "residual_1": value, "residual_2": value * 10}

    model.swap("scb/derain", scb)
    picture = np.random.default_rng(0).uniform(-1, 1, (1, 3, 96, 112)).astype(np.float32)
    model.swap("vae_decoder", lambda inputs: {"image": picture})  # those residuals lead far out of range
    seen: dict[tuple[str, int], Array] = {}
    less(1, 3).restore(
        _photo(), plugins=["derain"], steps=6,
        observe=lambda _, name, step, value: seen.setdefault((name, step), value),
    )  # fmt: skip
    t = np.linspace(0, 999, 7).round()[:0:-1]  # as released
    expected = np.interp(-t, -t[[0, 3, 5]], [0, 1, 2])
    for step in range(6):
        for name, factor in (("residual_1", 1), ("residual_2", 10)):
            found = seen[name, step]
            np.testing.assert_allclose(found, factor * expected[step], rtol=1e-6, err_msg=f"{name} at step {step}")
        assert (seen["residual_0", step] == 7).all(), "residual_0 is that of the first run"


def test_at_most_two_runs_of_the_scb_are_kept_and_made_when_first_needed() -> None:
    kept, ran = _Kept(), list[int]()

    def scb(step: int) -> dict[str, Array]:
        ran.append(step)
        return {f"residual_{i}": np.full(1, step, np.float32) for i in range(3)}

    t, scb_steps, needed = np.arange(9, -1, -1), (0, 4, 8, 9), []
    for i in range(10):
        made = _residuals(i, scb_steps, t, kept, scb)
        needed.append(list(ran))
        assert len(kept.anchors) <= 2 and made["residual_1"][0] == made["residual_2"][0] == i
        assert made["residual_0"][0] == 0
    assert ran == [0, 4, 8, 9] and needed[0] == [0] and needed[1] == needed[4] == [0, 4] and needed[8] == [0, 4, 8]


@pytest.mark.parametrize("quality", ["balanced", "fast"])
def test_a_cancelled_run_leaves_nothing_to_the_next(fake_bundle: Bundle, model: FakeModel, quality: str) -> None:
    restorer = Restorer(fake_bundle, model, "fp32", quality=QUALITIES[quality])
    expected = restorer.restore(_photo(300, 200), plugins=["derain"], steps=20).array
    runs = model.runs("unet_shallow")
    with pytest.raises(Cancelled):
        restorer.restore(
            255 - _photo(300, 200), plugins=["derain"], steps=20,
            cancelled=lambda: model.runs("unet_shallow") >= runs + 3,
        )  # fmt: skip
    assert model.runs("unet_shallow") == runs + 3
    again = restorer.restore(_photo(300, 200), plugins=["derain"], steps=20).array
    assert np.array_equal(again, expected)


def test_the_estimate_counts_what_every_piece_keeps(restorer: Restorer, less: Less) -> None:
    def kept(made: Restorer, steps: int) -> int:
        plan, _ = made.plan(_photo(300, 200), plugins=["derain"], steps=steps)
        weights = restorer.plan(_photo(300, 200), plugins=["derain"], steps=steps)[0].memory.weights
        area = sum(tile.height * tile.width for tile in plan.tiles)
        picture = plan.latent_size[0] * plan.latent_size[1]
        assert plan.estimated_bytes == plan.memory.total(plan.tiles[0].height * plan.tiles[0].width, area, picture)
        assert plan.memory.weights - weights == (1000 if plan.shallow_unet_runs else 0), "weights of the outer blocks"
        return plan.memory.kept_per_latent_pixel

    deep, residuals = 6 * 4, 5 * 4 * 4
    assert [kept(restorer, 20), kept(less(2, 1), 20), kept(less(1, 2), 20)] == [0, deep, residuals]
    assert [kept(less(3, 3), 20), kept(less(3, 3), 1)] == [deep + residuals, 0]


@pytest.mark.parametrize("size", [(64, 80), (300, 200)], ids=["one piece", "pieces"])
def test_a_residual_keeps_what_the_latent_cannot_carry(less: Less, size: tuple[int, int]) -> None:
    """The fake latent is a mean of 8x8 pixels, and the plugin adds 0.2 to it. The last update leaves some noise."""
    restorer, photo = less(1, 1), _photo(*size)
    errors = []
    for output in ("residual", "decoded"):
        restorer.cards["derain"] = replace(restorer.cards["derain"], output=output)
        made = restorer.restore(photo, plugins=["derain"], steps=3)
        assert made.plan.chain[0].output == output
        errors.append(np.abs(made.array - (photo + 0.2 * 127.5)).mean())
    assert errors[0] < 4 and errors[1] > 25, errors


def test_sampling_starts_at_the_cards_timestep(less: Less) -> None:
    restorer, levels = less(1, 1), []
    restorer.cards["derain"] = replace(restorer.cards["derain"], first_t=400)

    def observe(plugin: str, name: str, step: int, value: Array) -> None:
        if name == "latents" and step == 0:
            levels.append(float(value.std()))

    made = restorer.restore(_photo(), plugins=["derain"], steps=4, observe=observe)
    sigma = (1 - restorer._schedule.alphas_cumprod[400]) ** 0.5
    assert made.plan.chain[0].first_t == 400 and abs(levels[0] - sigma) < 0.1, (levels, sigma)
    with pytest.raises(RequestError, match="steps is 401, expected an integer from 1 to 400"):
        restorer.restore(_photo(), plugins=["derain"], steps=401)
