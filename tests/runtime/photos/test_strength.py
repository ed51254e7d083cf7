"""Strength: a part of the change, and the part that spares highlights and shadows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffplugin.errors import RequestError
from diffplugin.runtime.photos.strength import (
    CLIPPED_SHARE,
    MARGIN,
    check_strength,
    chosen_strength,
    mixed,
    read_strength,
)

Levels = NDArray[Any]


def pair(seed: int, dtype: Any = np.uint8) -> tuple[Levels, Levels]:
    """Random levels [20, 30, 3], and others some way off, some of them at the ends."""
    random, top = np.random.default_rng(seed), np.iinfo(dtype).max
    before = random.integers(0, top + 1, (20, 30, 3)).astype(dtype)
    return before, np.clip(before + random.normal(0, top / 3, before.shape), 0, top).astype(dtype)


def newly_clipped(before: Levels, after: Levels) -> float:
    was, now = (np.rint(levels / (257 if levels.dtype == np.uint16 else 1)) for levels in (before, after))
    high, low = (now >= 255 - MARGIN) & (was < 255 - MARGIN), (now <= MARGIN) & (was > MARGIN)
    return float((high | low).any(-1).mean())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_auto_is_the_largest_that_clips_no_more_than_its_share(dtype: Any) -> None:
    for seed in range(20):
        before, after = pair(seed, dtype)
        strength = chosen_strength(before, after, "auto")
        assert 0 < strength < 1
        assert newly_clipped(before, mixed(before, after, strength)) <= CLIPPED_SHARE, (seed, strength)
        assert newly_clipped(before, mixed(before, after, strength + 0.02)) > CLIPPED_SHARE, (seed, strength)


def test_auto_leaves_alone_what_clips_little_and_what_was_clipped_before() -> None:
    before = np.full((20, 20, 3), 100, np.uint8)
    after = np.full_like(before, 200)
    after[0] = 255  # a twentieth of the rows
    assert chosen_strength(before, after, "auto") == 1
    after[1] = 255
    strength = chosen_strength(before, after, "auto")
    assert strength == 0.96 and mixed(before, after, strength).max() == 249
    before[:5], after[:5] = 252, 255
    before[5:9], after[5:9] = 2, 0
    assert chosen_strength(before, after, "auto") == 1
    assert chosen_strength(np.full_like(before, 249), np.full_like(before, 255), "auto") == 0.08


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_mixed_is_exact_at_both_ends_and_rounded_between(dtype: Any) -> None:
    before, after = pair(0, dtype)
    assert mixed(before, after, 1) is after
    np.testing.assert_array_equal(mixed(before, after, 0), before)
    expected = np.rint(before + 0.25 * (after.astype(float) - before))
    off = np.abs(mixed(before, after, 0.25) - expected)
    assert off.max() == 0, f"{(off > 0).sum()} levels off, by {off.max()} at most"


def test_what_is_no_strength_is_named() -> None:
    for text, value in (("auto", "auto"), ("0", 0), ("1", 1), ("0.25", 0.25)):
        assert read_strength(text) == value
    for text in ("2", "-0.1", "nan", "inf", "", "half", "50%"):
        with pytest.raises(RequestError, match=r"strength .*expected auto or 0 to 1"):
            read_strength(text)
    wrong: tuple[object, ...] = (True, None, 1.01, "0.5", float("nan"))
    for given in wrong:
        with pytest.raises(RequestError, match="expected auto or 0 to 1"):
            check_strength(given)
