"""Views to train on: of photos degraded on purpose, or of pairs (:mod:`.sources`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffplugin.plugins.train.common import Pixels, random_view
from diffplugin.plugins.train.degradations import degrade
from diffplugin.plugins.train.sources import Source


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Shares of the samples: ``clean`` ones are not degraded, so that a plugin learns to leave a clean picture alone;
    of the rest, ``harder`` are degraded by the harder family, the others by the standard one."""

    harder: float = 0.0
    clean: float = 0.0

    def degrade(self, pixels: Pixels, task: str, rng: np.random.Generator) -> Pixels:
        """The input of a sample whose ground truth is ``pixels``."""
        if rng.random() < self.clean:
            return pixels
        family = "harder" if rng.random() < self.harder else "standard"
        return degrade(pixels, task, int(rng.integers(2**31)), family=family)


STANDARD = Mix()


@dataclass(frozen=True, kw_only=True)
class Views:
    """One view of every scene: equally sized squares ``clean[i]`` and ``bad[task][i]``, and the window to train on.

    ``corners`` int [n, 2]: top and left of the window inside the view. What a vision encoder sees is the whole view.
    """

    clean: list[Pixels]
    bad: Mapping[str, list[Pixels]]
    corners: NDArray[np.int64]


@dataclass(frozen=True)
class Row:
    """One view: equally sized squares ``clean`` and ``bad[task]``, and top and left of the window to train on."""

    clean: Pixels
    bad: Mapping[str, Pixels]
    corner: tuple[int, int] = (0, 0)


def synthetic(photos: Sequence[Pixels], tasks: Sequence[str], number: int, side: int, mix: Mix = STANDARD) -> Views:
    """View ``number`` of every photo, degraded for every task; the number seeds all of it.

    Degradations scale with the picture, the denoiser does not. So half of the views of large photos are twice ``side``,
    and the window is a part of them.
    """
    rng = np.random.default_rng(number)
    clean = [_view(p, side, rng) for p in photos]
    corners = np.stack([rng.integers(0, len(view) - side + 1, 2) for view in clean])
    bad = {
        task: [
            mix.degrade(view, task, np.random.default_rng((number * 1000 + i) * 16 + k)) for i, view in enumerate(clean)
        ]
        for k, task in enumerate(tasks)
    }
    return Views(clean=clean, bad=bad, corners=corners)


def _view(photo: Pixels, side: int, rng: np.random.Generator) -> Pixels:
    twice = rng.random() < 0.5 and min(photo.shape[:2]) > 1.5 * side
    return random_view(photo, 2 * side if twice else side, rng, smallest=0.4)


Draw = Callable[[np.random.Generator], tuple[Pixels, Pixels]]


def degraded(photos: Sequence[Pixels], task: str, side: int, mix: Mix = STANDARD) -> Draw:
    """Random (input, ground truth): a view of a photo as :func:`synthetic` takes it, degraded anew each time."""

    def draw(rng: np.random.Generator) -> tuple[Pixels, Pixels]:
        clean = _view(photos[int(rng.integers(len(photos)))], side, rng)
        return mix.degrade(clean, task, rng), clean

    return draw


Degrade = Callable[[Pixels, np.random.Generator], Pixels]


def filed(
    source: Source, indices: Sequence[int], side: int, degrade: Degrade | None = None, clean: float = 0.0
) -> Draw:
    """Random (input, ground truth): a view of a pair; ``degrade`` and ``clean`` as :func:`random_pair` takes them.

    Raises:
        ImageError: a file is not a picture, or the two of a pair differ in size.
    """

    def draw(rng: np.random.Generator) -> tuple[Pixels, Pixels]:
        truth, given = random_pair(source, int(indices[int(rng.integers(len(indices)))]), side, rng, degrade, clean)
        return given, truth

    return draw


def views_of(
    source: Source,
    indices: Sequence[int],
    task: str,
    number: int,
    side: int,
    degrade: Degrade | None = None,
    clean: float = 0.0,
) -> Iterator[Row]:
    """View ``number`` of every pair: the same random square of both, at ``side`` pixels, mirrored half of the time.

    Raises:
        ImageError: as :func:`filed`.
    """
    for index in indices:
        rng = np.random.default_rng((number, int(index)))
        truth, given = random_pair(source, int(index), side, rng, degrade, clean)
        yield Row(truth, {task: given})


def random_pair(
    source: Source,
    index: int,
    side: int,
    rng: np.random.Generator,
    degrade: Degrade | None = None,
    clean: float = 0.0,
) -> tuple[Pixels, Pixels]:
    """The same :func:`random_view` of both pictures of a pair: (ground truth, input).

    ``degrade`` makes the input of a row that names one picture twice. Of a share ``clean``, the input is the truth.
    """
    seed = int(rng.integers(2**31))
    truth, given = (random_view(np.asarray(p), side, np.random.default_rng(seed)) for p in source.pair(index))
    if degrade is not None and source.same(index):
        given = degrade(truth, rng)
    return truth, truth if rng.random() < clean else given
