"""An engine from a NumPy function: for tests of what stands above the engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from diffplugin.errors import EngineError
from diffplugin.spec import Array, GraphSpec, check_inputs


class FakeEngine:
    """Runs ``function(inputs) -> outputs``, after the checks that every engine makes."""

    name = "fake"
    precision = "fp32"

    def __init__(self, spec: GraphSpec, function: Callable[[Mapping[str, Array]], dict[str, Array]]) -> None:
        self.spec, self._function = spec, function
        self.runs = 0

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        check_inputs(self.spec, inputs)
        self.runs += 1
        return self._function(inputs)

    def close(self) -> None:
        self._function = _closed


def _closed(inputs: Mapping[str, Array]) -> dict[str, Array]:
    raise EngineError("this engine is closed")
