"""Before and after on photos that no training step has seen: PSNR and SSIM per task, with the released sampler."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from diffplugin.plugins.networks.vae import Autoencoder
from diffplugin.plugins.train.common import Pixels, to_tensor
from diffplugin.plugins.train.degradations import degrade
from diffplugin.plugins.train.plugin import RENOISE_FROM, Denoiser
from diffplugin.plugins.train.pool import clip_pixels, shrink
from diffplugin.runtime.noise import normal
from diffplugin.runtime.sampler import sample
from diffplugin.runtime.schedule import NoiseSchedule, unipc


def psnr(a: Pixels, b: Pixels) -> float:
    """dB, 8-bit pictures of equal shape."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


def ssim(a: Pixels, b: Pixels) -> float:
    """Structural similarity (Wang et al., IEEE TIP 13(4), 2004) of the luma, Gaussian window of 1.5 pixels."""
    x, y = (p.astype(np.float64) @ (0.299, 0.587, 0.114) for p in (a, b))

    def mean(z: NDArray[np.float64]) -> NDArray[np.float64]:
        return ndimage.gaussian_filter(z, 1.5, truncate=3.5)  # type: ignore[no-any-return]

    mx, my = mean(x), mean(y)
    vx, vy, cxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float((((2 * mx * my + c1) * (2 * cxy + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))[5:-5, 5:-5].mean())


def centre(photo: Pixels, side: int) -> Pixels:
    """The central square of a photo at ``side`` pixels."""
    short = min(photo.shape[:2])
    top, left = (photo.shape[0] - short) // 2, (photo.shape[1] - short) // 2
    square = Image.fromarray(photo[top : top + short, left : left + short])
    return np.asarray(square.resize((side, side), Image.Resampling.LANCZOS))


@torch.no_grad()
def restore(
    model: Denoiser,
    vae: Autoencoder,
    schedule: NoiseSchedule,
    pictures: Sequence[Pixels],
    *,
    steps: int,
    start: Any,
    seed: int = 42,
) -> list[Pixels]:
    """Restore equally large pictures (sides a multiple of 16) as the runtime does: its sampler, its noise."""
    cond = torch.cat([vae.encode(to_tensor(p[None])) for p in pictures])
    tokens = torch.cat([model.tokens(clip_pixels(shrink(p)[None])) for p in pictures])
    table = unipc(schedule, steps)
    noise = np.repeat(normal(seed, (1, *cond.shape[1:])), len(pictures), axis=0)

    def denoise(i: int, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        t = torch.full((len(pictures),), float(table.t[i]))
        return model(torch.from_numpy(latents), t, tokens, cond).numpy()  # type: ignore[no-any-return]

    latents = sample(table, denoise, noise, cond.numpy(), start=start, renoise_from_t=RENOISE_FROM)
    images = torch.cat([vae.decode(torch.from_numpy(z[None])) for z in latents])
    values = (images.clamp(-1, 1) / 2 + 0.5) * 255
    return [np.ascontiguousarray(v.round().to(torch.uint8).permute(1, 2, 0).numpy()) for v in values]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: means over photos; ``better`` counts those with a higher PSNR than their input."""

    task: str
    start: str
    steps: int
    side: int
    photos: int
    psnr_in: float
    psnr_out: float
    ssim_in: float
    ssim_out: float
    better: int

    def line(self) -> str:
        return (
            f"| {self.task} | {self.start} | {self.steps} | {self.side} | {self.photos} | {self.psnr_in:.2f} → "
            f"{self.psnr_out:.2f} | {self.ssim_in:.3f} → {self.ssim_out:.3f} | {self.better}/{self.photos} |"
        )


HEAD = "| task | start | steps | side | photos | PSNR, dB | SSIM | better |\n|---|---|---|---|---|---|---|---|"


def measure(
    model: Denoiser,
    vae: Autoencoder,
    schedule: NoiseSchedule,
    task: str,
    clean: Sequence[Pixels],
    *,
    steps: int,
    start: str,
    keep: list[NDArray[np.uint8]] | None = None,
    batch: int = 8,
) -> Row:
    """Degrade ``clean`` (equal sizes; seed 7000 + index), restore, compare. ``keep`` collects contact-sheet columns."""
    bad = [degrade(p, task, 7000 + i) for i, p in enumerate(clean)]
    good: list[Pixels] = []
    for i in range(0, len(bad), batch):
        good += restore(model, vae, schedule, bad[i : i + batch], steps=steps, start=start)
    if keep is not None:
        keep += [np.concatenate(column, axis=0) for column in zip(bad, good, clean, strict=True)]
    before = [psnr(b, c) for b, c in zip(bad, clean, strict=True)]
    after = [psnr(g, c) for g, c in zip(good, clean, strict=True)]
    return Row(
        task=task,
        start=start,
        steps=steps,
        side=clean[0].shape[0],
        photos=len(clean),
        psnr_in=float(np.mean(before)),
        psnr_out=float(np.mean(after)),
        ssim_in=float(np.mean([ssim(b, c) for b, c in zip(bad, clean, strict=True)])),
        ssim_out=float(np.mean([ssim(g, c) for g, c in zip(good, clean, strict=True)])),
        better=sum(a > b for a, b in zip(after, before, strict=True)),
    )


def released(folder: Path, task: str) -> tuple[Denoiser, Autoencoder, NoiseSchedule]:
    """The networks of a checkpoint in the released layouts (rounded weights, as shipped) for one task."""
    from diffplugin.export.checkpoints import find

    checkpoint = find(folder / "base", folder / "clip", folder / "pre-trained", [task])
    scheduler = checkpoint.config("scheduler")
    model = Denoiser(
        {
            "unet": checkpoint.config("unet"),
            "vision": checkpoint.vision_config,
            "scb": checkpoint.scb_config(task),
            "scheduler": scheduler,
        }
    )
    model.unet, model.vision = checkpoint.unet(), checkpoint.vision_encoder()
    model.tpb, model.scb = checkpoint.tpb(task), checkpoint.scb(task)
    return model.eval(), checkpoint.autoencoder(), NoiseSchedule.from_config(scheduler)


def test_photos(work: Path, side: int) -> list[Pixels]:
    """The held-out photos that are large enough, and scikit-image's colour photographs (where installed)."""
    from diffplugin.plugins.train.common import load_photos

    found = [centre(p, side) for p in load_photos(work, "test") if min(p.shape[:2]) >= 0.75 * side]
    try:
        from skimage import data
    except ImportError:
        return found
    extra = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    return found + [centre(p, side) for p in extra]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Rows as JSON, for the documents."""
    path.write_text(json.dumps([row.__dict__ for row in rows], indent=1))
