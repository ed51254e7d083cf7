"""Whole restorations on the recording fake: the device loop beside the plain one, with the embedded model."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffplugin.bundle import Bundle, open_bundle
from diffplugin.engines.onnxruntime import OnnxRuntimeBuilder
from diffplugin.errors import Cancelled, EngineError, ForeignEngine, NotFinite
from diffplugin.runtime import stage
from diffplugin.runtime.capture import DevicePicture
from diffplugin.runtime.device import DeviceLoop, scb_batch
from diffplugin.runtime.quality import QUALITIES
from diffplugin.runtime.report import plan_lines
from diffplugin.runtime.restoration import Restoration
from diffplugin.runtime.restorer import Restorer
from diffplugin.shapes import Range, full_profile
from diffplugin.spec import Array
from tests.engines.fake_driver import FakeDriver
from tests.engines.fake_tensorrt import FakeTensorRt, FakeTensorRtBuilder, fake_engines

Floats = Callable[..., tuple[Restoration, list[Array]]]


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver()


@pytest.fixture
def library(driver: FakeDriver) -> FakeTensorRt:
    return FakeTensorRt(driver)


@pytest.fixture
def restorer(device_bundle: Bundle, driver: FakeDriver, library: FakeTensorRt) -> Iterator[Restorer]:
    """The embedded model on the fake device; at the end nothing may be left there."""
    with Restorer(device_bundle, FakeTensorRtBuilder(driver, library), "fp32", reason="as asked") as made:
        yield made
    assert driver.live() == {}


@pytest.fixture(scope="module")
def plain(device_bundle: Bundle) -> Iterator[Restorer]:
    with Restorer(device_bundle, OnnxRuntimeBuilder(), "fp32", threads=1) as made:
        yield made


@pytest.fixture
def floats(monkeypatch: pytest.MonkeyPatch) -> Floats:
    """``floats(restorer, photo, ...)``: a restoration, and the float32 picture that each plugin made."""
    seen: list[Array] = []
    check = stage.check_picture

    def checked(image: Array, source: Array, where: str) -> None:
        seen.append(image)
        check(image, source, where)

    monkeypatch.setattr(stage, "check_picture", checked)

    def run(restorer: Restorer, photo: Array, **options: Any) -> tuple[Restoration, list[Array]]:
        seen.clear()
        return restorer.restore(photo, **options), list(seen)

    return run


def _photo(height: int = 48, width: int = 64, seed: int = 0) -> Array:
    """Smooth, as photographs are."""
    coarse = np.random.default_rng(seed).integers(30, 220, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return np.ascontiguousarray(coarse.repeat(8, 0).repeat(8, 1)[:height, :width])


def _loop(restorer: Restorer) -> DeviceLoop:
    assert restorer.device is not None
    return restorer.device


REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("first", {"plugins": ["derain"], "steps": 4}),
    ("replay of another picture and seed", {"plugins": ["derain"], "steps": 4, "seed": 7}),
    ("another sampler", {"plugins": ["derain"], "steps": 4, "sampler": "ddim"}),
    ("from noise", {"plugins": ["lowlight"], "steps": 4, "sampler": "dpmpp_2m"}),
    ("a chain", {"plugins": ["derain", "lowlight", "dehaze"], "steps": 4}),
    ("its own steps", {"plugins": ["dehaze"]}),
    ("chosen by words", {"prompt": "remove the rain and brighten it", "steps": 4}),
]


def test_it_makes_the_pictures_of_the_plain_loop(restorer: Restorer, plain: Restorer, floats: Floats) -> None:
    """Twice over everything, so that most are replays; at two sizes, one of them no multiple of anything."""
    _loop(restorer).compared = compared = []
    for size in ((48, 64), (97, 51)):
        for turn in range(2):
            for i, (name, options) in enumerate(REQUESTS):
                photo = _photo(*size, seed=10 * turn + i)
                made, found = floats(restorer, photo, **options)
                expected, wanted = floats(plain, photo, **options)
                assert made.plan.loop == "device" and len(found) == len(wanted) == len(made.plan.chain)
                assert made.selection.scores == pytest.approx(expected.selection.scores, abs=1e-4)
                for mine, theirs in zip(found, wanted, strict=True):
                    np.testing.assert_allclose(mine, theirs, atol=1e-3, err_msg=f"{size}, turn {turn}: {name}")
                levels = np.abs(made.array.astype(int) - expected.array).max(initial=0)
                assert levels <= 1, f"{size}, turn {turn}: {name}: {levels} levels apart"
    assert len(compared) > 25 and all(one.different == 0 for one in compared), "replay and plain enqueues differ"


def test_a_plan_says_what_runs(restorer: Restorer) -> None:
    plan, _ = restorer.plan(_photo(), plugins=["derain", "lowlight"], steps=9)
    assert plan.loop == "device" and [s.scb_batch for s in plan.chain] == [3, 1], "9 in batches of up to 4, then 1"
    assert json.loads(json.dumps(plan.to_json()))["loop"] == "device"
    assert "loop:    device (each plugin's whole picture as one CUDA graph)" in plan_lines(plan)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_batches_of_the_scb_change_nothing(
    device_bundle: Bundle, driver: FakeDriver, restorer: Restorer, batch: int
) -> None:
    """As many timesteps as fit into an eighth of the memory, 11 maps of 48 channels each."""
    with Restorer(device_bundle, FakeTensorRtBuilder(driver), "fp32") as small:
        _loop(small).free = 8 * batch * 11 * 48 * 12 * 16 * 4
        made = small.restore(_photo(), plugins=["derain"], steps=3)
        assert made.plan.chain[0].scb_batch == batch
        assert np.array_equal(made.array, restorer.restore(_photo(), plugins=["derain"], steps=3).array)


def test_scb_batch() -> None:
    from tests.runtime.conftest import DIMS

    per_step = 11 * DIMS.residual_channels * 64 * 64 * 4

    def batch(steps: int, budget: int, most: int = 50) -> int:
        return scb_batch(steps, range(1, most + 1), 64, 64, DIMS, budget * per_step)

    assert [batch(20, budget) for budget in (0, 1, 2, 4, 6, 7, 10, 19, 20, 99)] == [1, 1, 2, 4, 5, 7, 10, 10, 20, 20]
    assert [batch(20, 99, most) for most in (1, 3, 8, 20)] == [1, 3, 7, 20]
    assert [batch(steps, 99) for steps in (1, 2, 3)] == [1, 2, 3]
    assert scb_batch(20, [1, 20], 64, 64, DIMS, 10 * per_step) == 1
    assert scb_batch(20, range(1, 21), 9, 9, DIMS, 99 * per_step) == 1, "81 x 16 bytes cannot be bound in parts"


def test_pieces_run_from_the_host_and_the_plan_says_why(restorer: Restorer) -> None:
    plan, _ = restorer.plan(_photo(96, 96), plugins=["derain"], steps=2, tile=64)
    assert plan.loop == "host" and plan.loop_reason == "4 pieces are blended at every step"
    assert f"loop:    host ({plan.loop_reason})" in plan_lines(plan)


def test_without_an_engine_for_a_whole_step_the_host_runs_it(
    device_bundle: Bundle, driver: FakeDriver, plain: Restorer
) -> None:
    engines = tuple(entry for entry in device_bundle.manifest.engines if entry.graph != "step")
    bundle = replace(device_bundle, manifest=replace(device_bundle.manifest, engines=engines))
    with Restorer(bundle, FakeTensorRtBuilder(driver), "fp32") as restorer:
        made = restorer.restore(_photo(), plugins=["derain"], steps=2)
        expected = plain.restore(_photo(), plugins=["derain"], steps=2)
    assert made.plan.loop_reason == "the bundle has no engine of step for 12x16 latents"
    assert np.abs(made.array.astype(int) - expected.array).max() <= 1


def test_pictures_of_other_sizes_are_grown_or_cut(restorer: Restorer, plain: Restorer) -> None:
    """Engines take latent sides of 8 to 32: a small picture is grown, a large one cut; both are the plain loop's."""
    photo = _photo(20, 40)
    made = restorer.restore(photo, plugins=["derain"], steps=2)
    assert made.plan.padded_size == (40, 32) and made.plan.loop == "device" and made.array.shape == photo.shape
    large = _photo(150, 60)
    pieces = restorer.restore(large, plugins=["derain"], steps=2)
    expected = plain.restore(large, plugins=["derain"], steps=2, tile=128)
    assert pieces.plan.tiles == expected.plan.tiles and len(pieces.plan.tiles) == 2, pieces.plan.tiling
    assert np.abs(pieces.array.astype(int) - expected.array).max() <= 1


