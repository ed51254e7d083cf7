"""What a bundle's plugins do to a photo that does not need them: a check at export, so that one that destroys is named.

A clean photo and a degraded one (darker, softer, noisy) pass every plugin with its own card. A plugin may change
brightness and colour, so what counts is the error that is left after the best gain and offset of each channel. The
shipped plugins keep 24 dB and more of the clean photo; given another's card, which starts from more noise than they
have learned to undo, four of them keep 15 to 19 dB. A plugin that is meant to change a clean photo (add snow) is named,
too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from diffplugin.errors import NotFinite
from diffplugin.export.measures import Pixels, synthetic_photo

if TYPE_CHECKING:
    from diffplugin.runtime.restorer import Restorer

SIDE = 192  # quick at full width, and enough to see structure go
KEPT_DB = 20.0
SAME_DB = 99.0  # what an unchanged photo counts as


@dataclass(frozen=True)
class Kept:
    """What is left of a clean and of a degraded photo, dB after the best gain and offset of each channel."""

    plugin: str
    clean_db: float
    degraded_db: float

    @property
    def destroyed(self) -> tuple[str, ...]:
        """Which of the two were destroyed."""
        found = {"clean": self.clean_db, "degraded": self.degraded_db}
        return tuple(name for name, value in found.items() if not value >= KEPT_DB)

    def describe(self) -> str:
        """One line."""
        what = " and the ".join(self.destroyed)
        verdict = f": DESTROYS the {what} photo; is this its card?" if self.destroyed else ""
        return f"{self.plugin:<18} clean {self.clean_db:.0f} dB  degraded {self.degraded_db:.0f} dB kept{verdict}"


def compare_purposes(restorer: Restorer, plugins: Iterable[str], *, side: int = SIDE) -> list[Kept]:
    """Both photos through every plugin."""
    clean = synthetic_photo(side, side)
    degraded = soften(clean)
    return [Kept(plugin, *(_kept(restorer, plugin, photo) for photo in (clean, degraded))) for plugin in plugins]


def _kept(restorer: Restorer, plugin: str, photo: Pixels) -> float:
    try:
        made = restorer.restore(photo, plugins=[plugin], tile="off").array
    except NotFinite:
        return 0.0
    return structure_db(made, photo)


def structure_db(made: Pixels, photo: Pixels) -> float:
    """PSNR in dB of ``made`` [H, W, 3] against a photo, after the best gain and offset of each channel."""
    errors = []
    for channel in range(3):
        x, y = (p[..., channel].ravel().astype(np.float64) for p in (made, photo))
        spread = x.var()
        gain = ((x - x.mean()) * (y - y.mean())).mean() / spread if spread > 0 else 0.0
        errors.append(((gain * (x - x.mean()) + y.mean() - y) ** 2).mean())
    return float(min(10 * np.log10(255**2 / max(np.mean(errors), 1e-9)), SAME_DB))


def soften(photo: Pixels) -> Pixels:
    """A photo [H, W, 3] at 60 % of its light, averaged over 3x3 pixels, with noise of four levels; always the same."""
    padded = np.pad(photo.astype(np.float64), ((1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = photo.shape[:2]
    soft = sum(padded[y : y + height, x : x + width] for y in range(3) for x in range(3)) / 9
    noisy = 0.6 * soft + np.random.default_rng(0).normal(0, 4, photo.shape)
    return np.asarray(noisy.round().clip(0, 255), dtype=np.uint8)
