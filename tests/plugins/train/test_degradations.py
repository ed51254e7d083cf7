"""Degradations: seeded, in range, at every size, and strong enough to be worth undoing."""

from __future__ import annotations

import numpy as np
import pytest

from diffplugin.plugins.cards import shipped_cards
from diffplugin.plugins.train.degradations import DEGRADATIONS, degrade

SCENE = np.add.outer(np.arange(96) * 1.2, np.arange(128) * 0.9)[..., None] * (1.0, 0.8, 0.5)
SCENE = (SCENE + 40 * (np.indices((96, 128)).sum(0) // 5 % 2)[..., None]).clip(0, 255).astype(np.uint8)


def test_one_for_every_released_task_in_its_order() -> None:
    assert list(DEGRADATIONS) == list(shipped_cards())


@pytest.mark.parametrize("task", DEGRADATIONS)
def test_seed_fixes_the_picture(task: str) -> None:
    first, again, other = degrade(SCENE, task, 5), degrade(SCENE, task, 5), degrade(SCENE, task, 6)
    assert first.shape == SCENE.shape and first.dtype == np.uint8
    assert np.array_equal(first, again), f"{task}: differs in {np.sum(first != again)} values for one seed"
    assert not np.array_equal(first, other), f"{task}: the seed changes nothing"


@pytest.mark.parametrize("task", DEGRADATIONS)
def test_degrades_visibly_but_not_to_nothing(task: str) -> None:
    errors = [np.mean((degrade(SCENE, task, seed).astype(float) - SCENE) ** 2) for seed in range(12)]
    score = 10 * np.log10(255**2 / np.mean(errors))
    assert 5 < score < 33, f"{task}: {score:.1f} dB on average"


def test_lowlight_darkens_and_haze_brightens_the_dark() -> None:
    assert degrade(SCENE, "lowlight", 1).mean() < 0.7 * SCENE.mean()
    hazy = degrade(SCENE, "dehaze", 1).astype(float)
    assert hazy.std() < SCENE.std(), "haze must lower the contrast"
    assert hazy[SCENE.sum(-1) < 60].mean() > SCENE[SCENE.sum(-1) < 60].mean() + 20


def test_rain_and_snow_only_add_light() -> None:
    dark = np.full((64, 64, 3), 30, np.uint8)
    for task in ("derain", "desnow", "highlight"):
        assert (degrade(dark, task, 2) >= dark).all(), task


def test_rain_does_not_grow_denser_with_the_picture() -> None:
    added = []
    for side in (128, 256):
        dark = np.full((side, side, 3), 30, np.uint8)
        added.append(np.mean([degrade(dark, "derain", seed).mean() - 30 for seed in range(16)]))
    assert 0.7 < added[0] / added[1] < 1.4, added
