"""The bundle: read, verified, written and pruned."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
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
    list_bundles,
    list_files,
    open_bundle,
    prune,
    sha256,
    verify,
    write_manifest,
    writing,
)
from diffplugin.engines.onnxruntime import OnnxRuntimeBuilder
from diffplugin.errors import BundleDamaged, BundleError, BundleTooNew, ForeignEngine
from diffplugin.manifest import FORMAT, MANIFEST, EngineEntry, GraphEntry, Manifest, fingerprint
from diffplugin.plugins.cards import card_to_toml, shipped_cards
from diffplugin.spec import ModelDims

DIMS = ModelDims(
    factor=8,
    latent_channels=4,
    residual_channels=8,
    time_features=6,
    tokens=5,
    token_width=8,
    vision_width=8,
    vision_size=14,
    context=7,
    native_latent=8,
)
HERE = {"version": OnnxRuntimeBuilder().version(), "device": OnnxRuntimeBuilder().device()}
KEYS = ("clip_text", "clip_vision", "selector", "vae_encoder", "unet", "vae_decoder", "tpb/derain", "scb/derain")


def write(folder: Path, name: str = "small", **engine: str) -> Manifest:
    """A sound bundle of made-up graphs with one plugin, and one engine if its machine is given."""
    graphs = {}
    for key in KEYS:
        kind, _, plugin = key.partition("/")
        file = folder / (f"plugins/{plugin}/{kind}.onnx" if plugin else f"onnx/{kind}.onnx")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(f"graph {key}".encode() * 20)
        if key == "unet":
            file.with_name("unet.onnx.data").write_bytes(bytes(range(200)))
        digest = sha256(*graph_files(file))
        graphs[key] = GraphEntry(file=file.relative_to(folder).as_posix(), sha256=digest, weights_bytes=80)
    (folder / "plugins/derain/card.toml").write_text(card_to_toml(shipped_cards()["derain"]), encoding="utf-8")
    (folder / "tokenizer.json").write_text("{}")
    entries = []
    if engine:
        about = HERE | {"graph": "unet", "precision": "fp32", "engine": "onnxruntime", "shapes": "h=8,w=8"} | engine
        sha = about.pop("graph_sha256", graphs["unet"].sha256)
        print_ = fingerprint(
            sha, about["shapes"], about["precision"], about["engine"], about["version"], about["device"]
        )
        name_ = about.pop("fingerprint", print_)
        blob = folder / ENGINES / name_ / "model.blob"
        blob.parent.mkdir(parents=True)
        blob.write_bytes(b"engine" * 100)
        files = (f"{ENGINES}/{name_}/model.blob",)
        entries.append(EngineEntry(fingerprint=name_, graph_sha256=sha, files=files, **about))
    manifest = Manifest(
        created_with="0.1.0",
        name=name,
        source={"unet": {"name": "unet.safetensors", "sha256": "0" * 64}},
        dims=DIMS,
        scheduler={"beta_start": 0.00085, "num_train_timesteps": 1000},
        time_embedding={"flip_sin_to_cos": True, "freq_shift": 0},
        clip={"mean": (0.5, 0.25, 0.125), "std": (1, 2, 3)},
        graphs=graphs,
        plugins=("derain",),
        selector=True,
        parity={"relative_error": {"unet": {"eps": 1e-06}}},
        files=list_files(folder),
        engines=tuple(entries),
    )
    write_manifest(folder, manifest)
    return manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "bundle")
    return tmp_path / "bundle"


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest's JSON, and its digest with it."""
    value = json.loads((folder / MANIFEST).read_text())
    del value["digest"]
    change(value)
    text = json.dumps(value, indent=1, sort_keys=True) + "\n"
    value["digest"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(value))


# --- the manifest


def test_the_manifest_survives_its_file(tmp_path: Path) -> None:
    manifest = write(tmp_path, version="1")
    assert open_bundle(tmp_path).manifest == manifest
    assert open_bundle(str(tmp_path)).manifest.to_json() == manifest.to_json()


