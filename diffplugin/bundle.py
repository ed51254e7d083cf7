"""The bundle: a folder that ``dp-export`` writes and every runtime reads.

    manifest.json                        what is here and what it was made from (diffplugin.manifest)
    tokenizer.json
    onnx/<graph>.onnx[.data]             shared graphs
    plugins/<id>/{card.toml,tpb.onnx,scb.onnx}
    engines/<fingerprint>/               built ahead of time; refused anywhere else than where they belong

A bundle is written beside its place and renamed into it, so a reader never sees half of one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from diffplugin.errors import BundleDamaged, BundleError, ForeignEngine
from diffplugin.manifest import MANIFEST, EngineEntry, FileEntry, GraphEntry, Manifest
from diffplugin.plugins.cards import PluginCard, load_card
from diffplugin.spec import GraphSpec, graph_specs

ENGINES = "engines"
_TEMPORARY = ".writing-"  # marks what an interrupted export may have left


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder and its manifest. Nothing else is read before it is needed."""

    path: Path
    manifest: Manifest

    @cached_property
    def _specs(self) -> dict[str, GraphSpec]:
        return graph_specs(self.manifest.dims)

    def spec(self, key: str) -> GraphSpec:
        """Contract of a graph by key, such as ``unet`` or ``tpb/deblur``."""
        return self._specs[key.partition("/")[0]]

    def graph(self, key: str) -> GraphEntry:
        """Raises:
        BundleError: the bundle has no such graph.
        """
        if key not in self.manifest.graphs:
            raise BundleError(f"{self.path}: no graph {key!r}; it has {', '.join(self.manifest.graphs)}")
        return self.manifest.graphs[key]

    def graph_file(self, key: str) -> Path:
        """Raises:
        BundleDamaged: the file is missing.
        """
        path = self.path / self.graph(key).file
        if not path.is_file():
            raise BundleDamaged(f"{path}: missing; export the bundle again")
        return path

    def card(self, plugin: str) -> PluginCard:
        return load_card(self.path / "plugins" / plugin / "card.toml", expected_id=plugin)

    def cards(self) -> dict[str, PluginCard]:
        """Cards of the bundle's plugins, in registry order."""
        return {plugin: self.card(plugin) for plugin in self.manifest.plugins}

    def engine(
        self, key: str, *, engine: str, precision: str, shapes: str, version: str, device: str
    ) -> EngineEntry | None:
        """The engine built ahead for this graph, or None if there is none of this kind.

        Raises:
            ForeignEngine: there are some, but for another device or version; named before anything is loaded.
        """
        kin = [e for e in self.manifest.engines if (e.graph, e.engine, e.precision, e.shapes) == (key, engine, precision, shapes)]
        for entry in kin:
            if (entry.version, entry.device, entry.graph_sha256) == (version, device, self.graph(key).sha256):
                return entry
        if kin:
            raise ForeignEngine(
                f"{self.path}: {engine} engine of {key} was built for version {kin[0].version} on {kin[0].device}; "
                f"here are {version} and {device}. Remove it with dp-export --prune {self.path}, or export again."
            )
        return None


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
    """A graph's file, and the external weights beside it if it has any."""
    data = path.with_name(path.name + ".data")
    return (path, data) if data.is_file() else (path,)


def list_files(folder: Path) -> dict[str, FileEntry]:
    """Every file below ``folder`` but the manifest, by relative path, sorted."""
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    found.pop(MANIFEST, None)
    return {name: FileEntry(sha256=sha256(p), bytes=p.stat().st_size) for name, p in sorted(found.items())}


