"""The bundle: a folder that ``dp-export`` writes and every runtime reads.

    manifest.json                        what is here and what it was made from (diffplugin.manifest)
    tokenizer.json
    onnx/<graph>.onnx[.data]             shared graphs
    int8/, fp16/                         the same graphs in other precisions
    plugins/<id>/{card.toml,tpb.onnx,scb.onnx}
    engines/<fingerprint>/               built ahead of time; refused anywhere else than where they belong

A bundle is written beside its place and renamed into it, so a reader never sees half of one.
"""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from diffplugin.errors import BundleDamaged, BundleError, EngineUnavailable, ForeignEngine
from diffplugin.manifest import MANIFEST, EngineEntry, FileEntry, GraphEntry, Manifest
from diffplugin.plugins.cards import PluginCard, load_card
from diffplugin.shapes import holds
from diffplugin.spec import WEIGHTS_OF, GraphSpec, graph_specs
from diffplugin.writing import TEMPORARY, in_use
from diffplugin.writing import writing as writing  # noqa: PLC0414  part of this module's interface

ENGINES = "engines"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder and its manifest. Nothing else is read before it is needed."""

    path: Path
    manifest: Manifest

    @cached_property
    def _specs(self) -> dict[str, GraphSpec]:
        return graph_specs(self.manifest.dims)

    def spec(self, key: str) -> GraphSpec:
        """Contract of a graph by key, such as ``unet`` or ``tpb/deblur``.

        Raises:
            BundleError: no such kind of graph.
        """
        kind = key.partition("/")[0]
        if kind not in self._specs:
            raise BundleError(f"no kind of graph is called {kind!r}; expected one of {', '.join(self._specs)}")
        return self._specs[kind]

    def graph(self, key: str, precision: str = "fp32") -> GraphEntry:
        """The graph that runs at a precision: its variant for it where there is one, else the float32 graph.

        Raises:
            BundleError: the bundle has no such graph.
        """
        graphs = {**self.manifest.graphs, **self.manifest.variants.get(precision, {})}
        if key not in graphs:
            raise BundleError(f"{self.path}: no graph {key!r} at {precision}; it has {', '.join(graphs)}")
        return graphs[key]

    def keys(self, precision: str = "fp32") -> tuple[str, ...]:
        """Graphs that run at a precision: all, and those that only its variant has."""
        return tuple({**self.manifest.graphs, **self.manifest.variants.get(precision, {})})

    def graph_file(self, key: str, precision: str = "fp32") -> Path:
        """Raises:
        BundleDamaged: the file is missing.
        """
        path = self.path / self.graph(key, precision).file
        if not path.is_file():
            raise BundleDamaged(f"{path}: missing; export the bundle again")
        return path

    def card(self, plugin: str) -> PluginCard:
        return load_card(self.path / "plugins" / plugin / "card.toml", expected_id=plugin)

    def cards(self) -> dict[str, PluginCard]:
        """Cards of the bundle's plugins, in registry order."""
        return {plugin: self.card(plugin) for plugin in self.manifest.plugins}

    def engine(
        self, key: str, *, engine: str, precision: str, sizes: Mapping[str, int], version: str, device: str
    ) -> EngineEntry | None:
        """The engine built ahead for this graph, or None if there is none of this kind for these sizes.

        Args:
            sizes: of the graph's free input axes, as ``spec.check_inputs`` gives them; others are not read. Where
                several engines hold them, one built for these sizes alone comes before one built for a range.
            device: one that the engine must have been built for.

        Raises:
            ForeignEngine: there are some, but for another device, version or graph; named before anything is loaded.
        """
        kin = [
            e
            for e in self.manifest.engines
            if (e.graph, e.engine, e.precision) == (key, engine, precision) and holds(e.shapes, self.spec(key), sizes)
        ]
        fit = [e for e in kin if self._fits(e, version, device)]
        if kin and not fit:
            devices = ", ".join(kin[0].devices)
            raise ForeignEngine(
                f"{self.path}: {engine} engine of {key} was built for version {kin[0].version} on {devices}"
                f"{'' if self._fits(kin[0]) else ' from another graph'}; "
                f"here are {version} and {device}. Remove it with dp-export --prune {self.path}, or export again."
            )
        return min(fit, key=lambda e: e.shapes.count(":"), default=None)

    def _fits(self, entry: EngineEntry, version: str | None = None, device: str | None = None) -> bool:
        return (
            version in (None, entry.version)
            and (device is None or device in entry.devices)
            and entry.graph_sha256 == self.graph(entry.graph, entry.precision).sha256
        )


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Read the manifest of a bundle.

    Raises:
        BundleError, BundleTooNew, BundleDamaged: as :meth:`Manifest.read` says.
    """
    folder = Path(path).expanduser()
    return Bundle(folder, Manifest.read(folder))


def default_bundle() -> Path:
    """The embedded model, in the package."""
    return Path(__file__).resolve().parent / "embedded"


def cache_folder() -> Path:
    """Where bundles and compiled models go: ``DIFFPLUGIN_CACHE``, or the user's cache folder."""
    if chosen := os.environ.get("DIFFPLUGIN_CACHE"):
        return Path(chosen).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("diffplugin")