def test_the_same_bundle_is_the_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write(first)
    manifest = write(second)
    shuffled = replace(
        manifest, graphs=dict(reversed(list(manifest.graphs.items()))), files=dict(sorted(manifest.files.items()))
    )
    write_manifest(second, shuffled)
    assert (first / MANIFEST).read_bytes() == (second / MANIFEST).read_bytes()
    assert str(tmp_path) not in (first / MANIFEST).read_text()


def test_every_flipped_bit_of_the_manifest_is_found(folder: Path) -> None:
    path = folder / MANIFEST
    whole = path.read_bytes()
    for i in range(0, len(whole), 29):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        with pytest.raises(BundleError) as caught:
            open_bundle(folder)
        assert "\n" not in str(caught.value), f"byte {i}"


@pytest.mark.parametrize("kept", [0, 1, 100, 1000, -2])
def test_a_truncated_manifest_is_found(folder: Path, kept: int) -> None:
    path = folder / MANIFEST
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(BundleDamaged, match=r"manifest\.json: not JSON .* export again"):
        open_bundle(folder)
    assert len(verify(folder)) == 1


@pytest.mark.parametrize(
    "text", ["[]", "3", "null", "{}", '{"format": "1"}', '{"format": true}', '{"format": 0}', "[" * 9999]
)
def test_json_that_is_no_manifest(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text)
    with pytest.raises(BundleDamaged, match=r"no format number|not JSON"):
        open_bundle(folder)


def test_bytes_that_are_no_text(folder: Path) -> None:
    (folder / MANIFEST).write_bytes(b"\xff\xfe{}")
    with pytest.raises(BundleDamaged, match="cannot be read"):
        open_bundle(folder)


def test_a_newer_format_names_both_sides_and_the_remedy(folder: Path) -> None:
    # whatever else a newer format holds, only its number is looked at
    (folder / MANIFEST).write_text(json.dumps({"format": FORMAT + 1, "graphs": "elsewhere"}))
    with pytest.raises(
        BundleTooNew, match=rf"format {FORMAT + 1}, this version reads up to {FORMAT}\. Upgrade diffplugin"
    ):
        open_bundle(folder)
    assert "Upgrade" in verify(folder)[0]


def test_no_bundle_names_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "absent", tmp_path / "file"):
        with pytest.raises(BundleError, match=r"no manifest\.json, so no bundle; make one with dp-export"):
            open_bundle(path)


def test_all_faults_of_a_manifest_at_once(folder: Path) -> None:
    def spoil(value: dict[str, Any]) -> None:
        del value["name"]
        del value["dims"]["factor"]
        value["colour"] = "red"
        value["plugins"] = "derain"
        value["selector"] = 1
        value["graphs"]["unet"]["weights_bytes"] = "many"
        value["graphs"]["selector"] = None
        value["clip"]["mean"][1] = "half"
        value["engines"] = [{"files": [3]}]

    edit(folder, spoil)
    with pytest.raises(BundleDamaged) as caught:
        open_bundle(folder)
    for part in (
        "name is missing",
        "dims.factor is missing",
        "colour is unknown",
        'plugins is "derain", expected tuple',
        "selector is 1, expected bool",
        'graphs.unet.weights_bytes is "many", expected int',
        "graphs.selector is null, expected an object",
        'clip.mean[1] is "half", expected float',
        "engines[0].fingerprint is missing",
        "engines[0].files[0] is 3, expected str",
    ):
        assert part in str(caught.value), f"{part!r} not in {caught.value}"


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "C:\\x", "C:x", "..\\x", ""])
def test_names_that_lead_out_of_the_bundle_are_refused(folder: Path, name: str) -> None:
    edit(folder, lambda value: value["graphs"]["unet"].update(file=name))
    with pytest.raises(BundleDamaged, match=r"graphs\.unet\.file: .* leads out of the bundle"):
        open_bundle(folder)


# --- the opened bundle


