"""Weight files: choosing one in a folder and reading it safely. Only tensors are unpickled."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from diffplugin.errors import CheckpointError, DiffPluginError
from diffplugin.export.checkpoints.shared_weights import SUFFIX as SHARED
from diffplugin.export.checkpoints.shared_weights import read_shared
from diffplugin.export.reading import check_file, names_in, read_json

Net = TypeVar("Net", bound=nn.Module)
Tensors = dict[str, Tensor]
MAX_FAULTS = 8  # of one file that are told; of a foreign model every tensor is wrong
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_FORMATS = ("safetensors", "bin")
# Full precision first. Names with another infix (non_ema, for one) are other weights.
_VARIANTS = ("", ".fp16", ".bf16")
_PRECISIONS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class WeightFiles:
    """The weights of one network. ``index`` names the tensors' files if there are several, else it is None."""

    files: tuple[Path, ...]
    index: Path | None = None

    @property
    def main(self) -> Path:
        """The file that messages name for all of them."""
        return self.index or self.files[0]


def choose_weights(names: Collection[str]) -> str | None:
    """The weight file, or the index of several, that a folder with these file names is read from; None: there is none.

    float32 before float16 and bfloat16, safetensors before pickles, one file before several; a file of the embedded
    checkpoint that shares its weights with the embedded bundle last.
    """
    for variant in _VARIANTS:
        for suffix in _FORMATS:
            for stem in _STEMS:
                for name in (f"{stem}{variant}.{suffix}", f"{stem}.{suffix}.index{variant}.json"):
                    if name in names:
                        return name
    return next((name for stem in _STEMS if (name := f"{stem}{SHARED}") in names), None)


def shards_of(index: str, names: Iterable[str]) -> list[str]:
    """Names of the files that an index of this name may list, such as ``model-00001-of-00002.safetensors``."""
    stem, suffix, *_ = index.split(".")
    pattern = re.compile(rf"{re.escape(stem)}(\.\w+)?-\d+-of-\d+(\.\w+)?\.{re.escape(suffix)}")
    return [name for name in names if pattern.fullmatch(name)]


def find_weights(folder: Path) -> WeightFiles:
    """The weights in a diffusers or transformers folder (:func:`choose_weights`).

    Raises:
        CheckpointError: there are none, or one of the files is missing or not a regular file.
    """
    name = choose_weights(names_in(folder))
    if name is None:
        wanted = ", ".join(f"{stem}.{suffix}" for suffix in _FORMATS for stem in _STEMS[: 3 if suffix == "bin" else 2])
        raise CheckpointError(f"{folder}: no weights; expected one of {wanted}, or their fp16 or sharded forms")
    path = folder / name
    if not name.endswith(".json"):
        check_file(path)
        return WeightFiles((path,))
    table = read_json(path).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise CheckpointError(f"{path}: has no weight_map, expected an object of tensor names and file names")
    parts = {part for part in table.values() if isinstance(part, str)}
    if any(not isinstance(part, str) for part in table.values()) or not parts <= set(shards_of(name, parts)):
        raise CheckpointError(f"{path}: weight_map names files that are no parts of {name.removesuffix('.json')}")
    for part in sorted(parts):
        check_file(folder / part)
    return WeightFiles(tuple(folder / part for part in sorted(parts)), path)


def read_weights(source: WeightFiles) -> Tensors:
    """All tensors of a network, mapped from their files.

    Raises:
        CheckpointError: as :func:`read_tensors`; or the parts do not match the index.
    """
    made: Tensors = {}
    for path in source.files:
        made |= read_tensors(path)
    if source.index is not None:
        listed = {str(name).removeprefix("module.") for name in read_json(source.index)["weight_map"]}
        if lost := sorted(listed - made.keys()):
            raise CheckpointError(f"{source.index}: lists {len(lost)} tensors that are in no part, first {lost[0]}")
    return made


