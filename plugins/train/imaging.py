"""Parts of synthetic degradations: kernels, smooth fields, what a camera and an upload do to a picture.

Pictures are float32 [H, W, 3] in 0..1, sRGB-coded unless a name says linear; ``rng`` decides everything random.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage, signal

Picture = NDArray[np.float32]
Degradation = Callable[[Picture, np.random.Generator], Picture]


def clipped(values: Any) -> Picture:
    """Clipped to 0..1, float32."""
    return np.asarray(np.clip(values, 0, 1), dtype=np.float32)


def smooth_field(shape: tuple[int, int], cells: int, rng: np.random.Generator) -> Picture:
    """A smooth random field [H, W] in 0..1: coarse uniform noise, enlarged bicubically."""
    coarse = Image.fromarray(rng.random((cells, cells)).astype(np.float32))
    return clipped(coarse.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


def blurred(image: Picture, kernel: Picture) -> Picture:
    """Convolution with reflected borders; ``image`` [H, W] or [H, W, 3], ``kernel`` [k, k] (odd side)."""
    pad = kernel.shape[0] // 2
    widths = ((pad, pad), (pad, pad)) + ((0, 0),) * (image.ndim - 2)
    padded = np.pad(image, widths, mode="symmetric")
    full = kernel if image.ndim == 2 else kernel[..., None]
    return np.asarray(signal.fftconvolve(padded, full, mode="valid", axes=(0, 1)), dtype=np.float32)


def line_kernel(length: float, angle: float, width: float = 0.6) -> Picture:
    """An anti-aliased line segment of unit sum; ``angle`` in radians from the x axis."""
    half = int(np.ceil(length / 2)) + 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    along, across = turned(x, y, angle)
    kernel = np.clip(length / 2 + 0.5 - np.abs(along), 0, 1) * np.exp(-0.5 * (across / width) ** 2)
    return np.asarray(kernel / kernel.sum(), dtype=np.float32)


def turned(x: NDArray[Any], y: NDArray[Any], angle: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """(along, across): the coordinates x and y in axes turned by ``angle`` radians."""
    return x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)


def linear(image: Picture) -> Picture:
    """Linear light of an sRGB-coded picture (IEC 61966-2-1, as a plain power of 2.2)."""
    return np.asarray(image**2.2, dtype=np.float32)


def coded(light: Any) -> Picture:
    """The inverse of :func:`linear`, clipped as a sensor clips."""
    return np.asarray(np.clip(light, 0, 1) ** (1 / 2.2), dtype=np.float32)


def walk_kernel(reach: float, rng: np.random.Generator, steps: int = 48) -> Picture:
    """Of unit sum: a random walk of the camera over ``reach`` pixels (Boracchi & Foi, IEEE TIP 21(8), 2012, as
    simplified in DeblurGAN, arXiv:1711.07064, section 4.1)."""
    turn = np.cumsum(rng.normal(0, 0.12, steps)) + rng.uniform(0, 2 * np.pi)
    path = np.cumsum(np.stack((np.cos(turn), np.sin(turn))), axis=1) * reach / steps
    path -= path.mean(axis=1, keepdims=True)
    half = int(np.ceil(np.abs(path).max())) + 2
    kernel = np.zeros((2 * half + 1, 2 * half + 1), np.float32)
    for dx, dy in path.T:
        x, y = dx + half, dy + half
        i, j = int(y), int(x)
        kernel[i : i + 2, j : j + 2] += np.outer((1 - y + i, y - i), (1 - x + j, x - j)).astype(np.float32)
    return np.asarray(kernel / kernel.sum(), dtype=np.float32)


def disc_kernel(radius: float) -> Picture:
    """Of unit sum: an anti-aliased disc, the blur of a lens out of focus (Potmesil & Chakravarty, SIGGRAPH 1981)."""
    half = int(np.ceil(radius)) + 1
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    kernel = np.clip(radius + 0.5 - np.hypot(x, y), 0, 1)
    return np.asarray(kernel / kernel.sum(), dtype=np.float32)


def sensor_noise(light: Picture, shot: float, read: float, rng: np.random.Generator) -> Picture:
    """Linear light with noise of variance shot * x + read^2 (Foi et al., IEEE TIP 17(10), 2008), as coarse as
    demosaicing and a camera's own smoothing make it (spatial correlation: Brooks et al., arXiv:1811.11127)."""
    white = rng.standard_normal(light.shape, dtype=np.float32)
    sigma = rng.uniform(0.35, 0.9)
    noise = ndimage.gaussian_filter(white, (sigma, sigma, 0))
    noise *= np.sqrt(np.clip(light, 0, None) * shot + read**2) / noise.std()
    return np.asarray(light + noise, dtype=np.float32)


def resized(image: Picture, height: int, width: int, kind: Image.Resampling) -> Picture:
    """An 8-bit resize."""
    small = Image.fromarray((clipped(image) * 255 + 0.5).astype(np.uint8)).resize((width, height), kind)
    return np.asarray(small, dtype=np.float32) / np.float32(255)


def jpeg(image: Picture, quality: int) -> Picture:
    """After JPEG of this quality."""
    buffer = io.BytesIO()
    Image.fromarray((clipped(image) * 255 + 0.5).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer), dtype=np.float32) / np.float32(255)


def uploaded(image: Picture, rng: np.random.Generator) -> Picture:
    """What happens to a photo on its way to the web: often resized (and here back), mostly JPEG again (the last two
    links of the chain of Real-ESRGAN, arXiv:2107.10833)."""
    height, width = image.shape[:2]
    if rng.random() < 0.4:
        factor = rng.uniform(1.0, 1.5)
        small = resized(image, max(int(height / factor), 8), max(int(width / factor), 8), Image.Resampling.BICUBIC)
        image = resized(small, height, width, Image.Resampling.BICUBIC)
    return jpeg(image, int(rng.integers(55, 96))) if rng.random() < 0.8 else clipped(image)