def sha256(*paths: Path) -> str:
    """Hash of the files' contents one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def graph_files(path: Path) -> tuple[Path, ...]:
    """A graph's file, and the weights beside it if it has any: ONNX's external data, or those of OpenVINO IR.

    A graph of ``spec.WEIGHTS_OF`` has another one's weights.
    """
    owner = path.with_stem(WEIGHTS_OF.get(path.stem, path.stem))
    data = path.with_suffix(".bin") if path.suffix == ".xml" else owner.with_name(owner.name + ".data")
    return (path, data) if data.is_file() else (path,)


def list_files(folder: Path) -> dict[str, FileEntry]:
    """Every file below ``folder`` but the manifest, by relative path, sorted."""
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    found.pop(MANIFEST, None)
    return {name: FileEntry(sha256=sha256(p), bytes=p.stat().st_size) for name, p in sorted(found.items())}


def list_bundles(folder: Path) -> list[Bundle]:
    """Bundles in ``folder`` and one level of folders below it, by path; unreadable ones are left out."""
    found = []
    for manifest in sorted({*folder.glob(f"*/{MANIFEST}"), *folder.glob(f"*/*/{MANIFEST}"), *folder.glob(MANIFEST)}):
        if TEMPORARY in manifest.parent.name:
            continue
        try:
            found.append(open_bundle(manifest.parent))
        except BundleError:
            continue
    return found


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Atomically: a reader sees the old manifest or the new one."""
    temporary = folder / f"{MANIFEST}.tmp"
    temporary.write_text(manifest.to_json(), encoding="utf-8")
    temporary.replace(folder / MANIFEST)


def verify(path: str | os.PathLike[str]) -> list[str]:
    """Every fault of a bundle, one line each; empty: sound.

    Finds a missing, changed or unlisted file, a plugin without its graphs, an engine whose fingerprint is not that of
    its manifest entry or whose graph has changed, and engines that this machine would refuse.
    """
    folder = Path(path).expanduser()
    try:
        bundle = open_bundle(folder)
    except BundleError as error:
        return [str(error)]
    manifest = bundle.manifest
    faults = [
        f"{folder / name}: {fault}"
        for name, entry in manifest.files.items()
        if (fault := _changed(folder / name, entry))
    ]
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()} - {MANIFEST}
    faults += [f"{folder / name}: not in the manifest" for name in sorted(there - set(manifest.files))]
    faults += [f"{folder / MANIFEST}: {fault}" for fault in _incomplete(manifest)]
    for engine in manifest.engines:
        faults += [
            f"{folder}: engine {engine.fingerprint} ({engine.engine}, {engine.graph}): {fault}"
            for fault in _engine_faults(bundle, engine)
        ]
    return faults


def _changed(file: Path, entry: FileEntry) -> str | None:
    try:
        if not file.is_file():
            return "missing"
        if file.stat().st_size != entry.bytes:
            return f"{file.stat().st_size} bytes, expected {entry.bytes}"
        return None if sha256(file) == entry.sha256 else "contents changed (SHA-256 differs)"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"


