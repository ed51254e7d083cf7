"""Progress of a restoration, counted in UNet runs."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]  # (UNet runs done, in all, the plugin at work)


class RunCounter:
    """Counts UNet runs and reports each; ``total``: of all frames."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def expect(self, runs: int) -> None:
        """So many runs come on top of the total."""
        self._total += runs

    def begin(self, plugin: str) -> None:
        """A plugin's stage begins."""
        if self._progress is not None:
            self._progress(self._done, self._total, plugin)

    def tick(self, plugin: str) -> None:
        """One UNet run of a plugin is done."""
        self._done += 1
        self.begin(plugin)
