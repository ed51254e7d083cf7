"""An engine from a NumPy function: for tests of what stands above the engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from diffplugin.engines.base import Engine
from diffplugin.spec import Array, GraphSpec


class FakeEngine(Engine):
    """Runs ``function(inputs) -> outputs``; ``runs`` counts."""

    name = "fake"
    parallel = True

    def __init__(self, spec: GraphSpec, function: Callable[[Mapping[str, Array]], dict[str, Array]]) -> None:
        super().__init__(spec)
        self._function = function
        self.runs = 0

    def _run(self, inputs: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
        self.runs += 1
        return self._function(inputs)
