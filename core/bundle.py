"""The bundle: a folder that ``dp-export`` writes and every runtime reads.

    manifest.json                        the contents and their sources (diffplugin.manifest)
    tokenizer.json
    words.txt                            the words of the selector, if misspelt ones are to be read by them
    onnx/<graph>.onnx[.data]             shared graphs
    int8/, fp16/                         the same graphs in other precisions
    ncnn-VERSION/                        those that see the photo, in ncnn's form
    plugins/<id>/{card.toml,tpb.onnx,scb.onnx}
    engines/<fingerprint>/               built ahead of time; refused on any other machine

A bundle is written beside its destination and then renamed, so a reader never sees a partial one. It is self-contained:
every file that is read is in the folder, is listed in the manifest, and matches its hash there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from diffplugin.errors import BundleDamaged, BundleError, ForeignEngine
from diffplugin.external_data import locations
from diffplugin.files import write_text
from diffplugin.hub import PREFIX, fetch_bundle
from diffplugin.integrity import cached_sha256, identity, sha256
from diffplugin.manifest import MANIFEST, EngineEntry, FileEntry, GraphEntry, Manifest
from diffplugin.plugins.cards import PluginCard, load_card
from diffplugin.plugins.compounds import Compound, read_tables
from diffplugin.shapes import holds
from diffplugin.spec import WEIGHTS_OF, GraphSpec, graph_specs

ENGINES = "engines"
COMPOUNDS = ("plugins/compounds.toml", "plugins/cards/compounds.toml")


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder and its manifest. Everything else is read when it is needed."""

    path: Path
    manifest: Manifest

    @cached_property
    def _specs(self) -> dict[str, GraphSpec]:
        return graph_specs(self.manifest.dims)

    def spec(self, key: str) -> GraphSpec:
        """Contract of a graph by key, such as ``unet`` or ``tpb/deblur``.

        Raises:
            BundleError: there is no such kind of graph.
        """
        kind = key.partition("/")[0]
        if kind not in self._specs:
            raise BundleError(f"no kind of graph is called {kind!r}; expected one of {', '.join(self._specs)}")
        return self._specs[kind]

    def graph(self, key: str, precision: str = "fp32") -> GraphEntry:
        """The graph that runs at a precision: its variant for that precision if there is one, else the float32 graph.

        Raises:
            BundleError: the bundle has no such graph.
        """
        graphs = {**self.manifest.graphs, **self.manifest.variants.get(precision, {})}
        if key not in graphs:
            raise BundleError(f"{self.path}: no graph {key!r} at {precision}; it has {', '.join(graphs)}")
        return graphs[key]

    def keys(self, precision: str = "fp32") -> tuple[str, ...]:
        """Keys of the graphs that run at a precision: all float32 ones, and those that exist only in its variant."""
        return tuple({**self.manifest.graphs, **self.manifest.variants.get(precision, {})})

    def file(self, name: str) -> Path:
        """A file of the bundle by its name in the manifest, checked against its hash there.

        A bundle that is being written lists no files yet; then contents are not checked.

        Raises:
            BundleDamaged: it is missing, changed, not listed, not a regular file, or a link that leads out of the
                bundle.
        """
        path, files = self.path / name, self.manifest.files
        if not path.resolve().is_relative_to(self.path.resolve()):
            raise BundleDamaged(f"{path}: leads out of the bundle; put the file itself in its place")
        try:
            size = identity(path)[2]
            if not files:
                return path
            if name not in files:
                raise BundleDamaged(f"{path}: not in the manifest; export the bundle again")
            if size == files[name].bytes and cached_sha256(path, cache_folder()) == files[name].sha256:
                return path
            fault = "contents changed (SHA-256 differs)"
        except FileNotFoundError:
            fault = "missing"
        except OSError as error:
            fault = f"cannot be read ({error.strerror or error})"
        raise BundleDamaged(f"{path}: {fault}; {self._remedy()}")

    def _remedy(self) -> str:
        try:
            replaced = Manifest.read(self.path) != self.manifest
        except BundleError:
            replaced = False
        return (
            "the bundle was exported again since it was loaded: load it again"
            if replaced
            else "export the bundle again"
        )

    def graph_file(self, key: str, precision: str = "fp32") -> Path:
        """The file of a graph; the weights beside it, if any, are checked as well.

        Raises:
            BundleDamaged: as for :meth:`file`, or the graph names weights outside the bundle.
        """
        path = self.file(self.graph(key, precision).file)
        beside = graph_files(path)[1:]
        for data in beside:
            self.file(data.relative_to(self.path).as_posix())
        if path.suffix == ".onnx":
            try:
                foreign = _locations(path, *identity(path)) - {data.name for data in beside}
            except (OSError, ValueError) as error:
                raise BundleDamaged(f"{path}: is no ONNX graph ({error}); export the bundle again") from None
            if foreign:
                raise BundleDamaged(f"{path}: takes weights from {min(foreign)!r}, which is no file of this bundle")
        return path

    @contextmanager
    def reading(self, key: str, precision: str = "fp32") -> Iterator[Path]:
        """Context manager: :meth:`graph_file`, for a block that loads it.

        Raises:
            BundleDamaged: as for :meth:`graph_file`, or the bundle was replaced in the meantime.
        """
        path = self.graph_file(key, precision)
        before = [identity(file) for file in graph_files(path)]
        yield path
        try:
            same = before == [identity(file) for file in graph_files(path)]
        except OSError:
            same = False
        if not same:
            raise BundleDamaged(f"{path}: was replaced while it was loaded; load the bundle again")

    def card(self, plugin: str) -> PluginCard:
        card = load_card(self.file(f"plugins/{plugin}/card.toml"), expected_id=plugin)
        if card.output == "head" and f"head/{plugin}" not in self.manifest.graphs:
            raise BundleError(
                f'{self.path}: the card of {plugin} says output = "head", but the bundle has no graph head/{plugin}: '
                "export the bundle again"
            )
        return card

    def compounds(self) -> dict[str, Compound]:
        """The table of compound tasks: the shipped one, extended by the bundle's own if it has one."""
        names = [n for n in COMPOUNDS if n in self.manifest.files or (self.path / n).exists()]
        return read_tables(self.file(name) for name in names)

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
            device: the device that the engine must have been built for.

        Raises:
            ForeignEngine: all such engines are for another device, version or graph; raised before anything is loaded.
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


