"""``dp-export --triton-repo``: a bundle as a model repository for NVIDIA's Triton inference server.

    DIR/diffplugin_<bundle>/            config.pbtxt, 1/model.py, 1/bundle/     the loop (diffplugin.runtime.triton)
    DIR/diffplugin_<bundle>_<graph>/    config.pbtxt, 1/<graph's files>         one model per graph

A graph with TensorRT engines in the bundle is served by the ``tensorrt`` backend, any other by ``onnxruntime``; names,
types and axes come from the graph table. Files are hard links if the disk allows it, so a repository needs no second
copy of the weights. The format is that of the server's ``model_config.proto``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffplugin.bundle import Bundle, graph_files
from diffplugin.errors import BundleDamaged, BundleError, RequestError
from diffplugin.export.writing import writing
from diffplugin.manifest import EngineEntry
from diffplugin.runtime.triton import INPUTS, OPTIONAL, OUTPUTS, SERVER, model_name
from diffplugin.shapes import parse_shapes
from diffplugin.spec import TensorSpec

CONFIG, VERSION = "config.pbtxt", "1"
_TYPES = {"f32": "TYPE_FP32", "i64": "TYPE_INT64"}
_LOOP = '''"""The loop of this repository. The server's Python backend must have the package diffplugin."""

from diffplugin.runtime.triton import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclass(frozen=True)
class _Word:
    """A name of an enumeration: written without quotes."""

    text: str


def write_repository(bundle: Bundle, out: Path) -> list[str]:
    """Write the repository and return the names of its models, the loop's first.

    Graphs are taken at float16 if the bundle has that form, else at float32.

    Raises:
        BundleError: ``out`` exists and is not empty, or cannot be written, or the bundle lacks a file.
        RequestError: the bundle has TensorRT engines of several sizes for one graph, but a model of the server is a
            single engine.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BundleError(f"{out}: exists and is not empty; name another folder with --triton-repo")
    if lost := [name for name in bundle.manifest.files if not (bundle.path / name).is_file()]:
        raise BundleDamaged(f"{bundle.path}: {', '.join(lost)} is missing; export the bundle again")
    precision = "fp16" if bundle.manifest.variants.get("fp16") else "fp32"
    with writing(out) as folder:
        names = [_write_loop(bundle, folder, precision)]
        for key in bundle.manifest.graphs:
            names.append(model_name(bundle.manifest.name, key))
            _write_graph(bundle, key, folder / names[-1], precision)
    return names


def _write_loop(bundle: Bundle, folder: Path, precision: str) -> str:
    name = model_name(bundle.manifest.name)
    parameters = {"engine": SERVER, "precision": precision, "quality": "exact"}
    config = {
        "name": name,
        "backend": "python",
        "max_batch_size": 0,
        "input": [
            {"name": n, "data_type": _Word(kind), "dims": axes} | ({"optional": True} if n in OPTIONAL else {})
            for n, (kind, axes) in INPUTS.items()
        ],
        "output": [{"name": n, "data_type": _Word(kind), "dims": axes} for n, (kind, axes) in OUTPUTS.items()],
        "instance_group": [{"count": 1, "kind": _Word("KIND_CPU")}],
        "parameters": [{"key": n, "value": {"string_value": value}} for n, value in parameters.items()],
    }
    version = _write_model(folder / name, config)
    (version / "model.py").write_text(_LOOP, encoding="utf-8")
    for file in ("manifest.json", *bundle.manifest.files):
        _link(bundle.path / file, version / "bundle" / file)
    return name


def _write_graph(bundle: Bundle, key: str, folder: Path, precision: str) -> None:
    spec = bundle.spec(key)
    engines = [e for e in bundle.manifest.engines if (e.engine, e.graph, e.precision) == ("tensorrt", key, precision)]
    sizes = _fixed(key, engines)
    config: dict[str, Any] = {"name": folder.name, "max_batch_size": 0}
    if engines:
        files = [bundle.path / entry.files[0] for entry in engines]
        config |= {"backend": "tensorrt", "default_model_filename": files[0].name}
        config["cc_model_filenames"] = [
            {"key": _capability(device), "value": file.name}
            for entry, file in zip(engines, files, strict=True)
            for device in entry.devices
        ]
    else:
        files = list(graph_files(bundle.graph_file(key, precision)))
        config |= {"backend": "onnxruntime", "default_model_filename": files[0].name}
    config["input"] = [_tensor(tensor, sizes) for tensor in spec.inputs]
    config["output"] = [_tensor(tensor, sizes) for tensor in spec.outputs]
    config["instance_group"] = [{"count": 1, "kind": _Word("KIND_GPU" if engines else "KIND_AUTO")}]
    version = _write_model(folder, config)
    for file in files:
        _link(file, version / file.name)


def _fixed(key: str, engines: Sequence[EngineEntry]) -> dict[str, int]:
    """Sizes of the axes that are fixed in engines."""
    shapes = sorted({entry.shapes for entry in engines})
    if len(shapes) > 1:
        raise RequestError(
            f"{key}: the bundle has TensorRT engines for {' and '.join(shapes)}, a model of the server has one; "
            "export with one --size, such as 256:512:1024"
        )
    profile = parse_shapes(shapes[0]) if shapes else {}
    return {axis: size.best for axis, size in profile.items() if size.fixed}


def _capability(device: str) -> str:
    """``sm_120`` -> ``12.0``."""
    number = device.removeprefix("sm_")
    return f"{number[:-1]}.{number[-1]}"


def _tensor(tensor: TensorSpec, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Free axes are -1."""
    dims = [sizes.get(axis, -1) if isinstance(axis, str) else axis for axis in tensor.axes]
    return {"name": tensor.name, "data_type": _Word(_TYPES[tensor.dtype]), "dims": dims}


def _write_model(folder: Path, config: Mapping[str, Any]) -> Path:
    """The model's folder with its configuration; the folder of its one version."""
    version = folder / VERSION
    version.mkdir(parents=True)
    (folder / CONFIG).write_text("".join(f"{line}\n" for line in _message(config)), encoding="utf-8")
    return version


def _message(fields: Mapping[str, Any]) -> list[str]:
    """Protobuf's text format, a field a line: lists of messages are repeated fields, lists of numbers stay lists."""
    lines = []
    for name, value in fields.items():
        for item in value if isinstance(value, list) and value and isinstance(value[0], Mapping) else [value]:
            if isinstance(item, Mapping):
                lines += [f"{name} {{", *(f"  {line}" for line in _message(item)), "}"]
            else:
                lines.append(f"{name}: {_scalar(item)}")
    return lines


def _scalar(value: Any) -> str:
    if isinstance(value, _Word):
        return value.text
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list | tuple) else str(value)


def _link(source: Path, target: Path) -> None:
    """A hard link to a file, or a copy if the disk has no hard links across folders."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
