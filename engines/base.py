"""What every engine is: one small protocol. Nothing above asks which engine it is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from diffplugin.spec import Array, GraphSpec

if TYPE_CHECKING:
    from diffplugin.bundle import Bundle


class Engine(Protocol):
    """One graph, loaded and ready. ``run`` may be called from several threads."""

    spec: GraphSpec
    name: str
    precision: str

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name. ShapeMismatch names every input that does not fit ``spec``."""

    def close(self) -> None:
        """Free the memory; the engine cannot run again."""


class EngineBuilder(Protocol):
    """A kind of engine on this machine."""

    name: str

    def why_unavailable(self) -> str | None:
        """None: usable here. Else the reason and the remedy."""

    def version(self) -> str:
        """Version of the library: an engine built ahead of time belongs to it."""

    def device(self) -> str:
        """What an engine built ahead of time is tied to: compute capability, or CPU features."""

    def precisions(self) -> tuple[str, ...]:
        """Precisions that run natively here, fastest first."""

    def load(self, bundle: Bundle, key: str, *, precision: str, threads: int | None, cache: Path | None) -> Engine:
        """The engine of one graph. ``cache``: a folder for compiled models; ``threads`` None: all cores."""

    def build(self, bundle: Bundle, key: str, *, precision: str, sizes: Mapping[str, int], out: Path) -> tuple[Path, ...]:
        """Files of an engine built ahead of time for these sizes of the free axes, in ``out``; none: loads from ONNX."""


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def shapes_text(spec: GraphSpec, sizes: Mapping[str, int]) -> str:
    """Sizes of the free input axes of a graph, as engines are told apart: ``h=64,w=96``; empty where none is free."""
    free = [axis for axis in spec.free_axes() if any(axis in t.axes for t in spec.inputs)]
    return ",".join(f"{axis}={sizes[axis]}" for axis in free)
