"""Where training pairs come from: photos degraded on purpose, or a CSV of files in the released format."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffplugin.errors import ImageError, RequestError
from diffplugin.plugins.train.common import Pixels, random_view
from diffplugin.plugins.train.degradations import degrade

COLUMNS = ("image", "conditioning_image")  # the release's names: ground truth, input


@dataclass(frozen=True, kw_only=True)
class Views:
    """One view of every scene: equally sized squares ``clean[i]`` and ``bad[task][i]``, and the window to train on.

    ``corners`` int [n, 2]: top and left of the window inside the view. What a vision encoder sees is the whole view.
    """

    clean: list[Pixels]
    bad: Mapping[str, list[Pixels]]
    corners: NDArray[np.int64]


def synthetic(photos: Sequence[Pixels], tasks: Sequence[str], number: int, side: int) -> Views:
    """View ``number`` of every photo, degraded for every task; the number seeds all of it.

    Degradations scale with the picture, the denoiser does not. So half of the views of large photos are twice ``side``,
    and the window is a part of them.
    """
    rng = np.random.default_rng(number)
    clean = [_view(p, side, rng) for p in photos]
    corners = np.stack([rng.integers(0, len(view) - side + 1, 2) for view in clean])
    bad = {
        task: [degrade(view, task, (number * 1000 + i) * 16 + k) for i, view in enumerate(clean)]
        for k, task in enumerate(tasks)
    }
    return Views(clean=clean, bad=bad, corners=corners)


def _view(photo: Pixels, side: int, rng: np.random.Generator) -> Pixels:
    twice = rng.random() < 0.5 and min(photo.shape[:2]) > 1.5 * side
    return random_view(photo, 2 * side if twice else side, rng, smallest=0.4)


Draw = Callable[[np.random.Generator], tuple[Pixels, Pixels]]


def degraded(photos: Sequence[Pixels], task: str, side: int) -> Draw:
    """Random (input, ground truth): a view of a photo as :func:`synthetic` takes it, degraded anew each time."""

    def draw(rng: np.random.Generator) -> tuple[Pixels, Pixels]:
        clean = _view(photos[int(rng.integers(len(photos)))], side, rng)
        return degrade(clean, task, int(rng.integers(2**31))), clean

    return draw


def filed(pairs: Sequence[tuple[Path, Path]], side: int) -> Draw:
    """Random (input, ground truth): a view of a pair of files (ground truth, input).

    Raises:
        ImageError: as :func:`from_files`.
    """

    def draw(rng: np.random.Generator) -> tuple[Pixels, Pixels]:
        clean, bad = random_pair(_stacked(*pairs[int(rng.integers(len(pairs)))]), side, rng)
        return bad, clean

    return draw


def read_csv(path: Path, root: Path | None = None) -> list[tuple[Path, Path]]:
    """(ground truth, input) files of a CSV with the columns ``image`` and ``conditioning_image``, as released.

    Relative paths start at ``root`` (default: the CSV's folder).

    Raises:
        RequestError: no such CSV, other columns, no rows, or files that are missing (all of them counted).
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns, rows = tuple(reader.fieldnames or ()), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RequestError(f"{path}: not a readable CSV file ({error})") from None
    if missing := [name for name in COLUMNS if name not in columns]:
        raise RequestError(f"{path}: no column {', '.join(missing)}; expected {','.join(COLUMNS)} in the first line")
    base = path.parent if root is None else root
    pairs = [(base / row["image"], base / row["conditioning_image"]) for row in rows]
    if not pairs:
        raise RequestError(f"{path}: no pairs below the first line")
    lost = [str(file) for pair in pairs for file in pair if not file.is_file()]
    if lost:
        raise RequestError(f"{path}: {len(lost)} of {2 * len(pairs)} files are missing, first {lost[0]} (root: {base})")
    return pairs


def _picture(path: Path) -> Image.Image:
    try:
        return Image.open(path).convert("RGB")
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: not a readable picture ({error})") from None


def _stacked(truth: Path, given: Path) -> Pixels:
    """Both pictures of a pair as [H, W, 6]."""
    pictures = [_picture(path) for path in (truth, given)]
    if pictures[0].size != pictures[1].size:
        sizes = " and ".join(f"{p.width}x{p.height}" for p in pictures)
        raise ImageError(f"{truth}, {given}: {sizes} pixels; a pair must be of one size")
    return np.concatenate([np.asarray(p) for p in pictures], axis=2)


def from_files(pairs: Sequence[tuple[Path, Path]], task: str, number: int, side: int) -> Views:
    """View ``number`` of every pair: the same random square of both, at ``side`` pixels, mirrored half of the time.

    Raises:
        ImageError: a file is not a picture, or the two of a pair differ in size.
    """
    rng = np.random.default_rng(number)
    clean, bad = [], []
    for truth, given in pairs:
        views = random_pair(_stacked(truth, given), side, rng)
        clean.append(views[0])
        bad.append(views[1])
    return Views(clean=clean, bad={task: bad}, corners=np.zeros((len(clean), 2), np.int64))


def random_pair(both: Pixels, side: int, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """The same :func:`random_view` of two pictures stacked as [H, W, 6]."""
    seed = int(rng.integers(2**31))
    one, two = (random_view(both[..., c : c + 3], side, np.random.default_rng(seed)) for c in (0, 3))
    return one, two
