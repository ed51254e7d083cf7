"""Whole restorations on the recording fake: the device loop beside the plain one, with the embedded model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffplugin.bundle import Bundle, list_files, open_bundle
from diffplugin.errors import ForeignEngine
from diffplugin.runtime.cli.messages import plan_lines
from diffplugin.runtime.execution import stage
from diffplugin.runtime.execution.captured_stage import Difference
from diffplugin.runtime.execution.device_loop import scb_batch
from diffplugin.runtime.planning.quality import QUALITIES
from diffplugin.runtime.restoration import Restoration
from diffplugin.runtime.restorer import Restorer
from diffplugin.shapes import Range, full_profile
from diffplugin.spec import Array
from tests.engines.fake_driver import FakeDriver
from tests.engines.fake_tensorrt import FakeTensorRtBuilder, fake_engines
from tests.runtime.conftest import DIMS, device_of, smooth_photo

Floats = Callable[..., tuple[Restoration, list[Array]]]


@pytest.fixture
def floats(monkeypatch: pytest.MonkeyPatch) -> Floats:
    """``floats(restorer, photo, ...)``: a restoration, and the float32 picture that each plugin made."""
    seen: list[Array] = []
    check = stage.check_restored

    def checked(image: Array, source: Array, where: str) -> None:
        seen.append(image)
        check(image, source, where)

    monkeypatch.setattr(stage, "check_restored", checked)

    def run(restorer: Restorer, photo: Array, **options: Any) -> tuple[Restoration, list[Array]]:
        seen.clear()
        return restorer.restore(photo, **options), list(seen)

    return run


REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("first", {"plugins": ["derain"], "steps": 4}),
    ("replay of another picture and seed", {"plugins": ["derain"], "steps": 4, "seed": 7}),
    ("another sampler", {"plugins": ["derain"], "steps": 4, "sampler": "ddim"}),
    ("from noise", {"plugins": ["lowlight"], "steps": 4, "sampler": "dpmpp_2m"}),
    ("a chain", {"plugins": ["derain", "lowlight", "dehaze"], "steps": 4}),
    ("its own steps", {"plugins": ["dehaze"]}),
    ("chosen by words", {"prompt": "remove the rain and brighten it", "steps": 4}),
]


def test_it_makes_the_pictures_of_the_plain_loop(on_device: Restorer, plain: Restorer, floats: Floats) -> None:
    """Twice over everything, so that most are replays; at two sizes, one of them no multiple of anything."""
    compared: list[Difference] = []
    device_of(on_device).compared = compared
    for size in ((48, 64), (89, 51)):
        for turn in range(2):
            for i, (name, options) in enumerate(REQUESTS):
                photo = smooth_photo(*size, seed=10 * turn + i)
                made, found = floats(on_device, photo, **options)
                expected, wanted = floats(plain, photo, **options)
                assert made.plan.loop == "device" and len(found) == len(wanted) == len(made.plan.chain)
                assert made.selection.scores == pytest.approx(expected.selection.scores, abs=1e-4)
                for mine, theirs in zip(found, wanted, strict=True):
                    np.testing.assert_allclose(mine, theirs, atol=1e-3, err_msg=f"{size}, turn {turn}: {name}")
                levels = np.abs(made.array.astype(int) - expected.array).max(initial=0)
                assert levels <= 1, f"{size}, turn {turn}: {name}: {levels} levels apart"
    assert len(compared) > 25 and all(one.different == 0 for one in compared), "replay and plain enqueues differ"


def test_residuals_and_lower_starts_too(
    on_device: Restorer, plain: Restorer, floats: Floats, monkeypatch: pytest.MonkeyPatch
) -> None:
    for restorer in (on_device, plain):
        card = replace(restorer.cards["derain"], output="residual", first_t=500)
        monkeypatch.setitem(restorer.cards, "derain", card)
    (device, mine), (host, theirs) = (
        floats(r, smooth_photo(), plugins=["derain"], steps=3) for r in (on_device, plain)
    )
    assert (device.plan.loop, host.plan.loop) == ("device", "host")
    assert device.plan.chain[0].first_t == 500 and device.plan.chain[0].output == "residual"
    error = max(float(np.abs(a - b).max()) for a, b in zip(mine, theirs, strict=True))
    assert error <= 1e-4, error


def test_a_head_ends_the_stage_in_the_place_of_the_decoder(
    on_device: Restorer, plain: Restorer, floats: Floats, driver: FakeDriver
) -> None:
    plugin = next(name for name, card in on_device.cards.items() if card.output == "head")
    (device, mine), (_, theirs) = (floats(r, smooth_photo(), plugins=[plugin], steps=3) for r in (on_device, plain))
    assert device.plan.loop == "device"
    work = [call[1] for call in driver.calls if call[0] == "enqueue"]
    assert f"head/{plugin}" in work and "vae_decoder" not in work
    error = max(float(np.abs(a - b).max()) for a, b in zip(mine, theirs, strict=True))
    assert error <= 1e-4, error


def test_a_plan_says_what_runs(on_device: Restorer) -> None:
    plan, _ = on_device.plan(smooth_photo(), plugins=["derain", "lowlight"], steps=9)
    assert plan.loop == "device" and [s.scb_batch for s in plan.chain] == [3, 1], "9 in batches of up to 4, then 1"
    assert json.loads(json.dumps(plan.to_json()))["loop"] == "device"
    kept = 3 * 11 * 4 * on_device.dims.residual_channels  # of the larger batch, float32
    assert plan.memory.kept_per_latent_pixel == kept, "the estimate leaves the SCB's batch out"
    assert "loop:    device (each plugin's whole stage as one CUDA graph)" in plan_lines(plan)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_batches_of_the_scb_change_nothing(
    device_bundle: Bundle, driver: FakeDriver, on_device: Restorer, batch: int
) -> None:
    """As many timesteps as fit into an eighth of the memory, 11 maps of the SCB's channels each."""
    channels, photo = device_bundle.manifest.dims.residual_channels, smooth_photo(16, 32)
    with Restorer(device_bundle, FakeTensorRtBuilder(driver), "fp32") as small:
        device_of(small).free = 8 * batch * 11 * channels * 12 * 16 * 4
        made = small.restore(photo, plugins=["derain"], steps=3)
        assert made.plan.chain[0].scb_batch == batch
        assert np.array_equal(made.array, on_device.restore(photo, plugins=["derain"], steps=3).array)


