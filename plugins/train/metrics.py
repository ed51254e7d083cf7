"""FID and KID of two sets of features, and the metrics of selection."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffplugin.errors import MissingDependency, RequestError


def fid_kid(
    real: NDArray[np.float64], made: NDArray[np.float64], *, subset: int = 1000, seed: int = 0
) -> dict[str, float]:
    """FID (arXiv:1706.08500) and KID x 100 (arXiv:1801.01401; scaled as in the paper) of two sets of features [n, k].

    torchmetrics does the statistics. Few pictures make both figures large, and FID biased upwards.

    Args:
        subset: pictures of a KID subset at most, as clean-fid has it; 100 subsets.

    Raises:
        RequestError: fewer than two pictures, or features of two widths.
        MissingDependency: torchmetrics is not there.
    """
    import torch

    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.kid import KernelInceptionDistance
    except ImportError:
        raise MissingDependency("FID and KID need torchmetrics: pip install 'diffplugin[train]'") from None
    for name, rows in (("real", real), ("made", made)):
        if len(rows) < 2:
            raise RequestError(f"FID and KID need at least two {name} pictures, got {len(rows)}")
    if real.shape[1] != made.shape[1]:
        raise RequestError(f"features of {real.shape[1]} and {made.shape[1]} numbers: take one network for both sets")
    few = min(subset, len(real), len(made))
    fid = FrechetInceptionDistance(feature=_identity(real.shape[1])).set_dtype(torch.float64)
    with warnings.catch_warnings():  # it says that it keeps all features, of which there are few
        warnings.simplefilter("ignore", UserWarning)
        kid = KernelInceptionDistance(feature=_identity(real.shape[1]), subset_size=few)
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        for metric in (fid, kid):
            for rows, is_real in ((real, True), (made, False)):
                metric.update(torch.from_numpy(rows), real=is_real)
        return {"fid": float(fid.compute()), "kid": 100 * float(kid.compute()[0])}
    finally:
        torch.random.set_rng_state(state)


def _identity(width: int) -> Any:
    """The features are there; the kept library does the statistics."""
    from torch import nn

    module: Any = nn.Identity()
    module.num_features = width
    return module


def selection(
    scores: NDArray[np.float32],
    wanted: NDArray[np.bool_],
    theta: float = 0.0,
    chosen: NDArray[np.bool_] | None = None,
) -> dict[str, float]:
    """The paper's metrics of selection (section 4, "Metrics"; definitions of arXiv:1904.03582, section 4.1).

    Args:
        scores: similarity of every request to every plugin [Q, m].
        wanted: the plugins asked for, bool [Q, m].
        theta: a plugin is selected above it.
        chosen: what was selected in the end, where more than the scores decided [Q, m]; None: by ``theta``.

    Returns:
        ZTA (Eq. 7), and CP, OP, OR, CF1, OF1 and mAP, all in 0..1. Classes that no request wants do not count in the
        per-class means; a class that is never selected has precision 0.
    """
    chosen = scores > theta if chosen is None else chosen
    hits = (chosen & wanted).sum(axis=0)
    asked, said = wanted.sum(axis=0), chosen.sum(axis=0)
    there = asked > 0
    precision = np.where(said > 0, hits / np.maximum(said, 1), 0.0)[there]
    recall = (hits / np.maximum(asked, 1))[there]
    op, orr = hits.sum() / max(said.sum(), 1), hits.sum() / max(asked.sum(), 1)
    cp, cr = float(precision.mean()) if there.any() else 0.0, float(recall.mean()) if there.any() else 0.0
    return {
        "ZTA": float((chosen == wanted).all(axis=1).mean()),
        "CP": cp,
        "OP": float(op),
        "OR": float(orr),
        "CF1": _harmonic(cp, cr),
        "OF1": _harmonic(float(op), float(orr)),
        "mAP": _mean_average_precision(scores[:, there], wanted[:, there]),
    }


def _harmonic(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b else 0.0


def _mean_average_precision(scores: NDArray[np.float32], wanted: NDArray[np.bool_]) -> float:
    """Mean over classes of the precision at every hit, in the order of the scores."""
    if not wanted.shape[1]:
        return 0.0
    order = np.argsort(-scores, axis=0, kind="stable")
    ranked = np.take_along_axis(wanted, order, axis=0)
    ranks = np.arange(1, len(ranked) + 1)[:, None]
    return float((((ranked.cumsum(0) / ranks) * ranked).sum(0) / ranked.sum(0)).mean())
