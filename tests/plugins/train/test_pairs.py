"""Training pairs: the released CSV, and photos degraded on purpose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffplugin.errors import ImageError, RequestError
from diffplugin.plugins.train import pairs

RNG = np.random.default_rng(0)


def write(folder: Path, rows: list[tuple[str, str]], head: str = "image,conditioning_image") -> Path:
    path = folder / "pairs.csv"
    path.write_text("\n".join([head, *(",".join(row) for row in rows)]) + "\n")
    return path


def picture(path: Path, size: tuple[int, int]) -> np.ndarray:
    pixels = RNG.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def test_reads_the_released_columns(tmp_path: Path) -> None:
    for name in ("gt.png", "in.png"):
        picture(tmp_path / name, (40, 30))
    assert pairs.read_csv(write(tmp_path, [("gt.png", "in.png")])) == [(tmp_path / "gt.png", tmp_path / "in.png")]


@pytest.mark.parametrize(
    ("rows", "head", "message"),
    [
        ([("a.png", "b.png")], "gt,input", "no column image, conditioning_image"),
        ([], "image,conditioning_image", "no pairs"),
        ([("a.png", "b.png")], "image,conditioning_image", "2 of 2 files are missing"),
    ],
)
def test_faulty_csv(tmp_path: Path, rows: list[tuple[str, str]], head: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        pairs.read_csv(write(tmp_path, rows, head))


def test_both_pictures_of_a_pair_show_the_same_part(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "gt.png", (70, 50))
    Image.fromarray(255 - pixels).save(tmp_path / "in.png")
    files = [(tmp_path / "gt.png", tmp_path / "in.png")] * 6
    views = pairs.from_files(files, "invert", 3, 32)
    assert {v.shape for v in views.clean} == {(32, 32, 3)} and views.corners.shape == (6, 2)
    for clean, bad in zip(views.clean, views.bad["invert"], strict=True):
        error = np.abs(255 - bad.astype(int) - clean).max()
        assert error <= 1, f"{error} levels: another crop, scale or mirror image"
    assert not np.array_equal(views.clean[0], views.clean[1]), "every view is another one"


def test_draws_are_pairs_and_ever_new_ones(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "gt.png", (70, 50))
    Image.fromarray(255 - pixels).save(tmp_path / "in.png")
    draw = pairs.filed([(tmp_path / "gt.png", tmp_path / "in.png")], 32)
    rng = np.random.default_rng(0)
    views = [draw(rng) for _ in range(3)]
    for bad, clean in views:
        assert bad.shape == clean.shape == (32, 32, 3)
        assert np.abs(255 - bad.astype(int) - clean).max() <= 1, "another crop, scale or mirror image"
    assert not np.array_equal(views[0][1], views[1][1])

    synthetic = pairs.degraded([pixels], "derain", 32)
    (bad, clean), (other, _) = synthetic(np.random.default_rng(1)), synthetic(np.random.default_rng(2))
    assert bad.shape == clean.shape == (32, 32, 3) and not np.array_equal(bad, clean)
    assert not np.array_equal(bad, other)
    assert np.array_equal(bad, synthetic(np.random.default_rng(1))[0]), "seeded"


def test_pair_of_two_sizes(tmp_path: Path) -> None:
    picture(tmp_path / "gt.png", (70, 50))
    picture(tmp_path / "in.png", (50, 70))
    with pytest.raises(ImageError, match="70x50 and 50x70"):
        pairs.from_files([(tmp_path / "gt.png", tmp_path / "in.png")], "x", 0, 32)


def test_synthetic_views_repeat_and_differ_by_number() -> None:
    photos = [RNG.integers(0, 255, (150, 160, 3), dtype=np.uint8) for _ in range(4)]
    one, same, other = (pairs.synthetic(photos, ("derain", "dehaze"), n, 64) for n in (1, 1, 2))
    for task in ("derain", "dehaze"):
        assert all(np.array_equal(a, b) for a, b in zip(one.bad[task], same.bad[task], strict=True))
        assert not np.array_equal(one.bad[task][0], other.bad[task][0])
    sides = {len(view) for n in range(6) for view in pairs.synthetic(photos, (), n, 64).clean}
    assert sides == {64, 128}
    assert all((corner + 64 <= len(view)).all() for corner, view in zip(one.corners, one.clean, strict=True))
