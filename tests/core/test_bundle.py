"""The bundle: opened, and its graphs and engines found."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diffplugin.bundle import (
    Bundle,
    cache_folder,
    default_bundle,
    graph_files,
    list_files,
    open_bundle,
)
from diffplugin.engines.onnxruntime import OnnxRuntimeBuilder
from diffplugin.errors import BundleDamaged, BundleError, ForeignEngine
from diffplugin.integrity import sha256
from diffplugin.manifest import MANIFEST, EngineEntry, Manifest, fingerprint
from diffplugin.plugins.cards import card_to_toml, shipped_cards

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


def test_a_card_whose_head_is_not_there_is_refused(folder: Path) -> None:
    bundle = open_bundle(folder)
    card = folder / "plugins/derain/card.toml"
    card.write_text(card_to_toml(replace(bundle.card("derain"), output="head")), encoding="utf-8")
    with pytest.raises(
        BundleError, match=r'card of derain says output = "head", but the bundle has no graph head/dera'
    ):
        Bundle(folder, replace(bundle.manifest, files=list_files(folder))).card("derain")