def read_tensors(path: Path) -> Tensors:
    """Tensors of a safetensors file or of a pickle, the latter through weights-only loading. They are mapped from the
    file, so unused tensors cost no memory.

    ``{"model": {...}}`` and ``{"state_dict": {...}}`` are unwrapped and ``module.`` prefixes are removed: released
    files have them.

    Raises:
        CheckpointError: it is missing, damaged, or contains more than tensors.
    """
    check_file(path)
    try:
        if path.name.endswith(SHARED):
            found: Any = {name: torch.from_numpy(array) for name, array in read_shared(path).items()}
        elif path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except DiffPluginError:
        raise
    except Exception as error:  # torch and safetensors raise many kinds for one fact: the file is not usable
        raise CheckpointError(
            f"{path}: not a readable weights file, or one with more than tensors in it ({_reason(error)})"
        ) from None
    for wrapper in ("model", "state_dict"):
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{path}: expected a table of tensors")
    return {str(name).removeprefix("module."): value for name, value in found.items()}


def _reason(error: Exception) -> str:
    """The first line, without what torch advises about unsafe loading."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].partition(". (1)")[0][:160]


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def misfits(network: nn.Module, tensors: Tensors, *, ignore: Iterable[str] = ()) -> list[str]:
    """The reasons why ``tensors`` do not fit ``network``: missing, unknown, misshapen tensors, and wrong element types.

    Args:
        ignore: regular expressions of names that may exist without being used.
    """
    expected = network.state_dict()
    unknown = [n for n in tensors if n not in expected and not any(re.search(pattern, n) for pattern in ignore)]
    faults = [f"missing: {name}" for name in expected if name not in tensors]
    faults += [f"unknown: {_printable(name)}" for name in unknown]
    for name, wanted in expected.items():
        if name not in tensors:
            continue
        found = tensors[name]
        if found.shape != wanted.shape:
            faults.append(f"{name} is {tuple(found.shape)}, expected {tuple(wanted.shape)}")
        elif found.dtype not in _PRECISIONS or found.layout != torch.strided or found.is_meta:
            kind = str(found.dtype).removeprefix("torch.")
            faults.append(f"{name} has elements of type {kind}, expected float32, float16 or bfloat16")
    return faults


def not_finite(network: nn.Module, tensors: Tensors) -> list[str]:
    """Tensors of a fitting table that hold NaN or infinity. Reads every value."""
    with torch.inference_mode():
        return [
            f"{name} has values that are not finite"
            for name in network.state_dict()
            if tensors[name].numel() and not all(bool(torch.isfinite(end)) for end in torch.aminmax(tensors[name]))
        ]


def line(path: Path, network: nn.Module, faults: list[str]) -> str:
    """The faults of one file as one line; of a foreign model, the first ones."""
    shown = "; ".join(faults[:MAX_FAULTS]) + (f"; and {len(faults) - MAX_FAULTS} more" if faults[MAX_FAULTS:] else "")
    return f"{path}: does not fit {type(network).__name__}: {shown}"


def fill(network: Net, tensors: Tensors, path: Path, *, ignore: Iterable[str] = ()) -> Net:
    """Put ``tensors`` into ``network`` as float32, ready for inference.

    Raises:
        CheckpointError: naming all missing, unknown and misshapen tensors at once (:func:`misfits`).
    """
    if faults := misfits(network, tensors, ignore=ignore):
        raise CheckpointError(line(path, network, faults))
    state = {name: tensors[name].to(torch.float32).contiguous() for name in network.state_dict()}
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


def _printable(name: str) -> str:
    return name if name.isprintable() and len(name) <= 120 else json.dumps(name[:120])


def rename(tensors: Tensors, rules: Iterable[tuple[str, str]]) -> Iterator[tuple[str, Tensor]]:
    """Tensors with regular expressions replaced in their names."""
    for name, value in tensors.items():
        new = name
        for pattern, replacement in rules:
            new = re.sub(pattern, replacement, new)
        yield new, value
