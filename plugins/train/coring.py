"""Coring of a residual output in PyTorch, so that plugins learn with it. The contract is
:mod:`diffplugin.runtime.execution.residual`; a test compares them."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from diffplugin.runtime.execution import residual


def cored(change: Tensor, coring: int, coring_peak: int = 0) -> Tensor:
    """A residual picture's change [n, 3, h, w] as a card shows it (:class:`diffplugin.plugins.cards.PluginCard`)."""
    gain: Tensor | float = 1.0
    if coring:
        gain = gain * _gain(change.abs().mean(dim=1, keepdim=True), coring, 2)
    if coring_peak:
        gain = gain * _gain(_peaks(change), coring_peak, 4)
    return change * gain


def _gain(amount: Tensor, level: int, order: int) -> Tensor:
    power = (amount / (level / 127.5)) ** order
    return power / (power + 1)


def _peaks(change: Tensor) -> Tensor:
    """The largest local change near each pixel, as :mod:`diffplugin.runtime.execution.residual` finds it."""
    cells = _cells(change)
    side = residual.window((cells.shape[2], cells.shape[3]))
    local = (change - _enlarged(_box(cells, side), change)).abs().mean(dim=1, keepdim=True)
    nearby = 2 * residual.REACH + 1
    return _enlarged(_box(functional.max_pool2d(_cells(local), nearby, 1, residual.REACH), nearby), change)


def _cells(values: Tensor) -> Tensor:
    height, width = values.shape[-2:]
    edge = (0, -width % residual.CELL, 0, -height % residual.CELL)
    return functional.avg_pool2d(functional.pad(values, edge, mode="replicate"), residual.CELL)


def _box(cells: Tensor, side: int) -> Tensor:
    return functional.avg_pool2d(functional.pad(cells, (side // 2,) * 4, mode="replicate"), side, 1)


def _enlarged(cells: Tensor, like: Tensor) -> Tensor:
    height, width = like.shape[-2:]
    large = functional.interpolate(cells, scale_factor=float(residual.CELL), mode="bilinear")
    return large[..., :height, :width]
