"""Lists, verifies and prunes bundles on disk. Does not need PyTorch."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from diffplugin.bundle import ENGINES, Bundle, graph_files, open_bundle, write_manifest
from diffplugin.errors import BundleError, EngineUnavailable
from diffplugin.export.writing import TEMPORARY, in_use
from diffplugin.external_data import locations
from diffplugin.files import TEMPORARY as UNFINISHED
from diffplugin.integrity import sha256
from diffplugin.manifest import MANIFEST, EngineEntry, FileEntry, Manifest
from diffplugin.spec import graph_specs


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


def verify(path: str | os.PathLike[str]) -> list[str]:
    """Every fault of a bundle, one line each; empty if there is none.

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
        if (fault := _changed(folder, name, entry))
    ]
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()} - {MANIFEST}
    faults += [f"{folder / name}: not in the manifest" for name in sorted(there - set(manifest.files))]
    faults += [f"{folder / MANIFEST}: {fault}" for fault in _incomplete(manifest)]
    faults += _open_ends(bundle)
    for engine in manifest.engines:
        faults += [
            f"{folder}: engine {engine.fingerprint} ({engine.engine}, {engine.graph}): {fault}"
            for fault in _engine_faults(bundle, engine)
        ]
    return faults


def _changed(folder: Path, name: str, entry: FileEntry) -> str | None:
    file = folder / name
    try:
        if not file.resolve().is_relative_to(folder.resolve()):
            return "leads out of the bundle"
        if not file.is_file():
            return "no regular file" if file.exists() else "missing"
        if file.stat().st_size != entry.bytes:
            return f"{file.stat().st_size} bytes, expected {entry.bytes}"
        return None if sha256(file) == entry.sha256 else "contents changed (SHA-256 differs)"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"


def _open_ends(bundle: Bundle) -> Iterator[str]:
    """Graphs that take weights from anywhere but the file beside them."""
    for entry in bundle.manifest.all_graphs().values():
        path = bundle.path / entry.file
        if path.suffix != ".onnx" or not path.is_file():
            continue
        try:
            foreign = locations(path) - {data.name for data in graph_files(path)[1:]}
        except (OSError, ValueError) as error:
            yield f"{path}: is no ONNX graph ({error})"
            continue
        yield from (f"{path}: takes weights from {name!r}, which is no file of this bundle" for name in sorted(foreign))


def _incomplete(manifest: Manifest) -> Iterator[str]:
    """Files that a bundle needs in order to run and that the manifest does not list."""
    kinds = graph_specs(manifest.dims)
    needed = ["clip_vision", "vae_encoder", "unet", "unet_shallow", "vae_decoder"]
    needed += ["clip_text", "selector"] if manifest.selector else []
    needed += ["diagnosis"] if manifest.diagnosis else []
    needed += [f"{kind}/{plugin}" for plugin in manifest.plugins for kind in ("tpb", "scb")]
    yield from (f"graph {key} is missing" for key in needed if key not in manifest.graphs)
    yield from (f"graph {key} is of no known kind" for key in manifest.graphs if key.partition("/")[0] not in kinds)
    files = {f"graph {key}": graph.file for key, graph in manifest.all_graphs().items()}
    files |= {f"plugin {plugin}": f"plugins/{plugin}/card.toml" for plugin in manifest.plugins}
    files |= {"tokenizer": manifest.tokenizer} if manifest.selector else {}
    files |= {"words": manifest.words} if manifest.words else {}
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
    from diffplugin.engines.choice import get_builder

    try:
        builder = get_builder(engine.engine)
    except EngineUnavailable as error:
        return str(error)
    if builder.ahead:  # built for a fleet, and this machine need not be of it
        if builder.build_unavailable_reason() is None and engine.version != builder.version():
            return f"built for version {engine.version}; here is {builder.version()}"
        return None
    if reason := builder.unavailable_reason():
        return reason
    here = (builder.version(), builder.device())
    if (engine.version, engine.devices) != (here[0], (here[1],)):
        devices = ", ".join(engine.devices)
        return f"built for version {engine.version} on {devices}; here are {here[0]} and {here[1]}"
    return None


def prune(path: str | os.PathLike[str]) -> tuple[list[str], int]:
    """Remove stale and foreign engines, unlisted engine folders and leftovers of interrupted exports beside the bundle.

    An export that is still running keeps its folder.

    Returns:
        (names of removed files, bytes freed).

    Raises:
        BundleError: as for :func:`open_bundle`, or the bundle is read-only.
    """
    bundle = open_bundle(path)
    folder = bundle.path
    keep = tuple(e for e in bundle.manifest.engines if not list(_engine_faults(bundle, e)))
    kept = {e.fingerprint for e in keep}
    gone = [p for p in sorted((folder / ENGINES).glob("*")) if p.name not in kept]
    resolved = folder.resolve()
    gone += [p for p in sorted(resolved.parent.glob(f"{glob.escape(resolved.name + TEMPORARY)}*")) if not in_use(p)]
    gone += sorted(p for p in folder.rglob(f"{UNFINISHED}*.tmp") if p.is_file())
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