def _incomplete(manifest: Manifest) -> Iterator[str]:
    """What a bundle needs in order to run and the manifest does not list."""
    kinds = graph_specs(manifest.dims)
    needed = ["clip_vision", "vae_encoder", "unet", "unet_shallow", "vae_decoder"]
    needed += ["clip_text", "selector"] if manifest.selector else []
    needed += [f"{kind}/{plugin}" for plugin in manifest.plugins for kind in ("tpb", "scb")]
    yield from (f"graph {key} is missing" for key in needed if key not in manifest.graphs)
    yield from (f"graph {key} is of no known kind" for key in manifest.graphs if key.partition("/")[0] not in kinds)
    files = {f"graph {key}": graph.file for key, graph in manifest.all_graphs().items()}
    files |= {f"plugin {plugin}": f"plugins/{plugin}/card.toml" for plugin in manifest.plugins}
    files |= {"tokenizer": manifest.tokenizer} if manifest.selector else {}
    yield from (f"{what}: {file} is not among the files" for what, file in files.items() if file not in manifest.files)
    for key, graph in manifest.graphs.items():
        entry = manifest.files.get(graph.file)
        if entry and f"{graph.file}.data" not in manifest.files and entry.sha256 != graph.sha256:
            yield f"graph {key}: SHA-256 is not that of its file"


def _engine_faults(bundle: Bundle, engine: EngineEntry) -> Iterator[str]:
    manifest = bundle.manifest
    if engine.fingerprint != engine.expected_fingerprint():
        yield f"fingerprint does not fit its entry ({engine.expected_fingerprint()})"
    graphs = {**manifest.graphs, **manifest.variants.get(engine.precision, {})}
    if engine.graph not in graphs or graphs[engine.graph].sha256 != engine.graph_sha256:
        yield "built from another graph"
    place = f"{ENGINES}/{engine.fingerprint}/"
    yield from (f"{f} is not in {place}" for f in engine.files if not f.startswith(place))
    yield from (f"{f} is not among the files" for f in engine.files if f not in manifest.files)
    if reason := _foreign(engine):
        yield f"foreign: {reason}"


def _foreign(engine: EngineEntry) -> str | None:
    """Why this machine would refuse an engine."""
    from diffplugin.engines import builder_named

    try:
        builder = builder_named(engine.engine)
    except EngineUnavailable as error:
        return str(error)
    if builder.ahead:  # built for a fleet, and this machine need not be of it
        if builder.why_cannot_build() is None and engine.version != builder.version():
            return f"built for version {engine.version}; here is {builder.version()}"
        return None
    if reason := builder.why_unavailable():
        return reason
    here = (builder.version(), builder.device())
    if (engine.version, engine.devices) != (here[0], (here[1],)):
        devices = ", ".join(engine.devices)
        return f"built for version {engine.version} on {devices}; here are {here[0]} and {here[1]}"
    return None


def prune(path: str | os.PathLike[str]) -> tuple[list[str], int]:
    """Remove stale and foreign engines, unlisted engine folders and what interrupted exports left beside the bundle.

    An export that is still running keeps its folder.

    Returns:
        (names of what went, bytes freed).

    Raises:
        BundleError: as :func:`open_bundle` says, or the bundle is read-only.
    """
    bundle = open_bundle(path)
    folder = bundle.path
    keep = tuple(e for e in bundle.manifest.engines if not list(_engine_faults(bundle, e)))
    kept = {e.fingerprint for e in keep}
    gone = [p for p in sorted((folder / ENGINES).glob("*")) if p.name not in kept]
    resolved = folder.resolve()
    gone += [p for p in sorted(resolved.parent.glob(f"{glob.escape(resolved.name + TEMPORARY)}*")) if not in_use(p)]
    gone += [p for p in (folder / f"{MANIFEST}.tmp",) if p.is_file()]
    freed = sum(f.stat().st_size for p in gone for f in (p, *p.rglob("*")) if f.is_file())
    files = {n: e for n, e in bundle.manifest.files.items() if not any((folder / n).is_relative_to(p) for p in gone)}
    try:
        if (keep, files) != (bundle.manifest.engines, bundle.manifest.files):
            write_manifest(folder, replace(bundle.manifest, engines=keep, files=files))
        for p in gone:
            shutil.rmtree(p) if p.is_dir() else p.unlink(missing_ok=True)
    except OSError as error:
        raise BundleError(f"{error.filename}: cannot be removed ({error.strerror})") from None
    return [str(p) for p in gone], freed
