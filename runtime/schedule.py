"""Noise schedules and samplers as tables of numbers.

Without thresholding every sampler used here is linear in (samples, clean estimates), with weights known before the
loop: :func:`step_table` computes them once, ``runtime.sampler.sample`` applies them and knows no sampler names.

Conventions: variance preserving, ``x_t = alpha x0 + sigma noise`` with ``alpha = sqrt(alphas_cumprod[t])`` and
``alpha**2 + sigma**2 = 1``; ``lambda = log(alpha / sigma)``. ``alpha`` here is sqrt(alpha_t) in DDIM's paper and
alpha_t in those of DPM-Solver++ and UniPC.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from diffplugin.errors import CheckpointError, RequestError

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]
BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
Prediction = Literal["epsilon", "v_prediction"]

# Settings of a scheduler_config that would change the numbers and have no place in a table of linear weights.
_UNSUPPORTED = (
    "trained_betas",
    "thresholding",
    "rescale_betas_zero_snr",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_flow_sigmas",
    "use_lu_lambdas",
)


@dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
    """The noise a model was trained with. Hashable and compared by value."""

    num_train_timesteps: int
    beta_schedule: BetaSchedule
    beta_start: float
    beta_end: float
    prediction_type: Prediction = "epsilon"
    set_alpha_to_one: bool = False  # DDIM only: its last update lands on a clean latent, not on t = 0

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> NoiseSchedule:
        """From diffusers' ``scheduler_config.json``. Sampler settings in it (spacing, offset, class) are ignored:
        the sampler is chosen at run time.

        Raises:
            CheckpointError: naming every missing, wrong or unsupported setting at once.
        """
        faults = [f"{key} is {config[key]!r}, which is not supported" for key in _UNSUPPORTED if config.get(key)]
        steps = config.get("num_train_timesteps", 1000)
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2:
            faults.append(f"num_train_timesteps is {steps!r}, expected an integer >= 2")
        prediction = config.get("prediction_type", "epsilon")
        for key, value, kind in (
            ("beta_schedule", config.get("beta_schedule"), BetaSchedule),
            ("prediction_type", prediction, Prediction),
        ):
            if value not in get_args(kind):
                faults.append(f"{key} is {value!r}, expected one of {', '.join(get_args(kind))}")
        for key in ("beta_start", "beta_end"):
            beta = config.get(key)
            if isinstance(beta, bool) or not isinstance(beta, int | float) or not 0 < beta < 1:
                faults.append(f"{key} is {beta!r}, expected a number between 0 and 1")
        if faults:
            raise CheckpointError(f"scheduler_config: {'; '.join(faults)}")
        return cls(
            num_train_timesteps=steps,
            beta_schedule=config["beta_schedule"],
            beta_start=float(config["beta_start"]),
            beta_end=float(config["beta_end"]),
            prediction_type=prediction,
            set_alpha_to_one=bool(config.get("set_alpha_to_one", False)),
        )

    @cached_property
    def alphas_cumprod(self) -> Doubles:
        """[num_train_timesteps], falling, in (0, 1): the signal's share of the variance at each t.

        Rounded to float32 as PyTorch computes it: at t = 0 the rounding of 1 - alphas_cumprod shows in the fifth digit
        of the result, and models were trained and are compared with it.
        """
        alphas = np.float32(1) - self._betas()
        return _frozen(np.cumprod(alphas, dtype=np.float64).astype(np.float32).astype(np.float64))

    def _betas(self) -> Floats:
        steps = self.num_train_timesteps
        if self.beta_schedule == "squaredcos_cap_v2":  # arXiv:2102.09672 Eq. 17
            bar = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
            return np.array([min(1 - bar[i + 1] / bar[i], 0.999) for i in range(steps)], np.float32)
        if self.beta_schedule == "scaled_linear":
            return _linspace_float32(self.beta_start**0.5, self.beta_end**0.5, steps) ** 2
        return _linspace_float32(self.beta_start, self.beta_end, steps)


def _linspace_float32(start: float, end: float, count: int) -> Floats:
    """As PyTorch fills it in float32: from both ends to the middle, each with one fused multiply-add."""
    first, last = np.float32(start), np.float32(end)
    step = np.float64((last - first) / np.float32(count - 1))
    index = np.arange(count)
    rising = np.float64(first) + step * index
    falling = np.float64(last) - step * (count - 1 - index)
    return np.where(index < count // 2, rising, falling).astype(np.float32)


def _frozen(values: Any) -> Doubles:
    array = np.asarray(values, np.float64)
    array.flags.writeable = False
    return array


@dataclass(frozen=True, kw_only=True, eq=False)
class StepTable:
    """A sampler for n steps: what the loop needs to know, read-only float64.

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

    diffusers' ``DPMSolverMultistepScheduler()`` as it comes.
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
    these coordinates Euler's step is DDIM's, and what differs is where it lands.
    """
    t = _trailing(schedule, steps, first_t)
    return _table("euler", schedule, t=t, landing=np.append(schedule.alphas_cumprod[t[1:]], 1.0), order=[1] * steps)


SAMPLERS: dict[str, Callable[[NoiseSchedule, int, int | None], StepTable]] = {
    "unipc": unipc,
    "dpmpp_2m": dpmpp_2m,
    "ddim": ddim,
    "euler": euler,
}


@lru_cache(maxsize=64)
def step_table(name: str, schedule: NoiseSchedule, steps: int, first_t: int | None = None) -> StepTable:
    """The table of sampler ``name`` for ``steps`` steps. Cached: the arrays are shared and read-only.

    Args:
        first_t: the timestep of the first step; the others follow as from the last training step, scaled. None: the
            last training step. Lower, sampling starts from a picture with that much noise (SDEdit, arXiv:2108.01073).

    Raises:
        RequestError: the sampler is unknown, ``first_t`` is no training step, or ``steps`` is not an integer from 1 to
            ``first_t`` + 1 (one less for unipc and dpmpp_2m, which would visit a timestep twice).
    """
    faults = []
    last = schedule.num_train_timesteps - 1
    if first_t is not None and not 1 <= first_t <= last:
        faults.append(f"first_t is {first_t!r}, expected 1 to {last}")
    if name not in SAMPLERS:
        faults.append(f"sampler {name!r} does not exist; choose one of {', '.join(SAMPLERS)}")
    most = _first(schedule, first_t) + (name not in ("unipc", "dpmpp_2m"))
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or not 1 <= steps <= most:
        faults.append(f"steps is {steps!r}, expected an integer from 1 to {most}")
    if faults:
        raise RequestError("; ".join(faults))
    return SAMPLERS[name](schedule, int(steps), first_t)


def sinusoidal(t: NDArray[Any], width: int, *, flip_sin_to_cos: bool, freq_shift: float) -> Floats:
    """Sinusoidal time features [n, width] of timesteps [n], ``width`` even; arXiv:1706.03762 section 3.5.

    ``flip_sin_to_cos`` puts the cosines first (SD does); the order matters silently. The angles are float32, as the
    models were trained with: at t = 999 that shows in the fifth digit. PyTorch's exponential rounds 2 % of the
    frequencies otherwise, which leaves a relative L2 difference of up to 5.5e-6 (measured, width 320).
    """
    half = width // 2
    exponent = np.float32(-math.log(10000.0)) * np.arange(half, dtype=np.float32) / np.float32(half - freq_shift)
    frequency = np.exp(exponent.astype(np.float64)).astype(np.float32)
    angles = (np.asarray(t, np.float32)[:, None] * frequency).astype(np.float64)
    parts = (np.cos(angles), np.sin(angles)) if flip_sin_to_cos else (np.sin(angles), np.cos(angles))
    return np.concatenate(parts, axis=1).astype(np.float32)


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
        t=_frozen(t),
        alpha=_frozen(alpha),
        sigma=_frozen(sigma),
        denoise=_frozen(denoise),
        correct=_frozen(correct),
        predict=_frozen(predict),
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
