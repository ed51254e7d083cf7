"""The bundle: opened, verified, listed and pruned."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diffplugin.bundle import (
    ENGINES,
    Bundle,
    cache_folder,
    default_bundle,
    graph_files,
    list_files,
    open_bundle,
    sha256,
)
from diffplugin.engines.onnxruntime import OnnxRuntimeBuilder
from diffplugin.errors import BundleDamaged, BundleError, ForeignEngine
from diffplugin.export.maintenance import list_bundles, prune, verify
from diffplugin.export.writing import writing
from diffplugin.manifest import MANIFEST, EngineEntry, Manifest, fingerprint
from diffplugin.plugins.cards import shipped_cards

Write = Callable[..., Manifest]
Edit = Callable[[Path, Callable[[dict[str, Any]], object]], None]


def test_files_specs_and_cards(folder: Path) -> None:
    bundle = open_bundle(folder)
    assert bundle.graph_file("scb/derain") == folder / "plugins/derain/scb.onnx"
    assert bundle.spec("scb/derain").graph == "scb"
    assert bundle.spec("unet").inputs[2].axes == (1, bundle.manifest.dims.tokens, bundle.manifest.dims.token_width)
    assert bundle.cards() == {"derain": shipped_cards()["derain"]}
    with pytest.raises(BundleError, match=r"no graph 'scb/desnow' at fp32; it has .*scb/derain"):
        bundle.graph_file("scb/desnow")
    with pytest.raises(BundleError, match="no kind of graph is called 'sbc'"):
        bundle.spec("sbc/derain")
    bundle.graph_file("unet").unlink()
    with pytest.raises(BundleDamaged, match=r"unet\.onnx: missing; export the bundle again"):
        bundle.graph_file("unet")


def test_only_the_manifest_is_read_at_first(tmp_path: Path, write: Write) -> None:
    write(tmp_path / "whole")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / MANIFEST).write_bytes((tmp_path / "whole" / MANIFEST).read_bytes())
    assert open_bundle(tmp_path / "bare").manifest.plugins == ("derain",)


def find(bundle: Bundle, **changes: Any) -> EngineEntry | None:
    builder = OnnxRuntimeBuilder()
    here = {"version": builder.version(), "device": builder.device()}
    sizes = {"h": 8, "w": 8, "n": 99}
    wanted = here | {"key": "unet", "engine": "onnxruntime", "precision": "fp32", "sizes": sizes} | changes
    return bundle.engine(wanted.pop("key"), **wanted)


def test_engines_are_found_by_all_that_they_depend_on(tmp_path: Path, write: Write, here: dict[str, str]) -> None:
    write(tmp_path, version=here["version"])
    bundle = open_bundle(tmp_path)
    assert find(bundle) == bundle.manifest.engines[0]
    for other in ({"precision": "bf16"}, {"engine": "openvino"}, {"sizes": {"h": 9, "w": 8}}, {"key": "vae_decoder"}):
        assert find(bundle, **other) is None
    for foreign in ({"version": "0"}, {"device": "elsewhere"}):
        with pytest.raises(ForeignEngine, match=r"built for version .* dp-export --prune"):
            find(bundle, **foreign)


def test_a_fingerprint_depends_on_everything() -> None:
    parts = ["graph", "shapes", "precision", "engine", "version", "device"]
    changed = ([p + "!" if i == k else p for i, p in enumerate(parts)] for k in range(7))
    prints = {fingerprint(a, b, c, d, e, (f,)) for a, b, c, d, e, f in changed}
    assert len(prints) == 7 and all(len(p) == 16 and int(p, 16) >= 0 for p in prints)


def test_hashes_of_several_files_are_of_their_contents_in_a_row(tmp_path: Path) -> None:
    for name, content in (("g.onnx", b"one"), ("g.onnx.data", b"two")):
        (tmp_path / name).write_bytes(content)
    assert graph_files(tmp_path / "g.onnx") == (tmp_path / "g.onnx", tmp_path / "g.onnx.data")
    assert sha256(*graph_files(tmp_path / "g.onnx")) == hashlib.sha256(b"onetwo").hexdigest()


def test_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DIFFPLUGIN_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("DIFFPLUGIN_CACHE")
    assert cache_folder().name == "diffplugin"
    assert default_bundle().name == "embedded"


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
    assert sorted(verify(folder)) == sorted(
        [
            f"{folder}/onnx/unet.onnx: missing",
            f"{folder}/onnx/clip_text.onnx: 600 bytes, expected 300",
            f"{folder}/onnx/selector.onnx: contents changed (SHA-256 differs)",
            f"{folder}/plugins/derain/extra.bin: not in the manifest",
            f"{folder}/engines/0123456789abcdef/model.blob: not in the manifest",
            f"{folder}/tokenizer.json: missing",
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
    (folder / f"{MANIFEST}.tmp").write_bytes(bytes(1))
    with writing(folder) as living:
        gone, freed = prune(folder)
        assert living.is_dir()
        write(living)
    assert set(gone) == {str(p) for p in (dead, stray, folder / ENGINES / "file", folder / f"{MANIFEST}.tmp")}
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


def test_a_range_of_sizes_comes_after_an_engine_of_one(tmp_path: Path, write: Write, here: dict[str, str]) -> None:
    manifest = write(tmp_path, **here)
    (only,) = manifest.engines
    wide = replace(only, shapes="h=4:8:16,w=8", fingerprint="wide")
    bundle = Bundle(tmp_path, replace(manifest, engines=(wide, only)))
    assert find(bundle) == only
    assert find(bundle, sizes={"h": 16, "w": 8}) == wide
    assert find(bundle, sizes={"h": 17, "w": 8}) is None


def test_a_variant_stands_for_its_graph_at_its_precision(folder: Path) -> None:
    bundle = open_bundle(folder)
    half = replace(bundle.manifest.graphs["unet"], file="fp16/unet.onnx")
    bundle = Bundle(folder, replace(bundle.manifest, variants={"fp16": {"unet": half, "step": half}}))
    assert bundle.graph("unet", "fp16") == bundle.graph("step", "fp16") == half
    assert bundle.graph("unet", "bf16") == bundle.graph("unet") != half
    assert bundle.graph("vae_decoder", "fp16") == bundle.graph("vae_decoder")
    assert set(bundle.keys("fp16")) - set(bundle.keys()) == {"step"}
    with pytest.raises(BundleError, match="no graph 'step' at fp32"):
        bundle.graph("step")


def test_step_has_the_weights_of_the_unet(tmp_path: Path) -> None:
    for name in ("unet.onnx", "unet.onnx.data", "step.onnx"):
        (tmp_path / name).write_bytes(name.encode())
    assert graph_files(tmp_path / "step.onnx") == (tmp_path / "step.onnx", tmp_path / "unet.onnx.data")
