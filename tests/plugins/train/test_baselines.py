"""The trivial baselines do what their names say."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from diffplugin.export.measures import psnr
from diffplugin.plugins.train import baselines
from diffplugin.plugins.train.degradations import DEGRADATIONS, degrade

RNG = np.random.default_rng(0)
SMOOTH = np.asarray(
    Image.fromarray(RNG.integers(40, 220, (8, 8, 3), dtype=np.uint8)).resize((128, 128), Image.Resampling.BICUBIC)
)


@pytest.mark.parametrize("task", list(DEGRADATIONS))
def test_every_task_has_one_that_keeps_the_form(task: str) -> None:
    name, filtered = baselines.BASELINES[task]
    bad = degrade(SMOOTH, task, 1)
    good = filtered(bad)
    assert name and good.shape == bad.shape and good.dtype == np.uint8
    assert not np.array_equal(good, bad)


@pytest.mark.parametrize("task", ["derain", "desnow", "lowlight", "dehaze"])
def test_the_filters_help_on_an_easy_picture(task: str) -> None:
    bad = [degrade(SMOOTH, task, seed) for seed in range(4)]
    before = np.mean([psnr(b, SMOOTH) for b in bad])
    after = np.mean([psnr(baselines.BASELINES[task][1](b), SMOOTH) for b in bad])
    assert after > before, f"{before:.2f} -> {after:.2f} dB"


def test_gamma_brings_the_mean() -> None:
    assert baselines.gamma(SMOOTH // 4).mean() / 255 == pytest.approx(0.42, abs=0.01)
