"""Views to train on: of pairs, and of photos degraded on purpose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from diffplugin.plugins.train import pairs
from diffplugin.plugins.train.degradations import degrade
from diffplugin.plugins.train.sources import Files

RNG = np.random.default_rng(0)


def picture(path: Path, size: tuple[int, int]) -> np.ndarray:
    pixels = RNG.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def source(folder: Path, size: tuple[int, int] = (70, 50)) -> Files:
    pixels = picture(folder / "gt.png", size)
    Image.fromarray(255 - pixels).save(folder / "in.png")
    return Files([("gt.png", "in.png")] * 6, folder)


def test_both_pictures_of_a_pair_show_the_same_part(tmp_path: Path) -> None:
    views = list(pairs.views_of(source(tmp_path), range(6), "invert", 3, 32))
    assert {v.clean.shape for v in views} == {(32, 32, 3)} and len(views) == 6
    for view in views:
        error = np.abs(255 - view.bad["invert"].astype(int) - view.clean).max()
        assert error <= 1, f"{error} levels: another crop, scale or mirror image"
    assert not np.array_equal(views[0].clean, views[1].clean), "every view is another one"


def test_draws_are_pairs_and_ever_new_ones(tmp_path: Path) -> None:
    draw = pairs.filed(source(tmp_path), [0], 32)
    rng = np.random.default_rng(0)
    views = [draw(rng) for _ in range(3)]
    for bad, clean in views:
        assert bad.shape == clean.shape == (32, 32, 3)
        assert np.abs(255 - bad.astype(int) - clean).max() <= 1, "another crop, scale or mirror image"
    assert not np.array_equal(views[0][1], views[1][1])

    pixels = np.asarray(Image.open(tmp_path / "gt.png"))
    synthetic = pairs.degraded([pixels], "derain", 32)
    (bad, clean), (other, _) = synthetic(np.random.default_rng(1)), synthetic(np.random.default_rng(2))
    assert bad.shape == clean.shape == (32, 32, 3) and not np.array_equal(bad, clean)
    assert not np.array_equal(bad, other)
    assert np.array_equal(bad, synthetic(np.random.default_rng(1))[0]), "seeded"


def test_synthetic_views_repeat_and_differ_by_number() -> None:
    photos = [RNG.integers(0, 255, (150, 160, 3), dtype=np.uint8) for _ in range(4)]
    one, same, other = (pairs.synthetic(photos, ("derain", "dehaze"), n, 64) for n in (1, 1, 2))
    for task in ("derain", "dehaze"):
        assert all(np.array_equal(a, b) for a, b in zip(one.bad[task], same.bad[task], strict=True))
        assert not np.array_equal(one.bad[task][0], other.bad[task][0])
    sides = {len(view) for n in range(6) for view in pairs.synthetic(photos, (), n, 64).clean}
    assert sides == {64, 128}
    assert all((corner + 64 <= len(view)).all() for corner, view in zip(one.corners, one.clean, strict=True))


def test_a_share_of_the_samples_is_clean_and_a_share_harder(tmp_path: Path) -> None:
    photos = [np.random.default_rng(5).integers(60, 200, (96, 96, 3), dtype=np.uint8)]
    draw = pairs.degraded(photos, "derain", 48, pairs.Mix(clean=0.3))
    rng = np.random.default_rng(0)
    same = np.mean([np.array_equal(*draw(rng)) for _ in range(100)])
    assert 0.15 < same < 0.45, f"{same:.2f} of the inputs are clean, expected 0.3"
    views = pairs.synthetic(photos * 40, ["derain"], 0, 48, pairs.Mix(clean=0.3))
    same = np.mean([np.array_equal(*pair) for pair in zip(views.clean, views.bad["derain"], strict=True)])
    assert 0.1 < same < 0.55, f"{same:.2f} of the views are clean, expected 0.3"
    filed = pairs.filed(source(tmp_path), [0], 32, clean=0.3)
    same = np.mean([np.array_equal(*filed(rng)) for _ in range(100)])
    assert 0.15 < same < 0.45, f"{same:.2f} of the pairs are clean, expected 0.3"


def test_harder_samples_are_of_the_harder_family() -> None:
    pixels = np.full((48, 48, 3), 90, np.uint8)
    for share, family in ((0.0, "standard"), (1.0, "harder")):
        rng = np.random.default_rng(1)
        made = pairs.Mix(harder=share).degrade(pixels, "desnow", rng)
        again = np.random.default_rng(1)
        again.random(2)  # clean? harder?
        wanted = degrade(pixels, "desnow", int(again.integers(2**31)), family=family)
        assert np.array_equal(made, wanted), family
