"""What a bundle says of itself: ``manifest.json``, language-neutral, sorted, without times or machine paths."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from diffplugin.errors import BundleDamaged, BundleError, BundleTooNew
from diffplugin.spec import ModelDims

FORMAT = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class GraphEntry:
    """One ONNX graph.

    Attributes:
        file: relative to the bundle, with ``/``.
        sha256: of the graph's files together (graph, then external weights).
        weights_bytes: size of its weights as float32, in memory.
    """

    file: str
    sha256: str
    weights_bytes: int


@dataclass(frozen=True, kw_only=True)
class EngineEntry:
    """One engine built ahead of time, and what it was built for; its files lie in ``engines/<fingerprint>/``."""

    fingerprint: str
    engine: str
    version: str
    precision: str
    device: str
    shapes: str
    graph: str
    graph_sha256: str
    files: tuple[str, ...]

    def expected_fingerprint(self) -> str:
        return fingerprint(self.graph_sha256, self.shapes, self.precision, self.engine, self.version, self.device)


def fingerprint(graph_sha256: str, shapes: str, precision: str, engine: str, version: str, device: str) -> str:
    """Sixteen hexadecimal digits over everything that makes an engine usable or foreign."""
    text = "\n".join((graph_sha256, shapes, precision, engine, version, device))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Contents of ``manifest.json``.

    Attributes:
        format: version of the bundle format; readers refuse newer ones.
        created_with: version of diffplugin.
        source: part -> {name, sha256} of the checkpoint files.
        scheduler: the base's scheduler config.
        time_embedding: flip_sin_to_cos and freq_shift of the sinusoidal features.
        clip: mean and std of CLIP's pixels, three numbers each.
        graphs: by key ("unet", "tpb/deblur").
        plugins: ids in registry order.
        selector: the bundle can choose plugins from words.
        tokenizer: file of the tokenizer.
        licences: notes on the weights.
        parity: errors measured at export.
        files: every file of the bundle but the manifest.
    """

    format: int = FORMAT
    created_with: str
    name: str
    source: Mapping[str, Mapping[str, str]]
    dims: ModelDims
    scheduler: Mapping[str, Any]
    time_embedding: Mapping[str, Any]
    clip: Mapping[str, tuple[float, ...]]
    graphs: Mapping[str, GraphEntry]
    plugins: tuple[str, ...]
    selector: bool
    tokenizer: str = "tokenizer.json"
    licences: Mapping[str, str] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    engines: tuple[EngineEntry, ...] = ()

    def to_json(self) -> str:
        """Deterministic: the same manifest is the same bytes."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises:
        BundleError: the folder is no bundle.
        BundleTooNew: its format is newer than this version reads.
        BundleDamaged: the manifest is not whole; every fault named.
        """
        path = folder / MANIFEST
        try:
            text = path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            raise BundleError(f"{folder}: no {MANIFEST}, so no bundle; make one with dp-export --out {folder}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise BundleDamaged(f"{path}: cannot be read ({error}); export again") from None
        try:
            value = json.loads(text)
        except ValueError as error:
            raise BundleDamaged(f"{path}: not JSON ({error}); export again") from None
        found = value.get("format") if isinstance(value, dict) else None
        if isinstance(found, int) and found > FORMAT:
            raise BundleTooNew(
                f"{path}: format {found}, this version reads up to {FORMAT}. Upgrade diffplugin or export again."
            )
        if not isinstance(value, dict) or not isinstance(found, int):
            raise BundleDamaged(f"{path}: has no format number; export again")
        try:
            return cls(**_typed(value))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise BundleDamaged(f"{path}: {error}; export again") from None


def _typed(value: dict[str, Any]) -> dict[str, Any]:
    """JSON -> constructor arguments. ValueError names all missing and unknown keys."""
    known = {f.name: f for f in fields(Manifest)}
    required = {n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING}
    faults = [f"{name} is missing" for name in sorted(required - set(value))]
    faults += [f"{name} is unknown" for name in sorted(set(value) - set(known))]
    if faults:
        raise ValueError("; ".join(faults))
    return value | {
        "dims": ModelDims(**value["dims"]),
        "clip": {name: tuple(numbers) for name, numbers in value["clip"].items()},
        "graphs": {key: GraphEntry(**entry) for key, entry in value["graphs"].items()},
        "plugins": tuple(value["plugins"]),
        "files": {name: FileEntry(**entry) for name, entry in value.get("files", {}).items()},
        "engines": tuple(
            EngineEntry(**(entry | {"files": tuple(entry["files"])})) for entry in value.get("engines", ())
        ),
    }
