"""The noise that a model was trained with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from diffplugin.errors import CheckpointError

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
        return frozen(np.cumprod(alphas, dtype=np.float64).astype(np.float32).astype(np.float64))

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


def frozen(values: Any) -> Doubles:
    array = np.asarray(values, np.float64)
    array.flags.writeable = False
    return array
