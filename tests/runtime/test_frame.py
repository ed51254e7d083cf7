"""One frame through the chain of its plan: sizes, tiles, noise, memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from diffplugin.runtime.planning.quality import QUALITIES
from diffplugin.runtime.restorer import Restorer
from diffplugin.runtime.sampling.start_noise import normal
from diffplugin.spec import Array
from tests.runtime.conftest import block_photo, expected_pixels, largest_difference, smooth_photo

if TYPE_CHECKING:
    from diffplugin.bundle import Bundle
    from tests.runtime.conftest import FakeModel


@pytest.mark.parametrize(("height", "width"), [(64, 64), (61, 93), (9, 8), (130, 15)])
def test_any_size_comes_back_at_its_size(restorer: Restorer, height: int, width: int) -> None:
    photo = np.full((height, width, 3), 120, np.uint8)
    made = restorer.restore(photo, plugins=["deblur"], steps=2, sampler="euler")
    assert largest_difference(made.array, expected_pixels(photo, "deblur")) <= 1


def test_transparency_and_kinds_of_pictures(restorer: Restorer) -> None:
    alpha = np.arange(64 * 80, dtype=np.uint32).reshape(64, 80).astype(np.uint8)
    rgba = np.dstack((block_photo(), alpha))
    for picture in (rgba, Image.fromarray(rgba)):
        made = restorer.restore(picture, plugins=["deblur"], steps=1)
        assert made.image.mode == "RGBA" and np.array_equal(np.asarray(made.image)[..., 3], alpha)
    assert restorer.restore(block_photo(), plugins=["deblur"], steps=1).image.mode == "RGB"


def test_output_sizes(restorer: Restorer) -> None:
    photo = block_photo(64, 80)
    at_input = restorer.restore(photo, plugins=["deblur"], steps=1, size=(120, 96))
    working = restorer.restore(photo, plugins=["deblur"], steps=1, size=(120, 96), output_size="working")
    assert at_input.array.shape == (64, 80, 3) and working.array.shape == (96, 120, 3)


def test_a_smaller_copy_runs_and_the_photo_keeps_its_detail(restorer: Restorer, model: FakeModel) -> None:
    noise = np.random.default_rng(0).integers(-20, 21, (300, 400, 3))
    photo = np.clip(block_photo(300, 400) + noise, 0, 255).astype(np.uint8)
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


def test_faults_that_the_copy_loses_run_at_full_size(fake_bundle: Bundle, model: FakeModel) -> None:
    photo = np.random.default_rng(0).integers(60, 200, (300, 400, 3)).astype(np.uint8)
    seen: list[tuple[int, int]] = []
    with Restorer(fake_bundle, model, "fp32", quality=QUALITIES["balanced"]) as restorer:
        restorer.cards = {name: replace(card, work_size=96, fine=True) for name, card in restorer.cards.items()}
        made = restorer.restore(photo, plugins=["derain"], progress=lambda done, total, _: seen.append((done, total)))
        whole = restorer.restore(photo, plugins=["derain"], work_size="full")
        copy = restorer.restore(photo, plugins=["derain"], work_size=96)
    assert made.plan.fine == whole.plan.tiles and len(made.plan.fine) == 6 and not copy.plan.fine
    off, before = (np.abs(x.array.astype(int) - whole.array).mean() for x in (made, copy))
    assert off < before / 4, f"{off:.1f} levels from the photo at full size, the copy {before:.1f}"
    assert seen[-1][0] == seen[-1][1] > made.plan.unet_runs, "progress ends at its total"


def test_pieces_give_what_the_whole_gives(restorer: Restorer, model: FakeModel) -> None:
    photo = block_photo(300, 410)
    whole = restorer.restore(photo, plugins=["derain"], steps=3, tile="off")
    runs = model.runs("unet")
    pieces = restorer.restore(photo, plugins=["derain"], steps=3)
    assert (len(whole.plan.tiles), len(pieces.plan.tiles)) == (1, 6)
    assert model.runs("unet") - runs == pieces.plan.unet_runs == 18
    assert largest_difference(pieces.array, whole.array) == 0
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


@pytest.mark.parametrize("plugin", ["derain", "lowlight"])
def test_picture_sized_arrays_are_counted(fake_bundle: Bundle, model: FakeModel, plugin: str) -> None:
    """What NumPy takes beyond one piece, against the estimate; the fake engines keep nothing."""
    card = fake_bundle.cards()[plugin]
    made = Restorer(fake_bundle, model, "fp32")
    residual = plugin == "derain"
    made.cards[plugin] = replace(card, output="residual" if residual else "decoded", coring=8 if residual else 0)
    photo = smooth_photo(1000, 1400)
    made.restore(smooth_photo(), plugins=[plugin], steps=1)
    tracemalloc.start()
    plan = made.restore(photo, plugins=[plugin], steps=1).plan
    used = tracemalloc.get_traced_memory()[1] / (1000 * 1400)
    tracemalloc.stop()
    told = plan.memory.photo_per_latent_pixel / 64
    assert len(plan.tiles) > 20 and 0.7 * told < used < 1.05 * told, f"{plugin}: {told} bytes a pixel told, {used:.1f}"


def test_noise_is_the_same_for_every_plugin_of_a_chain(restorer: Restorer) -> None:
    first: dict[str, Array] = {}

    def observe(plugin: str, name: str, step: int, value: Array) -> None:
        if name == "latents" and step == 0:
            first[plugin] = value

    restorer.restore(block_photo(), plugins=["lowlight", "lowlight"], seed=5, observe=observe)
    assert np.array_equal(first["lowlight"], normal(5, (1, 4, 12, 14)))
    restorer.restore(block_photo(), plugins=["deblur"], seed=5, observe=observe)
    assert np.abs(first["deblur"] - normal(5, (1, 4, 12, 14))).max() > 0.01, "deblur starts from the noised input"