@contextmanager
def writing(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` to write a bundle into; it takes the place of ``out`` on success only.

    On any exception, an interrupt too, it is removed and an older bundle at ``out`` stays as it was. Two writers have
    folders of their own; the last one to finish wins.

    Raises:
        BundleError: ``out`` exists and is no bundle, or cannot be written.
    """
    if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise BundleError(f"{out}: exists and is no bundle; name another folder with --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{out.name}{_TEMPORARY}", dir=out.parent))
    except OSError as error:
        raise BundleError(f"{out}: cannot be written ({error.strerror}); name another folder with --out") from None
    folder.chmod(0o755)
    try:
        yield folder
        _replace(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _replace(folder: Path, out: Path) -> None:
    """Swap two folders with two renames; the old one goes last."""
    old = folder.with_name(folder.name + ".old")
    if out.exists():
        out.rename(old)
    try:
        folder.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def verify(path: str | os.PathLike[str]) -> list[str]:
    """Every fault of a bundle, one line each; empty: sound.

    Finds a missing, changed or unlisted file, an engine whose fingerprint is not that of its manifest entry or whose
    graph has changed, and engines that this machine would refuse.
    """
    folder = Path(path).expanduser()
    try:
        bundle = open_bundle(folder)
    except BundleError as error:
        return [str(error)]
    manifest, faults = bundle.manifest, []
    for name, entry in manifest.files.items():
        file = folder / name
        if not file.is_file():
            faults.append(f"{file}: missing")
        elif file.stat().st_size != entry.bytes:
            faults.append(f"{file}: {file.stat().st_size} bytes, expected {entry.bytes}")
        elif sha256(file) != entry.sha256:
            faults.append(f"{file}: contents changed (SHA-256 differs)")
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {MANIFEST}
    faults += [f"{folder / name}: not in the manifest" for name in sorted(there - set(manifest.files))]
    for key, graph in manifest.graphs.items():
        if graph.file not in manifest.files:
            faults.append(f"graph {key}: {graph.file} is not among the files")
    for engine in manifest.engines:
        faults += [f"engine {engine.fingerprint} ({engine.engine}, {engine.graph}): {f}" for f in _engine_faults(bundle, engine)]
    return faults


def _engine_faults(bundle: Bundle, engine: EngineEntry) -> Iterator[str]:
    if engine.fingerprint != engine.expected_fingerprint():
        yield f"fingerprint does not fit its entry ({engine.expected_fingerprint()})"
    if engine.graph not in bundle.manifest.graphs or bundle.graph(engine.graph).sha256 != engine.graph_sha256:
        yield "built from another graph"
    if reason := _foreign(engine):
        yield f"foreign: {reason}"


def _foreign(engine: EngineEntry) -> str | None:
    """Why this machine would refuse an engine."""
    from diffplugin.engines import builder_named

    builder = builder_named(engine.engine)
    if reason := builder.why_unavailable():
        return reason
    here = (builder.version(), builder.device())
    if (engine.version, engine.device) != here:
        return f"built for version {engine.version} on {engine.device}; here are {here[0]} and {here[1]}"
    return None


def list_bundles(folder: Path) -> list[Bundle]:
    """Bundles in ``folder`` and one level of folders below it, by path; unreadable ones are left out."""
    found = []
    for manifest in sorted({*folder.glob(f"*/{MANIFEST}"), *folder.glob(f"*/*/{MANIFEST}"), *folder.glob(MANIFEST)}):
        if _TEMPORARY in manifest.parent.name:
            continue
        try:
            found.append(open_bundle(manifest.parent))
        except BundleError:
            continue
    return found


def prune(path: str | os.PathLike[str]) -> tuple[list[str], int]:
    """Remove stale and foreign engines, unlisted engine folders and what interrupted exports left beside the bundle.

    Returns:
        (names of what went, bytes freed).
    """
    bundle = open_bundle(path)
    folder = bundle.path
    keep = tuple(e for e in bundle.manifest.engines if not list(_engine_faults(bundle, e)))
    kept = {e.fingerprint for e in keep}
    gone = [p for p in sorted((folder / ENGINES).glob("*")) if p.name not in kept]
    gone += sorted(folder.parent.glob(f"{folder.name}{_TEMPORARY}*"))
    freed = sum(f.stat().st_size for p in gone for f in p.rglob("*") if f.is_file())
    from dataclasses import replace

    files = {n: e for n, e in bundle.manifest.files.items() if not _below(n, gone, folder)}
    write_manifest(folder, replace(bundle.manifest, engines=keep, files=files))
    for p in gone:
        shutil.rmtree(p)
    return [str(p) for p in gone], freed


def _below(name: str, folders: list[Path], root: Path) -> bool:
    return any((root / name).is_relative_to(folder) for folder in folders)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Atomically: a reader sees the old manifest or the new one."""
    temporary = folder / f"{MANIFEST}.tmp"
    temporary.write_text(manifest.to_json(), encoding="utf-8")
    temporary.replace(folder / MANIFEST)


