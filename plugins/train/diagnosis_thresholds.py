"""From logits to decisions: probabilities that mean what they say, and the thresholds above which a task runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diffplugin.runtime.request.diagnosis import ALTERNATIVES

CLEAN = 0.97  # share of clean samples that must be left alone
_GRID = (*(round(0.3 + 0.05 * i, 2) for i in range(14)), 0.97, 0.98, 0.99)
# What a clean sample left alone is worth beside a right set of a degraded one. A bar instead would end the search where
# the first tasks have used up the clean samples.
_WORTH = (0.5, 0.7, 1.0, 1.3, 1.6, 2.0, 2.5, 3.0, 4.0, 6.0, 9.0, 15.0, 30.0)
Values = NDArray[np.floating]


def calibrate(logits: Values, wanted: Values) -> float:
    """The temperature with the least cross-entropy (arXiv:1706.04599, section 4.2)."""
    candidates = np.geomspace(0.4, 4, 60)
    return float(min(candidates, key=lambda t: _cross_entropy(logits / t, wanted)))


def choose_thresholds(logits: Values, wanted: Values, tasks: Sequence[str]) -> tuple[list[float], dict[str, float]]:
    """(a threshold for each task, the shares of :func:`right_sets`): the most right sets of degraded samples with at
    least :data:`CLEAN` of the clean ones left alone; where nothing reaches that, the most clean ones."""
    chances = 1 / (1 + np.exp(-logits))
    ends = [_best(chances, wanted, worth, tasks) for worth in _WORTH]
    found = [right_sets(chances, wanted, thresholds, tasks) for thresholds in ends]

    def score(i: int) -> tuple[float, float]:
        return min(found[i]["clean"], CLEAN), found[i]["one"] + 0.5 * found[i]["two"]

    best = max(range(len(ends)), key=score)
    return ends[best], found[best]


def _best(chances: Values, wanted: Values, worth: float, tasks: Sequence[str]) -> list[float]:
    """Task by task, until no other threshold is better."""
    thresholds = [0.5] * len(tasks)
    for _ in range(6):
        before = list(thresholds)
        for i in range(len(tasks)):

            def score(value: float, i: int = i) -> tuple[float, float]:
                found = right_sets(chances, wanted, [*thresholds[:i], value, *thresholds[i + 1 :]], tasks)
                return found["one"] + 0.5 * found["two"] + worth * found["clean"], -abs(value - 0.5)

            thresholds[i] = max(_GRID, key=score)
        if thresholds == before:
            break
    return thresholds


def right_sets(chances: Values, wanted: Values, thresholds: Sequence[float], tasks: Sequence[str]) -> dict[str, float]:
    """Shares of samples whose tasks are exactly those wanted: of the clean ones, of those with one degradation and with
    two. Samples with a degradation that may or may not be restored are left out."""
    sure = ((wanted < 0.02) | (wanted > 0.98)).all(axis=1)
    right = (found_tasks(chances, thresholds, tasks) == (wanted > 0.5)).all(axis=1)
    count = (wanted > 0.5).sum(axis=1)
    kinds = {"clean": count == 0, "one": count == 1, "two": count == 2}
    return {kind: float(right[of & sure].mean()) if (of & sure).any() else 0.0 for kind, of in kinds.items()}


def found_tasks(chances: Values, thresholds: Sequence[float], tasks: Sequence[str]) -> NDArray[np.bool_]:
    """``runtime.request.diagnosis.needed_tasks`` of many photos [n, tasks] at once."""
    above = chances > np.asarray(thresholds)
    rivals = [list(tasks).index(task) for task in ALTERNATIVES]
    both = above[:, rivals].all(axis=1)
    less = np.asarray(rivals)[chances[:, rivals].argmin(axis=1)]
    above[both, less[both]] = False
    return above


def _cross_entropy(logits: Values, wanted: Values) -> float:
    return float(np.mean(np.logaddexp(0, logits) - wanted * logits))
