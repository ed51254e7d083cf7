"""What all trainings share: photo crops, and checkpoints that survive a kill."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from diffplugin.errors import RequestError
from diffplugin.plugins.train import layout, photos

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Pixels = NDArray[np.uint8]


def load_photos(folder: Path, split: str) -> list[Pixels]:
    """Photos of one split as uint8 [H, W, 3], short side at most 512."""
    return [read_pixels(folder / "photos" / p.file) for p in photos.load(folder, split)]


def read_pixels(path: Path) -> Pixels:
    """A photo, upright, as uint8 [H, W, 3]."""
    with Image.open(path) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def random_view(photo: Pixels, side: int, rng: np.random.Generator, smallest: float = 0.5) -> Pixels:
    """A random square of the photo at a random scale, mirrored half of the time: [side, side, 3]."""
    height, width = photo.shape[:2]
    largest = min(height, width)
    wanted = round(side / rng.uniform(smallest, 1.0))
    cut = max(min(wanted, largest), 1)
    top, left = rng.integers(0, height - cut + 1), rng.integers(0, width - cut + 1)
    view = photo[top : top + cut, left : left + cut]
    if cut != side:
        view = np.asarray(Image.fromarray(view).resize((side, side), Image.Resampling.BICUBIC))
    return np.ascontiguousarray(view[:, ::-1] if rng.random() < 0.5 else view)


def centre(photo: Pixels, side: int) -> Pixels:
    """The central square of a photo at ``side`` pixels."""
    short = min(photo.shape[:2])
    top, left = (photo.shape[0] - short) // 2, (photo.shape[1] - short) // 2
    square = Image.fromarray(photo[top : top + short, left : left + short])
    return np.asarray(square.resize((side, side), Image.Resampling.LANCZOS))


def to_tensor(pixels: Pixels | NDArray[np.float32]) -> Tensor:
    """[n, H, W, 3] in 0..255 -> contiguous float32 [n, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), dtype=np.float32)) / 127.5 - 1.0


def gaussian(shape: Sequence[int], rng: np.random.Generator) -> Tensor:
    """Standard normal noise, float32, from NumPy: the same on every device."""
    return torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32))


@contextmanager
def owned(path: Path) -> Iterator[None]:
    """A training state is this process's alone, for as long as it lives.

    Raises:
        RequestError: another process trains on it.
    """
    if fcntl is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        try:
            with suppress(PermissionError):  # some network folders know no locks
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RequestError(
                f"{path}: another process trains on it; wait for it, or take another --work folder"
            ) from None
        yield


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a training state so that a kill leaves either the old file or the new one."""
    layout.place(path, lambda part: torch.save(state, part))


def load_state(path: Path) -> dict[str, Any] | None:
    """A state written by :func:`save_state`, or None where there is none yet."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


def tensor_psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two tensors in [-1, 1]."""
    return float(10 * torch.log10(4.0 / (a.clamp(-1, 1) - b.clamp(-1, 1)).square().mean()))
