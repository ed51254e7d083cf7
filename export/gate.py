"""A gate for engines: what export built is run and compared before the bundle is put in place, wherever it can run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from diffplugin.export.parity import check_graphs, compare_graphs
from diffplugin.export.reference import ReferenceBuilder

if TYPE_CHECKING:
    from diffplugin.bundle import Bundle
    from diffplugin.engines.base import EngineBuilder
    from diffplugin.export.checkpoints import Checkpoint
    from diffplugin.export.prebuild import Log, Sizes


def compare_engines(
    bundle: Bundle, checkpoint: Checkpoint, builder: EngineBuilder, precision: str, sizes: Sizes, log: Log
) -> dict[str, Any]:
    """Load every engine of ``bundle`` at the best size of its range, run it, and compare it with the reference.

    Returns:
        For the manifest: where the engines ran and the largest relative error; or why they did not run.

    Raises:
        ParityError: naming every engine over its budget.
        EngineError: an engine cannot be loaded or run.
    """
    if reason := builder.unavailable_reason():
        log(f"engines were built and not run: {reason}")
        return {"compared": False, "reason": reason}
    reference, factor = ReferenceBuilder(checkpoint), bundle.manifest.dims.factor
    vocabulary = checkpoint.config("text_encoder")["vocab_size"]
    worst = 0.0
    found = []
    for latent in _latents(sizes, factor):
        compared = compare_graphs(bundle, reference, builder, precision=precision, vocabulary=vocabulary, latent=latent)
        for comparison in compared:
            log(f"engine of {comparison.describe()}")
            found.append(comparison)
            worst = max(worst, *comparison.errors.values())
    check_graphs(found)
    return {"compared": True, "device": builder.device(), "largest_relative_error": float(f"{worst:.0e}")}


def _latents(sizes: Sizes, factor: int) -> Sequence[tuple[int, int]]:
    """(h, w) of latents at the best size of each pair of ranges, each once."""
    best = [(height.over(factor).best, width.over(factor).best) for height, width in sizes]
    return list(dict.fromkeys(best))
