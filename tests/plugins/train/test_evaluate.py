"""Metrics against scikit-image, and restoration with a denoiser that knows the answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffplugin.plugins.train import autoencoder, base, evaluate
from diffplugin.runtime.noise import normal
from diffplugin.runtime.schedule import NoiseSchedule

RNG = np.random.default_rng(0)
A = RNG.integers(0, 255, (48, 40, 3), dtype=np.uint8)
B = np.clip(A.astype(int) + RNG.integers(-20, 20, A.shape), 0, 255).astype(np.uint8)


def test_metrics_are_those_of_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    assert evaluate.psnr(A, B) == pytest.approx(metrics.peak_signal_noise_ratio(A, B), abs=1e-6)
    luma = [p.astype(float) @ (0.299, 0.587, 0.114) for p in (A, B)]
    want = metrics.structural_similarity(
        *luma, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    assert evaluate.ssim(A, B) == pytest.approx(want, abs=1e-6)
    assert evaluate.ssim(A, A) == pytest.approx(1) and evaluate.psnr(A, A) == float("inf")


class _Knows(torch.nn.Module):
    """A denoiser whose clean estimate is always the input's latent."""

    def __init__(self) -> None:
        super().__init__()
        bar = torch.from_numpy(NoiseSchedule.from_config(base.SCHEDULER).alphas_cumprod.copy()).float()
        self.register_buffer("bar", bar)

    def tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(pixels), 256, 8)

    def forward(self, x: torch.Tensor, t: torch.Tensor, tokens: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        bar = self.bar[t.long()][:, None, None, None]  # type: ignore[index]
        return (bar.sqrt() * x - cond) / (1 - bar).sqrt()


@pytest.mark.parametrize("start", ["noise", "noised_input"])
def test_restore_returns_what_the_denoiser_knows(start: str) -> None:
    torch.manual_seed(0)
    vae = autoencoder.build({**autoencoder.CONFIG, "block_out_channels": [4, 4, 4]})
    schedule = NoiseSchedule.from_config(base.SCHEDULER)
    (restored,) = evaluate.restore(_Knows(), vae, schedule, [A], steps=3, start=start)  # type: ignore[arg-type]
    with torch.no_grad():
        z, noise = vae.encode(evaluate.to_tensor(A[None])), torch.from_numpy(normal(42, (1, 4, 12, 10)))
        alpha, sigma = (schedule.alphas_cumprod[[999, 0]] ** 0.5, (1 - schedule.alphas_cumprod[[999, 0]]) ** 0.5)
        left = noise if start == "noised_input" else (noise - alpha[0] * z) / sigma[0]
        picture = vae.decode((alpha[1] * z + sigma[1] * left).float())[0].clamp(-1, 1)  # the last update lands on t = 0
    want = ((picture / 2 + 0.5) * 255).permute(1, 2, 0).numpy()
    error = np.abs(restored.astype(float) - want).max()
    assert error < 1, error
