"""How much of a restoration's change a photo keeps: input + strength x (restored - input)."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from diffplugin.errors import RequestError
from diffplugin.runtime.photos.deep import to_8_bits

Strength = float | Literal["auto"]
_Level = TypeVar("_Level", np.uint8, np.uint16)
CLIPPED_SHARE = 0.05  # of the pixels, that "auto" may clip newly
_BAND = 256  # rows at once: what is computed of a pixel is many times its size
MARGIN = 5  # levels of 255 from either end that count as clipped: what is there shows no detail


def check_strength(strength: object) -> None:
    """Raises:
    RequestError: not "auto" and not a number of 0 to 1.
    """
    if strength == "auto":
        return
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 <= strength <= 1:
        raise RequestError(f"strength is {strength!r}, expected auto or 0 to 1")


def read_strength(text: str) -> Strength:
    """``auto`` or a number of 0 to 1.

    Raises:
        RequestError: neither.
    """
    if text == "auto":
        return "auto"
    try:
        strength = float(text)
    except ValueError:
        raise RequestError(f"strength {text!r} is not understood; expected auto or 0 to 1") from None
    check_strength(strength)
    return strength


def chosen_strength(before: NDArray[_Level], after: NDArray[_Level], strength: Strength) -> float:
    """``strength`` as a number; for "auto" the largest multiple of 0.01 that newly clips at most ``CLIPPED_SHARE`` of
    the pixels.

    Args:
        before, after: levels [H, W, 3] of the photo and of its restoration; 16 bits are judged as 8.
    """
    if strength != "auto":
        return float(strength)
    bands = range(0, len(before), _BAND)
    clips = np.concatenate([_clipping_strengths(before[y : y + _BAND], after[y : y + _BAND]) for y in bands])
    allowed = int(CLIPPED_SHARE * before.shape[0] * before.shape[1])
    if len(clips) <= allowed:
        return 1.0
    return max(0, math.ceil(float(np.partition(clips, allowed)[allowed]) * 100) - 1) / 100


def _clipping_strengths(before: NDArray[Any], after: NDArray[Any]) -> NDArray[np.float64]:
    """The strength at which each newly clipped pixel of ``after`` begins to be clipped, [number of them]. Newly clipped
    is a pixel with a channel within ``MARGIN`` of an end, the same channel of ``before`` being farther from it."""
    top, bottom, unit = 255 - MARGIN, MARGIN, np.iinfo(before.dtype).max / 255
    was8, now8 = (to_8_bits(each) if each.dtype == np.uint16 else each for each in (before, after))
    high, low = (now8 >= top) & (was8 < top), (now8 <= bottom) & (was8 > bottom)
    clipped = (high | low).any(-1)
    was, now, high, low = before[clipped] / unit, after[clipped] / unit, high[clipped], low[clipped]
    # rounded, was + s x (now - was) reaches the end once it is half a level from it
    reach = np.where(high, top - 0.5, bottom + 0.5)
    begins: NDArray[np.float64] = (reach - was) / np.where(high | low, now - was, 1)
    found: NDArray[np.float64] = np.where(high | low, begins, np.inf).min(-1)
    return found


def mixed(before: NDArray[_Level], after: NDArray[_Level], strength: float) -> NDArray[_Level]:
    """before + strength x (after - before), rounded, uint8 or uint16 [H, W, 3]; ``after`` itself at strength 1."""
    if strength == 1:
        return after
    levels = np.empty_like(after)
    for i in range(after.shape[2]):  # channel by channel: a copy of a third of the photo
        was = before[..., i].astype(np.float32)
        levels[..., i] = np.rint(was + np.float32(strength) * (after[..., i] - was))
    return levels
