"""What ordinary photographs go through that is no fault: tone, soft backgrounds, compression, other sizes.

A diagnosis must leave all of it alone. Functions take and return float32 [H, W, 3] in 0..1 and draw from a NumPy
generator; equal state, equal picture.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from scipy import ndimage

from diffplugin.plugins.train import imaging
from diffplugin.plugins.train.imaging import Picture, clipped

Change = Callable[[Picture, np.random.Generator], Picture]
_SHARPEN = ImageFilter.UnsharpMask(radius=1.2, percent=80, threshold=2)


def grey(image: Picture, rng: np.random.Generator) -> Picture:
    """Black and white, sometimes toned."""
    luma = image @ np.array([0.299, 0.587, 0.114], np.float32)
    tone = np.array([1, 1, 1]) if rng.random() < 0.7 else np.array([1.0, 0.9, 0.74])
    return clipped(luma[..., None] * tone)


def tone(image: Picture, rng: np.random.Generator) -> Picture:
    """High key, low key, more or less contrast, another colour of light: exposure as a photographer chooses it."""
    kind = rng.integers(0, 5)
    if kind == 0:
        return clipped(image ** rng.uniform(0.55, 0.9))
    if kind == 1:  # low key: whites stay white
        return clipped(image ** rng.uniform(1.1, 1.6))
    if kind == 2:
        return clipped(image * rng.uniform(0.65, 1.25))
    if kind == 3:
        return clipped((image - 0.5) * rng.uniform(0.8, 1.35) + 0.5)
    return clipped(image * rng.uniform(0.82, 1.1, 3))


def vignette(image: Picture, rng: np.random.Generator) -> Picture:
    """Corners up to 40 % darker."""
    y, x = (np.linspace(-1, 1, length, dtype=np.float32) for length in image.shape[:2])
    return clipped(image * (1 - rng.uniform(0.1, 0.4) * (y[:, None] ** 2 + x**2)[..., None] / 2))


def soft_background(image: Picture, rng: np.random.Generator) -> Picture:
    """In focus inside an ellipse of at least a tenth of the picture, out of focus outside."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    cy, cx = rng.uniform(0.3, 0.7, 2) * (height, width)
    ry, rx = rng.uniform(0.2, 0.45, 2) * (height, width)
    inside = np.clip(3 - 3 * (((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2), 0, 1)[..., None]
    sigma = rng.uniform(1, 5) * min(height, width) / 256
    return clipped(image * inside + ndimage.gaussian_filter(image, (sigma, sigma, 0)) * (1 - inside))


def pattern(image: Picture, rng: np.random.Generator) -> Picture:
    """A patterned patch: cloth, blinds, a fence, a page of dots."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(2.5, 16)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    wave = np.sin(2 * np.pi * u / period)
    if rng.random() < 0.5:
        wave = wave * np.sin(2 * np.pi * v / (period * rng.uniform(0.7, 1.5)))
    wave = np.clip(wave * rng.uniform(1, 6), -1, 1)[..., None] * rng.uniform(0.05, 0.5)
    top, left = rng.uniform(0, 0.6, 2) * (height, width)
    patch = (y >= top) & (y < top + rng.uniform(0.2, 0.6) * height) & (x >= left) & (x < left + 0.5 * width)
    return clipped(np.where(patch[..., None], image * (1 + wave * rng.uniform(0.3, 1, 3)), image))


def stars(image: Picture, rng: np.random.Generator) -> Picture:
    """A night sky, over the picture's silhouette or alone."""
    height, width = image.shape[:2]
    sky = np.linspace(0.02, rng.uniform(0.05, 0.3), height)[:, None, None] * rng.uniform(0.4, 1, 3)
    share = rng.uniform(0.0003, 0.004)
    points = (rng.random((height, width)) < share) * rng.uniform(0.2, 1, (height, width)) ** 2
    points = ndimage.gaussian_filter(points, rng.uniform(0.4, 0.8))[..., None] * 4
    ground = np.arange(height)[:, None, None] > height * rng.uniform(0.5, 1.2)
    return clipped(np.where(ground, image * rng.uniform(0.02, 0.2), sky + points))


def screen(image: Picture, rng: np.random.Generator) -> Picture:
    """A drawn page in place of the picture: flat areas, lines and text, sometimes with a part of the picture in it."""
    height, width = image.shape[:2]
    page = Image.new("RGB", (width, height), _colour(rng, 200 if rng.random() < 0.6 else 0))
    draw = ImageDraw.Draw(page)
    for _ in range(int(rng.integers(1, 8))):
        x, y = _place(rng, width, height)
        box = (x, y, x + int(rng.integers(4, width)), y + int(rng.integers(4, height // 2)))
        shape = draw.rectangle if rng.random() < 0.7 else draw.ellipse
        colour = _colour(rng)
        shape(box, fill=colour if rng.random() < 0.7 else None, outline=colour)
    for _ in range(int(rng.integers(2, 30))):
        text = "".join(rng.choice(list("abcdefghij klmnop qrstuvw xyz ABC 0123 .,-"), int(rng.integers(5, 60))))
        font = ImageFont.load_default(size=float(rng.uniform(9, 24)))
        draw.text(_place(rng, width, height), text, _colour(rng, 0, 120), font=font)
    made = _from_pixels(page)
    if rng.random() < 0.4:
        x, y = _place(rng, width // 2, height // 2)
        made[y : y + height // 2, x : x + width // 2] = image[: height // 2, : width // 2]
    return made


def _colour(rng: np.random.Generator, low: int = 0, high: int = 256) -> tuple[int, int, int]:
    red, green, blue = (int(level) for level in rng.integers(low, high, 3))
    return red, green, blue


def _place(rng: np.random.Generator, width: int, height: int) -> tuple[int, int]:
    return int(rng.integers(0, width)), int(rng.integers(0, height))


def uploaded(image: Picture, rng: np.random.Generator) -> Picture:
    """Resized, sharpened, a little grain, compressed at usual qualities: what people upload. Some go further, as those
    of the harder degradations do (:func:`.imaging.uploaded`)."""
    if rng.random() < 0.2:
        return imaging.uploaded(image, rng)
    if rng.random() < 0.25:
        image = _resized(image, rng.uniform(0.6, 1.0) if rng.random() < 0.75 else rng.uniform(1.0, 1.25))
    if rng.random() < 0.15:
        image = clipped(image + rng.normal(0, rng.uniform(0, 0.012), image.shape))
    pixels = as_pixels(image)
    if rng.random() < 0.12:
        pixels = pixels.filter(_SHARPEN)
    if rng.random() < 0.6:
        pixels = jpeg(pixels, int(rng.integers(70, 98)))
    return _from_pixels(pixels)


def as_pixels(image: Picture) -> Image.Image:
    """The picture as 8-bit RGB."""
    return Image.fromarray((image * 255 + 0.5).astype(np.uint8))


def _from_pixels(pixels: Image.Image) -> Picture:
    return np.asarray(pixels, dtype=np.float32) / np.float32(255)


def jpeg(pixels: Image.Image, quality: int) -> Image.Image:
    """Compressed and read again."""
    buffer = io.BytesIO()
    pixels.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def _resized(image: Picture, factor: float) -> Picture:
    size = [max(round(length * factor), 16) for length in image.shape[1::-1]]
    return _from_pixels(as_pixels(image).resize((size[0], size[1]), Image.Resampling.BICUBIC))


PLAIN = (grey, tone, vignette, soft_background, pattern)
"""Changes of a photograph; several may meet."""
DRAWN = (stars, screen)
"""Pictures in a photograph's place."""
