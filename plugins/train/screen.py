"""A photo of a screen, simulated: where moire comes from.

A display's subpixels are stripes of one colour each, dark between; a camera samples them through a Bayer mosaic
of nearly the same pitch, a little turned, from an angle; demosaicing makes coloured bands of the difference (simulated
so by arXiv:1805.02996, section 4, and for LCDMoire, arXiv:1911.02498).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from diffplugin.plugins.train.imaging import Picture, coded, linear, sensor_noise, smooth_field

_BAYER = ((0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 2))  # row, column, colour: RGGB
_GREEN = np.array(((0, 1, 0), (1, 4, 1), (0, 1, 0)), np.float32) / 4
_OTHER = np.array(((1, 2, 1), (2, 4, 2), (1, 2, 1)), np.float32) / 4
Grid = NDArray[Any]


def screen(image: Picture, rng: np.random.Generator) -> Picture:
    """The picture on a display, photographed, and brought back to its own frame: [H, W, 3]."""
    height, width = image.shape[:2]
    fine = rng.uniform(1.0, 1.5)  # camera pixels of a picture's pixel
    shape = (int(height * fine), int(width * fine))
    matrix = _view(height, width, rng)
    rows, columns = _through(matrix, *np.mgrid[: shape[0], : shape[1]].astype(np.float32) / np.float32(fine))
    bend = rng.uniform(0, 2.5)  # a lens' distortion
    rows += bend * smooth_field(shape, 3, rng)
    columns += bend * smooth_field(shape, 3, rng)
    light = linear(image)
    soft = ndimage.gaussian_filter(light, (0.5, 0.5, 0))
    seen = np.stack([_sampled(soft[..., c], rows, columns) for c in range(3)], axis=2)
    seen *= _subpixels(rows, columns, fine, rng)
    seen = demosaiced(sensor_noise(seen, rng.uniform(0, 0.001), rng.uniform(0, 0.003), rng))
    back = _through(np.asarray(np.linalg.inv(matrix)), *np.mgrid[:height, :width].astype(np.float32))
    flat = np.stack([_sampled(seen[..., c], back[0] * fine, back[1] * fine) for c in range(3)], axis=2)
    cast = 1 + rng.uniform(-0.06, 0.06, 3).astype(np.float32)
    level = coded(flat * rng.uniform(0.65, 1.3) * cast + rng.uniform(0, 0.02))
    return np.asarray(np.clip(level, 0, 1) ** rng.uniform(0.9, 1.12), dtype=np.float32)


def demosaiced(light: Picture) -> Picture:
    """Linear light [H, W, 3] through a Bayer mosaic (RGGB) and bilinear demosaicing."""
    planes = np.zeros_like(light)
    for row, column, colour in _BAYER:
        planes[row::2, column::2, colour] = light[row::2, column::2, colour]
    kernels = (_OTHER, _GREEN, _OTHER)
    return np.stack([ndimage.convolve(planes[..., c], kernels[c], mode="mirror") for c in range(3)], axis=2)


def _view(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """A homography [3, 3] of (row, column): slightly turned, from a slight angle, about the centre."""
    angle, scale = rng.uniform(-0.09, 0.09), rng.uniform(0.98, 1.03)
    turn = np.array(((np.cos(angle), -np.sin(angle), 0), (np.sin(angle), np.cos(angle), 0), (0, 0, 1))) * (
        scale,
        scale,
        1,
    )
    turn[2, :2] = rng.uniform(-0.06, 0.06, 2) / (height, width)
    to = np.array(((1, 0, -height / 2), (0, 1, -width / 2), (0, 0, 1)))
    return np.asarray(np.linalg.inv(to) @ turn @ to)


def _through(matrix: NDArray[np.float64], rows: Grid, columns: Grid) -> tuple[Grid, Grid]:
    m = matrix.astype(np.float32)
    below = m[2, 0] * rows + m[2, 1] * columns + m[2, 2]
    return (
        (m[0, 0] * rows + m[0, 1] * columns + m[0, 2]) / below,
        (m[1, 0] * rows + m[1, 1] * columns + m[1, 2]) / below,
    )


def _sampled(plane: Picture, rows: Grid, columns: Grid) -> Picture:
    return np.asarray(ndimage.map_coordinates(plane, (rows, columns), order=1, mode="nearest"), dtype=np.float32)


def _subpixels(rows: Grid, columns: Grid, fine: float, rng: np.random.Generator) -> Picture:
    """What the display's stripes let through at every camera pixel, about 1 on average: [h, w, 3].

    The pitch is nearly one or two camera pixels, so that the mosaic turns it into slow bands; a camera pixel averages
    over part of it, which leaves ``depth``.
    """
    near = int(rng.choice((1, 2))) / fine
    pitch = near * (1 + rng.choice((-1, 1)) * rng.uniform(0.015, 0.13))
    depth, gaps = rng.uniform(0.08, 0.4), rng.uniform(0, 0.2)
    stripes = [1 + depth * np.cos(2 * np.pi * (columns / pitch + c / 3)) for c in range(3)]
    lines = 1 + gaps * np.cos(2 * np.pi * rows / pitch)
    return np.asarray(np.stack(stripes, axis=2) * lines[..., None], dtype=np.float32)
