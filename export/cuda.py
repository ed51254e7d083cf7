"""Variants of a bundle for ONNX Runtime's CUDA provider: its fused operators, channels last, and the graph ``step``.

They are exported on any machine: neither a GPU nor the provider is needed. :class:`EmulatedCuda` runs them on a
processor.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from diffplugin.engines.onnxruntime import OnnxRuntimeEngine
from diffplugin.engines.onnxruntime_cuda.variants import VARIANTS, missing_cuda_variant
from diffplugin.engines.threads import thread_count
from diffplugin.errors import EngineUnavailable
from diffplugin.export.fp16.convert import to_fp16
from diffplugin.export.fp16.emulate import EmulatedFp16
from diffplugin.export.fp16.variant import write, write_step
from diffplugin.export.graphs import graph_keys, kind_of, module_for
from diffplugin.export.onnx import EXTERNAL_ABOVE, halve_weights, trace, weights_bytes
from diffplugin.manifest import GraphEntry
from diffplugin.spec import GraphSpec, graph_specs

if TYPE_CHECKING:
    from diffplugin.bundle import Bundle
    from diffplugin.export.checkpoints import Checkpoint


def export_cuda(
    checkpoint: Checkpoint, folder: Path, precision: str, log: Callable[[str], None]
) -> dict[str, GraphEntry]:
    """Write ``cuda-fp16/`` or ``cuda-fp32/`` below a bundle's folder, one network in memory at a time.

    Raises:
        CheckpointError: a weight is beyond float16's range.
    """
    specs, entries = graph_specs(checkpoint.dims), dict[str, GraphEntry]()
    variant = VARIANTS[precision]
    for key in graph_keys(checkpoint):
        log(f"{variant} {key}")
        model = cuda_graph(module_for(checkpoint, key), specs[kind_of(key)], precision, factor=checkpoint.dims.factor)
        if precision == "fp32" and weights_bytes(model) <= EXTERNAL_ABOVE:
            halve_weights(model)
        entries[key] = write(model, folder, key, variant, beside=key == "unet")  # whose weights `step` names
    entries["step"] = write_step(folder, specs["step"], variant)
    return entries


def cuda_graph(module: Any, spec: GraphSpec, precision: str, *, factor: int) -> Any:
    """``module`` as an ``onnx_ir.Model`` in the form for the CUDA provider; ``precision``: fp16 or fp32."""
    form: Literal["cuda-fp16", "cuda-fp32"] = "cuda-fp16" if precision == "fp16" else "cuda-fp32"
    model = trace(module, spec, factor=factor, form=form)
    if precision == "fp16":
        to_fp16(model, spec.graph)
    return model


class EmulatedCuda(EmulatedFp16):
    """Engines of a bundle's graphs for the CUDA provider on this processor: operators that a processor lacks are
    expanded, and float16 is rounded as in ``export.fp16.emulate``."""

    def variant(self, precision: str) -> str:
        return VARIANTS[precision]

    def load(
        self, bundle: Bundle, key: str, *, precision: str, threads: int | None, cache: Path | None
    ) -> OnnxRuntimeEngine:
        if lacking := missing_cuda_variant(bundle, precision):
            raise EngineUnavailable(lacking)
        path = bundle.graph_file(key, VARIANTS[precision])
        return self.load_file(bundle.spec(key), path, threads=thread_count(threads), precision=precision)
