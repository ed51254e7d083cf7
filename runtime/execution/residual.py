"""A residual output: the input plus the plugin's change, of which faint and unsure parts are left out."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffplugin.runtime.photos.box_mean import box_mean
from diffplugin.spec import Array

CELL = 4  # pixels of a side over which a change is averaged before the largest one nearby is looked for
REACH = 3  # cells on every side that are nearby: 12 to 16 pixels
_ROWS = 64  # of a band, in whole cells


def window(cells: tuple[int, int]) -> int:
    """Cells of a side of the square whose mean change is no local fault, odd: 3/8 of the short side."""
    return min(cells) * 3 // 8 | 1


def residual_output(image: Array, restored: Array, reconstructed: Array, coring: int, coring_peak: int = 0) -> Array:
    """x + D(z) - D(E(x)), clipped to [-1, 1]: the input x plus the plugin's change, so that detail that the autoencoder
    cannot carry is kept. All float32 [n,3,H,W].

    ``coring``, ``coring_peak``: levels of 255, as in ``plugins.cards.PluginCard``. A pixel's change is the mean over
    its colours, so that no change gets another hue.
    """
    changed: Array = restored - reconstructed
    height, width = changed.shape[-2:]
    peaks = _peaks(changed) if coring_peak else None
    # in place and in bands of rows: each of these is as large as the picture
    for y in range(0, height if coring or coring_peak else 0, _ROWS):
        band = changed[:, :, y : y + _ROWS]
        gain = _gain(np.abs(band).mean(axis=1, keepdims=True), coring, 2) if coring else np.float32(1)
        if peaks is not None:
            gain = gain * _gain(_enlarged(peaks, y, band.shape[2], width), coring_peak, 4)
        band *= gain
    return changed_image(image, changed)


def changed_image(image: Array, change: Array) -> Array:
    """``image`` + ``change``, clipped to [-1, 1], in the place of ``change``. Both float32 [n,3,H,W]."""
    change += image
    np.clip(change, -1, 1, out=change)
    return change


def _gain(amount: Array, level: int, order: int) -> Any:
    """a^n / (a^n + level^n) of amounts [n,1,H,W] in the units of [-1, 1]; ``level`` of 255."""
    power = (amount / np.float32(level / 127.5)) ** order
    return power / (power + 1)


def _peaks(changed: Array) -> Array:
    """The largest local change near each cell [n,1,rows,columns] of [n,3,H,W]: what deviates from the mean of the
    :func:`window`, over cells, the largest of the cells in reach, averaged over as many."""
    tops = range(0, changed.shape[2], _ROWS)
    cells = np.concatenate([_cells(changed[:, :, y : y + _ROWS]) for y in tops], axis=2)
    means = box_mean(cells, window((cells.shape[2], cells.shape[3])) // 2)
    local = []
    for y in tops:
        band = changed[:, :, y : y + _ROWS]
        away = band - _enlarged(means, y, band.shape[2], band.shape[3])
        local.append(_cells(np.abs(away).mean(axis=1, keepdims=True)))
    cells = np.concatenate(local, axis=2)
    for axis in (2, 3):
        padding = [(REACH, REACH) if axis == padded else (0, 0) for padded in range(cells.ndim)]
        padded = np.pad(cells, padding, mode="edge")
        cells = np.lib.stride_tricks.sliding_window_view(padded, 2 * REACH + 1, axis=axis).max(axis=-1)
    return box_mean(cells, REACH)


def _cells(values: Array) -> Array:
    """Means over cells [n,c,rows,columns] of [n,c,H,W]; the last row and column repeat to fill the last cells."""
    count, channels, height, width = values.shape
    rows, columns = -(-height // CELL), -(-width // CELL)
    padding = ((0, 0), (0, 0), (0, rows * CELL - height), (0, columns * CELL - width))
    padded = np.pad(values, padding, mode="edge")
    return np.asarray(padded.reshape(count, channels, rows, CELL, columns, CELL).mean(axis=(3, 5)), dtype=np.float32)


def _enlarged(cells: Array, top: int, height: int, width: int) -> Array:
    """``height`` rows [n,c,height,width] from row ``top`` on of the picture of these cells, linear between their
    centres."""
    for axis, first, length in ((2, top, height), (3, 0, width)):
        at = np.clip((np.arange(first, first + length) + 0.5) / CELL - 0.5, 0, cells.shape[axis] - 1)
        low = at.astype(np.intp)
        share = (at - low).astype(np.float32).reshape((-1, 1) if axis == 2 else (-1,))
        near = cells.take(low, axis)
        cells = near + share * (cells.take(np.minimum(low + 1, cells.shape[axis] - 1), axis) - near)
    return cells
