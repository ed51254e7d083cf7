"""The main job over a model of NumPy functions: chains, sizes, tiles, guards."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from diffplugin.errors import Cancelled, EngineError, ImageError, NotFinite, RequestError, ShapeMismatch
from diffplugin.runtime.options import Sampler
from diffplugin.runtime.photos.read import photo_from
from diffplugin.runtime.restorer import Restorer
from diffplugin.spec import Array
from tests.runtime.conftest import block_photo, expected_pixels, largest_difference

if TYPE_CHECKING:
    from diffplugin.bundle import Bundle
    from tests.runtime.conftest import FakeModel


@pytest.mark.parametrize("plugin", ["derain", "lowlight"])
@pytest.mark.parametrize(("sampler", "left"), [("unipc", 0.0291), ("ddim", 0.0291), ("dpmpp_2m", 0.0), ("euler", 0.0)])
def test_one_plugin(restorer: Restorer, sampler: Sampler, left: float, plugin: str) -> None:
    """Samplers that land on t = 0 leave that share of noise (the release does), the others a clean latent."""
    made = restorer.restore(block_photo(), plugins=[plugin], sampler=sampler, steps=8)
    assert made.array.shape == (64, 80, 3) and not made.untouched
    error = made.array.astype(np.float64) - expected_pixels(block_photo(), plugin)
    assert np.abs(error).max() <= 4.5 * left * 127.5 + 2
    assert error.std() == pytest.approx(left * 127.5, abs=0.6)


def test_a_chain_runs_in_order_with_few_steps(restorer: Restorer, model: FakeModel) -> None:
    made = restorer.restore(block_photo(), "dark rain and blur", sampler="euler")
    assert made.selection.chosen == ("derain", "lowlight", "deblur")
    assert [stage.steps for stage in made.plan.chain] == [20, 3, 3]
    assert model.runs("unet") == made.plan.unet_runs == 26
    assert largest_difference(made.array, expected_pixels(block_photo(), "derain", "lowlight", "deblur")) <= 1
    assert len(model.loads) == len(set(model.loads)), "an engine was loaded twice"


def test_tokens_come_from_the_original_picture_at_any_working_size(restorer: Restorer) -> None:
    seen: dict[str, Array] = {}
    restorer.restore(
        block_photo(), plugins=["derain", "deblur"], steps=1, size=(40, 40),
        observe=lambda plugin, name, step, value: seen.setdefault(f"{plugin} {name}", value),
    )  # fmt: skip
    direct: dict[str, Array] = {}
    restorer.restore(
        block_photo(), plugins=["deblur"], steps=1,
        observe=lambda plugin, name, step, value: direct.setdefault(f"{plugin} {name}", value),
    )  # fmt: skip
    assert np.array_equal(seen["deblur tokens"], direct["deblur tokens"])
    assert seen["deblur cond"].shape == (1, 4, 9, 9)


def test_nothing_selected_leaves_the_picture_untouched(restorer: Restorer, model: FakeModel) -> None:
    photo = photo_from(block_photo())
    made = restorer.restore(photo, "make it a watercolour")
    assert made.untouched and made.photo is photo and made.plan.chain == ()
    assert made.selection.reason.startswith("no plugin scores above 0")
    assert "unet" not in model.loads and "vae_encoder" not in model.loads


def test_named_plugins_need_no_words(restorer: Restorer, model: FakeModel) -> None:
    made = restorer.restore(block_photo(), plugins=("Blur", "low-light"), steps=2)
    assert made.selection.chosen == ("deblur", "lowlight") and made.selection.scores == {}
    assert "clip_text" not in model.loads and "selector" not in model.loads and "tpb/derain" not in model.loads


# --- guards, cancelling, progress ---


def test_progress_counts_every_unet_run(restorer: Restorer) -> None:
    calls: list[tuple[int, int, str]] = []
    restorer.restore(block_photo(), plugins=["derain", "deblur"], steps=2, progress=lambda *call: calls.append(call))
    assert calls == [
        (0, 4, "derain"), (1, 4, "derain"), (2, 4, "derain"), (2, 4, "deblur"), (3, 4, "deblur"), (4, 4, "deblur"),
    ]  # fmt: skip


def test_cancel_between_steps(restorer: Restorer, model: FakeModel) -> None:
    with pytest.raises(Cancelled):
        restorer.restore(block_photo(), plugins=["derain"], cancelled=lambda: model.runs("unet") >= 3)
    assert model.runs("unet") == 3
    again = restorer.restore(block_photo(), plugins=["derain"], sampler="euler")
    assert largest_difference(again.array, expected_pixels(block_photo(), "derain")) <= 1


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("unet", np.nan, "step 1 of 20"),
        ("vae_decoder", np.inf, "derain, fake at fp32"),
        ("vae_decoder", 0.3, "constant"),
    ],
)
def test_never_a_broken_picture(restorer: Restorer, model: FakeModel, key: str, value: float, part: str) -> None:
    name, entering, grow = {"unet": ("eps", "latents", 1), "vae_decoder": ("image", "latents", 8)}[key]

    def broken(inputs: Mapping[str, Array]) -> dict[str, Array]:
        _, channels, h, w = inputs[entering].shape
        made = np.full((1, channels if grow == 1 else 3, h * grow, w * grow), value, np.float32)
        return {name: made, "deep": np.zeros((1, 6, h, w), np.float32)}

    model.swap(key, broken)
    with pytest.raises(NotFinite, match=part):
        restorer.restore(block_photo(), plugins=["derain"])


@pytest.mark.parametrize("shift", [5, -5])
def test_a_picture_that_is_flat_once_it_is_clipped_is_refused(
    restorer: Restorer, model: FakeModel, shift: float
) -> None:
    """A decoder that is off by 5 makes a picture with all its structure, out of range."""
    decoder = model._function("vae_decoder")
    model.swap("vae_decoder", lambda inputs: {"image": decoder(inputs)["image"] + np.float32(shift)})
    with pytest.raises(NotFinite, match=r"the picture is constant \(-?1\.000 everywhere, clipped\)"):
        restorer.restore(block_photo(), plugins=["derain"])


def test_a_picture_of_another_size_is_refused(restorer: Restorer, model: FakeModel) -> None:
    model.swap("vae_decoder", lambda inputs: {"image": np.zeros((1, 3, 8, 8), np.float32)})
    with pytest.raises(ShapeMismatch, match=r"vae_decoder: output image is float32 1x3x8x8, expected float32 1x3x"):
        restorer.restore(block_photo(), plugins=["derain"])


def test_a_flat_picture_may_stay_flat(restorer: Restorer) -> None:
    grey = np.full((64, 64, 3), 100, np.uint8)
    made = restorer.restore(grey, plugins=["deblur"], sampler="euler")
    assert largest_difference(made.array, expected_pixels(grey, "deblur")) <= 1


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"prompt": "?"}, "has no words"),
        ({"prompt": "rain " * 2000}, "at most"),
        ({"plugins": []}, "plugins is empty"),
        ({"plugins": ["colourise"]}, "unknown plugin 'colourise'"),
        ({"plugins": "derain", "sampler": "magic"}, "magic"),
        ({"plugins": "derain", "steps": 0}, "steps is 0"),
        ({"plugins": "derain", "seed": "x"}, "seed"),
        ({"plugins": "derain", "size": (3, 5)}, "size"),
        ({"plugins": "derain", "tile": 10}, "tile"),
        ({"plugins": "derain", "output_size": "huge"}, "output size"),
    ],
)
def test_faulty_requests_are_refused_before_any_work(
    restorer: Restorer, model: FakeModel, options: dict[str, Any], part: str
) -> None:
    with pytest.raises(RequestError, match=part) as caught:
        restorer.restore(block_photo(), **options)
    assert "\n" not in str(caught.value)
    assert model.loads == []


def test_a_missing_file_is_an_image_error(restorer: Restorer) -> None:
    with pytest.raises(ImageError, match="no such file"):
        restorer.restore("nowhere.png", plugins=["derain"])


def test_a_bundle_without_selector_asks_for_a_plugin(fake_bundle: Bundle, model: FakeModel) -> None:
    bare = replace(fake_bundle, manifest=replace(fake_bundle.manifest, selector=False))
    with pytest.raises(RequestError, match=r"no selector.*derain, lowlight, deblur"):
        Restorer(bare, model, "fp32").restore(block_photo(), "rain")
    assert "diagnosis" not in model.loads
    assert Restorer(bare, model, "fp32").prepare((64, 64)).latent_size == (12, 12)
    assert "diagnosis" in model.loads, "requests without words need it"


# --- cost and sharing ---


def test_plan_is_what_runs(restorer: Restorer, model: FakeModel) -> None:
    plan, selection = restorer.plan(block_photo(300, 300), "rain", steps=5, seed=3)
    assert "unet" not in model.loads
    made = restorer.restore(block_photo(300, 300), "rain", steps=5, seed=3)
    assert replace(made.plan, available=None) == replace(plan, available=None) and made.selection == selection
    assert set(made.to_json()) == {"plan", "selection", "timings", "untouched", "strength", "frames", "notes"}
    assert {"unet", "scb", "vae_encoder", "vae_decoder", "clip_vision"} <= set(made.timings)


def test_prepare_leaves_nothing_to_load(restorer: Restorer, model: FakeModel) -> None:
    plan = restorer.prepare((300, 300))
    assert len(plan.tiles) == 6 and model.runs("unet") == 1
    loaded = list(model.loads)
    restorer.restore(block_photo(300, 300), "rain dark blur", steps=1)
    assert model.loads == loaded


def test_two_threads_share_a_restorer(restorer: Restorer, model: FakeModel) -> None:
    photos = [block_photo(seed=i) for i in range(4)]
    made: dict[int, Array] = {}

    def work(i: int) -> None:
        made[i] = restorer.restore(photos[i], plugins=["derain", "lowlight"], steps=3, seed=i, sampler="euler").array

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, photo in enumerate(photos):
        assert largest_difference(made[i], expected_pixels(photo, "derain", "lowlight")) <= 1
    assert len(model.loads) == len(set(model.loads))


def test_closed_restorers_say_so(restorer: Restorer) -> None:
    with restorer:
        restorer.restore(block_photo(), plugins=["derain"], steps=1)
    with pytest.raises(EngineError, match="closed"):
        restorer.restore(block_photo(), plugins=["derain"], steps=1)


@pytest.mark.parametrize("request_", [None, "", "auto", "fix this"])
def test_without_words_the_photo_itself_decides(restorer: Restorer, model: FakeModel, request_: str | None) -> None:
    dark = block_photo() // 2
    made = restorer.restore(dark, request_, steps=2)
    assert made.selection.chosen == ("lowlight",) and not made.selection.scores and not made.untouched
    np.testing.assert_array_equal(made.array, restorer.restore(dark, plugins=["lowlight"], steps=2).array)
    assert model.runs("selector") == 0 and model.runs("clip_text") == 0, "there are no words to read"
    clean = restorer.restore(block_photo(), request_)
    assert clean.untouched and clean.selection.reason == "nothing found to restore"
    assert model.runs("tpb/derain") == 0
