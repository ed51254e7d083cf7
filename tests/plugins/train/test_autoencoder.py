"""The autoencoder's helpers, at toy size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from diffplugin.plugins.train import autoencoder

CONFIG = {**autoencoder.CONFIG, "block_out_channels": [4, 4, 8]}


def test_whitening_changes_latents_and_no_picture() -> None:
    torch.manual_seed(0)
    model = autoencoder.build(CONFIG).requires_grad_(False)
    images = [torch.rand(1, 3, 32, 32) * 2 - 1 for _ in range(6)]
    before = model.decode(model.encode(images[0]))
    autoencoder.whiten(model, images)
    rows = torch.cat([model.encode(i).permute(0, 2, 3, 1).flatten(0, 2) for i in images])
    assert torch.allclose(rows.mean(0), torch.zeros(4), atol=1e-3), rows.mean(0)
    assert torch.allclose(torch.cov(rows.T), torch.eye(4), atol=1e-2), torch.cov(rows.T)
    error = (model.decode(model.encode(images[0])) - before).abs().max()
    assert error < 1e-4, float(error)


def test_principal_components_are_white() -> None:
    images = torch.rand(4, 3, 32, 32).cumsum(-1)
    mean, rows = autoencoder.principal_components(images)
    found = (autoencoder.patches(images).permute(0, 2, 3, 1).flatten(0, 2) - mean) @ rows.T
    assert torch.allclose(torch.cov(found.T), torch.eye(4), atol=1e-2), torch.cov(found.T)


def test_training_resumes_where_it_stopped(tmp_path: Path) -> None:
    photos = [np.random.default_rng(i).integers(0, 255, (70, 70, 3), dtype=np.uint8) for i in range(2)]
    autoencoder.train(photos, photos[:1], tmp_path / "vae.pt", steps=2, batch=2, side=16)
    autoencoder.train(photos, photos[:1], tmp_path / "vae.pt", steps=3, batch=2, side=16)
    state = autoencoder.load_state(tmp_path / "vae.pt")
    assert state is not None and state["step"] == 3


def test_pixel_metric_weighs_channels_by_what_shows() -> None:
    torch.manual_seed(0)
    model = autoencoder.build(CONFIG).requires_grad_(False)
    model.post_quant_conv.weight[:, 0] *= 20  # the first channel now moves the picture most
    metric = autoencoder.pixel_metric(model, [torch.rand(1, 3, 32, 32) * 2 - 1 for _ in range(2)])
    assert torch.allclose(metric, metric.T, atol=1e-5) and abs(metric.trace().item() - 4) < 1e-4
    assert torch.linalg.eigvalsh(metric).min() >= 0.14, "the floor keeps every channel in the loss"
    assert metric.diagonal().argmax() == 0, metric.diagonal()