def test_pieces_and_observed_runs_go_graph_by_graph(restorer: Restorer, plain: Restorer, driver: FakeDriver) -> None:
    for options in ({"tile": 64}, {"observe": lambda *_: None}):
        made = restorer.restore(_photo(96, 96), plugins=["derain"], steps=2, **options)
        expected = plain.restore(_photo(96, 96), plugins=["derain"], steps=2, **options)
        assert np.abs(made.array.astype(int) - expected.array).max() <= 1
        assert "device" not in made.timings and "begin_capture" not in driver.names()


def test_qualities_that_reuse_features_run_from_the_host(device_bundle: Bundle, driver: FakeDriver) -> None:
    with Restorer(device_bundle, FakeTensorRtBuilder(driver), "fp32", quality=QUALITIES["fast"]) as restorer:
        made = restorer.restore(_photo(), plugins=["derain"], steps=4)
        assert made.plan.loop_reason == "quality fast reuses features between steps"
        assert restorer.restore(_photo(), plugins=["derain"], steps=1).plan.loop == "device", "one step reuses nothing"
    assert driver.live() == {}


def test_a_foreign_bundle_is_refused_before_anything_is_loaded(device_bundle: Bundle, driver: FakeDriver) -> None:
    restorer = Restorer(device_bundle, FakeTensorRtBuilder(driver, device="sm_75"), "fp32")
    with restorer, pytest.raises(ForeignEngine, match="sm_89"):
        restorer.restore(_photo(), plugins=["derain"])
    assert driver.calls == []


