"""Data that the stages of one request share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from diffplugin.errors import Cancelled
from diffplugin.runtime.execution.clock import Clock
from diffplugin.runtime.execution.engine_pool import EnginePool
from diffplugin.runtime.planning.tiles import Tile
from diffplugin.spec import Array

Observer = Callable[[str, str, int, Array], object]  # (plugin, tensor, step, value): for parity checks


@dataclass(frozen=True, kw_only=True)
class Run:
    """Data that all stages of one request share.

    Attributes:
        tiles: pieces in latent pixels.
        grid: all pieces of the plan, if a mask leaves some of them out; None: ``tiles`` has all.
        factor: picture pixels per latent pixel.
        noise: standard normal [1,4,h,w], the same for every plugin.
        tick: called after every UNet run with the plugin's name.
        observe: receives the tensors that the oracle records: tokens, cond, residual_0..2, latents and eps per step,
            z0.
    """

    pool: EnginePool
    clock: Clock
    tiles: tuple[Tile, ...]
    factor: int
    noise: Array
    tick: Callable[[str], None] = lambda plugin: None
    cancelled: Callable[[], bool] | None = None
    observe: Observer | None = None
    grid: tuple[Tile, ...] | None = None

    def check_cancelled(self) -> None:
        if self.cancelled is not None and self.cancelled():
            raise Cancelled("cancelled by the caller")

    def seen(self, plugin: str, name: str, value: Array, step: int = 0) -> None:
        if self.observe is not None:
            self.observe(plugin, name, step, value)
