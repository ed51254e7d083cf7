"""Noise schedules, sampler tables and time features; the tables in motion are tested in test_sampler.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from diffplugin.errors import CheckpointError, RequestError
from diffplugin.runtime.sampling.noise_schedule import NoiseSchedule
from diffplugin.runtime.sampling.samplers import SAMPLERS, step_table
from diffplugin.runtime.sampling.time_features import sinusoidal

SD = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "trained_betas": None,
}
SCHEDULE = NoiseSchedule.from_config(SD)
STEPS = (1, 2, 3, 4, 6, 20, 50)
MANY_STEPS = (*range(1, 61), 77, 100, 333, 498, 500, 501, 997, 998, 999)
FROZEN_ALPHAS_CUMPROD = (0.9991499781608582, 0.67379230260849, 0.27633246779441833, 0.00466009508818388)  # PyTorch's
FROZEN_CORRECT = (0.87584457, 0.0, 0.16082919, 0.17232912, -0.01589815)
FROZEN_PREDICT = (0.67139414, 0.68136281, -0.21344833)


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("steps", [1000, 999])
def test_alphas_cumprod_is_bit_equal_to_diffusers(name: str, steps: int) -> None:
    diffusers = pytest.importorskip("diffusers", reason="compares with diffusers' noise schedule")
    config = SD | {"beta_schedule": name, "num_train_timesteps": steps}
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=steps, beta_start=0.00085, beta_end=0.012, beta_schedule=name
    )
    expected = scheduler.alphas_cumprod.numpy()
    got = NoiseSchedule.from_config(config).alphas_cumprod
    wrong = np.flatnonzero(got != expected)
    assert not wrong.size, f"{wrong.size} differ, first t = {wrong[0]}: {got[wrong[0]]!r} and {expected[wrong[0]]!r}"


def test_frozen_alphas_cumprod() -> None:
    got = SCHEDULE.alphas_cumprod[[0, 250, 500, 999]]
    np.testing.assert_allclose(got, FROZEN_ALPHAS_CUMPROD, rtol=1e-9)


def test_faults_of_a_config_are_named_at_once() -> None:
    config = {
        "beta_start": -1,
        "beta_schedule": "cosine",
        "num_train_timesteps": 1,
        "prediction_type": "sample",
        "rescale_betas_zero_snr": True,
        "trained_betas": [0.1],
    }
    with pytest.raises(CheckpointError) as caught:
        NoiseSchedule.from_config(config)
    for part in (
        "beta_start is -1, expected a number between 0 and 1",
        "beta_end is None",
        "beta_schedule is 'cosine', expected one of linear, scaled_linear, squaredcos_cap_v2",
        "num_train_timesteps is 1, expected an integer from 2 to 100000",
        "prediction_type is 'sample', expected one of epsilon, v_prediction",
        "rescale_betas_zero_snr is True, which is not supported",
        "trained_betas is [0.1], which is not supported",
    ):
        assert part in str(caught.value)


def test_equal_configs_share_a_table() -> None:
    again = NoiseSchedule.from_config(dict(SD))
    assert again == SCHEDULE
    assert step_table("unipc", again, 20) is step_table("unipc", SCHEDULE, 20)
    with pytest.raises(ValueError, match="read-only"):
        step_table("unipc", SCHEDULE, 20).predict[0, 0] = 1


def test_released_timesteps() -> None:
    t = [999, 949, 899, 849, 799, 749, 699, 649, 599, 549, 500, 450, 400, 350, 300, 250, 200, 150, 100, 50]
    assert step_table("unipc", SCHEDULE, 20).t.tolist() == t
    for steps in MANY_STEPS:
        expected = np.linspace(0, 999, steps + 1).round()[::-1][:-1]
        np.testing.assert_array_equal(step_table("unipc", SCHEDULE, steps).t, expected, err_msg=f"{steps} steps")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_any_number_of_steps_makes_a_table(sampler: str) -> None:
    for steps in MANY_STEPS:
        table = step_table(sampler, SCHEDULE, steps)
        assert table.sampler == sampler
        assert len(table) == steps
        assert table.t[0] >= 960, f"{steps} steps begin at t = {table.t[0]}: a noised start would not apply"
        assert table.t[-1] >= 0
        assert (np.diff(table.t) < 0).all(), f"{steps} steps: a timestep comes twice"
        for name, width in (("denoise", 2), ("correct", 5), ("predict", 3)):
            weights = getattr(table, name)
            assert weights.shape == (steps, width)
            assert np.isfinite(weights).all(), f"{steps} steps: {name} is not finite"


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("first_t", [None, 600, 59])
def test_a_perfect_model_stays_on_its_path(sampler: str, prediction: str, first_t: int | None) -> None:
    """For one x0 and one noise, any table must map step i's mixture exactly to that of its landing."""
    schedule = NoiseSchedule.from_config(SD | {"prediction_type": prediction})
    for steps in STEPS:
        table = step_table(sampler, schedule, steps, first_t)
        assert table.t[0] == (999 if first_t is None else first_t)
        mixture = np.stack((table.alpha, table.sigma), axis=1)  # (share of x0, share of noise)
        landing = np.append(mixture[1:], [_end(sampler, schedule)], axis=0)
        velocity = np.stack((-table.sigma, table.alpha), axis=1)
        output = np.array([[0.0, 1.0]]) if prediction == "epsilon" else velocity
        x0 = table.denoise[:, :1] * mixture + table.denoise[:, 1:] * output
        np.testing.assert_allclose(x0, np.tile((1.0, 0.0), (steps, 1)), atol=1e-12)
        last = np.append(mixture[:1], mixture[:-1], axis=0)
        clean = np.array([1.0, 0.0])
        corrected = table.correct[:, :1] * last + table.correct[:, 1:2] * mixture
        corrected += table.correct[:, 2:].sum(axis=1, keepdims=True) * clean
        np.testing.assert_allclose(corrected, mixture, atol=1e-12)
        after = table.predict[:, :1] * mixture + table.predict[:, 1:].sum(axis=1, keepdims=True) * clean
        if (
            sampler != "ddim" or (1000 if first_t is None else first_t + 1) % steps == 0
        ):  # else DDIM lands beside the next t, as in diffusers
            np.testing.assert_allclose(after, landing, atol=1e-12, err_msg=f"{steps} steps")


