"""Several pictures at once: how many fit, and the resources of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffplugin.errors import RequestError
from diffplugin.runtime.planning.memory import Footprint, available_memory

if TYPE_CHECKING:
    from diffplugin.engines.base import EngineBuilder


def restorations_at_once(
    wanted: int | None, builder: EngineBuilder, *, cores: int, memory: Footprint, piece: int
) -> int:
    """``wanted``, or as many restorations as cores and memory allow; at least one.

    Small operators leave cores idle whenever threads join: on the embedded model, ONNX Runtime finishes two pictures on
    a core each 1.2 to 1.4 times as fast as one after the other on both.

    Args:
        wanted: None: as many as the machine can take; one if the engine computes one run after another.
        memory: of one restoration; its weights are shared.
        piece: latent pixels of the largest piece that a picture runs in.

    Raises:
        RequestError: ``wanted`` is not positive, or the engine computes one run after another.
    """
    if wanted is not None and wanted < 1:
        raise RequestError(f"concurrency is {wanted}, expected 1 or more, or auto")
    if not builder.concurrent:
        if wanted is not None and wanted > 1:
            raise RequestError(
                f"concurrency is {wanted}, but engine {builder.name} restores one picture at a time, on all cores; "
                "leave concurrency out or choose the engine onnxruntime"
            )
        return 1
    if wanted is not None:
        return wanted
    available = available_memory()
    if available is None:
        return cores
    each = max(1, memory.total(piece) - memory.weights)
    return max(1, min(cores, (available - memory.weights) // each))


def memory_share(memory: Footprint, concurrency: int) -> int | None:
    """Bytes available to one of ``concurrency`` restorations: the shared weights, and its part of the rest.

    None: unknown on this system.
    """
    available = available_memory()
    return None if available is None else memory.weights + max(0, available - memory.weights) // concurrency
