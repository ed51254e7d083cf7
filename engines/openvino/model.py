"""Graphs compiled by OpenVINO: with which properties, and how a compiled model goes to disk and comes back."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffplugin.bundle import graph_files
from diffplugin.engines.base import check_names
from diffplugin.engines.compiled_cache import read_blob, trim, write_blob
from diffplugin.engines.openvino.library import CPU, core
from diffplugin.engines.threads import usable_cores
from diffplugin.errors import EngineUnavailable
from diffplugin.spec import GraphSpec

_log = logging.getLogger("diffplugin")


def compile_properties(path: Path, hint: str, threads: int, target: str = CPU) -> dict[str, Any]:
    """Properties for compiling the graph in ``path``, or for importing it.

    Args:
        hint: the type that it computes in, in OpenVINO's words ("f32", "bf16", "f16").
        threads: of one run, on a processor.
        target: the device, in OpenVINO's words.
    """
    if target != CPU:
        return {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    properties: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": hint,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        # Pinned threads of several processes that share the cores would sit on the same ones.
        "ENABLE_CPU_PINNING": threads >= usable_cores(),
    }
    files = graph_files(path)
    # Weights beside an ONNX graph: a compiled model names them instead of repeating gigabytes per shape. Not for IR:
    # what OpenVINO 2026.4 imports then has other constants (CLIP's slice began a patch later), and int8 is small.
    if len(files) > 1 and path.suffix == ".onnx":
        properties |= {"CACHE_MODE": "OPTIMIZE_SIZE", "WEIGHTS_PATH": str(files[1])}
    return properties


def compile_graph(
    path: Path, spec: GraphSpec, sizes: Mapping[str, int], properties: Mapping[str, Any], target: str = CPU
) -> Any:
    """A compiled model with static shapes.

    Raises:
        RuntimeError: OpenVINO cannot read or compile the file.
        BundleDamaged: the file's tensors do not match the contract.
    """
    shared = core()
    model = shared.read_model(path)
    check_names(spec, path, (i.any_name for i in model.inputs), (o.any_name for o in model.outputs))
    model.reshape({t.name: [sizes[a] if isinstance(a, str) else a for a in t.axes] for t in spec.inputs})
    return shared.compile_model(model, target, {k: v for k, v in properties.items() if k != "WEIGHTS_PATH"})


def import_model(file: Path, properties: Mapping[str, Any], target: str = CPU) -> tuple[Any, Any] | None:
    """(compiled model, objects that must live as long) from a file of :func:`store_model` or
    :func:`~diffplugin.engines.compiled_cache.write_blob`; None: there is none, or it cannot be used."""
    blob = read_blob(file)
    if blob is None:
        return None
    import openvino

    # OpenVINO shares writable arrays only; it reads this one, and were it to write, the system would stop it
    same = np.ctypeslib.as_array((ctypes.c_uint8 * blob.size).from_address(blob.ctypes.data))
    try:
        tensor = openvino.Tensor(same, shared_memory=True)
        return core().import_model(tensor, target, dict(properties)), (blob, tensor)
    except RuntimeError as error:
        _log.debug("%s cannot be imported: %s", file, error)
        return None


def store_model(compiled: Any, file: Path) -> None:
    """Keep a compiled model in the cache; if the cache cannot be written, only time is lost."""
    try:
        write_blob(file, compiled.export_model().getbuffer())
        trim(file.parent)
    except OSError as error:
        _log.warning("%s: compiled model not kept (%s)", file.parent, error.strerror or error)


def check_hint(compiled: Any, properties: Mapping[str, Any]) -> None:
    """Refuse a model that computes in another type than asked: OpenVINO accepts a hint that the processor cannot
    follow, and silently computes in float32.

    Raises:
        EngineUnavailable: naming both types.
    """
    used, wanted = compiled.get_property("INFERENCE_PRECISION_HINT").to_string(), properties["INFERENCE_PRECISION_HINT"]
    if used != wanted:
        raise EngineUnavailable(f"engine openvino: asked for {wanted}, it computes in {used}; use --precision fp32")
