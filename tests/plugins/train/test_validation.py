"""Restoration in PyTorch with a denoiser that knows the answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from diffplugin.plugins.train import autoencoder, base, validation
from diffplugin.plugins.train.common import to_tensor
from diffplugin.runtime.sampling.noise_schedule import NoiseSchedule
from diffplugin.runtime.sampling.start_noise import normal
from tests.plugins.train.toys import VAE

A = np.random.default_rng(0).integers(0, 255, (48, 40, 3), dtype=np.uint8)


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


@pytest.mark.parametrize(("start", "first_t"), [("noise", 999), ("noised_input", 999), ("noised_input", 400)])
def test_restore_returns_what_the_denoiser_knows(start: Any, first_t: int) -> None:
    torch.manual_seed(0)
    vae = autoencoder.build(VAE)
    schedule = NoiseSchedule.from_config(base.SCHEDULER)
    card = replace(base.card("derain"), steps_first=3, start=start, first_t=first_t, output="decoded")
    (restored,) = validation.restore(_Knows(), vae, schedule, [A], card)  # type: ignore[arg-type]
    with torch.no_grad():
        z, noise = vae.encode(to_tensor(A[None])), torch.from_numpy(normal(42, (1, 4, 12, 10)))
        alpha, sigma = (
            schedule.alphas_cumprod[[first_t, 0]] ** 0.5,
            (1 - schedule.alphas_cumprod[[first_t, 0]]) ** 0.5,
        )
        left = noise if start == "noised_input" else (noise - alpha[0] * z) / sigma[0]
        picture = vae.decode((alpha[1] * z + sigma[1] * left).float())[0].clamp(-1, 1)  # the last update lands on t = 0
    want = ((picture / 2 + 0.5) * 255).permute(1, 2, 0).numpy()
    error = np.abs(restored.astype(float) - want).max()
    assert error < 1, error


def test_residual_of_an_unchanged_latent_is_the_input() -> None:
    """The denoiser knows the input's latent alone, and the last update leaves some noise at t = 0: all but that stays,
    though this autoencoder, which has learned nothing, reconstructs nothing."""
    torch.manual_seed(0)
    vae = autoencoder.build(VAE)
    schedule = NoiseSchedule.from_config(base.SCHEDULER)
    errors = []
    for output in ("residual", "decoded"):
        card = replace(base.card("derain"), output=output)
        (restored,) = validation.restore(_Knows(), vae, schedule, [A], card)  # type: ignore[arg-type]
        errors.append(float(np.abs(restored.astype(float) - A).mean()))
    assert errors[0] < 5 and errors[1] > 30, errors


def test_report_names_every_task() -> None:
    torch.manual_seed(0)
    vae = autoencoder.build(VAE).requires_grad_(False)
    photos = [np.random.default_rng(i).integers(0, 255, (70, 80, 3), dtype=np.uint8) for i in range(2)]
    cards = {task: base.card(task) for task in ("derain", "dehaze")}
    report = validation.report(_Knows(), vae, base.SCHEDULER, cards, photos, side=64)  # type: ignore[arg-type]
    found = report(1)
    assert set(found) == {"psnr/derain", "psnr/dehaze", "pictures"}
    assert found["pictures"].shape == (3 * 64, 2 * 64, 3)  # type: ignore[union-attr]
    again = report(2)
    assert all(np.array_equal(found[name], again[name]) for name in found), "the same photos, degradations and noise"
