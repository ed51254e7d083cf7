"""Pictures for the diagnosis to learn from: clean photographs of every kind, one degradation, two, strong to invisible.

A sample is the views of a picture and, for each task, whether it should run (0..1) and how strong its degradation is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from diffplugin.plugins.train import everyday
from diffplugin.plugins.train.common import Pixels
from diffplugin.plugins.train.degradations import DEGRADATIONS, FAMILIES
from diffplugin.plugins.train.imaging import Degradation, Picture
from diffplugin.runtime.request.views import pixel_views, reduced

TASKS = tuple(DEGRADATIONS)
_NAMES = tuple(FAMILIES)
# Mean change, in levels of 255 (root of the mean square), of the degradations at full strength: strength 0.5.
USUAL = {
    "derain": 33,
    "desnow": 19,
    "lowlight": 87,
    "dehaze": 46,
    "deblur": 12,
    "highlight": 20,
    "face": 12,
    "demoire": 15,
}
# The scene comes before the light, the light before the lens, the lens before the display that was photographed.
ARISES = ("dehaze", "derain", "desnow", "highlight", "lowlight", "deblur", "face", "demoire")
_EXCLUDE = frozenset(("deblur", "face"))  # the second contains the first: together they are the second
_INVISIBLE, _VISIBLE = 1.2, 3.0  # levels of change below which nothing should be done, above which something should
_WEAK, _ENOUGH = 0.12, 0.4  # the same as parts of a degradation
_PLAIN = 0.5  # share of the samples that are photographs as they are, with a short side of at most
_LARGEST = 1280
_SIDES = ((0.2, 96, 200), (0.45, 200, 448), (0.25, 448, 700), (0.1, 700, 1000))  # share of the pictures, short sides


@dataclass(frozen=True, kw_only=True)
class Sample:
    """``views`` uint8 [9, 128, 128, 3]; ``wanted`` and ``strengths`` [tasks] in 0..1."""

    views: Pixels
    wanted: NDArray[np.float32]
    strengths: NDArray[np.float32]


def draw(photo: Pixels, rng: np.random.Generator) -> Sample:
    """A sample of a photo: clean (0.36), with one degradation (0.46), or with two, of any family.

    Half of them are the photo at its own size and one family at full strength; the others are parts and sizes of it,
    with what ordinary photographs go through, and weaker degradations.
    """
    kind = rng.random()
    count = 0 if kind < 0.36 else 1 if kind < 0.82 else 2
    if rng.random() < _PLAIN:
        return _plain(photo, count, rng)
    image = _part(photo, rng).astype(np.float32) / np.float32(255)
    if not count and rng.random() < 0.12:
        image = everyday.DRAWN[int(rng.integers(len(everyday.DRAWN)))](image, rng)
    elif rng.random() < 0.45:
        image = everyday.PLAIN[int(rng.integers(len(everyday.PLAIN)))](image, rng)
    image, wanted, strengths = degraded(image, _tasks(count, rng), rng)
    return _seen(everyday.uploaded(image, rng), wanted, strengths)


def _plain(photo: Pixels, count: int, rng: np.random.Generator) -> Sample:
    """The photo or its mirror image, with ``count`` degradations of one family at full strength."""
    photo = reduced(photo, _LARGEST)
    image = (photo[:, ::-1] if rng.random() < 0.5 else photo).astype(np.float32) / np.float32(255)
    family = _NAMES[int(rng.integers(len(_NAMES)))]
    return _seen(*degraded(image, _tasks(count, rng), rng, full=family))


def _seen(image: Picture, wanted: NDArray[np.float32], strengths: NDArray[np.float32]) -> Sample:
    pixels = (image * 255 + 0.5).astype(np.uint8)
    return Sample(views=pixel_views(pixels), wanted=wanted, strengths=strengths)


def degraded(
    image: Picture, tasks: Sequence[str], rng: np.random.Generator, *, full: str | None = None
) -> tuple[Picture, NDArray[np.float32], NDArray[np.float32]]:
    """The picture with the degradations of ``tasks`` in the order in which they arise; what is wanted, how strongly.

    Args:
        full: the family of them all, at full strength; None: of any family each, some of them weaker.
    """
    wanted, levels = (np.zeros(len(TASKS), np.float32) for _ in range(2))
    for task in sorted(tasks, key=ARISES.index):
        i = TASKS.index(task)
        if full is None:
            family = _NAMES[int(rng.integers(len(_NAMES)))]
            made, wanted[i] = _some(image, task, FAMILIES[family][task], rng)
        else:
            made, wanted[i] = FAMILIES[full][task](image, rng), 1.0
        if task == "lowlight":  # what is there already is less visible in the dark
            levels *= float(made.mean() / max(image.mean(), 1e-3))
        levels[i] = 255 * float(np.sqrt(np.mean((made - image) ** 2)))
        image = made
    wanted *= np.clip((levels - _INVISIBLE) / (_VISIBLE - _INVISIBLE), 0, 1)
    usual = np.array([USUAL[task] for task in TASKS], np.float32)
    return image, wanted, levels / (levels + usual)


def _some(image: Picture, task: str, degrade: Degradation, rng: np.random.Generator) -> tuple[Picture, float]:
    """(a degradation, in a third of the cases weaker, how much it calls for restoration)."""
    if rng.random() < 0.65:
        return degrade(image, rng), 1.0
    if task in _WEAKER:
        return _WEAKER[task](image, rng)
    part = rng.uniform(0.03, 1.0)
    made = image + np.float32(part) * (degrade(image, rng) - image)
    return made, float(np.clip((part - _WEAK) / (_ENOUGH - _WEAK), 0, 1))


def _weak_blur(image: Picture, rng: np.random.Generator) -> tuple[Picture, float]:
    """Shorter than :func:`.degradations.blur`, or out of focus: a blend of sharp and blurred would be neither."""
    reach = rng.uniform(0.3, 6)
    length = reach * min(image.shape[:2]) / 256
    if rng.random() < 0.5:
        sigma = length / 3.5  # of a line of that length, about
        made = ndimage.gaussian_filter(image, (sigma, sigma, 0))
    else:
        angle = rng.uniform(0, np.pi)
        steps = max(int(np.ceil(length)), 1)
        made = np.zeros_like(image)
        for at in np.linspace(-length / 2, length / 2, steps + 1):
            made += ndimage.shift(image, (at * np.sin(angle), at * np.cos(angle), 0), order=1, mode="nearest")
        made /= steps + 1
    return np.asarray(made, np.float32), float(np.clip((reach - 1.2) / 1.8, 0, 1))


def _weak_face(image: Picture, rng: np.random.Generator) -> tuple[Picture, float]:
    """Fewer pixels and compression, less than :func:`.degradations.face`."""
    factor, quality = rng.uniform(1.02, 2.2), int(rng.integers(50, 95))
    height, width = image.shape[:2]
    size = max(int(width / factor), 8), max(int(height / factor), 8)
    small = everyday.as_pixels(image).resize(size, Image.Resampling.BILINEAR)
    made = everyday.jpeg(small, quality).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(made, np.float32) / np.float32(255), float(np.clip((factor - 1.5) / 0.3, 0, 1))


_WEAKER: dict[str, Callable[[Picture, np.random.Generator], tuple[Picture, float]]] = {
    "deblur": _weak_blur,
    "face": _weak_face,
}


def _tasks(count: int, rng: np.random.Generator) -> tuple[str, ...]:
    while True:
        tasks = tuple(rng.choice(TASKS, count, replace=False))
        if set(tasks) != _EXCLUDE:
            return tasks


def _part(photo: Pixels, rng: np.random.Generator) -> Pixels:
    """A part of the photo, of at least half its sides, at another size; never enlarged."""
    height, width = photo.shape[:2]
    share = rng.uniform(0.5, 1, 2) if rng.random() < 0.7 else np.ones(2)
    h, w = max(int(height * share[0]), 1), max(int(width * share[1]), 1)
    top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
    part = Image.fromarray(photo[top : top + h, left : left + w])
    _, low, high = _SIDES[int(rng.choice(len(_SIDES), p=[row[0] for row in _SIDES]))]
    scale = min(rng.uniform(low, high) / min(h, w), 1.0)
    if scale < 1:
        part = part.resize((max(round(w * scale), 1), max(round(h * scale), 1)), Image.Resampling.LANCZOS)
    pixels = np.asarray(part)
    return np.ascontiguousarray(pixels[:, ::-1] if rng.random() < 0.5 else pixels)
