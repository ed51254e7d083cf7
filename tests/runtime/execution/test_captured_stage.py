"""One picture on the recording fake, call by call: what is allocated, bound, captured, replayed and given back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from diffplugin.bundle import Bundle
from diffplugin.engines.tensorrt.engine import TensorRtEngine
from diffplugin.errors import DeviceMemoryFull, EngineError
from diffplugin.plugins.cards import Start
from diffplugin.runtime.execution import captured_stage as capture
from diffplugin.runtime.execution.captured_stage import CapturedStage, CaptureKey, Difference, StageInputs
from diffplugin.runtime.sampling.loop import sample, step_weights
from diffplugin.runtime.sampling.noise_schedule import NoiseSchedule
from diffplugin.runtime.sampling.samplers import StepTable, step_table
from diffplugin.runtime.sampling.time_features import sinusoidal
from diffplugin.spec import RESIDUALS, Array
from tests.engines.fake_driver import FakeDriver
from tests.engines.fake_tensorrt import SCRATCH, FakeTensorRt, FakeTensorRtBuilder, run_onnx

KEY = CaptureKey(plugin="derain", steps=3, h=8, w=12, batch=2)
ALLOCATIONS = 19
Engines = Callable[[str], TensorRtEngine]
Make = Callable[..., CapturedStage]


@pytest.fixture
def make(device_bundle: Bundle, driver: FakeDriver, library: FakeTensorRt) -> Iterator[Make]:
    """Pictures of the embedded model; at the end nothing may be left on the device."""
    builder, made = FakeTensorRtBuilder(driver, library), list[CapturedStage]()
    engines: dict[str, TensorRtEngine] = {}

    def engine(key: str) -> TensorRtEngine:
        if key not in engines:
            engines[key] = builder.load(device_bundle, key, precision="fp32", threads=None, cache=None)
        return engines[key]

    def picture(key: CaptureKey = KEY) -> CapturedStage:
        made.append(CapturedStage(driver, engine, key))
        return made[-1]

    yield picture
    for one in made:
        one.close()
    assert driver.live() == {}


def _table(bundle: Bundle, steps: int, sampler: str = "unipc") -> StepTable:
    return step_table(sampler, NoiseSchedule.from_config(bundle.manifest.scheduler), steps)


def _time(bundle: Bundle, table: StepTable) -> Array:
    return sinusoidal(table.t, bundle.manifest.dims.time_features, flip_sin_to_cos=True, freq_shift=0)


def _request(
    bundle: Bundle, key: CaptureKey = KEY, *, seed: int = 0, sampler: str = "unipc", start: Start = "noised_input"
) -> StageInputs:
    random, dims = np.random.default_rng(seed), bundle.manifest.dims
    table = _table(bundle, key.steps, sampler)
    return StageInputs(
        image=random.uniform(-1, 1, (1, 3, key.h * dims.factor, key.w * dims.factor)).astype(np.float32),
        noise=random.standard_normal((1, 4, key.h, key.w), np.float32),
        tokens=random.standard_normal((1, dims.tokens, dims.token_width), np.float32),
        time=_time(bundle, table),
        weights=np.stack([step_weights(table, i, start, 960) for i in range(key.steps)]),
    )


def _expected(
    bundle: Bundle, request: StageInputs, key: CaptureKey, *, sampler: str = "unipc", start: Start = "noised_input"
) -> Array:
    """The plain loop through ONNX Runtime."""

    def run(graph: str, **inputs: Array) -> dict[str, Array]:
        return run_onnx(bundle, graph, inputs)

    cond = run("vae_encoder", image=request.image)["cond"]

    def denoise(i: int, latents: Array) -> Array:
        moment = {"time": request.time[i : i + 1], "tokens": request.tokens}
        residuals = run(f"scb/{key.plugin}", cond=cond, **moment)
        return run("unet", latents=latents, **moment, **residuals)["eps"]

    table = _table(bundle, key.steps, sampler)
    latents = sample(table, denoise, request.noise, cond, start=start, renoise_from_t=960)
    return run("vae_decoder", latents=latents)["image"]


@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("start", ["noised_input", "noise"])
def test_first_run_and_replays_are_the_plain_loop(device_bundle: Bundle, make: Make, start: Start, batch: int) -> None:
    key = replace(KEY, steps=5, batch=batch)
    picture = make(key)
    for seed, sampler in enumerate(["unipc", "unipc", "ddim", "dpmpp_2m", "euler"]):
        request = _request(device_bundle, key, seed=seed, sampler=sampler, start=start)
        assert picture.replays == (seed > 0)
        found = picture.restore(request)
        expected = _expected(device_bundle, request, key, sampler=sampler, start=start)
        assert found is not None and found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=2e-4, err_msg=f"{sampler}, request {seed}")
        plain = picture.restore(request, replay=False)
        assert plain is not None and Difference.between(found, plain) == Difference(found.size, 0, 0.0)


def test_order_of_calls_from_the_first_to_the_last(device_bundle: Bundle, make: Make, driver: FakeDriver) -> None:
    picture = make()
    names = driver.names()
    contexts = [call[1] for call in driver.calls if call[0] == "context"]
    assert contexts == ["step", "vae_decoder", "vae_encoder", "scb/derain", "scb/derain"]
    assert names[0] == "open_stream" and names[-1] == "bind"
    last_malloc = len(names) - 1 - names[::-1].index("malloc")
    assert names.count("malloc") == ALLOCATIONS and "bind" not in names[:last_malloc] and "enqueue" not in names
    assert names[last_malloc + 1 :].count("bind_scratch") == 5

    begun = len(driver.calls)
    picture.restore(_request(device_bundle))
    names = driver.names()[begun:]
    work = [call[1] for call in driver.calls[begun:] if call[0] == "enqueue"]
    photo_work = ["vae_encoder", "scb/derain", "step", "step", "scb/derain", "step", "vae_decoder"]
    assert work == photo_work * 2, "once to run, once to be captured"
    plain, captured = names[: names.index("begin_capture")], names[names.index("begin_capture") :]
    assert plain[:6] == ["upload"] * 6 and plain[-2:] == ["download", "synchronize"]
    assert set(plain[6:-2]) == {"bind", "enqueue"} and set(captured[1:-3]) == {"bind", "enqueue"}
    assert captured[-3:] == ["end_capture", "instantiate", "destroy_graph"]

    begun = len(driver.calls)
    picture.restore(_request(device_bundle, seed=1))
    assert driver.names()[begun:] == ["upload"] * 6 + ["launch", "download", "synchronize"]

    begun = len(driver.calls)
    picture.close()
    assert driver.names()[begun:] == ["synchronize", "destroy_executable"] + ["free"] * ALLOCATIONS + ["close_stream"]
    freed = [call[1] for call in driver.calls[begun:] if call[0] == "free"]
    made = [call[2] for call in driver.calls if call[0] == "malloc"]
    assert freed == made[::-1]


def test_every_buffer_has_the_size_of_its_tensors(device_bundle: Bundle, make: Make, driver: FakeDriver) -> None:
    picture, dims = make(), device_bundle.manifest.dims
    latent, map_ = 4 * 8 * 12 * 4, dims.residual_channels * 8 * 12 * 4
    image, row = 3 * 32 * 48 * 4, 256
    sizes = [call[1] for call in driver.calls if call[0] == "malloc"]
    expected = [image, dims.tokens * dims.token_width * 4, *[latent] * 9, map_, 2 * map_, 2 * map_]
    # step weights and time features one row a step; the SCB's two batches of two time features each
    expected += [3 * row, 3 * row, 2 * 2 * row, image, 2 * SCRATCH]
    assert sizes == expected
    assert picture.bytes == sum(sizes)


def test_latents_and_history_rotate_by_address(device_bundle: Bundle, make: Make, driver: FakeDriver) -> None:
    key = replace(KEY, steps=7, batch=1)
    make(key).restore(_request(device_bundle, key), replay=False)
    steps = [call[2] for call in driver.calls if call[0] == "enqueue" and call[1] == "step"]
    decoder = next(call[2] for call in driver.calls if call[0] == "enqueue" and call[1] == "vae_decoder")
    assert len(steps) == 7 and decoder["latents"] == steps[-1]["next_latents"]
    for i, at in enumerate(steps):
        noise = at["noise"]
        before, earlier = (steps[i - 1] if i else None), (steps[i - 2] if i > 1 else None)
        assert at["latents"] == (before["next_latents"] if before else noise)
        assert at["last"] == (before["next_last"] if before else noise)
        assert at["x0_1"] == (before["next_x0"] if before else noise)
        assert at["x0_2"] == (earlier["next_x0"] if earlier else noise)
        leaving = {at[name] for name in ("next_latents", "next_last", "next_x0")}
        entering = {address for name, address in at.items() if not name.startswith("next_")}
        assert len(leaving) == 3 and not leaving & entering, f"step {i} writes where it reads"
        assert at["weights"] - steps[0]["weights"] == i * 256 and at["time"] - steps[0]["time"] == i * 256


def test_each_step_binds_its_part_of_the_batch(device_bundle: Bundle, make: Make, driver: FakeDriver) -> None:
    make().restore(_request(device_bundle), replay=False)
    size = device_bundle.manifest.dims.residual_channels * 8 * 12 * 4
    steps = [call[2] for call in driver.calls if call[0] == "enqueue" and call[1] == "step"]
    batches = [call[2] for call in driver.calls if call[0] == "enqueue" and call[1] == "scb/derain"]
    for name, places in zip(RESIDUALS, ([0, 0, 0], [0, size, 0], [0, size, 0]), strict=True):
        assert [at[name] - batches[0][name] for at in steps] == places, name
    assert batches[1]["time"] - batches[0]["time"] == 512


def test_contexts_share_the_working_memory(make: Make, driver: FakeDriver) -> None:
    make()
    bound = {call[2:] for call in driver.calls if call[0] == "bind_scratch"}
    assert len(bound) == 1 and next(iter(bound))[1] == 2 * SCRATCH


@pytest.mark.parametrize("call", ["open_stream", "context", "malloc"])
def test_what_cannot_be_made_leaves_nothing(device_bundle: Bundle, make: Make, driver: FakeDriver, call: str) -> None:
    kind, count = (DeviceMemoryFull, ALLOCATIONS) if call == "malloc" else (EngineError, 5 if call == "context" else 1)
    for after in range(count):
        driver.fail(call, after)
        with pytest.raises(kind):
            make()
        assert driver.live() == {}, f"{call} {after}"
    assert make().restore(_request(device_bundle)) is not None


@pytest.mark.parametrize("call", ["begin_capture", "enqueue", "end_capture", "instantiate"])
def test_a_capture_that_fails_leaves_plain_enqueues(
    device_bundle: Bundle, make: Make, driver: FakeDriver, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    request = _request(device_bundle)
    expected = make().restore(request)
    picture = make()
    work = 7
    for after in (0, 3, work - 1) if call == "enqueue" else (0,):
        picture = make()
        driver.fail(call, after + (work if call == "enqueue" else 0))
        caplog.clear()
        for _ in range(2):
            found = picture.restore(request)
            assert found is not None and expected is not None and np.array_equal(found, expected)
        assert not picture.replays and picture.plain_reason is not None and len(caplog.records) == 1
        assert "no CUDA graph, plain enqueues instead" in caplog.text
        assert "graphs" not in driver.live() and "captures" not in driver.live()


def test_an_engine_that_cannot_be_captured(device_bundle: Bundle, make: Make, library: FakeTensorRt) -> None:
    library.capturable = False
    picture = make()
    for _ in range(2):
        assert picture.restore(_request(device_bundle)) is not None
    assert picture.plain_reason is not None and "allocates by itself" in picture.plain_reason
    assert "begin_capture" not in library.driver.names()


@pytest.mark.parametrize("call", ["launch", "synchronize", "upload", "download"])
def test_a_replay_that_fails_raises_and_closing_gives_everything_back(
    device_bundle: Bundle, make: Make, driver: FakeDriver, call: str
) -> None:
    picture = make()
    picture.restore(_request(device_bundle))
    driver.fail(call)
    with pytest.raises(EngineError, match=f"{call}: made to fail"):
        picture.restore(_request(device_bundle))
    picture.close()
    assert driver.live() == {}


def test_a_lost_device_does_not_hide_the_first_error(
    device_bundle: Bundle, make: Make, driver: FakeDriver, caplog: pytest.LogCaptureFixture
) -> None:
    """After some errors every further call fails. What can still be given back is."""
    picture = make()
    for call in ("synchronize", "free"):
        driver.fail(call)
    with pytest.raises(EngineError, match="synchronize: made to fail"):
        picture.restore(_request(device_bundle))
    picture.close()
    assert "not all of the device's memory was given back: free: made to fail" in caplog.text
    assert driver.live() == {"memory": 1}, "all but the one whose release failed"
    driver._blocks.clear()


def test_closed(device_bundle: Bundle, make: Make) -> None:
    picture = make()
    picture.close()
    picture.close()
    assert picture.restore(_request(device_bundle)) is None and not picture.replays
    with pytest.raises(EngineError, match="closed"):
        picture.seconds(_request(device_bundle))


def test_seconds_of_every_run(device_bundle: Bundle, make: Make) -> None:
    taken = make().seconds(_request(device_bundle))
    assert {graph: len(times) for graph, times in taken.items()} == {
        "vae_encoder": 1, "scb": 2, "step": 3, "vae_decoder": 1
    }  # fmt: skip
    assert all(second > 0 for times in taken.values() for second in times)


def test_residuals_that_cannot_be_cut_out_of_a_batch(
    device_bundle: Bundle, make: Make, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 channels x 9 x 9 x 4 bytes are a multiple of 256, but not of 512."""
    monkeypatch.setattr(capture, "ALIGNMENT", 512)
    with pytest.raises(EngineError, match=r"residuals of 20736 bytes cannot be cut"):
        make(replace(KEY, h=9, w=9))
    assert driver.live() == {}
    key = replace(KEY, h=9, w=9, batch=1)
    assert make(key).restore(_request(device_bundle, key)) is not None


def test_differences_are_counted_bit_for_bit() -> None:
    one = np.array([0.0, 1.0, np.nan, 2.0], np.float32)
    other = one.copy()
    assert Difference.between(one, other) == Difference(4, 0, 0.0)
    other[0], other[3] = -0.0, 2.5
    assert Difference.between(one, other) == Difference(4, 2, 0.5)
