"""How much plugins change photographs that need nothing, through the exported engines: they should leave them alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from diffplugin.errors import RequestError
from diffplugin.plugins.train.common import Pixels

if TYPE_CHECKING:
    from diffplugin.runtime.restorer import Restorer

HEAD = "| bundle | task | side | photos | mean change | mean shift | worst photo: change | shift |\n|" + "---|" * 8


@dataclass(frozen=True, kw_only=True)
class CleanRow:
    """What one plugin does to clean photos, in levels of 255.

    Attributes:
        side: of the squares; 0: of many sizes.
        change: mean over photos of the mean absolute change of a value.
        shift: mean over photos of the absolute value of the mean change (of the brightness).
        worst_change, worst_shift: of the photo that changed most.
    """

    bundle: str
    task: str
    side: int
    photos: int
    change: float
    shift: float
    worst_change: float
    worst_shift: float

    def line(self) -> str:
        """As a line of :data:`HEAD`."""
        return (
            f"| {self.bundle} | {self.task} | {self.side or 'as they are'} | {self.photos} | {self.change:.2f} | "
            f"{self.shift:.2f} | {self.worst_change:.2f} | {self.worst_shift:.2f} |"
        )


def change(given: Pixels, made: Pixels) -> tuple[float, float]:
    """Mean absolute change and absolute mean change of a picture's values, in levels."""
    difference = made.astype(np.float64) - given
    return float(np.abs(difference).mean()), float(abs(difference.mean()))


def measure_clean(
    restorer: Restorer, task: str, photos: Sequence[Pixels], *, steps: int | None = None, bundle: str = ""
) -> CleanRow:
    """Restore clean photos [H, W, 3] as if they were degraded, and measure the change.

    Raises:
        RequestError: no photos.
    """
    if not photos:
        raise RequestError(f"{task}: no clean photos to measure on")
    tile = "off" if len({p.shape for p in photos}) == 1 else "auto"
    found = [change(p, restorer.restore(p, plugins=[task], steps=steps, tile=tile).array) for p in photos]  # type: ignore[arg-type]
    worst = max(found)
    sides = {p.shape[:2] for p in photos}
    side = next(iter(sides))
    return CleanRow(
        bundle=bundle,
        task=task,
        side=side[0] if len(sides) == 1 and side[0] == side[1] else 0,
        photos=len(photos),
        change=float(np.mean([c for c, _ in found])),
        shift=float(np.mean([s for _, s in found])),
        worst_change=worst[0],
        worst_shift=worst[1],
    )


def as_json(rows: Sequence[CleanRow]) -> list[dict[str, object]]:
    """Rows as plain numbers and texts."""
    return [asdict(row) for row in rows]
