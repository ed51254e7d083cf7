"""Metrics against scikit-image, scikit-learn and what can be computed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from diffplugin.errors import CheckpointError, RequestError
from diffplugin.export import measures
from diffplugin.export.measures import psnr
from diffplugin.plugins.train import metrics

RNG = np.random.default_rng(0)
A = RNG.integers(0, 255, (48, 40, 3), dtype=np.uint8)
B = np.clip(A.astype(int) + RNG.integers(-20, 20, A.shape), 0, 255).astype(np.uint8)


def test_metrics_are_those_of_scikit_image() -> None:
    reference = pytest.importorskip("skimage.metrics")
    assert psnr(A, B) == pytest.approx(reference.peak_signal_noise_ratio(A, B), abs=1e-6)
    luma = [p.astype(float) @ (0.299, 0.587, 0.114) for p in (A, B)]
    want = reference.structural_similarity(
        *luma, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    assert measures.ssim(A, B) == pytest.approx(want, abs=1e-6)
    assert measures.ssim(A, A) == pytest.approx(1)


def test_gmsd_is_zero_for_equal_pictures_and_grows_with_the_error() -> None:
    noisy = [np.clip(A + RNG.normal(0, s, A.shape), 0, 255).astype(np.uint8) for s in (3, 10, 30)]
    found = [measures.gmsd(A, picture) for picture in (A, *noisy)]
    assert found[0] == 0 and found == sorted(found), found


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


class _Means(torch.nn.Module):
    """A stand-in for Inception: four numbers a picture."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.float()
        return torch.cat((x.mean((2, 3)), x.amax((2, 3))[:, :1]), dim=1)


def test_fid_and_kid_of_a_features_file(tmp_path: Path) -> None:
    pytest.importorskip("torchmetrics")
    torch.jit.script(_Means()).save(str(tmp_path / "features.pt"))  # type: ignore[no-untyped-call]
    real = [RNG.integers(0, 200, (20, 20, 3), dtype=np.uint8) for _ in range(60)]
    near = [np.clip(p.astype(int) + 2, 0, 255).astype(np.uint8) for p in real]
    found = [metrics.fid_kid(real, made, tmp_path / "features.pt") for made in (real, near)]
    assert abs(found[0]["fid"]) < 1e-2, found
    assert found[1]["fid"] == pytest.approx(4 * 2**2, rel=1e-2), "the means moved by 2 in four features"
    assert found[1]["kid"] > found[0]["kid"]


def test_fid_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "broken.pt").write_bytes(b"no network")
    with pytest.raises(CheckpointError, match="not a TorchScript network"):
        metrics.fid_kid([A, A], [B, B], tmp_path / "broken.pt")
    torch.jit.script(_Means()).save(str(tmp_path / "features.pt"))  # type: ignore[no-untyped-call]
    with pytest.raises(RequestError, match="at least two made pictures, got 1"):
        metrics.fid_kid([A, B], [B], tmp_path / "features.pt")