def test_prepare_leaves_only_launches(restorer: Restorer, driver: FakeDriver) -> None:
    restorer.prepare(48, 64)
    before = len(driver.calls)
    for plugin in ("derain", "lowlight", "dehaze"):
        assert restorer.restore(_photo(), plugins=[plugin]).plan.loop == "device"
    names = driver.names()[before:]
    assert names.count("launch") == 3 and not {"malloc", "context", "deserialize", "begin_capture"} & set(names)


def test_few_pictures_are_kept_and_the_oldest_goes(restorer: Restorer, driver: FakeDriver) -> None:
    loop = _loop(restorer)
    restorer.restore(_photo(), plugins=["derain"], steps=1)
    clip = driver.live()["streams"] - 1
    for steps in (2, 3, 4, 1, 5, 1, 2):
        restorer.restore(_photo(), plugins=["derain"], steps=steps)
        assert len(loop._pictures) <= loop.kept and driver.live()["streams"] == clip + len(loop._pictures)
        assert driver.live()["executables"] == len(loop._pictures) and "graphs" not in driver.live()
    assert [key.steps for key in loop._pictures] == [4, 5, 1, 2]


def test_idle_pictures_make_room(restorer: Restorer, driver: FakeDriver) -> None:
    for steps in (1, 2, 3):
        restorer.restore(_photo(), plugins=["derain"], steps=steps)
    driver.fail("malloc", 5)
    made = restorer.restore(_photo(), plugins=["derain"], steps=4)
    assert made.plan.loop == "device" and "unet" not in made.timings
    assert [key.steps for key in _loop(restorer)._pictures] == [4]


def test_without_memory_the_host_goes_on(
    restorer: Restorer, plain: Restorer, driver: FakeDriver, caplog: pytest.LogCaptureFixture
) -> None:
    """At every allocation of the first picture; no other picture could make room."""
    expected = plain.restore(_photo(), plugins=["derain"], steps=2).array
    restorer.restore(_photo(), plugins=["derain"], steps=1, observe=lambda *_: None)  # loads what the host needs
    live = driver.live()
    for after in (0, 7, 18):
        driver.fail("malloc", after)
        caplog.clear()
        made = restorer.restore(_photo(), plugins=["derain"], steps=2)
        assert np.abs(made.array.astype(int) - expected).max() <= 1 and "unet" in made.timings
        assert "step by step instead: malloc: made to fail" in caplog.text
        assert not _loop(restorer)._pictures and driver.live() == live
    assert "unet" not in restorer.restore(_photo(), plugins=["derain"], steps=2).timings


@pytest.mark.parametrize(
    ("replays", "call"),
    [
        *((False, call) for call in ("enqueue", "synchronize", "context", "open_stream")),
        *((True, call) for call in ("launch", "synchronize")),
    ],
)
def test_after_a_failure_the_next_request_works(
    restorer: Restorer, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, call: str, replays: bool
) -> None:
    """The failed picture's graph is gone, its memory too; the next request captures anew."""
    loop, photo = _loop(restorer), _photo()
    run = loop.restore

    def failing(*args: Any, **more: Any) -> Array | None:
        driver.fail(call)  # here, so that it strikes in the loop and not in what comes before it
        return run(*args, **more)

    restorer.restore(photo, plugins=["derain"], steps=1)
    live = driver.live()
    if replays:
        restorer.restore(photo, plugins=["derain"], steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "restore", failing)
        with pytest.raises(EngineError, match=r"made to fail|kernel launch failed|out of luck"):
            restorer.restore(photo, plugins=["derain"], steps=2)
    assert [key.steps for key in loop._pictures] == [1], "what failed is kept"
    assert driver.live() == live
    one, other = (restorer.restore(photo, plugins=["derain"], steps=2).array for _ in range(2))
    assert np.array_equal(one, other) and driver.live()["executables"] == 2


def test_cancelled_before_the_launch(restorer: Restorer, driver: FakeDriver) -> None:
    asked = []

    def cancelled() -> bool:
        asked.append(len(driver.calls))
        return len(asked) > 1

    with pytest.raises(Cancelled):
        restorer.restore(_photo(), plugins=["derain", "lowlight"], steps=2, cancelled=cancelled)
    assert len(asked) == 2, "asked once before every plugin"
    assert [key.plugin for key in _loop(restorer)._pictures] == ["derain"]