def test_scb_batch() -> None:
    per_step = 11 * DIMS.residual_channels * 64 * 64 * 4

    def batch(steps: int, budget: int, most: int = 50) -> int:
        return scb_batch(steps, range(1, most + 1), 64, 64, DIMS, budget * per_step)

    assert [batch(20, budget) for budget in (0, 1, 2, 4, 6, 7, 10, 19, 20, 99)] == [1, 1, 2, 4, 5, 7, 10, 10, 20, 20]
    assert [batch(20, 99, most) for most in (1, 3, 8, 20)] == [1, 3, 7, 20]
    assert [batch(steps, 99) for steps in (1, 2, 3)] == [1, 2, 3]
    assert scb_batch(20, [1, 20], 64, 64, DIMS, 10 * per_step) == 1
    assert scb_batch(20, range(1, 21), 9, 9, DIMS, 99 * per_step) == 1, "81 x 16 bytes cannot be bound in parts"


def test_pieces_run_from_the_host_and_the_plan_says_why(on_device: Restorer) -> None:
    plan, _ = on_device.plan(smooth_photo(96, 96), plugins=["derain"], steps=2, tile=64)
    assert plan.loop == "host" and plan.loop_reason == "9 pieces are blended at every step"
    assert f"loop:    host ({plan.loop_reason})" in plan_lines(plan)


def test_plans_count_on_the_devices_free_memory(device_bundle: Bundle) -> None:
    """Decided before the run, whatever memory the host has: what does not fit in one piece is cut."""
    plans = {}
    for free in (2**32, 2**25):
        with Restorer(device_bundle, FakeTensorRtBuilder(FakeDriver(free)), "fp32") as restorer:
            plans[free], _ = restorer.plan(smooth_photo(96, 96), plugins=["derain"], steps=2)
        print(f"{free}: {plans[free].loop}, {len(plans[free].tiles)} pieces, {plans[free].estimated_bytes} bytes")
    roomy, tight = plans.values()
    assert (roomy.loop, len(roomy.tiles)) == ("device", 1) and tight.loop == "host" and len(tight.tiles) > 1


def test_without_an_engine_for_a_whole_step_the_host_runs_it(
    device_bundle: Bundle, driver: FakeDriver, plain: Restorer
) -> None:
    engines = tuple(entry for entry in device_bundle.manifest.engines if entry.graph != "step")
    bundle = replace(device_bundle, manifest=replace(device_bundle.manifest, engines=engines))
    with Restorer(bundle, FakeTensorRtBuilder(driver), "fp32") as restorer:
        made = restorer.restore(smooth_photo(), plugins=["derain"], steps=2)
        expected = plain.restore(smooth_photo(), plugins=["derain"], steps=2)
    assert made.plan.loop_reason == "the bundle has no engine of step for latents of 24x20"
    assert np.abs(made.array.astype(int) - expected.array).max() <= 1


