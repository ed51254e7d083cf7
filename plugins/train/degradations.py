"""Synthetic degradations for the eight tasks: what a Task-Plugin learns to undo.

Each function takes a clean picture, float32 [H, W, 3] in 0..1, and a NumPy generator, and returns the degraded
picture in the same form. Equal generator state, equal picture. Sizes are relative to the short side, so that
the look does not depend on the resolution. The forms are published ones; the ranges are ours unless stated.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from diffplugin.plugins.train import harder
from diffplugin.plugins.train.imaging import (
    Degradation,
    Picture,
    blurred,
    clipped,
    line_kernel,
    smooth_field,
    turned,
    walk_kernel,
)


def lowlight(image: Picture, rng: np.random.Generator) -> Picture:
    """Gain, gamma and signal-dependent noise: beta * (alpha * x) ** gamma (arXiv:1908.00682, section 3),
    noise variance a * x + b (Foi et al., IEEE TIP 17(10), 2008)."""
    dark = rng.uniform(0.25, 0.7) * (rng.uniform(0.9, 1.0) * image) ** rng.uniform(1.4, 2.6)
    shot, read = rng.uniform(0, 0.002), rng.uniform(0.001, 0.012)
    noise = rng.normal(size=image.shape) * np.sqrt(shot * dark + read**2)
    return clipped(dark + noise)


def haze(image: Picture, rng: np.random.Generator) -> Picture:
    """Atmospheric scattering J * t + A * (1 - t), t = exp(-beta * d) (Narasimhan & Nayar, IJCV 48(3), 2002;
    ranges of A and beta as in RESIDE, arXiv:1712.04143). The depth d is a proxy: far above, near below, uneven."""
    height, width = image.shape[:2]
    ramp = np.linspace(1, 0, height, dtype=np.float32)[:, None] * np.ones((1, width), np.float32)
    mix = rng.uniform(0.2, 0.8)
    depth = 0.25 + 0.75 * (mix * ramp + (1 - mix) * smooth_field((height, width), int(rng.integers(2, 6)), rng))
    transmission = np.exp(-rng.uniform(0.7, 2.2) * depth)[..., None]
    light = np.clip(rng.uniform(0.7, 1.0) + rng.uniform(-0.03, 0.03, 3), 0, 1)
    return clipped(image * transmission + light * (1 - transmission))


def rain(image: Picture, rng: np.random.Generator) -> Picture:
    """Layers of motion-blurred sparse noise, blended as screens, over a thin veil (the heavy-rain model of
    arXiv:1609.07769 Eq. 3; streaks as motion blur: Garg & Nayar, ACM TOG 25(3), 2006)."""
    height, width = image.shape[:2]
    unit = min(height, width) / 256
    lean = rng.uniform(-0.5, 0.5)
    out = image
    for _ in range(int(rng.integers(1, 4))):
        share = rng.uniform(0.002, 0.012) / unit**2  # larger pictures have larger streaks, not more of them
        seeds = (rng.random((height, width)) < share) * rng.uniform(0.4, 1.0, (height, width))
        length = rng.uniform(10, 34) * unit
        kernel = line_kernel(length, np.pi / 2 + lean + rng.normal(0, 0.06), rng.uniform(0.5, 0.9) * unit)
        streaks = blurred(seeds.astype(np.float32), kernel / kernel.max())
        streaks = np.clip(streaks, 0, 1)[..., None] * rng.uniform(0.35, 0.85)
        out = out + streaks * (rng.uniform(0.85, 1.0) - out)
    veil = rng.uniform(0, 0.15)
    return clipped(out * (1 - veil) + veil * 0.75)


def snow(image: Picture, rng: np.random.Generator) -> Picture:
    """Flakes of three sizes, softly masked, some in motion, over a thin veil: x * (1 - m) + A * m
    (DesnowNet, arXiv:1708.04512 Eq. 1)."""
    height, width = image.shape[:2]
    unit = min(height, width) / 256
    mask = np.zeros((height, width), np.float32)
    fall = np.pi / 2 + rng.uniform(-0.6, 0.6)
    for size, density in ((0.8, 0.006), (1.7, 0.002), (3.2, 0.0004)):
        radius, share = size * rng.uniform(0.8, 1.3) * unit, density * rng.uniform(0.3, 1.6) / unit**2
        seeds = ((rng.random((height, width)) < share) * rng.uniform(0.4, 1.0, (height, width))).astype(np.float32)
        half = int(3 * radius) + 2
        y, x = np.mgrid[-half : half + 1, -half : half + 1]
        flake = 1 / (1 + np.exp(2.5 / unit * (np.hypot(x, y) - radius)))
        layer = blurred(seeds, (flake / flake.max()).astype(np.float32))
        if rng.random() < 0.5:
            line = line_kernel(radius * rng.uniform(1, 4), fall)
            layer = blurred(layer, line) * 1.5
        mask = np.maximum(mask, np.clip(layer, 0, 1))
    mask = mask[..., None] * rng.uniform(0.7, 0.98)
    veil = rng.uniform(0, 0.12)
    out = image * (1 - veil) + 0.85 * veil
    return clipped(out * (1 - mask) + rng.uniform(0.88, 1.0) * mask)


def blur(image: Picture, rng: np.random.Generator) -> Picture:
    """Camera shake: the picture convolved with a random walk of the camera (Boracchi & Foi, IEEE TIP 21(8), 2012,
    as simplified in DeblurGAN, arXiv:1711.07064, section 4.1), a little noise."""
    unit = min(image.shape[:2]) / 256
    out = blurred(image, walk_kernel(rng.uniform(4, 11) * unit, rng))
    return clipped(out + rng.normal(0, rng.uniform(0, 0.008), out.shape))


def moire(image: Picture, rng: np.random.Generator) -> Picture:
    """Beats of a display's grid with a sensor's: warped gratings, one per colour, multiplied into the picture
    (the effect simulated for LCDMoire, arXiv:1911.02498; here directly as low-frequency beats)."""
    height, width = image.shape[:2]
    unit = min(height, width)
    y, x = np.mgrid[:height, :width].astype(np.float32) / unit
    warp = rng.uniform(0.05, 0.3)
    wx, wy = (x + warp * smooth_field((height, width), 3, rng), y + warp * smooth_field((height, width), 3, rng))
    out = image.copy()
    for _ in range(int(rng.integers(1, 3))):
        angle, waves = rng.uniform(0, np.pi), rng.uniform(8, 42)
        phase = 2 * np.pi * waves * (wx * np.cos(angle) + wy * np.sin(angle))
        shift = rng.uniform(0, 2 * np.pi / 3)
        strength = rng.uniform(0.08, 0.22) * (0.5 + 0.5 * smooth_field((height, width), 3, rng))
        for c in range(3):
            out[..., c] *= 1 + strength * np.sin(phase + c * shift)
    gain = rng.uniform(0.85, 1.0)
    return clipped(out * gain)


def highlight(image: Picture, rng: np.random.Generator) -> Picture:
    """Specular lobes of the light's colour added to the diffuse picture (dichromatic model: Shafer, Color Res. Appl.
    10(4), 1985), stronger where the picture is bright; clipped as a sensor clips."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    unit = min(height, width)
    light = 1 + rng.uniform(-0.05, 0.05, 3).astype(np.float32)
    shine = np.zeros((height, width), np.float32)
    for _ in range(int(rng.integers(2, 7))):
        cx, cy, angle = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0, np.pi)
        long, short = np.sort(rng.uniform(0.02, 0.14, 2))[::-1] * unit
        along, across = turned(x - cx, y - cy, angle)
        distance = (along / long) ** 2 + (across / short) ** 2
        shine = np.maximum(shine, rng.uniform(0.4, 1.0) * np.exp(-(distance ** rng.uniform(0.7, 1.5))))
    shading = 0.6 + 0.4 * ndimage.gaussian_filter(image.mean(axis=2), 0.01 * unit)
    return clipped(image + (shine * shading)[..., None] * light)


