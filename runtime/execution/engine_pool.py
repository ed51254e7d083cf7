"""A bundle's engines, loaded when first used, and the time that each kind of graph takes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from diffplugin.engines.pages import give_back_memory
from diffplugin.errors import EngineError, EngineNotLoaded
from diffplugin.runtime.execution.clock import Clock
from diffplugin.spec import Array

if TYPE_CHECKING:
    from diffplugin.bundle import Bundle
    from diffplugin.engines.base import Engine, EngineBuilder


_log = logging.getLogger("diffplugin")


class EnginePool:
    """Engines by graph key ("unet", "tpb/deblur"), each loaded once, at first use; safe to share between threads.

    Attributes:
        builder, precision: the builder of the engines and their precision; the fallback's, once the first builder's
            library could not load a graph.
        fallback_reason: why the fallback is used; empty: it is not.
    """

    def __init__(
        self,
        bundle: Bundle,
        builder: EngineBuilder,
        precision: str,
        *,
        threads: int | None,
        cache: Path | None,
        fallback: tuple[EngineBuilder, str] | None = None,
    ) -> None:
        self.bundle, self.builder, self.precision = bundle, builder, precision
        self.fallback_reason = ""
        self._threads, self._cache, self._fallback = threads, cache, fallback
        self._engines: dict[str, Engine] = {}
        self._lock = threading.Lock()
        self._closed = False

    def get(self, key: str) -> Engine:
        """The engine of one graph.

        Raises:
            EngineNotLoaded: its library cannot load it.
            EngineError: the pool is closed, or the engine cannot be loaded.
            BundleError: the bundle has no such graph, or it is damaged.
        """
        with self._lock:
            if self._closed:
                raise EngineError("this restorer is closed; load the bundle again")
            if key not in self._engines:
                self._engines[key] = self.builder.load(
                    self.bundle, key, precision=self.precision, threads=self._threads, cache=self._cache
                )
            return self._engines[key]

    def run(self, key: str, inputs: Mapping[str, Array], clock: Clock) -> dict[str, Array]:
        """Outputs of one graph. Counted on ``clock`` under the graph's kind, loading under "load"."""
        with clock(key.partition("/")[0]):
            while True:
                builder = self.builder
                try:
                    with clock("load"):
                        engine = self.get(key)
                    return engine.run(inputs)
                except EngineNotLoaded as error:
                    if not self._fall_back(builder, error):
                        raise

    def _fall_back(self, builder: EngineBuilder, error: EngineNotLoaded) -> bool:
        """Use the fallback from this graph on; False: there is none, or ``builder`` is already the fallback."""
        with self._lock:
            if self.builder is not builder:  # another thread has done it
                return True
            if self._fallback is None:
                return False
            (self.builder, self.precision), self._fallback = self._fallback, None
            self.fallback_reason = f"{builder.name} cannot load this bundle"
            self._engines = {}  # not closed: other threads may be running them
        _log.warning("%s; going on with %s %s", error, self.builder.name, self.precision)
        return True

    def close(self) -> None:
        """Free all memory; the pool cannot be used again."""
        with self._lock:
            self._closed = True
            engines, self._engines = self._engines, {}
        for engine in engines.values():
            engine.close()
        engines.clear()
        give_back_memory(at_end=True)
