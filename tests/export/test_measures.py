"""Measures of two pictures against scikit-image and what can be computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from diffplugin.export.measures import gmsd, psnr, ssim

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
    assert ssim(A, B) == pytest.approx(want, abs=1e-6)
    assert ssim(A, A) == pytest.approx(1)


def test_gmsd_is_zero_for_equal_pictures_and_grows_with_the_error() -> None:
    noisy = [np.clip(A + RNG.normal(0, s, A.shape), 0, 255).astype(np.uint8) for s in (3, 10, 30)]
    found = [gmsd(A, picture) for picture in (A, *noisy)]
    assert found[0] == 0 and found == sorted(found), found
