"""Samples to rows: medians with their spread, ratios taken round by round, and what counts as a change."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Record = Mapping[str, Any]
LEAST_CHANGE = 0.02  # smaller differences of medians are not called changes, however clean the samples


@dataclass(frozen=True)
class Spread:
    """Median of ``count`` values, and their range."""

    median: float
    low: float
    high: float
    count: int

    def text(self, digits: int = 2) -> str:
        if self.count == 1:
            return f"{self.median:.{digits}f}"
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}–{self.high:.{digits}f})"


def spread(values: Iterable[float | None]) -> Spread | None:
    """None where there is no value."""
    known = [value for value in values if value is not None]
    return Spread(statistics.median(known), min(known), max(known), len(known)) if known else None


def contended(sample: Record) -> bool:
    return bool((sample.get("contention") or {}).get("contended"))


def usable(samples: Iterable[Record], contender: str) -> list[Record]:
    """Finished samples of one contender: the clean ones, or all where none is clean."""
    done = [s for s in samples if s["contender"] == contender and "wall_s" in s]
    return [s for s in done if not contended(s)] or done


def round_ratios(samples: Sequence[Record], contender: str, baseline: str, key: str = "wall_s") -> list[float]:
    """``contender`` over ``baseline``, each against the sample of its own round: what a machine does slowly over time
    touches both. Rounds that lack either are left out."""
    base = {s["round"]: s[key] for s in usable(samples, baseline)}
    return [s[key] / base[s["round"]] for s in usable(samples, contender) if base.get(s["round"])]


@dataclass(frozen=True)
class Change:
    """One number of two results. ``verdict``: "faster", "slower", "same" or "unclear"."""

    contender: str
    measure: str
    before: Spread
    after: Spread
    verdict: str

    @property
    def ratio(self) -> float:
        return self.after.median / self.before.median


def verdict(before: Spread, after: Spread) -> str:
    """Beyond noise, or not.

    A change is called where the two ranges do not overlap and the medians differ by more than 2 %. Were there none,
    n and m samples would part like this once in C(n + m, n) / 2: in 10 % of cases with 3 and 3, 0.8 % with 5 and 5.
    Under 3 samples on either side nothing is called.
    """
    if min(before.count, after.count) < 3:
        return "unclear"
    apart = after.low > before.high or after.high < before.low
    if not apart or abs(after.median / before.median - 1) <= LEAST_CHANGE:
        return "same"
    return "slower" if after.median > before.median else "faster"


def chance(before: int, after: int) -> float:
    """How often that many samples of the same thing would be called a change."""
    return 2 / math.comb(before + after, before)