def test_progress_counts_every_step_once_they_are_done(restorer: Restorer) -> None:
    seen: list[tuple[int, int, str]] = []
    restorer.restore(_photo(), plugins=["derain", "lowlight"], steps=3, progress=lambda *facts: seen.append(facts))
    assert seen[0] == (0, 4, "derain") and seen[-1] == (4, 4, "lowlight")


def test_a_picture_that_is_not_finite_is_refused(restorer: Restorer, library: FakeTensorRt) -> None:
    restorer.restore(_photo(), plugins=["derain"], steps=2)
    library.poisoned = {"vae_decoder"}
    with pytest.raises(NotFinite, match=r"derain, tensorrt-fake at fp32: 9216 of 9216 values"):
        restorer.restore(_photo(), plugins=["derain"], steps=2)
    library.poisoned = set()
    assert restorer.restore(_photo(), plugins=["derain"], steps=2).plan.loop == "device"


def test_requests_from_several_threads(restorer: Restorer, driver: FakeDriver) -> None:
    """Two plugins and two sizes at once: the same keys wait for each other, different ones do not mix."""
    asks = [(_photo(48, 64, i), ["derain", "lowlight"][i % 2]) for i in range(4)]
    asks += [(_photo(64, 48, i), "derain") for i in range(2)]
    alone = [restorer.restore(photo, plugins=[plugin], steps=2).array for photo, plugin in asks]
    wrong: list[str] = []

    def work(i: int) -> None:
        try:
            for _ in range(3):
                found = restorer.restore(asks[i][0], plugins=[asks[i][1]], steps=2).array
                if not np.array_equal(found, alone[i]):
                    wrong.append(f"request {i} differs")
        except BaseException as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(asks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert driver.counted()["begin_capture"] == len(_loop(restorer)._pictures) == 3


def test_only_idle_pictures_are_evicted(restorer: Restorer, monkeypatch: pytest.MonkeyPatch) -> None:
    """More threads than pictures are kept: nobody loses a picture that it works with."""
    loop = _loop(restorer)
    loop.kept = 1
    wrong: list[str] = []
    close = DevicePicture.close

    def closing(picture: DevicePicture) -> None:
        if loop._users[picture]:
            wrong.append(f"{picture.key} is in use")
        close(picture)

    monkeypatch.setattr(DevicePicture, "close", closing)

    def work(steps: int) -> None:
        try:
            for _ in range(4):
                restorer.restore(_photo(), plugins=["derain"], steps=steps)
        except BaseException as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(steps,)) for steps in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and not loop._users
    restorer.restore(_photo(), plugins=["derain"], steps=4)
    assert len(loop._pictures) == 1


def test_closed(device_bundle: Bundle, driver: FakeDriver) -> None:
    restorer = Restorer(device_bundle, FakeTensorRtBuilder(driver), "fp32")
    restorer.restore(_photo(), plugins=["derain"])
    restorer.close()
    assert driver.live() == {}
    with pytest.raises(EngineError, match="closed"):
        restorer.restore(_photo(), plugins=["derain"])
    assert driver.live() == {}


def test_replay_can_be_switched_off(restorer: Restorer, driver: FakeDriver) -> None:
    _loop(restorer).replay = False
    one, other = (restorer.restore(_photo(), plugins=["derain"], steps=2).array for _ in range(2))
    assert np.array_equal(one, other) and not {"begin_capture", "launch"} & set(driver.names())


def test_the_half_precision_graphs_in_the_loop(half_bundle: Path, plain: Restorer) -> None:
    """What TensorRT runs, through ONNX Runtime: its ``step`` shares the UNet's weights, its inputs are float32."""
    from diffplugin.export.measures import psnr

    bundle = open_bundle(half_bundle)
    profile = full_profile(Range.of(12), Range.of(16), bundle.manifest.dims, batch=20, plugins=1)
    engines = fake_engines(bundle, [profile], precision="fp16")
    bundle = replace(bundle, manifest=replace(bundle.manifest, engines=engines))
    driver = FakeDriver()
    with Restorer(bundle, FakeTensorRtBuilder(driver), "fp16") as restorer:
        _loop(restorer).compared = compared = []
        for seed in range(2):
            made = restorer.restore(_photo(), plugins=["derain"], steps=20, seed=seed)
            expected = plain.restore(_photo(), plugins=["derain"], steps=20, seed=seed).array
            found = psnr(made.array, expected)
            assert made.plan.loop == "device" and made.plan.chain[0].scb_batch == 20
            assert found >= 40, f"{found:.1f} dB to float32"
        assert compared and all(one.different == 0 for one in compared)
    assert driver.live() == {}