def _end(sampler: str, schedule: NoiseSchedule) -> tuple[float, float]:
    bar = schedule.alphas_cumprod[0] if sampler in ("unipc", "ddim") else 1.0
    return float(np.sqrt(bar)), float(np.sqrt(1 - bar))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_weights_are_0_before_their_tensors_exist(sampler: str) -> None:
    for steps in STEPS:
        table = step_table(sampler, SCHEDULE, steps)
        assert table.correct[0].tolist() == [0, 1, 0, 0, 0]
        assert not table.correct[:2, 4].any()
        assert table.predict[0, 2] == 0


def test_only_unipc_corrects() -> None:
    for sampler in SAMPLERS:
        corrected = (step_table(sampler, SCHEDULE, 20).correct[1:] != [0, 1, 0, 0, 0]).any()
        assert corrected == (sampler == "unipc"), sampler


def test_frozen_weights_of_the_released_sampler() -> None:
    """Measured with diffusers 0.42's scheduler as a black box (unit impulses), 4 steps, third step."""
    table = step_table("unipc", SCHEDULE, 4)
    np.testing.assert_allclose(table.correct[2], FROZEN_CORRECT, rtol=2e-6)
    np.testing.assert_allclose(table.predict[2], FROZEN_PREDICT, rtol=2e-6)


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.5, True, "20"])
def test_faults_of_a_request_are_named_at_once(steps: Any) -> None:
    with pytest.raises(RequestError) as caught:
        step_table("pndm", SCHEDULE, steps)
    assert "sampler 'pndm' does not exist; choose one of unipc, dpmpp_2m, ddim, euler" in str(caught.value)
    assert f"steps is {steps!r}, expected an integer from 1 to 1000" in str(caught.value)


def test_sampling_may_start_lower() -> None:
    assert step_table("unipc", SCHEDULE, 4, 600).t.tolist() == [600, 450, 300, 150]
    assert step_table("ddim", SCHEDULE, 4, 599).t.tolist() == [599, 449, 299, 149]
    assert len(step_table("unipc", SCHEDULE, 600, 600)) == len(step_table("ddim", SCHEDULE, 601, 600)) - 1 == 600
    with pytest.raises(RequestError, match="first_t is 1000, expected 1 to 999"):
        step_table("unipc", SCHEDULE, 4, 1000)
    with pytest.raises(RequestError, match="steps is 601, expected an integer from 1 to 600"):
        step_table("unipc", SCHEDULE, 601, 600)


def test_1000_steps_would_visit_a_timestep_twice() -> None:
    assert len(step_table("ddim", SCHEDULE, 1000)) == 1000
    with pytest.raises(RequestError, match="steps is 1000, expected an integer from 1 to 999"):
        step_table("unipc", SCHEDULE, 1000)


def test_ddim_may_land_on_a_clean_latent() -> None:
    schedule = NoiseSchedule.from_config(SD | {"set_alpha_to_one": True})
    np.testing.assert_allclose(step_table("ddim", schedule, 20).predict[-1], [0, 1, 0], atol=1e-15)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_sinusoidal_equals_the_reference(flip: bool, shift: float) -> None:
    torch = pytest.importorskip("torch", reason="compares with the PyTorch reference's time features")
    attention = pytest.importorskip("diffplugin.plugins.networks.attention")
    t = np.array([0, 1, 50, 333, 947.4, 999])
    expected = attention.sinusoidal(torch.from_numpy(t), 320, flip_sin_to_cos=flip, freq_shift=shift).numpy()
    got = sinusoidal(t, 320, flip_sin_to_cos=flip, freq_shift=shift)
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    for row, at in enumerate(t):
        error = float(np.linalg.norm(got[row] - expected[row]) / np.linalg.norm(expected[row]))
        assert error <= 1e-5, f"t = {at:g}: relative error {error:.1e}"


def test_frozen_sinusoidal() -> None:
    got = sinusoidal(np.array([999.0]), 8, flip_sin_to_cos=True, freq_shift=0)[0]
    angles = 999 / 10.0 ** np.arange(4)
    np.testing.assert_allclose(got, np.concatenate((np.cos(angles), np.sin(angles))), atol=1e-5)
    flipped = sinusoidal(np.array([999.0]), 8, flip_sin_to_cos=False, freq_shift=0)[0]
    np.testing.assert_array_equal(flipped, np.concatenate((got[4:], got[:4])))
