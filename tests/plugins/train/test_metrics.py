"""Metrics against scipy, scikit-learn and what can be computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from diffplugin.errors import RequestError
from diffplugin.plugins.train import metrics

RNG = np.random.default_rng(0)


def test_selection_by_hand() -> None:
    wanted = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0]], bool)
    scores = np.array([[2, -1, -1], [1, -1, -2], [-1, -1, -1], [1, 3, -1]], np.float32)
    found = metrics.selection(scores, wanted)
    # class 0: selected 3, asked 2, hits 2; class 1: selected 1, asked 2, hits 1; class 2 is never asked for
    assert found["ZTA"] == 0.5, "requests 0 and 2 are right; 1 misses one, 3 has one too many"
    assert found["CP"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["OP"] == pytest.approx(3 / 4) and found["OR"] == pytest.approx(3 / 4)
    cp, cr = (2 / 3 + 1) / 2, (1 + 1 / 2) / 2
    assert found["CF1"] == pytest.approx(2 * cp * cr / (cp + cr)) and found["OF1"] == pytest.approx(0.75)


def test_mean_average_precision_is_that_of_scikit_learn() -> None:
    reference = pytest.importorskip("sklearn.metrics")
    scores = RNG.normal(size=(200, 4)).astype(np.float32)
    wanted = RNG.random((200, 4)) < 0.3
    want = reference.average_precision_score(wanted, scores, average="macro")
    assert metrics.selection(scores, wanted)["mAP"] == pytest.approx(want, abs=1e-6)


def frechet(one: np.ndarray, other: np.ndarray) -> float:
    """Equation 6 of arXiv:1706.08500, by scipy's matrix square root."""
    from scipy import linalg

    root = linalg.sqrtm(np.cov(one, rowvar=False) @ np.cov(other, rowvar=False)).real
    apart = one.mean(0) - other.mean(0)
    return float(apart @ apart + np.trace(np.cov(one, rowvar=False) + np.cov(other, rowvar=False) - 2 * root))


def kernel_distance(one: np.ndarray, other: np.ndarray) -> float:
    """The unbiased estimate of arXiv:1801.01401 over all pairs, kernel (x.y / k + 1)^3, x 100."""
    width, (m, n) = one.shape[1], (len(one), len(other))
    a, b, c = ((x @ y.T / width + 1) ** 3 for x, y in ((one, one), (other, other), (one, other)))
    within = (a.sum() - np.trace(a)) / (m * (m - 1)) + (b.sum() - np.trace(b)) / (n * (n - 1))
    return float(100 * (within - 2 * c.mean()))


@pytest.mark.parametrize(("shift", "scale"), [(0.5, 1.0), (0.0, 1.6), (0.3, 0.7)])
def test_fid_and_kid_are_those_of_an_independent_implementation(shift: float, scale: float) -> None:
    pytest.importorskip("torchmetrics")
    rng = np.random.default_rng(3)
    mix = rng.normal(size=(24, 24)) / 5
    real = rng.normal(size=(400, 24)) @ mix
    made = (rng.normal(size=(300, 24)) @ mix) * scale + shift
    found = metrics.fid_kid(real, made)
    assert found["fid"] == pytest.approx(frechet(real, made), rel=0.01)
    # a subset holds 300 of either: all of one set, a draw of the other
    assert found["kid"] == pytest.approx(kernel_distance(real, made), rel=0.01)
    same = metrics.fid_kid(real, real)
    assert abs(same["fid"]) < 1e-4, same


def test_fid_says_what_is_wrong() -> None:
    pytest.importorskip("torchmetrics")
    rows = np.ones((3, 4))
    with pytest.raises(RequestError, match="at least two made pictures, got 1"):
        metrics.fid_kid(rows, rows[:1])
    with pytest.raises(RequestError, match="features of 4 and 2 numbers"):
        metrics.fid_kid(rows, rows[:, :2])
