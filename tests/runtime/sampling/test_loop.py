"""The loop with each table: beside diffusers' schedulers step by step, and against the released scripts' latents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffplugin.errors import Cancelled, NotFinite, RequestError, ShapeMismatch
from diffplugin.runtime.sampling.loop import sample, step_weights
from diffplugin.runtime.sampling.noise_schedule import NoiseSchedule
from diffplugin.runtime.sampling.samplers import SAMPLERS, StepTable, step_table
from diffplugin.runtime.sampling.start_noise import normal

# diffusers hands tensors to NumPy in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

Array = NDArray[Any]
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
SCHEDULE = NoiseSchedule.from_config(SD)
SHAPE = (1, 4, 8, 6)
NOISE, COND = normal(1, SHAPE), 0.8 * np.tanh(normal(2, SHAPE))
TOLERANCE = 1e-5
STARTS = [("noise", 0), ("noised_input", 960), ("noised_input", 400)]


def fake_model(t: float, latents: Array) -> Array:
    """Nonlinear, different at every t, and it mixes neighbours, so that an error anywhere spreads."""
    mixed = 0.6 * latents + 0.3 * np.roll(latents, 1, axis=-1) - 0.2 * np.roll(latents, 1, axis=1)
    return np.asarray(np.tanh(mixed) + 0.3 * np.sin(t / 70 + latents), np.float32)


def ours(table: StepTable, start: Any, renoise_from_t: int) -> list[Array]:
    """Latents that entered the model at each step, and the final ones."""
    entered: list[Array] = []
    final = sample(
        table,
        lambda i, latents: fake_model(table.t[i], latents),
        NOISE,
        COND,
        start=start,
        renoise_from_t=renoise_from_t,
        on_step=lambda i, latents, output: entered.append(latents.copy()),
    )
    assert final.dtype == np.float32
    return [*entered, final]


def theirs(scheduler: Any, steps: int, start: str, renoise_from_t: int) -> tuple[list[float], list[Array]]:
    """The same loop around a diffusers scheduler. Euler's samples are scaled to variance preserving."""
    import torch

    scheduler.set_timesteps(steps)
    exploding = type(scheduler).__name__ == "EulerDiscreteScheduler"
    noise, cond = torch.from_numpy(NOISE), torch.from_numpy(COND)
    latents = noise * (1 + scheduler.sigmas[0] ** 2) ** 0.5 if exploding else noise
    entered: list[Array] = []
    for i, t in enumerate(scheduler.timesteps):
        if start == "noised_input" and (i == 0 or t >= renoise_from_t):
            latents = scheduler.add_noise(cond, noise, t[None])
        scaled = scheduler.scale_model_input(latents, t)
        entered.append(scaled.numpy().copy())
        output = torch.from_numpy(fake_model(float(t), entered[-1]))
        latents = scheduler.step(output, t, latents).prev_sample
    return scheduler.timesteps.tolist(), [*entered, latents.numpy()]  # all end where both scales are 1 or preserving


def scheduler_of(sampler: str, prediction: str) -> Any:
    diffusers = pytest.importorskip("diffusers", reason="steps beside diffusers' schedulers")
    config = SD | {"prediction_type": prediction}
    if sampler == "unipc":
        settings = {"solver_order": 2, "solver_type": "bh2", "predict_x0": True, "lower_order_final": True}
        return diffusers.UniPCMultistepScheduler(**config, **settings, final_sigmas_type="sigma_min")
    if sampler == "dpmpp_2m":
        settings = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}
        return diffusers.DPMSolverMultistepScheduler(**config, **settings)
    if sampler == "ddim":
        settings = {"timestep_spacing": "trailing", "clip_sample": False, "set_alpha_to_one": False}
        return diffusers.DDIMScheduler(**config, **settings)
    return diffusers.EulerDiscreteScheduler(**config, timestep_spacing="trailing")


def error(got: Array, expected: Array) -> float:
    """Relative L2 error."""
    return float(np.linalg.norm(got.astype(np.float64) - expected) / np.linalg.norm(expected))