def test_pictures_of_other_sizes_are_cut(on_device: Restorer, plain: Restorer) -> None:
    """Engines take latent sides of 8 to 32: a large picture is cut as the plain loop cuts it."""
    photo = smooth_photo(20, 40)
    made = on_device.restore(photo, plugins=["derain"], steps=2)
    assert made.plan.latent_size == (18, 13) and made.plan.loop == "device" and made.array.shape == photo.shape
    large = smooth_photo(150, 60)
    pieces = on_device.restore(large, plugins=["derain"], steps=2)
    expected = plain.restore(large, plugins=["derain"], steps=2, tile=128)
    assert pieces.plan.tiles == expected.plan.tiles and len(pieces.plan.tiles) == 2, pieces.plan.tiling
    assert np.abs(pieces.array.astype(int) - expected.array).max() <= 1


def test_pieces_and_observed_runs_go_graph_by_graph(on_device: Restorer, plain: Restorer, driver: FakeDriver) -> None:
    for options in ({"tile": 64}, {"observe": lambda *_: None}):
        made = on_device.restore(smooth_photo(96, 96), plugins=["derain"], steps=2, **options)
        expected = plain.restore(smooth_photo(96, 96), plugins=["derain"], steps=2, **options)
        assert np.abs(made.array.astype(int) - expected.array).max() <= 1
        assert "device" not in made.timings and "begin_capture" not in driver.names()


def test_qualities_that_reuse_features_run_from_the_host(device_bundle: Bundle, driver: FakeDriver) -> None:
    with Restorer(device_bundle, FakeTensorRtBuilder(driver), "fp32", quality=QUALITIES["fast"]) as restorer:
        made = restorer.restore(smooth_photo(), plugins=["derain"], steps=4)
        assert made.plan.loop_reason == "quality fast reuses features between steps"
        assert restorer.restore(smooth_photo(), plugins=["derain"], steps=1).plan.loop == "device", (
            "one step reuses nothing"
        )
    assert driver.live() == {}


def test_a_foreign_bundle_is_refused_before_anything_is_loaded(device_bundle: Bundle, driver: FakeDriver) -> None:
    restorer = Restorer(device_bundle, FakeTensorRtBuilder(driver, device="sm_75"), "fp32")
    with restorer, pytest.raises(ForeignEngine, match="sm_89"):
        restorer.restore(smooth_photo(), plugins=["derain"])
    assert driver.calls == []


def test_replay_can_be_switched_off(on_device: Restorer, driver: FakeDriver) -> None:
    device_of(on_device).replay = False
    one, other = (on_device.restore(smooth_photo(), plugins=["derain"], steps=2).array for _ in range(2))
    assert np.array_equal(one, other) and not {"begin_capture", "launch"} & set(driver.names())


def test_the_half_precision_graphs_in_the_loop(half_bundle: Path, plain: Restorer, tmp_path: Path) -> None:
    """What TensorRT runs, through ONNX Runtime: its ``step`` shares the UNet's weights, its inputs are float32."""
    from diffplugin.export.measures import psnr

    bundle = open_bundle(shutil.copytree(half_bundle, tmp_path / "bundle"))  # others use that one as it is
    profile = full_profile(Range.of(20), Range.of(24), bundle.manifest.dims, batch=20, plugins=1)
    engines = fake_engines(bundle, [profile], precision="fp16")
    bundle = replace(bundle, manifest=replace(bundle.manifest, engines=engines, files=list_files(bundle.path)))
    driver = FakeDriver()
    with Restorer(bundle, FakeTensorRtBuilder(driver), "fp16") as restorer:
        compared: list[Difference] = []
        device_of(restorer).compared = compared
        for seed in range(2):
            made = restorer.restore(smooth_photo(), plugins=["derain"], steps=20, seed=seed)
            expected = plain.restore(smooth_photo(), plugins=["derain"], steps=20, seed=seed).array
            found = psnr(made.array, expected)
            assert made.plan.loop == "device" and made.plan.chain[0].scb_batch == 20
            assert found >= 40, f"{found:.1f} dB to float32"
        assert compared and all(one.different == 0 for one in compared)
    assert driver.live() == {}
