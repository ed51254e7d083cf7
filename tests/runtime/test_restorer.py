"""The main job over a model of NumPy functions: chains, sizes, tiles, guards."""

from __future__ import annotations

import shutil
import threading
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from diffplugin.errors import Cancelled, EngineError, ImageError, NotFinite, RequestError, ShapeMismatch
from diffplugin.runtime.options import Sampler
from diffplugin.runtime.photos.read import photo_from
from diffplugin.runtime.restorer import Restorer
from diffplugin.runtime.sampling.start_noise import normal
from diffplugin.spec import Array
from tests.runtime.conftest import smooth_photo

if TYPE_CHECKING:
    from diffplugin.bundle import Bundle
    from tests.runtime.conftest import FakeModel

ADDED = {"derain": 0.2, "lowlight": -0.4, "deblur": 0.1}


def _photo(height: int = 64, width: int = 80, *, seed: int = 0) -> Array:
    """Blocks of 8x8 pixels that the fake autoencoder keeps, uint8 in the middle of the range."""
    blocks = np.random.default_rng(seed).integers(90, 150, (-(-height // 8), -(-width // 8), 3), np.uint8)
    return blocks.repeat(8, 0).repeat(8, 1)[:height, :width].copy()


def _expected(rgb: Array, *plugins: str) -> Array:
    """``rgb`` after the plugins: each adds its number to the pixels in [-1, 1], rounded to 8 bits between them."""
    for plugin in plugins:
        rgb = np.rint(np.clip(rgb.astype(np.float64) + ADDED[plugin] * 127.5, 0, 255))
    return rgb.astype(np.uint8)


def _off(found: Array, expected: Array) -> int:
    return int(np.abs(found.astype(int) - expected.astype(int)).max())


@pytest.mark.parametrize("plugin", ["derain", "lowlight"])
@pytest.mark.parametrize(("sampler", "left"), [("unipc", 0.0291), ("ddim", 0.0291), ("dpmpp_2m", 0.0), ("euler", 0.0)])
def test_one_plugin(restorer: Restorer, sampler: Sampler, left: float, plugin: str) -> None:
    """Samplers that land on t = 0 leave that share of noise (the release does), the others a clean latent."""
    made = restorer.restore(_photo(), plugins=[plugin], sampler=sampler, steps=8)
    assert made.array.shape == (64, 80, 3) and not made.untouched
    error = made.array.astype(np.float64) - _expected(_photo(), plugin)
    assert np.abs(error).max() <= 4.5 * left * 127.5 + 2
    assert error.std() == pytest.approx(left * 127.5, abs=0.6)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (61, 93), (9, 8), (130, 15)])
def test_any_size_comes_back_at_its_size(restorer: Restorer, height: int, width: int) -> None:
    photo = np.full((height, width, 3), 120, np.uint8)
    made = restorer.restore(photo, plugins=["deblur"], steps=2, sampler="euler")
    assert _off(made.array, _expected(photo, "deblur")) <= 1


def test_a_chain_runs_in_order_with_few_steps(restorer: Restorer, model: FakeModel) -> None:
    made = restorer.restore(_photo(), "dark rain and blur", sampler="euler")
    assert made.selection.chosen == ("derain", "lowlight", "deblur")
    assert [stage.steps for stage in made.plan.chain] == [20, 3, 3]
    assert model.runs("unet") == made.plan.unet_runs == 26
    assert _off(made.array, _expected(_photo(), "derain", "lowlight", "deblur")) <= 1
    assert len(model.loads) == len(set(model.loads)), "an engine was loaded twice"


def test_tokens_come_from_the_original_picture_at_any_working_size(restorer: Restorer) -> None:
    seen: dict[str, Array] = {}
    restorer.restore(
        _photo(), plugins=["derain", "deblur"], steps=1, size=(40, 40),
        observe=lambda plugin, name, step, value: seen.setdefault(f"{plugin} {name}", value),
    )  # fmt: skip
    direct: dict[str, Array] = {}
    restorer.restore(
        _photo(), plugins=["deblur"], steps=1,
        observe=lambda plugin, name, step, value: direct.setdefault(f"{plugin} {name}", value),
    )  # fmt: skip
    assert np.array_equal(seen["deblur tokens"], direct["deblur tokens"])
    assert seen["deblur cond"].shape == (1, 4, 9, 9)


def test_noise_is_the_same_for_every_plugin_of_a_chain(restorer: Restorer) -> None:
    first: dict[str, Array] = {}

    def observe(plugin: str, name: str, step: int, value: Array) -> None:
        if name == "latents" and step == 0:
            first[plugin] = value

    restorer.restore(_photo(), plugins=["lowlight", "lowlight"], seed=5, observe=observe)
    assert np.array_equal(first["lowlight"], normal(5, (1, 4, 12, 14)))
    restorer.restore(_photo(), plugins=["deblur"], seed=5, observe=observe)
    assert np.abs(first["deblur"] - normal(5, (1, 4, 12, 14))).max() > 0.01, "deblur starts from the noised input"


def test_nothing_selected_leaves_the_picture_untouched(restorer: Restorer, model: FakeModel) -> None:
    photo = photo_from(_photo())
    made = restorer.restore(photo, "make it a watercolour")
    assert made.untouched and made.photo is photo and made.plan.chain == ()
    assert made.selection.reason.startswith("no plugin scores above 0")
    assert "unet" not in model.loads and "vae_encoder" not in model.loads


def test_a_request_that_is_cut_says_so(restorer: Restorer) -> None:
    assert "first 6 word pieces" in restorer.plan(_photo(), "rain " * 7)[1].reason
    assert "first" not in restorer.plan(_photo(), "rain " * 6)[1].reason


def test_compound_tasks_come_from_the_bundle_too(fake_bundle: Bundle, model: FakeModel, tmp_path: Path) -> None:
    folder = shutil.copytree(fake_bundle.path, tmp_path / "own")
    (folder / "plugins/compounds.toml").write_text('[wet]\nphrases = ["wet"]\ntasks = ["deblur", "derain", "absent"]\n')
    _, selection = Restorer(replace(fake_bundle, path=folder), model, "fp32").plan(_photo(), "dark, remove wet")
    assert selection.chosen == ("derain", "lowlight", "deblur") and selection.compounds == ("wet",)


def test_named_plugins_need_no_words(restorer: Restorer, model: FakeModel) -> None:
    made = restorer.restore(_photo(), plugins=("Blur", "low-light"), steps=2)
    assert made.selection.chosen == ("deblur", "lowlight") and made.selection.scores == {}
    assert "clip_text" not in model.loads and "selector" not in model.loads and "tpb/derain" not in model.loads


def test_transparency_and_kinds_of_pictures(restorer: Restorer) -> None:
    alpha = np.arange(64 * 80, dtype=np.uint32).reshape(64, 80).astype(np.uint8)
    rgba = np.dstack((_photo(), alpha))
    for picture in (rgba, Image.fromarray(rgba)):
        made = restorer.restore(picture, plugins=["deblur"], steps=1)
        assert made.image.mode == "RGBA" and np.array_equal(np.asarray(made.image)[..., 3], alpha)
    assert restorer.restore(_photo(), plugins=["deblur"], steps=1).image.mode == "RGB"


def test_output_sizes(restorer: Restorer) -> None:
    photo = _photo(64, 80)
    at_input = restorer.restore(photo, plugins=["deblur"], steps=1, size=(120, 96))
    working = restorer.restore(photo, plugins=["deblur"], steps=1, size=(120, 96), output_size="working")
    assert at_input.array.shape == (64, 80, 3) and working.array.shape == (96, 120, 3)


def test_a_smaller_copy_runs_and_the_photo_keeps_its_detail(restorer: Restorer, model: FakeModel) -> None:
    noise = np.random.default_rng(0).integers(-20, 21, (300, 400, 3))
    photo = np.clip(_photo(300, 400) + noise, 0, 255).astype(np.uint8)
    made = restorer.restore(photo, plugins=["derain"], steps=1, work_size=96)
    assert (made.plan.working_size, made.plan.carry, made.array.shape) == ((128, 96), "change", photo.shape)
    change = made.array.astype(float) - photo
    fine = np.diff(change, axis=1).std() / np.diff(photo.astype(float), axis=1).std()
    assert abs(change.mean()) > 3 and fine < 0.3, f"{fine:.2f} of the photo's finest detail is changed"
    grey = np.zeros((300, 400), np.uint8)
    grey[100:200, 100:200] = 255
    part = restorer.restore(photo, plugins=["derain"], steps=1, work_size=96, mask=grey)
    assert np.array_equal(part.array[grey == 0], photo[grey == 0]) and (part.array[150, 150] != photo[150, 150]).any()
    assert restorer.restore(photo, plugins=["derain"], steps=1, work_size=300).plan.carry == "picture"


# --- tiles ---


def test_pieces_give_what_the_whole_gives(restorer: Restorer, model: FakeModel) -> None:
    photo = _photo(300, 410)
    whole = restorer.restore(photo, plugins=["derain"], steps=3, tile="off")
    runs = model.runs("unet")
    pieces = restorer.restore(photo, plugins=["derain"], steps=3)
    assert (len(whole.plan.tiles), len(pieces.plan.tiles)) == (1, 6)
    assert model.runs("unet") - runs == pieces.plan.unet_runs == 18
    assert _off(pieces.array, whole.array) == 0
    assert max(x.height * x.width for x in pieces.plan.tiles) <= 1.75 * 16**2


def _jumps(rgb: Array, borders: set[int]) -> tuple[float, float]:
    """(mean step between neighbouring columns at ``borders``, elsewhere), in 8-bit levels."""
    steps = np.abs(np.diff(rgb.astype(np.float64), axis=1)).mean((0, 2))
    at = np.zeros(len(steps), bool)
    at[[b - 1 for b in borders]] = True
    return float(steps[at].mean()), float(steps[~at].mean())


def test_no_seams_at_tile_borders(restorer: Restorer, model: FakeModel) -> None:
    """Pieces that disagree (each shifts its brightness, as attention and group norm do) meet without a visible edge."""

    def disagree(inputs: Mapping[str, Array]) -> dict[str, Array]:
        goal = inputs["residual_1"]
        deep = np.zeros((1, 6, *inputs["latents"].shape[2:]), np.float32)
        return {"eps": model.towards(inputs, goal + 0.5 * np.float32(goal.mean())), "deep": deep}

    model.swap("unet", disagree)
    ramp = np.linspace(60, 190, 512).astype(np.uint8)
    photo = np.broadcast_to(ramp[None, :, None], (64, 512, 3)).copy()
    made = restorer.restore(photo, plugins=["derain"], steps=4, tile=128)
    inside = {8 * side - 16 for t in made.plan.tiles for side in (t.left, t.left + t.width)}
    borders = {side for side in inside if 0 < side < 512}
    assert len(made.plan.tiles) >= 5 and borders
    smooth = made.array[:, ::8]  # the fake decoder makes blocks of 8
    at, elsewhere = _jumps(smooth, {b // 8 for b in borders})
    assert at <= 1.25 * elsewhere, f"jump of {at:.2f} levels at tile borders, {elsewhere:.2f} elsewhere"
    # the same pieces side by side, without overlap, do jump: the measure sees seams
    cut = [restorer.restore(photo[:, x : x + 128], plugins=["derain"], steps=4).array for x in range(0, 512, 128)]
    at, elsewhere = _jumps(np.concatenate(cut, 1)[:, ::8], {16, 32, 48})
    assert at > 2 * elsewhere


# --- guards, cancelling, progress ---


def test_progress_counts_every_unet_run(restorer: Restorer) -> None:
    calls: list[tuple[int, int, str]] = []
    restorer.restore(_photo(), plugins=["derain", "deblur"], steps=2, progress=lambda *call: calls.append(call))
    assert calls == [
        (0, 4, "derain"), (1, 4, "derain"), (2, 4, "derain"), (2, 4, "deblur"), (3, 4, "deblur"), (4, 4, "deblur"),
    ]  # fmt: skip


def test_cancel_between_steps(restorer: Restorer, model: FakeModel) -> None:
    with pytest.raises(Cancelled):
        restorer.restore(_photo(), plugins=["derain"], cancelled=lambda: model.runs("unet") >= 3)
    assert model.runs("unet") == 3
    again = restorer.restore(_photo(), plugins=["derain"], sampler="euler")
    assert _off(again.array, _expected(_photo(), "derain")) <= 1


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
        restorer.restore(_photo(), plugins=["derain"])


@pytest.mark.parametrize("shift", [5, -5])
def test_a_picture_that_is_flat_once_it_is_clipped_is_refused(
    restorer: Restorer, model: FakeModel, shift: float
) -> None:
    """A decoder that is off by 5 makes a picture with all its structure, out of range."""
    decoder = model._function("vae_decoder")
    model.swap("vae_decoder", lambda inputs: {"image": decoder(inputs)["image"] + np.float32(shift)})
    with pytest.raises(NotFinite, match=r"the picture is constant \(-?1\.000 everywhere, clipped\)"):
        restorer.restore(_photo(), plugins=["derain"])


def test_a_picture_of_another_size_is_refused(restorer: Restorer, model: FakeModel) -> None:
    model.swap("vae_decoder", lambda inputs: {"image": np.zeros((1, 3, 8, 8), np.float32)})
    with pytest.raises(ShapeMismatch, match=r"vae_decoder: output image is float32 1x3x8x8, expected float32 1x3x"):
        restorer.restore(_photo(), plugins=["derain"])


def test_a_flat_picture_may_stay_flat(restorer: Restorer) -> None:
    grey = np.full((64, 64, 3), 100, np.uint8)
    made = restorer.restore(grey, plugins=["deblur"], sampler="euler")
    assert _off(made.array, _expected(grey, "deblur")) <= 1


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
        restorer.restore(_photo(), **options)
    assert "\n" not in str(caught.value)
    assert model.loads == []


def test_a_missing_file_is_an_image_error(restorer: Restorer) -> None:
    with pytest.raises(ImageError, match="no such file"):
        restorer.restore("nowhere.png", plugins=["derain"])


def test_a_bundle_without_selector_asks_for_a_plugin(fake_bundle: Bundle, model: FakeModel) -> None:
    bare = replace(fake_bundle, manifest=replace(fake_bundle.manifest, selector=False))
    with pytest.raises(RequestError, match=r"no selector.*derain, lowlight, deblur"):
        Restorer(bare, model, "fp32").restore(_photo(), "rain")
    assert Restorer(bare, model, "fp32").prepare((64, 64)).latent_size == (12, 12)


# --- cost and sharing ---


def test_plan_is_what_runs(restorer: Restorer, model: FakeModel) -> None:
    plan, selection = restorer.plan(_photo(300, 300), "rain", steps=5, seed=3)
    assert "unet" not in model.loads
    made = restorer.restore(_photo(300, 300), "rain", steps=5, seed=3)
    assert replace(made.plan, available=None) == replace(plan, available=None) and made.selection == selection
    assert set(made.to_json()) == {"plan", "selection", "timings", "untouched", "strength", "frames", "notes"}
    assert {"unet", "scb", "vae_encoder", "vae_decoder", "clip_vision"} <= set(made.timings)


def test_prepare_leaves_nothing_to_load(restorer: Restorer, model: FakeModel) -> None:
    plan = restorer.prepare((300, 300))
    assert len(plan.tiles) == 6 and model.runs("unet") == 1
    loaded = list(model.loads)
    restorer.restore(_photo(300, 300), "rain dark blur", steps=1)
    assert model.loads == loaded


def test_two_threads_share_a_restorer(restorer: Restorer, model: FakeModel) -> None:
    photos = [_photo(seed=i) for i in range(4)]
    made: dict[int, Array] = {}

    def work(i: int) -> None:
        made[i] = restorer.restore(photos[i], plugins=["derain", "lowlight"], steps=3, seed=i, sampler="euler").array

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, photo in enumerate(photos):
        assert _off(made[i], _expected(photo, "derain", "lowlight")) <= 1
    assert len(model.loads) == len(set(model.loads))


def test_closed_restorers_say_so(restorer: Restorer) -> None:
    with restorer:
        restorer.restore(_photo(), plugins=["derain"], steps=1)
    with pytest.raises(EngineError, match="closed"):
        restorer.restore(_photo(), plugins=["derain"], steps=1)


# --- memory of the picture itself ---


@pytest.mark.parametrize("plugin", ["derain", "lowlight"])
def test_picture_sized_arrays_are_counted(fake_bundle: Bundle, model: FakeModel, plugin: str) -> None:
    """What NumPy takes beyond one piece, against the estimate; the fake engines keep nothing."""
    card = fake_bundle.cards()[plugin]
    made = Restorer(fake_bundle, model, "fp32")
    made.cards[plugin] = replace(card, output="residual" if plugin == "derain" else "decoded")
    photo = smooth_photo(1000, 1400)
    made.restore(smooth_photo(), plugins=[plugin], steps=1)
    tracemalloc.start()
    plan = made.restore(photo, plugins=[plugin], steps=1).plan
    used = tracemalloc.get_traced_memory()[1] / (1000 * 1400)
    tracemalloc.stop()
    told = plan.memory.photo_per_latent_pixel / 64
    assert len(plan.tiles) > 20 and 0.7 * told < used < 1.05 * told, f"{plugin}: {told} bytes a pixel told, {used:.1f}"


@pytest.mark.parametrize("request_", [None, "", "auto", "fix this"])
def test_without_words_the_photo_itself_decides(restorer: Restorer, model: FakeModel, request_: str | None) -> None:
    dark = _photo() // 2
    made = restorer.restore(dark, request_, steps=2)
    assert made.selection.chosen == ("lowlight",) and not made.selection.scores and not made.untouched
    np.testing.assert_array_equal(made.array, restorer.restore(dark, plugins=["lowlight"], steps=2).array)
    assert model.runs("selector") == 0 and model.runs("clip_text") == 0, "there are no words to read"
    clean = restorer.restore(_photo(), request_)
    assert clean.untouched and clean.selection.reason == "nothing found to restore"
    assert model.runs("tpb/derain") == 0