def test_files_specs_and_cards(folder: Path) -> None:
    bundle = open_bundle(folder)
    assert bundle.graph_file("scb/derain") == folder / "plugins/derain/scb.onnx"
    assert bundle.spec("scb/derain").graph == "scb"
    assert bundle.spec("unet").inputs[2].axes == (1, DIMS.tokens, DIMS.token_width)
    assert bundle.cards() == {"derain": shipped_cards()["derain"]}
    with pytest.raises(BundleError, match=r"no graph 'scb/desnow'; it has .*scb/derain"):
        bundle.graph_file("scb/desnow")
    with pytest.raises(BundleError, match="no kind of graph is called 'sbc'"):
        bundle.spec("sbc/derain")
    bundle.graph_file("unet").unlink()
    with pytest.raises(BundleDamaged, match=r"unet\.onnx: missing; export the bundle again"):
        bundle.graph_file("unet")


def test_only_the_manifest_is_read_at_first(tmp_path: Path) -> None:
    write(tmp_path / "whole")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / MANIFEST).write_bytes((tmp_path / "whole" / MANIFEST).read_bytes())
    assert open_bundle(tmp_path / "bare").manifest.plugins == ("derain",)


def find(bundle: Bundle, **changes: str) -> EngineEntry | None:
    wanted = HERE | {"key": "unet", "engine": "onnxruntime", "precision": "fp32", "shapes": "h=8,w=8"} | changes
    return bundle.engine(wanted.pop("key"), **wanted)


def test_engines_are_found_by_all_that_they_depend_on(tmp_path: Path) -> None:
    write(tmp_path, version=HERE["version"])
    bundle = open_bundle(tmp_path)
    assert find(bundle) == bundle.manifest.engines[0]
    for other in ({"precision": "bf16"}, {"engine": "openvino"}, {"shapes": "h=9,w=8"}, {"key": "vae_decoder"}):
        assert find(bundle, **other) is None
    for foreign in ({"version": "0"}, {"device": "elsewhere"}):
        with pytest.raises(ForeignEngine, match=r"built for version .* dp-export --prune"):
            find(bundle, **foreign)


def test_a_fingerprint_depends_on_everything() -> None:
    parts = ["graph", "shapes", "precision", "engine", "version", "device"]
    prints = {fingerprint(*(p + "!" if i == changed else p for i, p in enumerate(parts))) for changed in range(7)}
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


# --- verify


def test_a_sound_bundle_has_no_faults(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", version=HERE["version"])
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


def test_what_a_bundle_needs_must_be_listed(folder: Path) -> None:
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
def test_a_foreign_engine_is_found_and_pruned(tmp_path: Path, engine: dict[str, str], fault: str) -> None:
    folder = tmp_path / "bundle"
    entry = write(folder, **engine).engines[0]
    (said,) = verify(folder)
    assert fault in said and entry.fingerprint in said and "\n" not in said
    gone, freed = prune(folder)
    assert gone == [str(folder / ENGINES / entry.fingerprint)] and freed == 600
    assert verify(folder) == [] and open_bundle(folder).manifest.engines == ()


def test_an_engine_must_lie_where_it_belongs(tmp_path: Path) -> None:
    write(tmp_path, version=HERE["version"])
    edit(tmp_path, lambda value: value["engines"][0].update(files=["onnx/unet.onnx", "engines/none"]))
    faults = "\n".join(verify(tmp_path))
    assert "onnx/unet.onnx is not in engines/" in faults and "engines/none is not among the files" in faults


# --- prune and list


def test_pruning_keeps_what_is_sound(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    write(folder, version=HERE["version"])
    before = list_files(folder), (folder / MANIFEST).read_bytes()
    assert prune(folder) == ([], 0)
    assert (list_files(folder), (folder / MANIFEST).read_bytes()) == before


def test_pruning_removes_left_overs_but_no_living_export(folder: Path) -> None:
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


def test_bundles_are_listed_by_path(tmp_path: Path) -> None:
    for place in ("b", "a", "deep/c", "b.writing-1"):
        write(tmp_path / place, name=place)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / MANIFEST).write_text("{")
    assert [bundle.manifest.name for bundle in list_bundles(tmp_path)] == ["a", "b", "deep/c"]
    assert [bundle.manifest.name for bundle in list_bundles(tmp_path / "a")] == ["a"]
    assert list_bundles(tmp_path / "absent") == []


# --- writing


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_new_bundle_appears_whole(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with writing(out) as folder:
        assert folder.parent == out.parent and not out.exists()
        write(folder)
    assert verify(out) == [] and names(out.parent) == ["out"]
    assert out.stat().st_mode & 0o777 == 0o755


def test_an_older_bundle_is_replaced_and_nothing_of_it_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, name="old", version=HERE["version"])
    with writing(out) as folder:
        write(folder, name="new")
        assert open_bundle(out).manifest.name == "old"
    assert open_bundle(out).manifest.name == "new"
    assert verify(out) == [] and names(tmp_path) == ["out"]


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("existing", [True, False])
def test_a_failed_export_changes_nothing(tmp_path: Path, kind: type[BaseException], existing: bool) -> None:
    out = tmp_path / "out"
    if existing:
        write(out, name="old")
    before = names(tmp_path)
    with pytest.raises(kind), writing(out) as folder:
        write(folder, name="new")
        raise kind
    assert names(tmp_path) == before
    assert not existing or (open_bundle(out).manifest.name == "old" and verify(out) == [])


def test_an_interrupt_between_the_two_renames_brings_the_old_bundle_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    write(out, name="old")
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if target == out and not self.name.endswith(".old"):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), writing(out) as folder:
        write(folder, name="new")
    assert names(tmp_path) == ["out"] and open_bundle(out).manifest.name == "old" and verify(out) == []