def assert_same_path(got: list[Array], expected: list[Array], tolerance: float = TOLERANCE) -> None:
    assert len(got) == len(expected)
    errors = [error(a, b) for a, b in zip(got, expected, strict=True)]
    parting = next((i for i, e in enumerate(errors) if not e <= tolerance), None)
    if parting is not None:
        where = f"entering step {parting + 1} of {len(got) - 1}" if parting < len(got) - 1 else "in the final latents"
        pytest.fail(f"part {where}: relative L2 error {errors[parting]:.2e} > {tolerance:.0e}; all: {errors}")


@pytest.mark.parametrize(("start", "renoise_from_t"), STARTS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6, 20, 50])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_steps_beside_diffusers(sampler: str, steps: int, prediction: str, start: str, renoise_from_t: int) -> None:
    timesteps, expected = theirs(scheduler_of(sampler, prediction), steps, start, renoise_from_t)
    table = step_table(sampler, NoiseSchedule.from_config(SD | {"prediction_type": prediction}), steps)
    assert table.t.tolist() == timesteps
    assert_same_path(ours(table, start, renoise_from_t), expected)


def test_the_comparison_sees_where_the_last_update_lands() -> None:
    """diffusers' default for UniPC ends on sigma = 0: only the final latents show it."""
    diffusers = pytest.importorskip("diffusers", reason="steps beside diffusers' schedulers")
    _, expected = theirs(diffusers.UniPCMultistepScheduler(**SD), 20, "noised_input", 960)
    got = ours(step_table("unipc", SCHEDULE, 20), "noised_input", 960)
    assert_same_path(got[:-1], expected[:-1])
    assert error(got[-1], expected[-1]) > 10 * TOLERANCE


def golden_run(path: Path, seed: int, start: Any) -> tuple[list[Array], list[Array]]:
    """(ours, golden): latents entering the kept steps up to the first gap, and z0 when every step was kept.

    The model's outputs are the golden ones, so what is compared is noise, schedule and loop alone.
    """
    with np.load(path) as golden:
        g = {key: golden[key] for key in ("t", "kept_steps", "latents", "eps", "cond", "z0")}
    table = step_table("unipc", SCHEDULE, len(g["t"]))
    np.testing.assert_array_equal(table.t, g["t"])
    known = int(np.argmin(np.append(g["kept_steps"], -1) == np.arange(len(g["kept_steps"]) + 1)))
    entered: list[Array] = []
    loop = {"start": start, "renoise_from_t": 960, "on_step": lambda i, latents, _: entered.append(latents)}
    noise = normal(seed, g["cond"].shape)
    expected = [g["latents"][i : i + 1] for i in range(known)]
    try:
        z0 = sample(
            table, lambda i, _: g["eps"][i : i + 1], noise, g["cond"], cancelled=lambda: len(entered) == known, **loop
        )
    except Cancelled:
        return entered, expected
    return [*entered, z0], [*expected, g["z0"]]


@pytest.mark.parametrize(
    ("name", "seed", "start", "at_least"),
    [
        ("derain_small_4", 7, "noised_input", 5),  # all four steps and z0, in the small copy of the oracle too
        ("lowlight_portrait_6", 42, "noise", 1),
        ("deblur_landscape_20", 42, "noised_input", 1),
    ],
)
def test_equals_the_release(oracle: Path, name: str, seed: int, start: str, at_least: int) -> None:
    got, expected = golden_run(oracle / "golden" / f"{name}.npz", seed, start)
    assert len(expected) >= at_least
    assert_same_path(got, expected)


def constant(value: float = 0.0) -> Callable[[int, Array], Array]:
    return lambda i, latents: np.full_like(latents, value)


def run(denoise: Callable[[int, Array], Array], **changes: Any) -> Array:
    arguments: dict[str, Any] = {"start": "noised_input", "renoise_from_t": 960} | changes
    cond = arguments.pop("cond", COND)
    return sample(step_table("unipc", SCHEDULE, 4), denoise, NOISE, cond, **arguments)


def test_renoised_steps_are_the_noised_input() -> None:
    table = step_table("unipc", SCHEDULE, 20)
    entered = ours(table, "noised_input", 849)
    for i in range(6):
        noised = table.alpha[i] * COND + table.sigma[i] * NOISE
        close = error(entered[i], noised) < 1e-6
        assert close == (i < 4), f"step {i + 1} (t = {table.t[i]:g})"


def test_the_first_step_is_noised_whatever_the_threshold() -> None:
    table = step_table("unipc", SCHEDULE, 4)
    entered = ours(table, "noised_input", 1001)
    assert error(entered[0], table.alpha[0] * COND + table.sigma[0] * NOISE) < 1e-6


