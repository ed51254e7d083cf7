"""Pairs as a stream: read, decoded, degraded and augmented by workers, in an order that (seed, step) alone decides.

So a resumed training meets the pairs that an uninterrupted one meets, and memory does not grow with the data set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffplugin.errors import DiffPluginError, ImageError
from diffplugin.plugins.train.common import Pixels, to_tensor
from diffplugin.plugins.train.pairs import Degrade
from diffplugin.plugins.train.sources import Source

BILINEAR = Image.Resampling.BILINEAR


@dataclass(frozen=True)
class Images:
    """A batch: ``given`` (the inputs) and ``truth``, both float32 [n, 3, S, S] in [-1, 1]."""

    given: Tensor
    truth: Tensor

    def to(self, device: torch.device) -> Images:
        """The batch on another device."""
        move = {"device": device, "non_blocking": True}
        return replace(self, given=self.given.to(**move), truth=self.truth.to(**move))  # type: ignore[call-overload]


def resized(given: Image.Image, truth: Image.Image, side: int) -> tuple[Pixels, Pixels]:
    """Both as squares of ``side`` pixels, bilinear, whatever their shape: as released (no crop, no flip)."""
    one, other = (np.asarray(p.resize((side, side), BILINEAR)) for p in (given, truth))
    return one, other


def augmented(given: Image.Image, truth: Image.Image, side: int, rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """The released augmentation: half of the pairs are cropped, half are mirrored, then all are resized to a square.

    The crop is ``side`` x ``side`` where both sides of the picture are larger; where one is smaller, it is the square
    of the short side, anywhere along the long one. A picture with a side of exactly ``side`` is not cropped.
    """
    width, height = given.size
    pair = [given, truth]
    if rng.random() < 0.5 and (min(width, height) > side or min(width, height) < side):
        cut = side if min(width, height) > side else min(width, height)
        left, top = int(rng.integers(0, width - cut + 1)), int(rng.integers(0, height - cut + 1))
        pair = [p.crop((left, top, left + cut, top + cut)) for p in pair]
    if rng.random() < 0.5:
        pair = [p.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for p in pair]
    return resized(pair[0], pair[1], side)


class Pairs(Dataset[Any]):
    """Pairs by (pass over the data, number). ``degrade`` makes the input of a row that names one picture twice; of a
    share ``clean``, the input is the truth."""

    def __init__(
        self,
        source: Source,
        indices: Sequence[int],
        side: int,
        *,
        augment: bool = False,
        degrade: Degrade | None = None,
        clean: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.source, self.indices = source, np.asarray(indices)
        self.side, self.augment, self.degrade, self.clean, self.seed = side, augment, degrade, clean, seed

    def __len__(self) -> int:
        return len(self.indices)

    def pixels(self, key: tuple[int, int]) -> tuple[Pixels, Pixels]:
        """(input, ground truth) uint8 [S, S, 3].

        Raises:
            ImageError: a picture cannot be read, or the two differ in size.
        """
        epoch, number = key
        index = int(self.indices[number])
        rng = np.random.default_rng((self.seed, epoch, index))
        truth, given = self.source.pair(index)
        if self.degrade is not None and self.source.same(index):
            given = Image.fromarray(self.degrade(np.asarray(truth), rng))
        if self.clean and rng.random() < self.clean:
            given = truth
        return augmented(given, truth, self.side, rng) if self.augment else resized(given, truth, self.side)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Pixels, Pixels] | str:
        try:
            return self.pixels(key)
        except DiffPluginError as error:  # a worker's exception would reach the user with two tracebacks
            return str(error)


def collate(rows: Sequence[tuple[Pixels, Pixels] | str]) -> Images | str:
    """Tensors of a batch, or the first fault in it."""
    if faults := [row for row in rows if isinstance(row, str)]:
        return faults[0]
    given, truth = (np.stack([row[k] for row in rows]) for k in (0, 1))
    return Images(to_tensor(given), to_tensor(truth))


def order(
    count: int, batch: int, *, first: int, last: int, process: int = 0, processes: int = 1, seed: int = 0
) -> Iterator[list[tuple[int, int]]]:
    """(pass, number) of the pairs of every micro step ``first`` to ``last``; each pass is shuffled on its own.

    All processes together see every pair once a pass.
    """
    shuffled: tuple[int, np.ndarray[Any, Any]] = (-1, np.empty(0))
    for step in range(first, last):
        keys = []
        for place in range(batch):
            epoch, at = divmod((step * processes + process) * batch + place, count)
            if shuffled[0] != epoch:
                shuffled = epoch, np.random.default_rng((seed, epoch)).permutation(count)
            keys.append((epoch, int(shuffled[1][at])))
        yield keys


class Batches:
    """A dataloader over the micro steps of a training, from any of them on."""

    def __init__(self, pairs: Pairs, batch: int, *, workers: int, seed: int = 0) -> None:
        self.pairs, self.batch, self.workers, self.seed = pairs, batch, workers, seed

    def __call__(self, first: int, last: int, process: int, processes: int) -> Iterator[Images]:
        """Batches of micro steps ``first`` to ``last`` of one process.

        Raises:
            ImageError: a pair cannot be used; it is named.
        """
        keys = order(
            len(self.pairs), self.batch, first=first, last=last, process=process, processes=processes, seed=self.seed
        )
        return self.read(keys)

    def read(self, keys: Iterable[list[tuple[int, int]]]) -> Iterator[Images]:
        """Batches of these (pass, number), in order.

        Raises:
            ImageError: a pair cannot be used; it is named.
        """
        loader: DataLoader[Any] = DataLoader(
            self.pairs,
            batch_sampler=keys,
            num_workers=self.workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            prefetch_factor=2 if self.workers else None,
        )
        for batch in loader:
            if isinstance(batch, str):
                raise ImageError(batch)
            yield batch
