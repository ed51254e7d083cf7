"""Pools of training pairs: views of photos, degraded, with their latents, kept on disk as shards.

Encoding with the frozen autoencoder is done once; training then reads latents. A shard holds one view of
every photo: ``clean`` f16 [n, 4, h, w], ``cond`` f16 [tasks, n, 4, h, w] and ``small`` u8 [tasks, n, 224, 224, 3]
(what the vision encoder sees of the degraded picture).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diffplugin.plugins.networks.vae import Autoencoder
from diffplugin.plugins.train.common import Pixels, to_tensor
from diffplugin.plugins.train.pairs import Draw, Row, Views

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
VISION_SIDE = 224


def shrink(pixels: Pixels, side: int = VISION_SIDE) -> Pixels:
    """CLIP's picture: short side to 224 (bicubic), centre crop; u8 [224, 224, 3]."""
    picture = Image.fromarray(pixels)
    scale = side / min(picture.size)
    size = (max(side, int(picture.width * scale)), max(side, int(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return np.asarray(picture.crop((left, top, left + side, top + side)))


def clip_pixels(small: NDArray[np.uint8]) -> Tensor:
    """u8 [n, 224, 224, 3] -> normalised float32 [n, 3, 224, 224]."""
    values = (small.astype(np.float32) / 255 - np.array(CLIP_MEAN, np.float32)) / np.array(CLIP_STD, np.float32)
    return torch.from_numpy(np.ascontiguousarray(values.transpose(0, 3, 1, 2)))


@torch.no_grad()
def encode(vae: Autoencoder, pixels: Pixels) -> NDArray[np.float16]:
    """Latents f16 [n, c, h, w] of pictures [n, H, W, 3], at the precision of an autocast around it."""
    weight = vae.quant_conv.weight
    images = to_tensor(pixels).to(weight.device, memory_format=torch.channels_last)
    return vae.encode(images).float().cpu().numpy().astype(np.float16)


def write_rows(
    folder: Path, number: int, rows: Iterable[Row], count: int, tasks: Sequence[str], vae: Autoencoder, *, side: int
) -> None:
    """Encode ``count`` rows one by one, and move shard ``number`` into place when it is complete."""
    part, final = folder / f".shard{number:03d}", folder / f"shard{number:03d}"
    part.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {}
    small = (VISION_SIDE, VISION_SIDE, 3)
    done = 0
    for i, row in enumerate(rows):
        y, x = row.corner
        window = np.s_[None, y : y + side, x : x + side]
        clean = encode(vae, row.clean[window])
        if not arrays:
            latent = clean.shape[1:]
            for name, shape, kind in (
                ("clean", (count, *latent), np.float16),
                ("cond", (len(tasks), count, *latent), np.float16),
                ("small", (len(tasks), count, *small), np.uint8),
            ):
                arrays[name] = np.lib.format.open_memmap(part / f"{name}.npy", "w+", dtype=kind, shape=shape)
        arrays["clean"][i] = clean[0]
        for k, task in enumerate(tasks):
            arrays["cond"][k, i] = encode(vae, row.bad[task][window])[0]
            arrays["small"][k, i] = shrink(row.bad[task])
        done = i + 1
    if done != count:
        raise ValueError(f"{done} rows came, expected {count}")
    for array in arrays.values():
        array.flush()
    (part / "tasks.json").write_text(json.dumps(list(tasks)))
    part.rename(final)


def write_shard(folder: Path, number: int, views: Views, vae: Autoencoder, *, side: int = 256) -> None:
    """:func:`write_rows` of views that are there."""
    rows = (
        Row(clean, {task: bad[i] for task, bad in views.bad.items()}, (int(corner[0]), int(corner[1])))
        for i, (clean, corner) in enumerate(zip(views.clean, views.corners, strict=True))
    )
    write_rows(folder, number, rows, len(views.clean), list(views.bad), vae, side=side)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """``pictures`` degraded pictures with ``crops`` latent crops each; n = pictures * crops."""

    pixels: Tensor  # [pictures, 3, 224, 224], for the vision encoder
    clean: Tensor  # [n, 4, c, c]
    cond: Tensor  # [n, 4, c, c]
    crops: int

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        return replace(self, pixels=self.pixels.to(device), clean=self.clean.to(device), cond=self.cond.to(device))


@dataclass(frozen=True, kw_only=True)
class Crops:
    """Windows of degraded pictures with their ground truth, as pictures; n of each."""

    pixels: Tensor  # [n, 3, 224, 224], the whole degraded pictures for the vision encoder
    given: Tensor  # [n, 3, c, c] in [-1, 1]
    truth: Tensor  # [n, 3, c, c] in [-1, 1]


def draw_crops(draw: Draw, rng: np.random.Generator, count: int, side: int) -> Crops:
    """A window of ``side`` pixels of each of ``count`` random pictures."""
    small, given, truth = [], [], []
    for _ in range(count):
        bad, clean = draw(rng)
        top, left = (int(v) for v in rng.integers(0, np.array(bad.shape[:2]) - side + 1))
        window = np.s_[top : top + side, left : left + side]
        small.append(shrink(bad))
        given.append(bad[window])
        truth.append(clean[window])
    return Crops(
        pixels=clip_pixels(np.stack(small)), given=to_tensor(np.stack(given)), truth=to_tensor(np.stack(truth))
    )


def covers(folder: Path, task: str, side: int) -> bool:
    """The folder has shards of a task with latents of at least this side."""
    for shard in sorted(folder.glob("shard*")):
        if task in json.loads((shard / "tasks.json").read_text()):
            return int(np.load(shard / "clean.npy", mmap_mode="r").shape[-1]) >= side
    return False


class Pool:
    """The shards of a folder; looks for new ones now and then, so that a second process may go on making them."""

    def __init__(self, folder: Path, tasks: Sequence[str]) -> None:
        self.folder, self.tasks = folder, tuple(tasks)
        self.shards: dict[str, tuple[NDArray[np.float16], NDArray[np.float16], NDArray[np.uint8], list[int]]] = {}
        self.refresh()

    def refresh(self) -> int:
        """Load what is new; the number of shards."""
        for path in sorted(self.folder.glob("shard*")):
            if path.name not in self.shards:
                made = json.loads((path / "tasks.json").read_text())
                indices = [made.index(task) for task in self.tasks if task in made]
                if indices:
                    arrays = [np.load(path / f"{name}.npy", mmap_mode="r") for name in ("clean", "cond", "small")]
                    self.shards[path.name] = (arrays[0], arrays[1], arrays[2], indices)
        return len(self.shards)

    def draw(self, rng: np.random.Generator, pictures: int, crops: int, side: int) -> Batch:
        """A random batch with latent crops of ``side``."""
        names = sorted(self.shards)
        clean, cond, small = [], [], []
        for _ in range(pictures):
            cleans, conds, smalls, indices = self.shards[names[int(rng.integers(len(names)))]]
            k, i = indices[int(rng.integers(len(indices)))], int(rng.integers(len(cleans)))
            small.append(smalls[k, i])
            for _ in range(crops):
                top, left = (int(v) for v in rng.integers(0, np.array(cleans.shape[2:]) - side + 1))
                clean.append(cleans[i, :, top : top + side, left : left + side].astype(np.float32))
                cond.append(conds[k, i, :, top : top + side, left : left + side].astype(np.float32))
        return Batch(
            pixels=clip_pixels(np.stack(small)),
            clean=torch.from_numpy(np.stack(clean)),
            cond=torch.from_numpy(np.stack(cond)),
            crops=crops,
        )
