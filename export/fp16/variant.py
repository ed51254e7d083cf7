"""The fp16 variant of a bundle: its graphs in strongly typed float16, and the graph ``step``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from diffplugin.bundle import graph_files
from diffplugin.export.fp16.convert import found_islands, to_fp16
from diffplugin.export.graphs import graph_keys, kind_of, module_for
from diffplugin.export.onnx import save, trace, weights_bytes
from diffplugin.export.step import to_step
from diffplugin.integrity import sha256
from diffplugin.manifest import GraphEntry
from diffplugin.plugins.networks.form import portable
from diffplugin.spec import GraphSpec, graph_specs

if TYPE_CHECKING:
    import onnx_ir as ir

    from diffplugin.export.checkpoints import Checkpoint

FOLDER = "fp16"


def export_fp16(checkpoint: Checkpoint, folder: Path, log: Callable[[str], None]) -> dict[str, GraphEntry]:
    """Write ``fp16/`` below a bundle's folder, one network in memory at a time.

    Raises:
        CheckpointError: a weight is beyond float16's range.
    """
    specs, entries = graph_specs(checkpoint.dims), dict[str, GraphEntry]()
    for key in graph_keys(checkpoint):
        kind = kind_of(key)
        with portable():
            model = trace(module_for(checkpoint, key), specs[kind], factor=checkpoint.dims.factor)
        log(f"fp16 {key:<18} float32 islands: {found_islands(to_fp16(model, kind))}")
        entries[key] = write(model, folder, key)
    entries["step"] = write_step(folder, specs["step"])
    return entries


def write(model: ir.Model, folder: Path, key: str, variant: str = FOLDER, *, beside: bool = False) -> GraphEntry:
    """One graph of a variant below a bundle's folder; ``beside``: its weights in a file that other graphs may use."""
    path = folder / variant / f"{key}.onnx"
    weights = weights_bytes(model)
    save(model, path, beside=beside)
    return _entry(path, folder, weights)


def write_step(folder: Path, spec: GraphSpec, variant: str = FOLDER) -> GraphEntry:
    """The graph ``step``, derived from the UNet's file, so that it refers to the weights beside that file and does not
    repeat them.
    """
    import onnx_ir as ir

    unet = folder / variant / "unet.onnx"
    model = ir.load(unet)
    weights = weights_bytes(model)
    to_step(model, spec)
    path = unet.with_name("step.onnx")
    ir.save(model, path)
    return _entry(path, folder, weights)


def _entry(path: Path, folder: Path, weights: int) -> GraphEntry:
    return GraphEntry(
        file=path.relative_to(folder).as_posix(), sha256=sha256(*graph_files(path)), weights_bytes=weights
    )
