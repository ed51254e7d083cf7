"""The Plugin-Selector of a bundle: from a request in words to plugins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from diffplugin.runtime.execution.clock import Clock
from diffplugin.runtime.execution.engine_pool import EnginePool
from diffplugin.runtime.request.encoders import Encoders
from diffplugin.runtime.request.selection import Selection, select
from diffplugin.spec import Array


class Selector:
    """Scores by the selector's graph; the choice by the released rule and the bundle's table of compound tasks."""

    def __init__(self, pool: EnginePool, encoders: Encoders) -> None:
        self._manifest, self._compounds, self._encoders = pool.bundle.manifest, pool.bundle.compounds(), encoders

    def select(self, prompt: str, tokens: Mapping[str, Array], clock: Clock) -> Selection:
        """The plugins for a request.

        Args:
            tokens: prompt tokens [1,256,D] of the photo, by plugin, in registry order: only these plugins are chosen.

        Raises:
            RequestError: the bundle has no selector.
            NotFinite: a score is NaN or infinite.
        """
        plugins = list(tokens)
        scores = self._encoders.scores(prompt, tokens, plugins, clock)
        selection = select(scores, plugins, prompt, self._compounds, self._manifest.selector_threshold)
        if not self._encoders.fits_context(prompt):
            late = f"; only the first {self._manifest.dims.context - 2} word pieces of the request were read"
            selection = replace(selection, reason=selection.reason + late)
        return selection