@lru_cache(maxsize=256)
def _locations(path: Path, *identity: int) -> frozenset[str]:
    """:func:`locations`, read again only if the file has changed."""
    return frozenset(locations(path))


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Read the manifest of a bundle.

    Args:
        path: its folder, or ``hf:user/name[@revision]`` (:mod:`diffplugin.hub`).

    Raises:
        BundleError, BundleTooNew, BundleDamaged: as for :meth:`Manifest.read`.
    """
    text = os.fspath(path)
    folder = fetch_bundle(text, cache_folder()) if text.startswith(PREFIX) else Path(path).expanduser()
    return Bundle(folder, Manifest.read(folder))


def default_bundle() -> Path:
    """The folder of the embedded model, in the package."""
    return Path(__file__).resolve().parent / "embedded"


def cache_folder() -> Path:
    """The folder for bundles and compiled models: ``DIFFPLUGIN_CACHE``, or the user's cache folder."""
    if chosen := os.environ.get("DIFFPLUGIN_CACHE"):
        return Path(chosen).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("diffplugin")


def graph_files(path: Path) -> tuple[Path, ...]:
    """A graph's file, and the weights beside it if it has any: ONNX's external data, or those of OpenVINO IR
    and of ncnn.

    A graph of ``spec.WEIGHTS_OF`` uses the weights of another graph.
    """
    owner = path.with_stem(WEIGHTS_OF.get(path.stem, path.stem))
    data = path.with_suffix(".bin") if path.suffix in (".xml", ".param") else owner.with_name(owner.name + ".data")
    return (path, data) if path.suffix == ".param" or data.is_file() else (path,)


def list_files(folder: Path) -> dict[str, FileEntry]:
    """Every file below ``folder`` but the manifest, by relative path, sorted."""
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    found.pop(MANIFEST, None)
    return {name: FileEntry(sha256=sha256(p), bytes=p.stat().st_size) for name, p in sorted(found.items())}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write it atomically: a reader sees the old manifest or the new one."""
    write_text(folder / MANIFEST, manifest.to_json())
