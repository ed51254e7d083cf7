"""Pools of training pairs: views of photos, degraded, with their latents, kept on disk as shards.

Encoding with the frozen autoencoder is done once; training then reads latents. A shard holds one view of
every photo: ``clean`` f16 [n, 4, h, w], ``cond`` f16 [tasks, n, 4, h, w] and ``small`` u8 [tasks, n, 224, 224, 3]
(what the vision encoder sees of the degraded picture).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diffplugin.plugins.networks.vae import Autoencoder
from diffplugin.plugins.train.common import Pixels, random_view, to_tensor
from diffplugin.plugins.train.degradations import degrade

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
def write_shard(
    folder: Path, number: int, photos: Sequence[Pixels], tasks: Sequence[str], vae: Autoencoder, *, side: int = 256
) -> None:
    """Make shard ``number`` (its number seeds views and degradations) and move it into place when complete."""
    rng = np.random.default_rng(number)
    # Degradations scale with the picture, the denoiser does not: show it both small and large pictures (their crops).
    wholes = [
        random_view(p, 2 * side if rng.random() < 0.5 and min(p.shape[:2]) > 1.5 * side else side, rng, smallest=0.4)
        for p in photos
    ]
    corners = [rng.integers(0, len(whole) - side + 1, 2) for whole in wholes]
    part, final = folder / f".shard{number:03d}", folder / f"shard{number:03d}"
    part.mkdir(parents=True, exist_ok=True)

    def latent(pixels: Pixels, corner: NDArray[np.int64]) -> NDArray[np.float16]:
        top, left = corner
        crop = pixels[None, top : top + side, left : left + side]
        return vae.encode(to_tensor(crop))[0].numpy().astype(np.float16)

    def latents(pictures: list[Pixels]) -> NDArray[np.float16]:
        return np.stack([latent(*pair) for pair in zip(pictures, corners, strict=True)])

    np.save(part / "clean.npy", latents(wholes))
    conds, smalls = [], []
    for k, task in enumerate(tasks):
        bad = [degrade(whole, task, (number * 1000 + i) * 16 + k) for i, whole in enumerate(wholes)]
        conds.append(latents(bad))
        smalls.append(np.stack([shrink(b) for b in bad]))
    np.save(part / "cond.npy", np.stack(conds))
    np.save(part / "small.npy", np.stack(smalls))
    (part / "tasks.json").write_text(json.dumps(list(tasks)))
    part.rename(final)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """``pictures`` degraded pictures with ``crops`` latent crops each; n = pictures * crops."""

    pixels: Tensor  # [pictures, 3, 224, 224], for the vision encoder
    clean: Tensor  # [n, 4, c, c]
    cond: Tensor  # [n, 4, c, c]
    crops: int


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
