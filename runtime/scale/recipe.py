"""How to load a restorer in another process: small, picklable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffplugin.runtime.restorer import Restorer


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Arguments of :func:`diffplugin.load`, to be sent to the process that loads.

    Attributes:
        bundle: a folder that the other process can also read; None: the embedded model.
        threads: processor cores in that process; None: all.
    """

    bundle: str | None = None
    engine: str = "auto"
    precision: str = "auto"
    quality: str = "exact"
    threads: int | None = None

    def load(self) -> Restorer:
        """The restorer.

        Raises:
            DiffPluginError: as :func:`diffplugin.load`.
        """
        import diffplugin

        options: Any = {name: getattr(self, name) for name in ("engine", "precision", "quality", "threads")}
        return diffplugin.load(self.bundle, **options)
