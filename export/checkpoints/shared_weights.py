"""Weights that the embedded bundle contains already: the embedded checkpoint keeps their names and hashes alone.

``<stem>.shared.safetensors`` is a safetensors file of the tensors that no graph of the bundle contains. Its metadata
lists the others: the graphs to look in, and per tensor the SHA-256 of its type, shape and bytes. A tensor is found by
what it contains, as a graph stores it or transposed, whatever the graph calls it. ``export.share_weights`` writes
these files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffplugin.bundle import default_bundle, open_bundle
from diffplugin.errors import CheckpointError

SUFFIX = ".shared.safetensors"
_KEY = "shared"  # of the file's metadata
Arrays = dict[str, Any]


def read_shared(path: Path, bundle: Path | None = None) -> Arrays:
    """All tensors of a network as NumPy arrays: those in the file, and those of the bundle (None: the embedded one).

    Raises:
        CheckpointError: the file lists no tensors, or the bundle does not contain one of them.
        BundleError: a graph is not listed in the bundle, or damaged.
    """
    from safetensors import safe_open
    from safetensors.numpy import load_file

    place = default_bundle() if bundle is None else bundle
    with safe_open(path, "numpy") as file:
        listed = (file.metadata() or {}).get(_KEY)
    if listed is None:
        raise CheckpointError(f"{path}: its metadata lists no shared tensors")
    told = json.loads(listed)
    found = _arrays(place, told["graphs"])
    if lost := sorted(name for name, digest in told["tensors"].items() if digest not in found):
        raise CheckpointError(
            f"{path}: {place} does not contain {len(lost)} of its {len(told['tensors'])} shared tensors, first "
            f"{lost[0]}; take the checkpoint and the bundle from the same commit"
        )
    made: Arrays = load_file(path)
    return made | {name: np.array(found[digest], order="C") for name, digest in told["tensors"].items()}


def write_shared(path: Path, tensors: Mapping[str, Any], bundle: Path, graphs: Iterable[str]) -> None:
    """Write ``tensors`` to ``path``, without those that the bundle's graphs contain."""
    from safetensors.numpy import save_file

    digests, graphs = {name: _digest(array) for name, array in tensors.items()}, list(graphs)
    there = _arrays(bundle, graphs)
    shared = {name: digest for name, digest in digests.items() if digest in there}
    own = {name: array for name, array in tensors.items() if name not in shared}
    told = json.dumps({"graphs": graphs, "tensors": shared}, sort_keys=True)
    part = path.with_name(f".{path.name}.part")
    save_file(own, part, metadata={_KEY: told})
    part.replace(path)


def _arrays(bundle: Path, graphs: Iterable[str]) -> Arrays:
    """Weights in these graphs by their digest; matrices as they are and transposed."""
    import onnx_ir as ir

    found, opened = Arrays(), open_bundle(bundle)
    for name in graphs:
        for value in ir.load(opened.file(name)).graph.initializers.values():
            array = None if value.const_value is None else value.const_value.numpy()
            for form in () if array is None else (array, array.T) if array.ndim == 2 else (array,):
                found.setdefault(_digest(form), form)
    return found


def _digest(array: Any) -> str:
    return hashlib.sha256(f"{array.dtype.str} {array.shape} ".encode() + array.tobytes()).hexdigest()
