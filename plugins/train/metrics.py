"""Picture metrics with a reference, over 8-bit arrays; FID and KID of two sets; the metrics of selection."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffplugin.errors import CheckpointError, MissingDependency, RequestError

Pixels = NDArray[np.uint8]


def fid_kid(
    real: Iterable[Pixels], made: Iterable[Pixels], features: Path, *, subset: int = 50, seed: int = 0
) -> dict[str, float]:
    """FID (arXiv:1706.08500) and KID x 100 (arXiv:1801.01401; scaled as in the paper) of two sets of pictures.

    Args:
        real, made: pictures of any sizes, at least two each; few pictures make both figures large and FID biased.
        features: the Inception network as a TorchScript file (``inception-2015-12-05.pt``), which takes uint8
            [n, 3, H, W] and returns [n, 2048]. It is the user's: nothing is downloaded.
        subset: pictures of a KID subset, at most what there is.

    Raises:
        CheckpointError: ``features`` is no TorchScript file.
        RequestError: fewer than two pictures.
    """
    import torch

    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.kid import KernelInceptionDistance
    except ImportError:
        raise MissingDependency("FID and KID need torchmetrics: pip install 'diffplugin[train]'") from None
    try:
        network = torch.jit.load(str(features), map_location="cpu").eval()  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, OSError) as error:
        raise CheckpointError(f"{features}: not a TorchScript network ({str(error).splitlines()[0]})") from None
    rows = {}
    with torch.no_grad():
        for name, pictures in (("real", real), ("made", made)):
            found = [network(torch.from_numpy(p.transpose(2, 0, 1)[None].copy())).float().cpu() for p in pictures]
            if len(found) < 2:
                raise RequestError(f"FID and KID need at least two {name} pictures, got {len(found)}")
            rows[name] = torch.cat(found)
        width = rows["real"].shape[1]
        torch.manual_seed(seed)
        few = min(subset, *(len(r) for r in rows.values()))
        fid = FrechetInceptionDistance(feature=_identity(width))
        with warnings.catch_warnings():  # it says that it keeps all features, of which there are few
            warnings.simplefilter("ignore", UserWarning)
            kid = KernelInceptionDistance(feature=_identity(width), subset_size=few)
        for metric in (fid, kid):
            for name, value in rows.items():
                metric.update(value, real=name == "real")
        return {"fid": float(fid.compute()), "kid": 100 * float(kid.compute()[0])}


def _identity(width: int) -> Any:
    """The features come from our own pass over the pictures; the kept library does the statistics."""
    from torch import nn

    module: Any = nn.Identity()
    module.num_features = width
    return module


def selection(scores: NDArray[np.float32], wanted: NDArray[np.bool_], theta: float = 0.0) -> dict[str, float]:
    """The paper's metrics of selection (section 4, "Metrics"; definitions of arXiv:1904.03582, section 4.1).

    Args:
        scores: similarity of every request to every plugin [Q, m].
        wanted: the plugins asked for, bool [Q, m].
        theta: a plugin is selected above it.

    Returns:
        ZTA (Eq. 7), and CP, OP, OR, CF1, OF1 and mAP, all in 0..1. Classes that no request wants do not count in the
        per-class means; a class that is never selected has precision 0.
    """
    chosen = scores > theta
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
