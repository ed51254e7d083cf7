"""Memory of running photos: together never more than the machine or the container has."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from diffplugin.errors import Cancelled
from diffplugin.runtime.planning.memory import available_memory

USABLE = 0.9  # of what the system calls available
PIXEL_BYTES = 160  # arrays of the photo's size: 12 megapixels took 150 bytes a pixel beyond the plan's estimate
GIB = 2**30


class MemoryBudget:
    """Bytes that running jobs have reserved, and the limit for them.

    Args:
        measure: bytes that this process may still use; None: unknown, and then there is no limit.
    """

    def __init__(self, measure: Callable[[], int | None] = available_memory) -> None:
        self._measure = measure
        self._changed = threading.Condition()
        self._limit = self._fresh()
        self.reserved = self.running = 0

    def _fresh(self) -> int | None:
        found = self._measure()
        return None if found is None else int(found * USABLE)

    @property
    def limit(self) -> int | None:
        """Bytes for all running photos together; measured again whenever none runs."""
        with self._changed:
            if not self.running:
                self._limit = self._fresh()
            return self._limit

    def fits(self, need: int) -> bool:
        """Whether a photo could run on this machine at all."""
        limit = self.limit
        return limit is None or need <= limit

    @contextmanager
    def hold(self, need: int, stopped: Callable[[], bool]) -> Iterator[None]:
        """Wait until the other photos leave ``need`` bytes free, and reserve them. A photo that is alone always runs.

        Raises:
            Cancelled: ``stopped`` returned True.
        """
        with self._changed:
            while self.running and self._limit is not None and self.reserved + need > self._limit:
                if stopped():
                    raise Cancelled("cancelled while it waited for memory")
                self._changed.wait(0.2)
            if not self.running:
                self._limit = self._fresh()
            self.reserved += need
            self.running += 1
        try:
            yield
        finally:
            with self._changed:
                self.reserved -= need
                self.running -= 1
                self._changed.notify_all()
