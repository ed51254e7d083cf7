"""The description of a bundle: ``manifest.json``, language-neutral, sorted, without times or machine paths."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Self, get_args, get_origin, get_type_hints

from diffplugin.errors import BundleDamaged, BundleError, BundleTooNew
from diffplugin.integrity import read_text
from diffplugin.spec import ModelDims

FORMAT = 3  # 2: the UNet's deep features, quantised graphs; 3: variants by precision, engines of several devices
MANIFEST = "manifest.json"
_LIMIT = 64 * 2**20  # bytes; Stable Diffusion's have 20 kB


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
    """One engine built ahead of time, and its target; its files are in ``engines/<fingerprint>/``.

    Attributes:
        devices: the hardware it runs on: a processor, or GPUs by compute capability ("sm_86", "sm_89").
        shapes: sizes of the graph's free input axes (:mod:`diffplugin.shapes`).
        report: the builder's report; empty if it gives none.
    """

    fingerprint: str
    engine: str
    version: str
    precision: str
    devices: tuple[str, ...]
    shapes: str
    graph: str
    graph_sha256: str
    files: tuple[str, ...]
    report: Mapping[str, Any] = field(default_factory=dict)

    def expected_fingerprint(self) -> str:
        return fingerprint(self.graph_sha256, self.shapes, self.precision, self.engine, self.version, self.devices)


def fingerprint(
    graph_sha256: str, shapes: str, precision: str, engine: str, version: str, devices: tuple[str, ...]
) -> str:
    """A hash of sixteen hexadecimal digits over everything that decides whether an engine is usable on a machine."""
    text = "\n".join((graph_sha256, shapes, precision, engine, version, ",".join(devices)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Diagnosed:
    """A task that the graph ``diagnosis`` knows.

    Attributes:
        task: the id of the plugin that restores it.
        threshold: probability above which it does; chosen on photos that no training saw.
    """

    task: str
    threshold: float


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
        selector_threshold: score above which a plugin is chosen (theta of arXiv:2403.00644, Eq. 5; the paper's is 0).
        diagnosis: tasks that the bundle can see to be needed, in the order of the graph's outputs; empty: no graph.
        tokenizer: file of the tokenizer.
        words: file of the words that the selector learned, by which misspelt ones are read; empty: none.
        licences: notes on the weights.
        parity: errors measured at export.
        files: every file of the bundle but the manifest.
        variants: precision -> graph key -> the graph's form for that precision; ``weights_bytes`` as stored. "int8":
            OpenVINO IR; "fp16": strongly typed ONNX with float32 inputs and outputs, and the graph ``step`` besides.
            "ncnn": its own form, of the graphs that see the photo.
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
    selector_threshold: float = 0.0
    diagnosis: tuple[Diagnosed, ...] = ()
    tokenizer: str = "tokenizer.json"
    words: str = ""
    licences: Mapping[str, str] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    engines: tuple[EngineEntry, ...] = ()
    variants: Mapping[str, Mapping[str, GraphEntry]] = field(default_factory=dict)

    def all_graphs(self) -> Mapping[str, GraphEntry]:
        """Graphs and their variants, by a name for people: "unet", "fp16 unet"."""
        variants = {f"{precision} {k}": e for precision, graphs in self.variants.items() for k, e in graphs.items()}
        return {**self.graphs, **variants}

    def to_json(self) -> str:
        """Deterministic: equal manifests give equal bytes. ``digest`` is the SHA-256 of all other fields."""
        value = asdict(self)
        return _dump(value | {"digest": _digest(value)})

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises:
        BundleError: the folder is not a bundle. BundleTooNew: its format is newer than this version reads.
        BundleDamaged: the manifest is incomplete or wrong; the message names every fault.
        """
        path = folder / MANIFEST
        try:
            text = read_text(path, limit=_LIMIT)
        except (FileNotFoundError, NotADirectoryError):
            raise BundleError(
                f"{folder}: no {MANIFEST}, so no bundle; make one with dp-export --out {folder}"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise BundleDamaged(f"{path}: cannot be read ({error}); export again") from None
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleDamaged(f"{path}: not JSON ({error}); export again") from None
        found = value.get("format") if isinstance(value, dict) else None
        if not isinstance(found, int) or isinstance(found, bool) or found < 1:
            raise BundleDamaged(f"{path}: has no format number; export again")
        if found > FORMAT:
            raise BundleTooNew(
                f"{path}: format {found}, this version reads up to {FORMAT}. Upgrade diffplugin or export again."
            )
        if found < FORMAT:
            raise BundleDamaged(f"{path}: format {found}, this version reads {FORMAT}; export again")
        digest, faults = value.pop("digest", None), list[str]()
        manifest = _decode(cls, value, "", faults)
        if manifest is not None:
            faults += [*_unsafe(manifest), *_unprintable(value)]
        if digest != _digest(value):
            faults.append("digest does not fit the contents: the manifest was changed after it was written")
        if manifest is None or faults:
            raise BundleDamaged(f"{path}: {'; '.join(faults)}; export again")
        return manifest  # type: ignore[no-any-return]


def _dump(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"


def _digest(value: Mapping[str, Any]) -> str:
    try:
        return hashlib.sha256(_dump(value).encode()).hexdigest()
    except ValueError:  # NaN and infinity are no JSON: a manifest that was written has none
        return ""


def _decode(kind: Any, value: Any, where: str, faults: list[str]) -> Any:
    """JSON -> ``kind`` (a dataclass, a mapping or tuple of kinds, a plain type); ``faults`` collects the errors."""
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _decode_fields(kind, value, where, faults)
    inner = get_args(kind)
    if get_origin(kind) is Mapping:
        if isinstance(value, dict):
            return {key: _decode(inner[1], item, f"{where}.{key}", faults) for key, item in value.items()}
    elif get_origin(kind) is tuple:
        if isinstance(value, list):
            return tuple(_decode(inner[0], item, f"{where}[{i}]", faults) for i, item in enumerate(value))
    elif type(value) is kind or (kind is float and type(value) is int):
        return value
    faults.append(f"{where} is {_short(value)}, expected {getattr(kind, '__name__', kind)}")
    return None


def _decode_fields(kind: Any, value: Any, where: str, faults: list[str]) -> Any:
    if not isinstance(value, dict):
        faults.append(f"{where} is {_short(value)}, expected an object")
        return None
    at = f"{where}." if where else ""
    hints = get_type_hints(kind)
    known = {f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(kind)}
    before = len(faults)
    faults += [f"{at}{name} is missing" for name, required in known.items() if required and name not in value]
    faults += [f"{at}{name} is unknown" for name in value if name not in known]
    given = {n: _decode(hints[n], item, f"{at}{n}", faults) for n, item in value.items() if n in known}
    return kind(**given) if len(faults) == before else None


def _short(value: Any) -> str:
    text = json.dumps(value)  # escapes what is not ASCII
    return text if len(text) <= 40 else f"{text[:37]}..."


def _unsafe(manifest: Manifest) -> list[str]:
    """Names that lead out of the bundle: bundles are untrusted."""
    names = {f"graphs.{key}.file": graph.file for key, graph in manifest.all_graphs().items()}
    names |= {f"files.{name}": name for name in manifest.files} | {"tokenizer": manifest.tokenizer}
    names |= {"words": manifest.words} if manifest.words else {}
    names |= {f"engines.{e.fingerprint}": name for e in manifest.engines for name in e.files}
    names |= {f"plugins.{plugin}": plugin for plugin in manifest.plugins}
    return [f"{where}: {name!r} leads out of the bundle" for where, name in names.items() if not _inside(name)]


def _unprintable(value: Any, where: str = "") -> Iterator[str]:
    """Texts that could send commands to a terminal: escapes, line ends, changes of text direction."""
    if isinstance(value, str) and not value.isprintable():
        yield f"{where or 'a name'} is {value[:40]!a}, expected printable characters alone"
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _unprintable(key, where)
            yield from _unprintable(item, f"{where}.{ascii(key)[1:-1]}".removeprefix("."))
    elif isinstance(value, list):
        for item in value:
            yield from _unprintable(item, where)


def _inside(name: str) -> bool:
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    absolute = posix.is_absolute() or bool(windows.drive or windows.root)
    return bool(name) and not absolute and ".." not in posix.parts and "\\" not in name
