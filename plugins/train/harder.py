"""The harder family of degradations (:data:`.degradations.FAMILIES`): nearer to real photographs.

The same form: float32 [H, W, 3] in 0..1 and a generator -> the degraded picture; equal generator state, equal picture;
sizes relative to the short side. Light adds up and blurs in linear light, and every picture ends as an upload does:
resized, JPEG (:func:`.imaging.uploaded`). The forms are published ones; the ranges are ours.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage

from diffplugin.plugins.train.imaging import (
    Picture,
    blurred,
    clipped,
    coded,
    disc_kernel,
    jpeg,
    line_kernel,
    linear,
    resized,
    sensor_noise,
    smooth_field,
    turned,
    uploaded,
    walk_kernel,
)
from diffplugin.plugins.train.screen import screen


def _unit(image: Picture) -> float:
    """Pixels of the short side over 256."""
    return float(min(image.shape[:2])) / 256


def _depth(image: Picture, rng: np.random.Generator) -> Picture:
    """A proxy of depth in 0..1 with the picture's own edges: far above, near below, and one distance for each of a few
    levels of brightness."""
    height, width = image.shape[:2]
    ramp = np.linspace(1, 0, height, dtype=np.float32)[:, None] ** rng.uniform(0.6, 1.8) * np.ones(
        (1, width), np.float32
    )
    grey = ndimage.gaussian_filter(image.mean(axis=2), 1.5 * _unit(image))
    steps = rng.random(5)[np.digitize(grey, np.quantile(grey, (0.2, 0.4, 0.6, 0.8)))]
    objects = ndimage.gaussian_filter(steps.astype(np.float32), _unit(image))
    one, two = rng.uniform(0.3, 0.8), rng.uniform(0, 0.4)
    mixed = one * ramp + two * objects + (1 - one) * smooth_field((height, width), int(rng.integers(2, 5)), rng)
    return clipped(mixed / max(float(mixed.max()), 1e-6))


def _veiled(light: Picture, depth: Picture, density: float, air: Picture) -> Picture:
    """Linear light through a medium: J * t + A * (1 - t), t = exp(-density * depth)."""
    through = np.exp(-density * depth)[..., None]
    return np.asarray(light * through + air * (1 - through), dtype=np.float32)


def rain(image: Picture, rng: np.random.Generator) -> Picture:
    """Streaks by distance, the far ones thin, faint and merged into a veil that grows with depth (heavy rain:
    arXiv:1904.05050 Eq. 2), the near ones out of focus; on some pictures drops on the lens, through which the scene is
    seen upside down and blurred (arXiv:1711.10098 Eq. 1)."""
    height, width = image.shape[:2]
    unit, lean = _unit(image), rng.uniform(-0.6, 0.6)
    air = np.float32(rng.uniform(0.3, 0.8)) * (1 + rng.uniform(-0.05, 0.05, 3)).astype(np.float32)
    light = _veiled(linear(image), _depth(image, rng), rng.uniform(0.1, 0.8), air)
    for near in sorted(rng.uniform(0, 1, int(rng.integers(2, 5)))):
        share = rng.uniform(0.3, 1.0) * (0.012 - 0.0112 * near) / unit**2
        seeds = (rng.random((height, width)) < share) * rng.uniform(0.3, 1.0, (height, width))
        kernel = line_kernel(
            (8 + 40 * near) * unit, np.pi / 2 + lean + rng.normal(0, 0.05), (0.4 + 1.4 * near**2) * unit
        )
        streaks = clipped(blurred(seeds.astype(np.float32), kernel / kernel.max()))[..., None]
        opacity = rng.uniform(0.25, 0.7) * (1 - 0.5 * near)
        light = light + opacity * streaks * (air * rng.uniform(1.0, 1.3) - light).clip(0)
    if rng.random() < 0.35:
        light = _lens_drops(light, rng)
    return uploaded(coded(light), rng)


def _lens_drops(light: Picture, rng: np.random.Generator) -> Picture:
    """Drops between lens and scene: each shows the blurred scene turned over, brighter below, with a soft edge."""
    height, width = light.shape[:2]
    unit = _unit(light)
    soft = ndimage.gaussian_filter(light, (4 * unit, 4 * unit, 0))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    out = light
    for _ in range(int(rng.integers(3, 14))):
        cy, cx, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(2.5, 11) * unit
        v, u = (y - cy) / (radius * rng.uniform(1.0, 1.5)), (x - cx) / radius
        inside = 1 / (1 + np.exp(np.clip((np.hypot(u, v) - 1) * radius / (0.8 * unit), -40, 40)))
        wide = rng.uniform(3, 7)
        rows = np.clip(cy - v * wide * radius, 0, height - 1).astype(int)
        columns = np.clip(cx - u * wide * radius, 0, width - 1).astype(int)
        seen = soft[rows, columns] * (1 + 0.25 * np.clip(v, -1, 1))[..., None]
        mask = (inside * rng.uniform(0.6, 1.0))[..., None]
        out = out * (1 - mask) + seen * mask
    return np.asarray(out, dtype=np.float32)


def snow(image: Picture, rng: np.random.Generator) -> Picture:
    """Flakes from specks to large soft discs out of focus, the larger the fewer and the more transparent, some in
    motion, over a veil that grows with depth (sizes and veiling effect: JSTASR, ECCV 2020; discs: Potmesil &
    Chakravarty, SIGGRAPH 1981)."""
    height, width = image.shape[:2]
    unit, fall = _unit(image), np.pi / 2 + rng.uniform(-0.8, 0.8)
    white = np.float32(rng.uniform(0.7, 1.0)) * (1 + rng.uniform(-0.04, 0.02, 3)).astype(np.float32)
    light = _veiled(linear(image), _depth(image, rng), rng.uniform(0, 0.5), 0.8 * white)
    density, motion = rng.uniform(0.3, 1.5), rng.random() < 0.4
    for size, count in ((0.7, 330), (1.4, 130), (2.8, 40), (5.5, 12), (11.0, 4)):
        radius = size * rng.uniform(0.75, 1.3) * unit
        number = rng.poisson(count * density * height * width / (256 * unit) ** 2)
        seeds = np.zeros((height, width), np.float32)
        seeds[rng.integers(0, height, number), rng.integers(0, width, number)] = rng.uniform(0.5, 1.0, number)
        kernel = disc_kernel(radius)
        if size < 3 or rng.random() < 0.5:  # sharp ones are no discs
            kernel = np.asarray(ndimage.gaussian_filter(np.pad(kernel, 2), 0.35 * radius + 0.2), dtype=np.float32)
        layer = blurred(seeds, kernel / kernel.max())
        if motion:
            layer = blurred(layer, line_kernel(radius * rng.uniform(1.5, 5), fall, 0.5 * unit)) * 2
        opacity = rng.uniform(0.7, 1.0) * min(1.0, (2.2 * unit / radius) ** 0.7)
        light = light + opacity * clipped(layer)[..., None] * (white - light).clip(0)
    return uploaded(coded(light), rng)


def lowlight(image: Picture, rng: np.random.Generator) -> Picture:
    """A short exposure: linear light times 0.03 to 0.3, a colour cast, noise of a sensor, correlated, amplified
    (arXiv:1811.11127, section 3)."""
    cast = 1 + rng.uniform(-0.12, 0.12, 3).astype(np.float32)
    light = linear(image) * np.float32(np.exp(rng.uniform(np.log(0.03), np.log(0.3)))) * cast
    noisy = sensor_noise(light, rng.uniform(0.0002, 0.003), rng.uniform(0.0005, 0.004), rng)
    return uploaded(coded(noisy), rng)


def haze(image: Picture, rng: np.random.Generator) -> Picture:
    """Atmospheric scattering in linear light over a depth with the picture's edges, with a coloured and uneven air
    light and uneven density (RESIDE, arXiv:1712.04143; not homogeneous: NH-HAZE, arXiv:2005.03560)."""
    shape = image.shape[:2]
    air = np.float32(rng.uniform(0.5, 0.95)) * (1 + rng.uniform(-0.08, 0.08, 3)).astype(np.float32)
    uneven = (0.85 + 0.3 * smooth_field(shape, 3, rng))[..., None] * air
    depth = _depth(image, rng) * (0.6 + 0.8 * smooth_field(shape, 4, rng))
    light = _veiled(linear(image), clipped(0.15 + 0.85 * depth), rng.uniform(0.6, 2.4), clipped(uneven))
    return uploaded(coded(sensor_noise(light, 0.0002, rng.uniform(0, 0.003), rng)), rng)


def blur(image: Picture, rng: np.random.Generator) -> Picture:
    """Camera shake, a lens out of focus, or one object in motion, in linear light, whose clipped lights smear (RSBlur,
    arXiv:2202.08771); then correlated noise."""
    unit, light = _unit(image), linear(image)
    lights = light * (1 + 2 * (light > 0.9))  # brighter than the sensor could tell
    kind = rng.choice(("camera", "lens", "object"))
    if kind == "camera":
        out = blurred(lights, walk_kernel(rng.uniform(4, 13) * unit, rng))
    elif kind == "lens":
        out = blurred(lights, disc_kernel(rng.uniform(0.8, 3.2) * unit))
    else:
        shape = image.shape[:2]
        kernel = line_kernel(rng.uniform(4, 14) * unit, rng.uniform(0, np.pi))
        edge = rng.uniform(0.35, 0.65)
        mask = clipped((smooth_field(shape, int(rng.integers(2, 5)), rng) - edge) * 12 + 0.5)
        mask = clipped(blurred(mask, kernel))[..., None]  # the object's edge moves with it
        out = light * (1 - mask) + blurred(lights, kernel) * mask
    return uploaded(coded(sensor_noise(out, rng.uniform(0, 0.0006), rng.uniform(0, 0.004), rng)), rng)


def highlight(image: Picture, rng: np.random.Generator) -> Picture:
    """Coloured reflections far brighter than the sensor's range (dichromatic model: Shafer, Color Res. Appl. 10(4),
    1985), lobes and window-like shapes, in a glare of scattered light around them (arXiv:2011.12485, section 4);
    clipped channel by channel."""
    height, width = image.shape[:2]
    unit = min(height, width)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    warm = rng.uniform(-0.35, 0.35)
    colour = np.array((1 + warm, 1 + rng.uniform(-0.08, 0.08), 1 - warm), np.float32)
    light = linear(image)
    shine = np.zeros((height, width), np.float32)
    for _ in range(int(rng.integers(1, 6))):
        cx, cy, angle = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0, np.pi)
        long, short = np.sort(rng.uniform(0.01, 0.11, 2))[::-1] * unit
        along, across = turned(x - cx, y - cy, angle)
        u, v = along / long, across / short
        distance = np.maximum(np.abs(u), np.abs(v)) ** 2 if rng.random() < 0.25 else u**2 + v**2
        lobe = np.exp(-np.minimum(distance ** rng.uniform(0.7, 2.0), 60))
        shine = np.maximum(shine, rng.uniform(0.4, 2.5) * lobe)
    glare = ndimage.gaussian_filter(shine, 0.08 * unit, truncate=2.5) * rng.uniform(0, 0.5)
    surface = 0.5 + 0.5 * ndimage.gaussian_filter(light.mean(axis=2), 0.01 * unit)
    return uploaded(coded(light + ((shine * surface + glare)[..., None] * colour)), rng)


def face(image: Picture, rng: np.random.Generator) -> Picture:
    """Blind restoration of the second order: blur, resizing, noise and JPEG, twice over (Real-ESRGAN,
    arXiv:2107.10833, section 3.2), back to size."""
    height, width = image.shape[:2]
    unit, out = _unit(image), image
    factor = rng.uniform(1.2, 3.8)
    for share in (rng.uniform(0.5, 1.0), 1.0):
        lens = rng.random() < 0.3
        kernel = disc_kernel(rng.uniform(0.5, 1.2) * unit) if lens else None
        sigma = rng.uniform(0.2, 1.1) * unit
        out = ndimage.gaussian_filter(out, (sigma, sigma, 0)) if kernel is None else blurred(out, kernel)
        smaller = 1 + (factor - 1) * share
        size = (max(int(height / smaller), 8), max(int(width / smaller), 8))
        kind = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.BOX)[int(rng.integers(3))]
        out = resized(out, *size, kind)
        out = coded(sensor_noise(linear(out), rng.uniform(0, 0.003), rng.uniform(0, 0.006), rng))
        out = jpeg(out, int(rng.integers(30, 90)))
    return resized(out, height, width, Image.Resampling.BICUBIC)


def moire(image: Picture, rng: np.random.Generator) -> Picture:
    """A photo of a screen: subpixels, Bayer mosaic, perspective, brightness (:func:`.screen.screen`)."""
    return uploaded(screen(image, rng), rng)