def test_pure_noise_is_never_replaced() -> None:
    np.testing.assert_array_equal(ours(step_table("unipc", SCHEDULE, 20), "noise", 0)[0], NOISE)
    twice = [ours(step_table("unipc", SCHEDULE, 20), "noise", t) for t in (0, 960)]
    np.testing.assert_array_equal(twice[0], twice[1])


def test_the_input_enters_without_noise() -> None:
    table = step_table("unipc", SCHEDULE, 4, 150)
    entered = ours(table, "input", 0)
    assert error(entered[0], table.alpha[0] * COND) < 1e-6
    others = sample(table, constant(), NOISE + 1, COND, start="input", renoise_from_t=0)
    np.testing.assert_array_equal(others, sample(table, constant(), NOISE, COND, start="input", renoise_from_t=0))


def test_inputs_are_not_written_and_runs_repeat() -> None:
    noise, cond = NOISE.copy(), COND.copy()
    noise.flags.writeable = cond.flags.writeable = False
    table = step_table("unipc", SCHEDULE, 4)
    runs = [
        sample(table, lambda i, x: fake_model(table.t[i], x), noise, cond, start="noise", renoise_from_t=0)
        for _ in range(2)
    ]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.shares_memory(runs[0], noise)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_cancels_between_steps(after: int) -> None:
    calls: list[int] = []

    def denoise(i: int, latents: Array) -> Array:
        calls.append(i)
        return np.zeros_like(latents)

    with pytest.raises(Cancelled, match=f"cancelled before step {after + 1} of 4"):
        run(denoise, cancelled=lambda: len(calls) == after)
    assert calls == list(range(after))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_names_the_step(value: float) -> None:
    def denoise(i: int, latents: Array) -> Array:
        output = np.zeros_like(latents)
        output[0, 1, 2, 3] = value if i == 2 else 0
        return output

    with pytest.raises(NotFinite, match=r"step 3 of 4 \(t = 500\): the model's output has 1 of 192 values"):
        run(denoise)


def test_shapes_that_differ_are_named() -> None:
    with pytest.raises(ShapeMismatch, match=r"cond is \(1, 4, 8, 5\), expected \(1, 4, 8, 6\)"):
        run(constant(), cond=COND[..., :5])
    with pytest.raises(ShapeMismatch, match=r"step 1 of 4 \(t = 999\): the model's output is \(1, 3, 8, 6\), expected"):
        run(lambda i, latents: latents[:, :3])


def test_an_unknown_start_is_named() -> None:
    with pytest.raises(RequestError, match="start is 'zeros', expected one of noised_input, input, noise"):
        run(constant(), start="zeros")


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize("start", ["noised_input", "input", "noise"])
def test_step_weights_make_the_loop(sampler: str, start: Any) -> None:
    """A loop of weighted sums alone, as the graph ``step`` computes them, ends where ``sample`` ends."""
    random = np.random.default_rng(0)
    noise, cond = (random.standard_normal((1, 4, 5, 6)).astype(np.float32) for _ in range(2))
    table = step_table(sampler, SCHEDULE, 7)

    def denoise(i: int, x: Array) -> Array:
        return np.asarray(np.sin(3 * x) * (1 + 0.1 * i), np.float32)

    expected = sample(table, denoise, noise, cond, start=start, renoise_from_t=700)
    latents = last = x0_1 = x0_2 = np.full_like(noise, 7)
    for i in range(len(table)):
        w = step_weights(table, i, start, 700)
        assert w.shape == (13,) and w.dtype == np.float32
        x = w[0] * latents + w[1] * cond + w[2] * noise
        x0 = w[3] * x + w[4] * denoise(i, x)
        last = w[5] * last + w[6] * x + w[7] * x0 + w[8] * x0_1 + w[9] * x0_2
        latents = w[10] * last + w[11] * x0 + w[12] * x0_1
        x0_1, x0_2 = x0, x0_1
    np.testing.assert_allclose(latents, expected, rtol=0, atol=2e-5)


def test_step_weights_refuse_an_unknown_start() -> None:
    with pytest.raises(RequestError, match="start is 'middle'"):
        step_weights(step_table("ddim", SCHEDULE, 3), 0, "middle", 960)  # type: ignore[arg-type]
