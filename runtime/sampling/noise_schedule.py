"""The noise that a model was trained with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from diffplugin.errors import CheckpointError

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]
BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
Prediction = Literal["epsilon", "v_prediction"]
MAX_TIMESTEPS = 100_000
# Settings of a scheduler_config that change the noise of the training: another model than the one that runs here.
_UNSUPPORTED = ("trained_betas", "rescale_betas_zero_snr", "use_flow_sigmas")
# Settings of a sampler. The sampler is chosen at run time, so a file's choice says nothing about the model.
_OF_A_SAMPLER = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
    "thresholding",
    "clip_sample",
)
# What diffusers' schedulers take where their config lacks a key: (beta_start, beta_end, beta_schedule). Most have the
# first; source: the signatures of their classes, the same from 0.7 to today (a test compares the installed ones).
_COMMON = (0.0001, 0.02, "linear")
_DEFAULTS = {
    **dict.fromkeys(
        (
            "DDIMInverseScheduler",
            "DDIMParallelScheduler",
            "DDIMScheduler",
            "DDPMParallelScheduler",
            "DDPMScheduler",
            "DEISMultistepScheduler",
            "DPMSolverMultistepInverseScheduler",
            "DPMSolverMultistepScheduler",
            "DPMSolverSinglestepScheduler",
            "EulerAncestralDiscreteScheduler",
            "EulerDiscreteScheduler",
            "LMSDiscreteScheduler",
            "PNDMScheduler",
            "SASolverScheduler",
            "UniPCMultistepScheduler",
        ),
        _COMMON,
    ),
    **dict.fromkeys(
        ("DPMSolverSDEScheduler", "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler"),
        (0.00085, 0.012, "linear"),
    ),
    **dict.fromkeys(("LCMScheduler", "TCDScheduler"), (0.00085, 0.012, "scaled_linear")),
}
# Their set_alpha_to_one is true where the key is absent; the other classes have no such key, or false.
_ALPHA_TO_ONE = ("DDIMInverseScheduler", "DDIMParallelScheduler", "DDIMScheduler", "LCMScheduler", "TCDScheduler")


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
        """From diffusers' ``scheduler_config.json`` of any class that has betas. Absent keys have the default of that
        class. Settings of a sampler in it (class, spacing, offset, Karras sigmas) are ignored: the sampler is chosen
        at run time (:func:`sampler_settings` names them).

        Raises:
            CheckpointError: naming every missing, wrong or unsupported setting at once.
        """
        config = _with_defaults(config)
        faults = [f"{key} is {config[key]!r:.60}, which is not supported" for key in _UNSUPPORTED if config.get(key)]
        faults += _other_classes(config)
        steps = config["num_train_timesteps"]
        if type(steps) is not int or not 2 <= steps <= MAX_TIMESTEPS:
            faults.append(f"num_train_timesteps is {steps!r:.60}, expected an integer from 2 to {MAX_TIMESTEPS}")
        for key, kind in (("beta_schedule", BetaSchedule), ("prediction_type", Prediction)):
            if config.get(key) not in get_args(kind):
                faults.append(f"{key} is {config.get(key)!r:.60}, expected one of {', '.join(get_args(kind))}")
        for key in ("beta_start", "beta_end"):
            beta = config.get(key)
            if isinstance(beta, bool) or not isinstance(beta, int | float) or not 0 < beta < 1:
                faults.append(f"{key} is {beta!r:.60}, expected a number between 0 and 1")
        if not isinstance(config["set_alpha_to_one"], bool | None):
            faults.append(f"set_alpha_to_one is {config['set_alpha_to_one']!r:.60}, expected true or false")
        if faults:
            raise CheckpointError(f"scheduler_config: {'; '.join(faults)}")
        return cls(
            num_train_timesteps=steps,
            beta_schedule=config["beta_schedule"],
            beta_start=float(config["beta_start"]),
            beta_end=float(config["beta_end"]),
            prediction_type=config["prediction_type"],
            set_alpha_to_one=bool(config["set_alpha_to_one"]),
        )

    def to_config(self) -> dict[str, Any]:
        """The settings as :meth:`from_config` takes them, complete."""
        return asdict(self)

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


def sampler_settings(config: Mapping[str, Any]) -> list[str]:
    """Settings that are switched on in a ``scheduler_config.json`` and are ignored, because they belong to a
    sampler.
    """
    return [key for key in _OF_A_SAMPLER if config.get(key)]


def _with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` with the defaults of its class for absent keys. For an unknown class, betas have no default."""
    name = config.get("_class_name")
    known = _DEFAULTS.get(name) if isinstance(name, str) else None
    betas = dict(zip(("beta_start", "beta_end", "beta_schedule"), known, strict=True)) if known else {}
    rest = {"num_train_timesteps": 1000, "prediction_type": "epsilon", "set_alpha_to_one": name in _ALPHA_TO_ONE}
    return {**rest, **betas, **config}


def defaulted_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Betas that a ``scheduler_config.json`` lacks, with the defaults of its class that replace them."""
    complete = _with_defaults(config)
    return {key: complete[key] for key in ("beta_start", "beta_end", "beta_schedule") if key not in config}


def _other_classes(config: Mapping[str, Any]) -> list[str]:
    """Faults of schedulers whose model takes other times or predicts something else."""
    faults = []
    if str(config.get("_class_name")).startswith(("FlowM", "EDM")):
        faults.append(f"_class_name is {config['_class_name']!r:.60}: not a schedule of betas")
    if config.get("timestep_type", "discrete") != "discrete":
        faults.append(f"timestep_type is {config['timestep_type']!r:.60}, expected 'discrete'")
    if not config.get("predict_epsilon", True):  # before diffusers 0.9
        faults.append("predict_epsilon is false, which is not supported")
    return faults


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
