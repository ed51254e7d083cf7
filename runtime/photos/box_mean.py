"""Means over square windows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def box_mean(values: NDArray[Any], radius: int) -> Floats:
    """Mean over (2 radius + 1)^2 neighbours, [..., h, w]; edges repeat. Summed in double precision."""
    side = 2 * radius + 1
    for axis in (-2, -1):
        length, pads = values.shape[axis], [(0, 0)] * values.ndim
        pads[axis] = (radius + 1, radius)
        sums = np.cumsum(np.pad(values, pads, mode="edge"), axis, dtype=np.float64)
        high, low = (np.take(sums, range(start, start + length), axis) for start in (side, 0))
        values = ((high - low) / side).astype(np.float32)
    return values
