"""Noise schedules and samplers as tables of numbers.

Without thresholding every sampler used here is linear in (samples, clean estimates), with weights known before the
loop: :func:`step_table` computes them once, ``runtime.sampling.loop.sample`` applies them and knows no sampler names.

Conventions: variance preserving, ``x_t = alpha x0 + sigma noise`` with ``alpha = sqrt(alphas_cumprod[t])`` and
``alpha**2 + sigma**2 = 1``; ``lambda = log(alpha / sigma)``. ``alpha`` here is sqrt(alpha_t) in DDIM's paper and
alpha_t in those of DPM-Solver++ and UniPC.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from diffplugin.errors import RequestError
from diffplugin.runtime.sampling.noise_schedule import Doubles, NoiseSchedule, frozen


@dataclass(frozen=True, kw_only=True, eq=False)
class StepTable:
    """A sampler for n steps: the numbers that the loop needs, read-only float64.

    At step i, with sample x [1,4,h,w] and the model's output there:

    * ``x0 = denoise[i] . (x, output)``: the clean estimate;
    * ``c = correct[i] . (last c, x, x0, previous x0, the x0 before)``: the sample, corrected in hindsight;
    * ``x = predict[i] . (c, x0, previous x0)``: the next sample.

    A weight is 0 where its tensor does not exist yet. Noising to step i: ``alpha[i] x0 + sigma[i] noise``.
    """

    sampler: str
    t: Doubles  # [n], falling, in training timesteps
    alpha: Doubles  # [n]
    sigma: Doubles  # [n]
    denoise: Doubles  # [n, 2]
    correct: Doubles  # [n, 5]
    predict: Doubles  # [n, 3]

    def __len__(self) -> int:
        return len(self.t)


def unipc(schedule: NoiseSchedule, steps: int, first_t: int | None = None) -> StepTable:
    """The released sampler: UniPC-2 in data prediction, B(h) = e^-h - 1, lower order at the end; arXiv:2302.04867.

    diffusers' ``UniPCMultistepScheduler(final_sigmas_type="sigma_min")``: the last update lands on t = 0.
    """
    t = _linspace(schedule, steps, first_t)
    order = [min(2, i + 1, steps - i) for i in range(steps)]
    landing = np.append(schedule.alphas_cumprod[t[1:]], schedule.alphas_cumprod[0])
    return _table("unipc", schedule, t=t, landing=landing, order=order, corrected=True)


def dpmpp_2m(schedule: NoiseSchedule, steps: int, first_t: int | None = None) -> StepTable:
    """DPM-Solver++(2M), midpoint; arXiv:2211.01095 Algorithm 2. The last update is of first order, onto a clean latent.

    diffusers' ``DPMSolverMultistepScheduler()`` with its defaults.
    """
    t = _linspace(schedule, steps, first_t)
    order = [1 if i in (0, steps - 1) else 2 for i in range(steps)]
    return _table("dpmpp_2m", schedule, t=t, landing=np.append(schedule.alphas_cumprod[t[1:]], 1.0), order=order)


def ddim(schedule: NoiseSchedule, steps: int, first_t: int | None = None) -> StepTable:
    """DDIM without added noise; arXiv:2010.02502 Eq. 12. diffusers' ``DDIMScheduler(timestep_spacing="trailing")``.

    Each update lands a whole number of training steps lower, as there: where ``steps`` does not divide the training
    steps, that can be one beside the next step's t.
    """
    t = _trailing(schedule, steps, first_t)
    last = 1.0 if schedule.set_alpha_to_one else schedule.alphas_cumprod[0]
    to = t - (_first(schedule, first_t) + 1) // steps
    landing = np.where(to >= 0, schedule.alphas_cumprod[np.maximum(to, 0)], last)
    return _table("ddim", schedule, t=t, landing=landing, order=[1] * steps)


def euler(schedule: NoiseSchedule, steps: int, first_t: int | None = None) -> StepTable:
    """Euler's method on dx/dsigma; arXiv:2206.00364 Algorithm 1 without the second-order correction.

    diffusers' ``EulerDiscreteScheduler(timestep_spacing="trailing")``, its samples divided by sqrt(1 + sigma^2): in
    these coordinates Euler's step is DDIM's; only the end points differ.
    """
    t = _trailing(schedule, steps, first_t)
    return _table("euler", schedule, t=t, landing=np.append(schedule.alphas_cumprod[t[1:]], 1.0), order=[1] * steps)


SAMPLERS: dict[str, Callable[[NoiseSchedule, int, int | None], StepTable]] = {
    "unipc": unipc,
    "dpmpp_2m": dpmpp_2m,
    "ddim": ddim,
    "euler": euler,
}


def max_steps(sampler: str, first_t: int) -> int:
    """Most steps from timestep ``first_t``: one more would visit a timestep twice (unipc, dpmpp_2m: end on one)."""
    return first_t + (sampler not in ("unipc", "dpmpp_2m"))


@lru_cache(maxsize=64)
def step_table(name: str, schedule: NoiseSchedule, steps: int, first_t: int | None = None) -> StepTable:
    """The table of sampler ``name`` for ``steps`` steps. Cached: the arrays are shared and read-only.

    Args:
        first_t: the timestep of the first step; the others follow as from the last training step, scaled. None: the
            last training step. Lower, sampling starts from a picture with that much noise (SDEdit, arXiv:2108.01073).

    Raises:
        RequestError: the sampler is unknown, ``first_t`` is not a training step, or ``steps`` is not an integer from 1
            to ``first_t`` + 1 (one less for unipc and dpmpp_2m, which would visit a timestep twice).
    """
    faults = []
    last = schedule.num_train_timesteps - 1
    if first_t is not None and not 1 <= first_t <= last:
        faults.append(f"first_t is {first_t!r}, expected 1 to {last}")
    if name not in SAMPLERS:
        faults.append(f"sampler {name!r} does not exist; choose one of {', '.join(SAMPLERS)}")
    most = max_steps(name, _first(schedule, first_t))
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or not 1 <= steps <= most:
        faults.append(f"steps is {steps!r}, expected an integer from 1 to {most}")
    if faults:
        raise RequestError("; ".join(faults))
    return SAMPLERS[name](schedule, int(steps), first_t)


def _first(schedule: NoiseSchedule, first_t: int | None) -> int:
    """The timestep of the first step."""
    return schedule.num_train_timesteps - 1 if first_t is None else first_t


def _linspace(schedule: NoiseSchedule, steps: int, first_t: int | None) -> NDArray[np.int64]:
    """Evenly from the first timestep down, without 0: 999, 949, 899, ... for 20."""
    points = np.linspace(0, _first(schedule, first_t), steps + 1)
    return points.round()[:0:-1].astype(np.int64)


def _trailing(schedule: NoiseSchedule, steps: int, first_t: int | None) -> NDArray[np.int64]:
    """Ends of equal intervals, from the first timestep down; arXiv:2305.08891 Table 2."""
    train = _first(schedule, first_t) + 1
    return np.arange(train, 0, -train / steps)[:steps].round().astype(np.int64) - 1


def _table(
    sampler: str,
    schedule: NoiseSchedule,
    *,
    t: NDArray[np.int64],
    landing: Doubles,
    order: list[int],
    corrected: bool = False,
) -> StepTable:
    """Weights of a data-prediction multistep sampler.

    Args:
        t: [n] timesteps of the steps.
        landing: [n] alphas_cumprod at the end of each update; 1 is a clean latent.
        order: [n] order of each update, 1 or 2.
        corrected: correct each sample once the model has been evaluated there (UniC).
    """
    here = schedule.alphas_cumprod[t]
    alpha, sigma = np.sqrt(here), np.sqrt(1 - here)
    if schedule.prediction_type == "epsilon":
        denoise = np.stack((1 / alpha, -sigma / alpha), axis=1)
    else:  # v = alpha noise - sigma x0; arXiv:2202.00512 appendix D
        denoise = np.stack((alpha, -sigma), axis=1)
    correct = np.zeros((len(t), 5))
    correct[:, 1] = 1
    predict = np.zeros((len(t), 3))
    for i in range(len(t)):
        before = here[i - 1] if order[i] == 2 else None
        predict[i] = _predictor(here[i], landing[i], before)
        if corrected and i > 0:
            correct[i] = _corrector(here[i - 1], here[i], here[i - 2] if order[i - 1] == 2 else None)
    return StepTable(
        sampler=sampler,
        t=frozen(t),
        alpha=frozen(alpha),
        sigma=frozen(sigma),
        denoise=frozen(denoise),
        correct=frozen(correct),
        predict=frozen(predict),
    )


def _half_log_snr(alpha_bar: float) -> float:
    """lambda = log(alpha / sigma)."""
    return 0.5 * math.log(alpha_bar / (1 - alpha_bar))


def _predictor(start: float, end: float, before: float | None) -> tuple[float, float, float]:
    """Weights of (sample, x0, previous x0) for one update from alphas_cumprod ``start`` to ``end``.

    First order (DDIM; UniP-1): x' = (sigma'/sigma) x + alpha' (1 - e^-h) x0, with h = lambda' - lambda.
    Second order (DPM-Solver++ 2M; UniP-2 with B(h) = e^-h - 1 and weight 1/2) takes x0 + (previous x0 - x0) / 2r in
    place of x0, with r = (lambda_before - lambda) / h.
    """
    ratio = math.sqrt((1 - end) / (1 - start))
    gain = math.sqrt(end) - ratio * math.sqrt(start)  # = alpha' (1 - e^-h), and finite at sigma' = 0
    if before is None:
        return ratio, gain, 0.0
    here = _half_log_snr(start)
    slope = 0.5 * (_half_log_snr(end) - here) / (_half_log_snr(before) - here)
    return ratio, gain * (1 - slope), gain * slope


def _corrector(start: float, end: float, before: float | None) -> tuple[float, float, float, float, float]:
    """Weights of (last sample, sample, x0, previous x0, the x0 before) for UniC, ``end`` being the present step.

    arXiv:2302.04867 section 3 in data prediction, B(h) = e^-h - 1: the update from ``start`` is done again with the
    model's new value in it; ``sample`` itself gets no weight. With H = -h and phi = e^H - 1, second order solves
    rho_1 + rho_2 = b_1 and r rho_1 + rho_2 = b_2, where
    b_1 = (phi/H - 1) / phi and b_2 = 2 ((phi/H - 1)/H - 1/2) / phi.
    """
    ratio = math.sqrt((1 - end) / (1 - start))
    gain = math.sqrt(end) - ratio * math.sqrt(start)
    if before is None:
        return ratio, 0.0, gain / 2, gain / 2, 0.0
    here = _half_log_snr(start)
    minus_h = here - _half_log_snr(end)
    r = (here - _half_log_snr(before)) / minus_h
    phi = math.expm1(minus_h)
    b1 = (phi / minus_h - 1) / phi
    b2 = 2 * ((phi / minus_h - 1) / minus_h - 0.5) / phi
    rho1 = (b1 - b2) / (1 - r)
    rho2 = b1 - rho1
    return ratio, 0.0, gain * rho2, gain * (1 - rho2 - rho1 / r), gain * rho1 / r
