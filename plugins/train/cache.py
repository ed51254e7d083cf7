"""Latents and CLIP features of a data set, encoded once and kept on disk, for a training that reads them in place of
pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffplugin.plugins.train import eq3
from diffplugin.plugins.train.stream import Batches, Images, Pairs, order

NAMES = ("patches", "cond", "mean", "deviation")


def write(folder: Path, pairs: Pairs, objective: eq3.Published, *, views: int, batch: int, workers: int) -> None:
    """Encode ``views`` passes over the pairs into ``folder``; a pass that is there is kept.

    Raises:
        ImageError: a pair cannot be used.
    """
    device = objective.model.alpha_bar.device
    for view in range(views):
        part, final = folder / f".view{view:03d}", folder / f"view{view:03d}"
        if final.exists():
            continue
        part.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {}
        done = 0
        for images in _in_order(pairs, view, batch, workers):
            found = objective.encode(images.to(device))
            for name in NAMES:
                value = getattr(found, name).cpu().numpy()
                if name not in arrays:
                    shape = (len(pairs), *value.shape[1:])
                    arrays[name] = np.lib.format.open_memmap(part / f"{name}.npy", "w+", dtype=np.float16, shape=shape)
                arrays[name][done : done + len(value)] = value
            done += len(value)
        for array in arrays.values():
            array.flush()
        part.rename(final)


def _in_order(pairs: Pairs, view: int, batch: int, workers: int) -> Iterator[Images]:
    keys = [[(view, i) for i in range(k, min(k + batch, len(pairs)))] for k in range(0, len(pairs), batch)]
    return Batches(pairs, batch, workers=workers).read(keys)


class Cached:
    """Batches of kept latents, in the order in which :class:`.stream.Batches` reads pictures."""

    def __init__(self, folder: Path, batch: int, *, views: int, seed: int = 0) -> None:
        self.batch, self.seed = batch, seed
        self.views = [
            {name: np.load(folder / f"view{view:03d}" / f"{name}.npy", mmap_mode="r") for name in NAMES}
            for view in range(views)
        ]

    def __call__(self, first: int, last: int, process: int, processes: int) -> Iterator[eq3.Latents]:
        """Of micro steps ``first`` to ``last`` of one process."""
        count = len(self.views[0]["cond"])
        for keys in order(
            count, self.batch, first=first, last=last, process=process, processes=processes, seed=self.seed
        ):
            yield eq3.Latents(*(self._stacked(name, keys) for name in NAMES))

    def _stacked(self, name: str, keys: list[tuple[int, int]]) -> Tensor:
        rows = [self.views[epoch % len(self.views)][name][number] for epoch, number in keys]
        return torch.from_numpy(np.stack(rows).astype(np.float32))
