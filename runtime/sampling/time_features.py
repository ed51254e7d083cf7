"""Timesteps in the form that the networks read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from diffplugin.runtime.sampling.noise_schedule import Floats

if TYPE_CHECKING:
    from diffplugin.manifest import Manifest


def time_features(t: NDArray[Any], manifest: Manifest) -> Floats:
    """The input of a bundle's networks for timesteps [n]: sinusoidal features [n, F]."""
    return sinusoidal(t, manifest.dims.time_features, **time_settings(manifest.time_embedding))


class TimeSettings(TypedDict):
    """Arguments of :func:`sinusoidal` beside timesteps and width."""

    flip_sin_to_cos: bool
    freq_shift: float


def time_settings(config: Mapping[str, Any]) -> TimeSettings:
    """Settings of the time features in a UNet's config or in a manifest's ``time_embedding``. An absent key has the
    default of diffusers' ``UNet2DConditionModel``: cosines first, no shift."""
    return TimeSettings(
        flip_sin_to_cos=bool(config.get("flip_sin_to_cos", True)), freq_shift=float(config.get("freq_shift", 0))
    )


def sinusoidal(t: NDArray[Any], width: int, *, flip_sin_to_cos: bool, freq_shift: float) -> Floats:
    """Sinusoidal time features [n, width] of timesteps [n], ``width`` even; arXiv:1706.03762 section 3.5.

    ``flip_sin_to_cos`` puts the cosines first (SD does); the order matters silently. The angles are float32, as the
    models were trained with: at t = 999 that shows in the fifth digit. PyTorch's exponential rounds 2 % of the
    frequencies differently, which leaves a relative L2 difference of up to 5.5e-6 (measured, width 320).
    """
    half = width // 2
    exponent = np.float32(-math.log(10000.0)) * np.arange(half, dtype=np.float32) / np.float32(half - freq_shift)
    frequency = np.exp(exponent.astype(np.float64)).astype(np.float32)
    angles = (np.asarray(t, np.float32)[:, None] * frequency).astype(np.float64)
    parts = (np.cos(angles), np.sin(angles)) if flip_sin_to_cos else (np.sin(angles), np.cos(angles))
    return np.concatenate(parts, axis=1).astype(np.float32)
