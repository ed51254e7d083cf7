"""int8 on export: what calibrates it, what it keeps out, what comes of it end to end."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("nncf", reason="quantises with the package nncf")

import diffplugin
from diffplugin.bundle import default_bundle, open_bundle
from diffplugin.engines.choice import get_builder
from diffplugin.export import measures
from diffplugin.export.checkpoints import embedded_checkpoint
from diffplugin.export.exporter import export_bundle
from diffplugin.export.maintenance import verify
from diffplugin.export.quantize import KINDS, SAMPLES, calibration_inputs, default_photos, quantize_bundle
from diffplugin.spec import check_inputs


def test_calibration_sees_every_kind_plugin_and_many_timesteps() -> None:
    bundle = open_bundle(default_bundle())
    pictures = default_photos(2, 64)
    found = calibration_inputs(bundle, get_builder("onnxruntime"), pictures, steps=6)
    kinds = {key.partition("/")[0] for key in found}
    assert kinds == set(KINDS)
    assert {key for key in found if key.startswith("scb/")} == {f"scb/{p}" for p in bundle.manifest.plugins}
    for key, items in found.items():
        assert 0 < len(items) <= SAMPLES, key
        for item in items:
            check_inputs(bundle.spec(key), item)
    times = {item["time"].tobytes() for item in found["unet"]}
    assert len(times) >= 4, f"{len(times)} different timesteps among {len(found['unet'])} inputs"


def test_a_graph_over_its_budget_stays_in_floating_point(tmp_path: Path) -> None:
    bundle = open_bundle(default_bundle())
    random = np.random.default_rng(0)
    copy = tmp_path / "bundle"
    copy.mkdir()
    shutil.copytree(bundle.path / "onnx", copy / "onnx")
    items = {"vae_encoder": [{"image": random.uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32)} for _ in range(2)]}
    lines: list[str] = []
    moved = type(bundle)(copy, replace(bundle.manifest, files={}))
    kept = quantize_bundle(moved, get_builder("openvino"), items, budget=0.0, log=lines.append)
    assert kept == {} and not list(copy.rglob("*.xml")) and not list(copy.rglob("*.bin"))
    assert "stays in floating point" in lines[0]


def test_int8_weights_of_the_vision_encoder_survive_the_cache(tmp_path: Path) -> None:
    """Its last operator cuts a token off; a compiled model imported with the weights of its IR cut one more."""
    bundle = open_bundle(default_bundle())
    copy = tmp_path / "bundle"
    copy.mkdir()
    shutil.copytree(bundle.path / "onnx", copy / "onnx")
    builder = get_builder("openvino")
    pixels = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    moved = type(bundle)(copy, replace(bundle.manifest, files={}))
    entries = quantize_bundle(moved, builder, {"clip_vision": [{"pixels": pixels}]})
    ready = type(bundle)(copy, replace(bundle.manifest, files={}, variants={"int8": entries}))
    made = []
    for precision in ("fp32", "int8", "int8"):
        engine = builder.load(ready, "clip_vision", precision=precision, threads=None, cache=tmp_path / "cache")
        made.append(engine.run({"pixels": pixels})["patches"])
        engine.close()
    exact, compiled, imported = made
    assert len(list((tmp_path / "cache").rglob("*.blob"))) == 2
    error = measures.relative_error(imported, exact)
    print(f"relative error {error:.1e}")
    assert 1e-5 < error < 0.05
    assert np.array_equal(compiled, imported)


@pytest.mark.slow
def test_the_embedded_model_in_int8(tmp_path: Path) -> None:
    """Export, verify, run: at least 33 dB against its own fp32 at 20 steps (issue: exact schedule, int8)."""
    checkpoint, cards, name = embedded_checkpoint(["derain"])
    out = export_bundle(checkpoint, tmp_path / "int8", name=name, cards=cards, engine="openvino", precision="int8")
    assert verify(out) == []
    picture = measures.synthetic_photo(256, 256, seed=9)
    made = {}
    for precision in ("fp32", "int8"):
        with diffplugin.load(out, engine="openvino", precision=precision) as restorer:
            made[precision] = np.asarray(restorer.restore(picture, plugins=["derain"], steps=20).image)
    found = measures.psnr(made["int8"], made["fp32"])
    print(f"{found:.1f} dB")
    assert found >= 33