def face(image: Picture, rng: np.random.Generator) -> Picture:
    """Blind restoration: blur, down-sampling, noise, JPEG, back to size (GFP-GAN, arXiv:2101.04061 Eq. 8)."""
    height, width = image.shape[:2]
    unit = min(height, width) / 256
    out = ndimage.gaussian_filter(image, (rng.uniform(0.3, 1.6) * unit,) * 2 + (0,))
    factor = rng.uniform(1.3, 3.2)
    small = (max(int(width / factor), 8), max(int(height / factor), 8))
    picture = Image.fromarray((np.clip(out, 0, 1) * 255).astype(np.uint8)).resize(small, Image.Resampling.BILINEAR)
    values = np.asarray(picture, dtype=np.float32) + rng.normal(0, rng.uniform(0, 10), (small[1], small[0], 3))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=int(rng.integers(35, 90)))
    restored = Image.open(buffer).resize((width, height), Image.Resampling.BICUBIC)
    return clipped(np.asarray(restored, dtype=np.float32) / 255)


def released_face(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The degradation that the released training applies to every row of its face data, whose input is the truth.

    A 41 x 41 Gaussian, round or oval (sigma 0.1 to 10 pixels), down by a factor of 0.8 to 8, white noise of deviation
    0 to 20 of 255, JPEG of quality 60 to 100, and back to size, both times bilinear without antialiasing
    (GFP-GAN, arXiv:2101.04061 Eq. 8, with the ranges of the Diff-Plugin release). [H, W, 3].
    """
    height, width = pixels.shape[:2]
    image = blurred(clipped(pixels / np.float32(255)), _gaussian_kernel(41, rng))
    scale = rng.uniform(0.8, 8)
    small: Picture = _bilinear(image, max(int(height // scale), 1), max(int(width // scale), 1))
    small = clipped(small + rng.normal(0, rng.uniform(0, 20) / 255, small.shape))
    buffer = io.BytesIO()
    quality = int(rng.uniform(60, 100))
    Image.fromarray((small * 255).round().astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    decoded = clipped(np.asarray(Image.open(buffer)) / np.float32(255))
    return np.asarray((clipped(_bilinear(decoded, height, width)) * 255).round(), dtype=np.uint8)


def _gaussian_kernel(side: int, rng: np.random.Generator) -> Picture:
    """Of unit sum; round half of the time, else oval and turned."""
    one, other, angle = rng.uniform(0.1, 10), rng.uniform(0.1, 10), rng.uniform(-np.pi, np.pi)
    if rng.random() < 0.5:
        other = one
    y, x = np.mgrid[-(side // 2) : side // 2 + 1, -(side // 2) : side // 2 + 1].astype(np.float64)
    along, across = turned(x, y, angle)
    kernel = np.exp(-0.5 * ((along / one) ** 2 + (across / other) ** 2))
    return np.asarray(kernel / kernel.sum(), dtype=np.float32)


def _bilinear(image: Picture, height: int, width: int) -> Picture:
    """[H, W, 3] at another size: linear between the two nearest pixels, whatever the factor."""
    for axis, size in ((0, height), (1, width)):
        length = image.shape[axis]
        at = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, length - 1)
        share = (at - low).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        image = clipped(image.take(low, axis) * (1 - share) + image.take(high, axis) * share)
    return image


_STANDARD_AND_HARDER: dict[str, tuple[Degradation, Degradation]] = {
    "derain": (rain, harder.rain),
    "desnow": (snow, harder.snow),
    "lowlight": (lowlight, harder.lowlight),
    "dehaze": (haze, harder.haze),
    "deblur": (blur, harder.blur),
    "highlight": (highlight, harder.highlight),
    "face": (face, harder.face),
    "demoire": (moire, harder.moire),
}
DEGRADATIONS = {task: standard for task, (standard, _) in _STANDARD_AND_HARDER.items()}
"""Task id -> the standard degradation that it undoes, in the released order."""
FAMILIES = {"standard": DEGRADATIONS, "harder": {task: hard for task, (_, hard) in _STANDARD_AND_HARDER.items()}}
"""Name -> a set of degradations; ``harder`` is nearer to real photographs."""


def degrade(pixels: NDArray[np.uint8], task: str, seed: int, *, family: str = "standard") -> NDArray[np.uint8]:
    """Degrade an 8-bit picture [H, W, 3] for ``task`` by one of :data:`FAMILIES`; the seed fixes everything."""
    out = FAMILIES[family][task](clipped(pixels / np.float32(255)), np.random.default_rng(seed))
    return np.asarray(out * 255 + 0.5, dtype=np.uint8)
