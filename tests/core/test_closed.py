"""Bundles are closed: what is read lies inside, is listed, and is what it was when the manifest was written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffplugin import integrity
from diffplugin.bundle import Bundle, default_bundle, list_files, open_bundle, write_manifest
from diffplugin.engines.onnxruntime import OnnxRuntimeBuilder
from diffplugin.errors import BundleDamaged, CheckpointError
from diffplugin.export.maintenance import verify
from diffplugin.external_data import locations
from diffplugin.integrity import NotRegular, cached_sha256, read_text, sha256
from diffplugin.manifest import MANIFEST, Manifest

Edit = Callable[[Path, Callable[[dict[str, Any]], object]], None]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIFFPLUGIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(integrity, "_known", {})
    return tmp_path / "cache"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture
def embedded(tmp_path: Path, cache: Path) -> Bundle:
    """The embedded model, copied an hour ago."""
    shutil.copytree(default_bundle(), tmp_path / "embedded")
    return open_bundle(tmp_path / "embedded")


@pytest.mark.parametrize("name", ["onnx/unet.onnx", "plugins/derain/scb.onnx", "tokenizer.json"])
def test_a_changed_file_is_noticed_when_it_is_read(embedded: Bundle, name: str) -> None:
    embedded.file(name)
    before = (embedded.path / name).stat()
    flip(embedded.path / name)
    os.utime(embedded.path / name, ns=(before.st_atime_ns, before.st_mtime_ns))  # and its time set back
    with pytest.raises(BundleDamaged, match=rf"{name}: contents changed \(SHA-256 differs\); export the bundle again"):
        embedded.file(name)


def test_the_selector_is_checked_too_and_a_restorer_says_so(embedded: Bundle) -> None:
    import diffplugin

    flip(embedded.path / "onnx/vae_decoder.onnx")
    photo = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    with (
        diffplugin.load(embedded, engine="onnxruntime", threads=1) as restorer,
        pytest.raises(BundleDamaged, match=r"vae_decoder\.onnx: contents changed"),
    ):
        restorer.restore(photo, plugins=["lowlight"])


def test_a_file_is_hashed_once_and_again_when_it_changes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []

    def counted(*paths: Path) -> str:
        hashed.extend(paths)
        return sha256(*paths)

    monkeypatch.setattr(integrity, "sha256", counted)
    monkeypatch.setattr(integrity, "_SETTLED", 0.0)
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    time.sleep(0.02)
    for fresh in (False, False, True, True):  # in this process, and in the next ones
        if fresh:
            integrity._known.clear()
        assert cached_sha256(path, cache) == sha256(path)
    assert len(hashed) == 1
    path.write_bytes(b"two")
    assert cached_sha256(path, cache) == sha256(path) and len(hashed) == 2
    monkeypatch.setattr(integrity, "_SETTLED", 3600.0)  # a file that was written just now may change once more
    path.write_bytes(b"six")
    for _ in range(2):
        assert cached_sha256(path, cache) == sha256(path)
    assert len(hashed) == 4


def test_the_hashes_of_a_whole_bundle_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []
    read = integrity._read

    def counted(store: Path) -> dict[str, object]:
        reads.append(store)
        return read(store)

    monkeypatch.setattr(integrity, "_read", counted)
    monkeypatch.setattr(integrity, "_SETTLED", 0.0)
    cache, paths = tmp_path / "cache", [tmp_path / f"{number}" for number in range(5)]
    for path in paths:
        path.write_bytes(path.name.encode())
    time.sleep(0.02)
    for path in paths:
        cached_sha256(path, cache)
    integrity._known.clear()  # as in the next process
    integrity._stores.clear()
    reads.clear()
    for path in paths:
        assert cached_sha256(path, cache) == sha256(path)
    assert len(reads) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", '{"x": 3}', "[" * 100_000])
def test_a_damaged_memory_of_hashes_costs_time_alone(tmp_path: Path, cache: Path, content: str) -> None:
    cache.mkdir()
    (cache / "hashes.json").write_text(content)
    (tmp_path / "weights").write_bytes(b"one")
    assert cached_sha256(tmp_path / "weights", cache) == sha256(tmp_path / "weights")
    assert cached_sha256(tmp_path / "weights", tmp_path / "weights") == sha256(tmp_path / "weights")


def test_a_bundle_that_was_exported_again_does_not_mix(embedded: Bundle) -> None:
    """The new one is sound in itself; who has opened the old one is told to load again."""
    flip(embedded.path / "plugins/derain/tpb.onnx")
    manifest = replace(embedded.manifest, files=list_files(embedded.path))
    write_manifest(embedded.path, manifest)
    assert open_bundle(embedded.path).file("plugins/derain/tpb.onnx")
    with pytest.raises(BundleDamaged, match="exported again since it was loaded: load it again"):
        embedded.graph_file("tpb/derain")
    embedded.graph_file("unet")  # what has not changed is the same in both


def test_a_bundle_that_is_replaced_while_a_graph_loads_is_refused(embedded: Bundle) -> None:
    other = embedded.path.with_name("other")
    shutil.copytree(embedded.path, other)
    with (
        pytest.raises(BundleDamaged, match=r"unet\.onnx: was replaced while it was loaded"),
        embedded.reading("unet"),
    ):
        embedded.path.rename(embedded.path.with_name("old"))
        other.rename(embedded.path)


def test_files_that_are_not_listed_are_not_read(embedded: Bundle) -> None:
    table = embedded.path / "plugins" / "compounds.toml"
    table.write_text('[x]\nphrases = ["bad weather"]\ntasks = ["deblur"]\n')
    with pytest.raises(BundleDamaged, match=r"compounds\.toml: not in the manifest"):
        embedded.compounds()
    listed = replace(embedded.manifest, files=list_files(embedded.path))
    assert Bundle(embedded.path, listed).compounds()["x"].tasks == ("deblur",)
    flip(table)
    with pytest.raises(BundleDamaged, match=r"compounds\.toml: contents changed"):
        Bundle(embedded.path, listed).compounds()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="FIFOs are Unix's")
@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "link out"])
@pytest.mark.parametrize("name", [MANIFEST, "onnx/unet.onnx", "tokenizer.json", "plugins/derain/card.toml"])
def test_what_is_no_regular_file_is_refused_at_once(embedded: Bundle, name: str, kind: str) -> None:
    path = embedded.path / name
    moved = embedded.path.with_name("moved")
    path.rename(moved)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(moved)
    if name == MANIFEST:
        if kind == "link out":
            pytest.skip("nothing is read before the manifest; it may be anywhere")
        with pytest.raises(BundleDamaged, match=r"manifest\.json: cannot be read|no regular file"):
            open_bundle(embedded.path)
    else:
        with pytest.raises(BundleDamaged, match=r"leads out of the bundle|no regular file"):
            embedded.file(name)
        assert any(str(path) in fault for fault in verify(embedded.path))


def _onnx(path: Path, location: str, *, attribute: bool = False) -> None:
    """A graph of one input and one weight that lies in ``location``."""
    onnx = pytest.importorskip("onnx", reason="makes its graphs with the package onnx")
    from onnx import TensorProto, helper

    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="offset", value="0")
    weight.external_data.add(key="location", value=location)
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    if attribute:  # in a branch of a node of the graph
        inner = helper.make_graph([helper.make_node("Constant", [], ["v"], value=weight)], "inner", [], [sides[1]])
        nodes = [helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)]
    graph = helper.make_graph(nodes, "g", sides[:1], sides[1:], [] if attribute else [weight])
    path.write_bytes(helper.make_model(graph).SerializeToString())
    assert onnx is not None


@pytest.mark.parametrize("attribute", [False, True])
@pytest.mark.parametrize(
    "location", ["../../secret", "/etc/passwd", "sub/../../x", "*/_ORT_MEM_ADDR_/*", "other.data", "\x1b[2J"]
)
def test_weights_outside_the_bundle_are_refused_whatever_the_engine_does(
    embedded: Bundle, location: str, attribute: bool
) -> None:
    path = embedded.path / "onnx/unet.onnx"
    _onnx(path, location, attribute=attribute)
    assert locations(path) == {location}
    bundle = Bundle(embedded.path, replace(embedded.manifest, files=list_files(embedded.path)))
    with pytest.raises(BundleDamaged, match="is no file of this bundle") as caught:
        OnnxRuntimeBuilder().load(bundle, "unet", precision="fp32", threads=1, cache=None)
    assert str(caught.value).isprintable()
    write_manifest(bundle.path, bundle.manifest)
    assert any("takes weights from" in fault for fault in verify(bundle.path))


def test_weights_beside_a_graph_are_its_own_even_as_a_link(embedded: Bundle) -> None:
    path = embedded.path / "onnx/unet.onnx"
    _onnx(path, "unet.onnx.data")
    secret = embedded.path.with_name("secret")
    secret.write_bytes(bytes(16))
    (embedded.path / "onnx/unet.onnx.data").symlink_to(secret)
    bundle = Bundle(embedded.path, replace(embedded.manifest, files=list_files(embedded.path)))
    with pytest.raises(BundleDamaged, match=r"unet\.onnx\.data: leads out of the bundle"):
        bundle.graph_file("unet")
    (embedded.path / "onnx/unet.onnx.data").unlink()
    shutil.copyfile(secret, embedded.path / "onnx/unet.onnx.data")
    assert bundle.graph_file("unet") == path


@pytest.mark.parametrize("content", [b"", b"\x0b", b"\x3a\xff", b"\x3a\x05ab", b"\xff" * 12, b"\x3a\x02\x3a\x05"])
def test_what_is_no_onnx_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "g.onnx").write_bytes(content)
    with pytest.raises(ValueError, match=r"empty|field|number"):
        locations(tmp_path / "g.onnx")


def test_graphs_of_the_embedded_model_are_whole() -> None:
    for path in default_bundle().rglob("*.onnx"):
        assert locations(path) == set()


@pytest.mark.parametrize("text", ["\x1b[2J", "a\nb", "\u202egnp", "\x9b", "\x07"])
def test_no_text_of_a_bundle_can_steer_a_terminal(embedded: Bundle, edit: Edit, text: str) -> None:
    write_manifest(embedded.path, replace(embedded.manifest, name=text))
    with pytest.raises(BundleDamaged, match=r"name is .* expected printable characters alone") as caught:
        open_bundle(embedded.path)
    assert str(caught.value).isprintable()
    edit(embedded.path, lambda value: value.update(name="x", source={text: {"name": "x", "sha256": "0"}}))
    with pytest.raises(BundleDamaged, match="expected printable characters alone") as caught:
        open_bundle(embedded.path)
    assert str(caught.value).isprintable()


def test_a_file_that_is_too_large_for_what_it_is_is_not_read(tmp_path: Path, embedded: Bundle) -> None:
    with (embedded.path / MANIFEST).open("r+b") as file:
        file.truncate(2**36)  # 64 GiB of nothing
    with pytest.raises(BundleDamaged, match=r"manifest\.json: cannot be read \(has 68719476736 bytes"):
        Manifest.read(embedded.path)
    path = tmp_path / "text"
    path.write_text("12345")
    assert read_text(path, limit=5) == "12345"
    with pytest.raises(NotRegular, match="has 5 bytes, at most 4"):
        read_text(path, limit=4)


_HASHES = """
import sys, time
import diffplugin
from diffplugin.bundle import default_bundle, open_bundle
bundle = open_bundle(default_bundle())
began = time.perf_counter()
for key in bundle.keys():
    bundle.graph_file(key)
print(time.perf_counter() - began)
"""


def test_checking_a_bundle_again_costs_little(cache: Path) -> None:
    """30 graphs, 36 MB: hashed in the first process, looked up in the second."""
    taken = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", _HASHES], capture_output=True, text=True, check=True)
        taken.append(float(done.stdout))
    print(f"first {taken[0]:.3f} s, again {taken[1]:.3f} s")
    assert len(json.loads((cache / "hashes.json").read_text())) == 30
    assert taken[1] < 2, taken


def test_a_hostile_table_of_compounds_is_refused(tmp_path: Path) -> None:
    from diffplugin.plugins.compounds import compound_table

    (tmp_path / "compounds.toml").write_bytes(b"#" * 2**17)
    with pytest.raises(CheckpointError, match="has 131072 bytes, at most 65536"):
        compound_table(tmp_path)
