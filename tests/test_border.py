"""Nothing frames a result: its outermost pixels are those of the same scene restored as the inside of a larger photo.

A part of a photo is restored alone, and the whole photo; the difference of the two is looked at along the part's edges.
Some of it is no frame: the plugins see another photo, and the noise lies elsewhere. That is found further inside too:
only what the outermost 8 rows and columns have beyond the ring inside them counts.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import diffplugin
from diffplugin.runtime.photos.mask import region_mask
from diffplugin.runtime.restorer import Restorer
from diffplugin.spec import Array, ModelDims

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "docs" / "examples"
PHOTOS = Path(os.environ.get("DIFFPLUGIN_PHOTOS", ROOT.parent / "shared" / "photos"))
TASKS = ("derain", "desnow", "lowlight", "dehaze", "deblur", "highlight", "face", "demoire")
BOUND = 3.0  # levels
EDGE, INNER = (0, 8), (16, 40)  # pixels from the edge


@pytest.fixture(scope="module")
def restorer() -> Iterator[Restorer]:
    with diffplugin.load(engine="onnxruntime") as loaded:
        yield loaded


def _rgb(path: Path) -> Array:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _strips(values: Array, span: tuple[int, int]) -> list[Array]:
    """The rows and columns of [H, W, 3] at these distances from its top, bottom, left and right edge."""
    first, last = span
    turned = (values, values[::-1], values.swapaxes(0, 1), values[:, ::-1].swapaxes(0, 1))
    return [each[first:last, last:-last] for each in turned]


def frame(difference: Array) -> tuple[float, float]:
    """(how much larger a difference [H, W, 3] is at the edge than inside it, how far its mean level is off there), in
    levels; the second is the mean over four sides and three channels, whose signs do not cancel."""
    pairs = list(zip(_strips(difference, EDGE), _strips(difference, INNER), strict=True))
    more = np.mean([np.abs(edge).mean() - np.abs(inner).mean() for edge, inner in pairs])
    off = np.mean([np.abs(edge.mean((0, 1)) - inner.mean((0, 1))) for edge, inner in pairs])
    return float(more), float(off)


def _frame_of_a_part(restorer: Restorer, photo: Array, plugin: str, side: int, seen: int = 0) -> tuple[float, float]:
    """:func:`frame` of the middle ``side`` x ``side`` pixels, restored with ``seen`` real pixels around them."""
    top, left = ((length - side) // 2 for length in photo.shape[:2])
    around = photo[top - seen : top + side + seen, left - seen : left + side + seen]
    whole = restorer.restore(photo, plugins=[plugin]).array[top : top + side, left : left + side]
    alone = restorer.restore(np.ascontiguousarray(around), plugins=[plugin]).array
    return frame(alone[seen : seen + side, seen : seen + side].astype(float) - whole)


@pytest.mark.parametrize(
    ("name", "plugin", "side"), [("moose-dark.jpg", "lowlight", 160), ("mountains-hazy.jpg", "dehaze", 160)]
)
def test_no_frame_on_the_example_photos(
    restorer: Restorer, monkeypatch: pytest.MonkeyPatch, name: str, plugin: str, side: int
) -> None:
    """Measured: dehaze 0.5 and 0.8 levels; without the border its mean is 8.3 off, that of low light more than 20."""
    photo = np.ascontiguousarray(_rgb(EXAMPLES / name)[100 : 200 + side, 100 : 200 + side])
    more, off = _frame_of_a_part(restorer, photo, plugin, side)
    assert more <= BOUND and off <= BOUND, f"{plugin}: {more:.1f} levels more at the edge, its mean is {off:.1f} off"
    monkeypatch.setattr(ModelDims, "border", 0)
    more, off = _frame_of_a_part(restorer, photo, plugin, side)
    assert off > BOUND, f"the measure does not see a frame that is there: {more:.1f} and {off:.1f} levels"


def test_the_demo_keeps_its_edges_as_bright_as_the_truth(restorer: Restorer) -> None:
    made = restorer.restore(EXAMPLES / "moose-dark.jpg", plugins=["lowlight"]).array.astype(float)
    more, off = frame(made - _rgb(EXAMPLES / "moose.jpg"))
    assert more <= BOUND and off <= 2 * BOUND, f"{more:.1f} levels more at the edge, its mean is {off:.1f} off"


def _test_photos(least: int) -> list[Array]:
    if not (PHOTOS / "index.csv").is_file():
        pytest.skip(f"{PHOTOS} has no photographs; set DIFFPLUGIN_PHOTOS")
    with (PHOTOS / "index.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    return [_rgb(PHOTOS / row["file"]) for row in rows if min(int(row["width"]), int(row["height"])) >= least]


@pytest.mark.slow
@pytest.mark.parametrize("side", [96, 160, 256, 512])
@pytest.mark.parametrize("plugin", TASKS)
def test_no_frame_on_test_photos(restorer: Restorer, plugin: str, side: int) -> None:
    degradations = pytest.importorskip("diffplugin.plugins.train.degradations", exc_type=ImportError)
    found = []  # of several photos: without what is around it, a light at the edge may be taken for a reflection
    for number, photo in enumerate(_test_photos(side + 200)[:8]):
        around = degradations.degrade(np.ascontiguousarray(photo[: side + 200, : side + 200]), plugin, number)
        found.append(np.array(_frame_of_a_part(restorer, around, plugin, side)))
        if side < 160:  # so small a part lacks what is around it: 16 real pixels leave 2 to 4 levels of dehaze's edge
            found[-1] -= _frame_of_a_part(restorer, around, plugin, side, seen=16)
    more, off = np.mean(found, axis=0)
    assert more <= BOUND and off <= BOUND, f"{plugin}, {side} px: {np.round(found, 1)}"


@pytest.mark.slow
@pytest.mark.parametrize("plugin", TASKS)
def test_no_frame_at_nine_megapixels(restorer: Restorer, plugin: str) -> None:
    """Along a stretch of each edge: the rest would take hours."""
    degradations = pytest.importorskip("diffplugin.plugins.train.degradations", exc_type=ImportError)
    size, cut = (3200, 3200), 100
    photo = np.asarray(Image.fromarray(_test_photos(900)[0]).resize(size, Image.Resampling.LANCZOS))
    photo = degradations.degrade(photo, plugin, 1)
    part = np.ascontiguousarray(photo[cut:-cut, cut:-cut])
    more, off = [], []
    for x, y in ((0, 1000), (2700, 1000), (1000, 0), (1000, 2700)):
        alone = _region(restorer, part, plugin, (x, y))
        inside = _region(restorer, photo, plugin, (x + cut, y + cut))
        edge, inner = _along(alone.astype(float) - inside, x != 1000, first=0 in (x, y))
        more.append(np.abs(edge).mean() - np.abs(inner).mean())
        off.append(np.abs(edge.mean((0, 1)) - inner.mean((0, 1))).mean())
    assert np.mean(more) <= BOUND and np.mean(off) <= BOUND, f"{plugin}: {np.round(more, 1)} {np.round(off, 1)}"


def _region(restorer: Restorer, photo: Array, plugin: str, place: tuple[int, int]) -> Any:
    """300 x 300 pixels of a photo, restored there alone."""
    x, y = place
    mask = region_mask((x, y, 300, 300), (photo.shape[1], photo.shape[0]), feather=0)
    return restorer.restore(photo, plugins=[plugin], mask=mask).array[y : y + 300, x : x + 300]


def _along(difference: Array, upright: bool, *, first: bool) -> tuple[Array, Array]:
    """(edge, ring inside it) of a region at the left or right edge, if ``upright``, else at the top or bottom."""
    turned = difference.swapaxes(0, 1) if upright else difference
    turned = turned if first else turned[::-1]
    return turned[slice(*EDGE)], turned[slice(*INNER)]
