"""Coring in training against the runtime's."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra [train]")

import torch

from diffplugin.plugins.train.coring import cored
from diffplugin.runtime.execution.residual import residual_output


def test_picture_training_cores_as_the_runtime_does() -> None:
    rng = np.random.default_rng(0)
    image, restored, known = (rng.uniform(-0.4, 0.4, (2, 3, 150, 62)).astype(np.float32) for _ in range(3))
    for levels in ((0, 0), (9, 0), (0, 40), (6, 50)):
        wanted = residual_output(image, restored, known, *levels)
        change = cored(torch.from_numpy(restored - known), *levels)
        assert np.allclose((torch.from_numpy(image) + change).clamp(-1, 1).numpy(), wanted, atol=2e-6), levels