@pytest.mark.parametrize("existing", [True, False])
def test_two_exporters_do_not_collide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool) -> None:
    """The second one finishes between the two renames of the first one: the last to finish wins, whole."""
    out = tmp_path / "out"
    if existing:
        write(out, name="old")
    rename, done = Path.rename, list[str]()

    def overtaken(self: Path, target: Path) -> Path:
        if target == out and not done:
            done.append("second")
            with writing(out) as folder:
                write(folder, name="second")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", overtaken)
    with writing(out) as folder:
        write(folder, name="first")
    assert open_bundle(out).manifest.name == "first"
    assert done and verify(out) == [] and names(tmp_path) == ["out"]


def test_two_exporters_side_by_side(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with writing(out) as first, writing(out) as second:
        assert first != second
        write(first, name="first")
        write(second, name="second")
    assert open_bundle(out).manifest.name == "first"  # the inner one finished before
    assert verify(out) == [] and names(tmp_path) == ["out"]


def test_a_folder_that_is_no_bundle_is_left_alone(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.png").write_bytes(b"cat")
    (tmp_path / "file").write_text("text")
    for out in (photos, tmp_path / "file"):
        with pytest.raises(BundleError, match="exists and is no bundle; name another folder with --out"), writing(out):
            pytest.fail("was opened for writing")
    assert names(tmp_path) == ["file", "photos"] and names(photos) == ["cat.png"]
    with pytest.raises(BundleError, match="cannot be written"), writing(tmp_path / "file" / "out"):
        pytest.fail("was opened for writing")


def test_an_empty_folder_and_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "empty"
    out.mkdir()
    monkeypatch.chdir(out)
    with writing(Path()) as folder:
        assert folder.parent == tmp_path
        write(folder)
    assert verify(out) == [] and names(tmp_path) == ["empty"]


def test_a_killed_export_leaves_the_old_bundle_and_something_to_prune(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, name="old")
    code = (
        "import os, pathlib\n"
        "from diffplugin.bundle import writing\n"
        f"with writing(pathlib.Path({str(out)!r})) as folder:\n"
        "    (folder / 'half').write_bytes(bytes(100))\n"
        "    os._exit(9)"
    )
    root = Path(__file__).resolve().parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 9
    assert open_bundle(out).manifest.name == "old" and verify(out) == []
    gone, freed = prune(out)
    assert len(gone) == 1 and freed == 100 and names(tmp_path) == ["out"]
