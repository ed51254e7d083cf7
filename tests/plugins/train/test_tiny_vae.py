"""Distilling a tiny autoencoder, at toy size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra [train]")

from diffplugin.plugins.networks.tiny_vae import TinyAutoencoder
from diffplugin.plugins.train import autoencoder, loop, tiny_vae
from tests.plugins.train.toys import VAE


def test_it_learns_the_latents_and_pictures_of_the_base(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = autoencoder.build(VAE)
    shades = np.linspace(0, 255, 96, dtype=np.uint8)
    photos = [
        np.stack([np.roll(np.tile(shades, (96, 1)), 7 * i), np.tile(shades, (96, 1)).T, np.full((96, 96), 90 * i)], -1)
        for i in range(2)
    ]
    photos = [photo.astype(np.uint8) for photo in photos]
    model = TinyAutoencoder(tiny_vae.config(VAE, width=8, blocks=1))
    objective = tiny_vae.Distillation(model, base, photos, batch=2, side=32)
    before = [float(objective(0, loop.generator(1, i)).detach()) for i in range(4)]
    teacher = {name: value.clone() for name, value in base.state_dict().items()}
    arguments = loop.TrainingArguments(steps=60, peak=4e-3, warmup=5, ema=None, trackers=())
    report = tiny_vae.quality(model, base, photos, side=32)
    loop.fit(objective, arguments, tmp_path / "tiny.pt", name="tiny", report=report)
    after = [float(objective(0, loop.generator(1, i)).detach()) for i in range(4)]
    assert np.mean(after) < 0.6 * np.mean(before), (before, after)
    assert all(torch.equal(value, teacher[name]) for name, value in base.state_dict().items()), "the base has moved"
    assert set(report(0)) == {"round trip", "decoder to base", "base", "picture"}


def test_the_shape_follows_the_base() -> None:
    config = tiny_vae.config(VAE, width=64, blocks=3)
    assert config["num_encoder_blocks"] == [1, 3, 3] and config["num_decoder_blocks"] == [3, 3, 1]
    image = torch.zeros(1, 3, 16, 24)
    assert TinyAutoencoder(config).encode(image).shape == (1, 4, 4, 6)
