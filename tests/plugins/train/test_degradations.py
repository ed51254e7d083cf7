"""Degradations: seeded, in range, at every size, and strong enough to be worth undoing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from diffplugin.plugins.cards import shipped_cards
from diffplugin.plugins.train.degradations import DEGRADATIONS, FAMILIES, degrade
from diffplugin.plugins.train.screen import demosaiced, screen

SCENE = np.add.outer(np.arange(96) * 1.2, np.arange(128) * 0.9)[..., None] * (1.0, 0.8, 0.5)
SCENE = (SCENE + 40 * (np.indices((96, 128)).sum(0) // 5 % 2)[..., None]).clip(0, 255).astype(np.uint8)


def test_one_for_every_released_task_in_its_order() -> None:
    assert all(list(family) == list(shipped_cards()) for family in FAMILIES.values())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", DEGRADATIONS)
def test_seed_fixes_the_picture(task: str, family: str) -> None:
    first, again, other = (degrade(SCENE, task, seed, family=family) for seed in (5, 5, 6))
    assert first.shape == SCENE.shape and first.dtype == np.uint8
    assert np.array_equal(first, again), f"{task}: differs in {np.sum(first != again)} values for one seed"
    assert not np.array_equal(first, other), f"{task}: the seed changes nothing"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", DEGRADATIONS)
def test_degrades_visibly_but_not_to_nothing(task: str, family: str) -> None:
    errors = [np.mean((degrade(SCENE, task, seed, family=family).astype(float) - SCENE) ** 2) for seed in range(12)]
    score = 10 * np.log10(255**2 / np.mean(errors))
    assert 5 < score < 33, f"{task}: {score:.1f} dB on average"


@pytest.mark.parametrize("family", FAMILIES)
def test_lowlight_darkens_and_haze_brightens_the_dark(family: str) -> None:
    assert degrade(SCENE, "lowlight", 1, family=family).mean() < 0.7 * SCENE.mean()
    hazy = degrade(SCENE, "dehaze", 1, family=family).astype(float)
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


def test_harder_snow_has_specks_and_large_soft_discs() -> None:
    """Bright areas that survive an erosion are larger than any flake of the standard family."""
    dark = np.full((128, 128, 3), 30, np.uint8)

    def largest(family: str) -> int:
        found = 0
        for seed in range(8):
            snow = degrade(dark, "desnow", seed, family=family).astype(float).mean(axis=2)
            labels, count = ndimage.label(ndimage.binary_opening(snow > np.median(snow) + 12, np.ones((7, 7))))
            found = max([found, *(int((labels == i).sum()) for i in range(1, count + 1))])
        return found

    assert largest("harder") > 1.5 * largest("standard") and largest("harder") > 60


def test_a_photo_of_a_screen_has_coloured_bands_and_keeps_its_place() -> None:
    grey = np.full((128, 128, 3), 0.5, np.float32)
    colour = [np.abs(np.diff(screen(grey, np.random.default_rng(seed)), axis=2)).std() for seed in range(6)]
    assert max(colour) > 0.02, f"grey stays grey to {max(colour):.3f}: no coloured moire"
    edge = grey.copy()
    edge[:, 64:] = 0.9
    for seed in range(3):
        seen = screen(edge, np.random.default_rng(seed)).mean(axis=(0, 2))
        place = int(np.argmax(np.abs(np.diff(seen[4:-4])))) + 4
        assert abs(place - 63) <= 3, f"seed {seed}: the edge went from column 63 to {place}"


def test_demosaicing_keeps_flat_colours() -> None:
    flat = np.tile(np.array((0.2, 0.5, 0.8), np.float32), (16, 18, 1))
    assert np.abs(demosaiced(flat) - flat).max() < 1e-6
