"""Compiled models: made once, kept in the cache or the bundle, and checked before they are used."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openvino", reason="needs the extra [openvino]")

from diffplugin.bundle import ENGINES, Bundle, list_files
from diffplugin.engines.base import BuildOptions
from diffplugin.engines.compiled_cache import write_blob
from diffplugin.engines.openvino import engine as engine_module
from diffplugin.engines.openvino.builder import OpenVinoBuilder
from diffplugin.engines.openvino.model import check_hint, compile_graph, compile_properties
from diffplugin.errors import BundleDamaged, EngineUnavailable
from diffplugin.manifest import EngineEntry, fingerprint
from diffplugin.shapes import Range
from tests.engines.openvino.conftest import load

Make = Callable[..., Any]
Worst = Callable[[Any, Any], float]


def forbid_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(*args: object) -> None:
        raise AssertionError("compiled although it need not")

    monkeypatch.setattr(engine_module, "compile_graph", compiled)


def blobs(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.blob"))


def test_casts_of_half_weights_are_gone_after_loading(make: Make) -> None:
    tiny = make(half=True)
    path = tiny.bundle.graph_file("unet")
    properties = compile_properties(path, "f32", 1)
    compiled = compile_graph(path, tiny.bundle.spec("unet"), {"h": 8, "w": 8}, properties)
    kinds = {op.get_rt_info()["layerType"].astype(str) for op in compiled.get_runtime_model().get_ops()}
    assert "Convolution" in kinds and "Convert" not in kinds, kinds


def test_another_graph_in_the_file_is_refused(tiny: Any) -> None:
    path, spec = tiny.bundle.graph_file("unet"), tiny.bundle.spec("vae_decoder")
    with pytest.raises(BundleDamaged, match=r"no vae_decoder graph.*expected latents.*expected image"):
        compile_graph(path, spec, {"h": 8, "w": 8}, {})


def test_threads_are_for_processors(tiny: Any) -> None:
    path = tiny.bundle.graph_file("unet")
    assert "INFERENCE_NUM_THREADS" in compile_properties(path, "f32", 2)
    assert compile_properties(path, "f16", 2, "GPU.0") == {
        "INFERENCE_PRECISION_HINT": "f16",
        "PERFORMANCE_HINT": "LATENCY",
    }


def test_a_cached_model_of_another_hint_is_refused(tiny: Any) -> None:
    """The gate itself, on every processor: what OpenVINO says that it computes in is compared with what was asked."""
    path = tiny.bundle.graph_file("unet")
    compiled = compile_graph(path, tiny.bundle.spec("unet"), {"h": 8, "w": 8}, compile_properties(path, "f32", 1))
    check_hint(compiled, {"INFERENCE_PRECISION_HINT": "f32"})
    with pytest.raises(EngineUnavailable, match="asked for bf16, it computes in f32; use --precision fp32"):
        check_hint(compiled, {"INFERENCE_PRECISION_HINT": "bf16"})


@pytest.mark.parametrize("external", [False, True])
def test_the_second_load_takes_the_compiled_model(make: Make, monkeypatch: pytest.MonkeyPatch, external: bool) -> None:
    tiny = make(external=external)
    cache = tiny.bundle.path.parent / "cache"
    inputs = tiny.inputs()
    first = load(tiny, cache=cache).run(inputs)["eps"]
    assert len(blobs(cache)) == 1
    forbid_compiling(monkeypatch)
    np.testing.assert_array_equal(load(tiny, cache=cache).run(inputs)["eps"], first)
    with pytest.raises(AssertionError, match="compiled"):
        load(tiny, cache=cache).run(tiny.inputs(9, 9))  # another shape is another compiled model
    with pytest.raises(AssertionError, match="compiled"):
        other = replace(tiny.bundle.manifest.graphs["unet"], sha256="0" * 64)
        manifest = replace(tiny.bundle.manifest, graphs={"unet": other})
        load(replace(tiny, bundle=Bundle(tiny.bundle.path, manifest)), cache=cache).run(inputs)


def test_weights_beside_the_graph_are_not_copied_into_compiled_models(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {}
    for external in (False, True):
        tiny = make(f"external-{external}", external=external)
        load(tiny, cache=tiny.bundle.path / "cache").run(tiny.inputs())
        (blob,) = blobs(tiny.bundle.path / "cache")
        sizes[external] = blob.stat().st_size
    assert sizes[False] - sizes[True] > 2000, sizes  # 2.5 kB of weights
    # and a bundle may move after it was compiled
    moved = tiny.bundle.path.rename(tiny.bundle.path.with_name("moved"))
    forbid_compiling(monkeypatch)
    there = replace(tiny, bundle=Bundle(moved, tiny.bundle.manifest))
    assert load(there, cache=moved / "cache").run(there.inputs())["eps"].shape == (1, 4, 8, 8)


@pytest.mark.parametrize("damage", ["flipped", "cut", "foreign contents"])
def test_a_damaged_compiled_model_is_named_and_made_again(
    tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    cache = tmp_path / "cache"
    first = load(tiny, cache=cache).run(tiny.inputs())["eps"]
    (blob,) = blobs(cache)
    whole = blob.read_bytes()
    if damage == "foreign contents":
        write_blob(blob, b"whole, but no model")
    else:
        blob.write_bytes(whole[:500] + b"?" + whole[501:] if damage == "flipped" else whole[:500])
    with caplog.at_level(logging.WARNING, "diffplugin"):
        again = load(tiny, cache=cache).run(tiny.inputs())["eps"]
    np.testing.assert_array_equal(again, first)
    assert blob.name in caplog.text and "compiling unet again" in caplog.text
    forbid_compiling(monkeypatch)
    load(tiny, cache=cache).run(tiny.inputs())  # the new one is sound


def test_a_cache_that_cannot_be_written_costs_no_run(
    tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    with caplog.at_level(logging.WARNING, "diffplugin"):
        load(tiny, cache=tmp_path / "file").run(tiny.inputs())
    assert "compiled model not kept" in caplog.text


def built(tiny: Any, **changes: str) -> Any:
    """The bundle with an engine built ahead for 8x8, or one that says it was built elsewhere."""
    builder, bundle = OpenVinoBuilder(), tiny.bundle
    about = {"version": builder.version(), "device": builder.device()} | changes
    sha = bundle.graph("unet").sha256
    name = fingerprint(sha, "h=8,w=8", "fp32", "openvino", about["version"], (about["device"],))
    folder = bundle.path / ENGINES / name
    profile = {"h": Range.of(8), "w": Range.of(8)}
    made = builder.build(bundle, "unet", precision="fp32", profile=profile, out=folder, options=BuildOptions())
    assert made is not None
    entry = EngineEntry(
        fingerprint=name,
        engine="openvino",
        precision="fp32",
        shapes="h=8,w=8",
        graph="unet",
        graph_sha256=sha,
        files=tuple(file.relative_to(bundle.path).as_posix() for file in made.files),
        version=about["version"],
        devices=(about["device"],),
    )
    files = list_files(bundle.path)
    return replace(tiny, bundle=Bundle(bundle.path, replace(bundle.manifest, engines=(entry,), files=files)))


def test_an_engine_built_ahead_is_used(tiny: Any, worst: Worst, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = built(tiny)
    forbid_compiling(monkeypatch)
    inputs = ready.inputs()
    assert worst(load(ready).run(inputs)["eps"], ready.expected(inputs)) < 1e-5
    with pytest.raises(AssertionError, match="compiled"):
        load(ready).run(ready.inputs(9, 9))


@pytest.mark.parametrize("changes", [{"version": "1999.1"}, {"device": "another processor"}])
def test_a_foreign_engine_is_named_once_and_not_used(
    make: Make, worst: Worst, caplog: pytest.LogCaptureFixture, changes: dict[str, str]
) -> None:
    foreign = built(make(weights_bytes=2**32), **changes)  # keeps one shape, so that the first is loaded twice
    for path in blobs(foreign.bundle.path):
        path.write_bytes(b"must not be read")
    inputs = foreign.inputs()
    engine = load(foreign)
    with caplog.at_level(logging.WARNING, "diffplugin"):
        for again in (inputs, foreign.inputs(5, 5), inputs):
            assert worst(engine.run(again)["eps"], foreign.expected(again)) < 1e-5
        (said,) = [record.getMessage() for record in caplog.records]
    assert next(iter(changes.values())) in said and "dp-export --prune" in said and "Compiling again" in said
