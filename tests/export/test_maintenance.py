"""Bundles verified, listed and pruned."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffplugin.bundle import ENGINES, list_files, open_bundle
from diffplugin.errors import BundleError
from diffplugin.export.maintenance import list_bundles, prune, verify
from diffplugin.export.writing import writing
from diffplugin.manifest import MANIFEST, Manifest

Write = Callable[..., Manifest]
Edit = Callable[[Path, Callable[[dict[str, Any]], object]], None]


def test_a_sound_bundle_has_no_faults(tmp_path: Path, write: Write, here: dict[str, str]) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", version=here["version"])
    assert verify(tmp_path / "a") == verify(str(tmp_path / "b")) == []


@pytest.mark.parametrize(
    "name", ["onnx/unet.onnx", "onnx/unet.onnx.data", "plugins/derain/card.toml", "tokenizer.json"]
)
def test_a_flipped_bit_is_found(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    assert verify(folder) == [f"{folder / name}: contents changed (SHA-256 differs)"]


def test_all_faults_at_once(folder: Path) -> None:
    (folder / "onnx/unet.onnx").unlink()
    (folder / "onnx/clip_text.onnx").write_bytes(b"longer" * 100)
    (folder / "onnx/selector.onnx").write_bytes(
        (folder / "onnx/selector.onnx").read_bytes().replace(b"graph", b"grape")
    )
    (folder / "plugins/derain/extra.bin").write_bytes(b"?")
    (folder / "engines/0123456789abcdef").mkdir(parents=True)
    (folder / "engines/0123456789abcdef/model.blob").write_bytes(b"?")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").mkdir()
    found = verify(folder)
    assert f"{folder}/onnx/clip_text.onnx: is no ONNX graph" in found.pop(-1)
    assert sorted(found) == sorted(
        [
            f"{folder}/onnx/unet.onnx: missing",
            f"{folder}/onnx/clip_text.onnx: 600 bytes, expected 153",
            f"{folder}/onnx/selector.onnx: contents changed (SHA-256 differs)",
            f"{folder}/plugins/derain/extra.bin: not in the manifest",
            f"{folder}/engines/0123456789abcdef/model.blob: not in the manifest",
            f"{folder}/tokenizer.json: no regular file",
        ]
    )


def test_what_a_bundle_needs_must_be_listed(folder: Path, edit: Edit) -> None:
    def spoil(value: dict[str, Any]) -> None:
        del value["graphs"]["vae_decoder"], value["graphs"]["scb/derain"]
        del value["files"]["plugins/derain/card.toml"], value["files"]["onnx/unet.onnx"]
        value["graphs"]["upscaler"] = value["graphs"]["selector"]
        value["graphs"]["tpb/derain"]["sha256"] = "0" * 64

    edit(folder, spoil)
    faults = "\n".join(verify(folder))
    for part in (
        "graph vae_decoder is missing",
        "graph scb/derain is missing",
        "graph upscaler is of no known kind",
        "plugin derain: plugins/derain/card.toml is not among the files",
        "graph unet: onnx/unet.onnx is not among the files",
        "graph tpb/derain: SHA-256 is not that of its file",
        "onnx/unet.onnx: not in the manifest",
    ):
        assert part in faults, f"{part!r} not in\n{faults}"


@pytest.mark.parametrize(
    ("engine", "fault"),
    [
        ({"version": "1999.1"}, "foreign: built for version 1999.1"),
        ({"device": "another processor"}, "on another processor; here are"),
        ({"graph_sha256": "0" * 64}, "built from another graph"),
        ({"graph": "unit"}, "built from another graph"),
        ({"fingerprint": "0123456789abcdef"}, "fingerprint does not fit its entry"),
        ({"engine": "tensorflow"}, "foreign: engine 'tensorflow': unknown"),
    ],
)
def test_a_foreign_engine_is_found_and_pruned(tmp_path: Path, engine: dict[str, str], fault: str, write: Write) -> None:
    folder = tmp_path / "bundle"
    entry = write(folder, **engine).engines[0]
    (said,) = verify(folder)
    assert fault in said and entry.fingerprint in said and "\n" not in said
    gone, freed = prune(folder)
    assert gone == [str(folder / ENGINES / entry.fingerprint)] and freed == 600
    assert verify(folder) == [] and open_bundle(folder).manifest.engines == ()


def test_an_engine_must_lie_where_it_belongs(tmp_path: Path, write: Write, edit: Edit, here: dict[str, str]) -> None:
    write(tmp_path, version=here["version"])
    edit(tmp_path, lambda value: value["engines"][0].update(files=["onnx/unet.onnx", "engines/none"]))
    faults = "\n".join(verify(tmp_path))
    assert "onnx/unet.onnx is not in engines/" in faults and "engines/none is not among the files" in faults


def test_pruning_keeps_what_is_sound(tmp_path: Path, write: Write, here: dict[str, str]) -> None:
    folder = tmp_path / "bundle"
    write(folder, version=here["version"])
    before = list_files(folder), (folder / MANIFEST).read_bytes()
    assert prune(folder) == ([], 0)
    assert (list_files(folder), (folder / MANIFEST).read_bytes()) == before


def test_pruning_removes_left_overs_but_no_living_export(folder: Path, write: Write) -> None:
    dead = folder.with_name("bundle.writing-dead")
    other = folder.with_name("bundle2.writing-dead")
    stray = folder / ENGINES / "stray"
    for left in (dead / "onnx", other, stray):
        left.mkdir(parents=True)
    (dead / "onnx/unet.onnx").write_bytes(bytes(1000))
    (folder / ENGINES / "file").write_bytes(bytes(10))
    (folder / ".diffplugin-a.tmp").write_bytes(bytes(1))
    with writing(folder) as living:
        gone, freed = prune(folder)
        assert living.is_dir()
        write(living)
    assert set(gone) == {str(p) for p in (dead, stray, folder / ENGINES / "file", folder / ".diffplugin-a.tmp")}
    assert freed == 1011
    assert other.is_dir() and not dead.exists() and verify(folder) == []


def test_pruning_without_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle"):
        prune(tmp_path)


def test_bundles_are_listed_by_path(tmp_path: Path, write: Write) -> None:
    for place in ("b", "a", "deep/c", "b.writing-1"):
        write(tmp_path / place, name=place)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / MANIFEST).write_text("{")
    assert [bundle.manifest.name for bundle in list_bundles(tmp_path)] == ["a", "b", "deep/c"]
    assert [bundle.manifest.name for bundle in list_bundles(tmp_path / "a")] == ["a"]
    assert list_bundles(tmp_path / "absent") == []


def test_engines_built_for_a_fleet_are_no_fault_here(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build server has none of the GPUs. Another version of the library is stale, where the library is installed."""
    from diffplugin.engines.tensorrt.builder import TensorRtBuilder

    folder = tmp_path / "bundle"
    entry = write(folder, engine="tensorrt-rtx", version="1.2", device="sm_89").engines[0]
    for lacking, version, sound in (("not installed", "9", True), (None, "1.2", True), (None, "1.3", False)):
        monkeypatch.setattr(TensorRtBuilder, "build_unavailable_reason", lambda self, reason=lacking: reason)
        monkeypatch.setattr(TensorRtBuilder, "version", lambda self, version=version: version)
        assert (verify(folder) == []) == sound
        if not sound:
            (said,) = verify(folder)
            assert "foreign: built for version 1.2; here is 1.3" in said and entry.fingerprint in said
    assert prune(folder)[0] == [str(folder / ENGINES / entry.fingerprint)]
