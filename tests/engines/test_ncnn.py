"""ncnn: the embedded model's own graphs, converted here, beside ONNX Runtime."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ncnn", reason="needs the extra [ncnn]")

import diffplugin
from diffplugin.bundle import Bundle, default_bundle, open_bundle
from diffplugin.engines.choice import choose
from diffplugin.engines.ncnn import NcnnBuilder, NcnnEngine, folder_name
from diffplugin.engines.onnxruntime import OnnxRuntimeBuilder, OnnxRuntimeEngine
from diffplugin.engines.openvino.builder import OpenVinoBuilder
from diffplugin.errors import BundleDamaged, EngineError, EngineNotLoaded, EngineUnavailable, RequestError
from diffplugin.export.measures import psnr, relative_error
from diffplugin.export.onnx import example_inputs
from diffplugin.export.parity import tensor_budget
from diffplugin.runtime.restorer import Restorer
from diffplugin.spec import Array
from tests.engines.checks import check_any_memory_layout, check_threads_share

ROOT = Path(__file__).resolve().parents[2]
TENSOR, PICTURE_DB = 1e-4, 60.0  # against ONNX Runtime, float32; found: 5e-5, 76 dB
BF16_TENSOR, BF16_DB = 2e-2, 40.0  # found: 6e-3, 50 dB
GRAPHS = ("vae_encoder", "scb/derain", "unet", "unet_shallow", "vae_decoder", "head/demoire")
TASKS = ("derain", "desnow", "lowlight", "dehaze", "deblur", "highlight", "face", "demoire")


@pytest.fixture(scope="module")
def bundle(ncnn_bundle: Path) -> Bundle:
    return open_bundle(ncnn_bundle)


@pytest.fixture(scope="module")
def restorers(ncnn_bundle: Path) -> Iterator[tuple[Restorer, Restorer]]:
    with ExitStack() as stack:
        made = [stack.enter_context(diffplugin.load(ncnn_bundle, engine=e, precision="fp32", threads=1))
                for e in ("ncnn", "onnxruntime")]  # fmt: skip
        yield made[0], made[1]


def load(bundle: Bundle, key: str, precision: str = "fp32", threads: int | None = 1) -> Any:
    return NcnnBuilder().load(bundle, key, precision=precision, threads=threads, cache=None)


def inputs(bundle: Bundle, key: str, h: int, w: int, *, n: int = 1, seed: int = 0) -> dict[str, Array]:
    factor = bundle.manifest.dims.factor
    sizes = {"h": h, "w": w, "H": h * factor, "W": w * factor, "n": n}
    return example_inputs(bundle.spec(key), sizes, seed=seed)


def photo(width: int, height: int) -> Array:
    from PIL import Image

    with Image.open(ROOT / "docs/examples/moose-dark.jpg") as image:
        return np.asarray(image.convert("RGB").crop((150, 60, 150 + width, 60 + height)))


@pytest.mark.parametrize("key", GRAPHS)
def test_graphs_equal_onnxruntimes_at_any_size(bundle: Bundle, key: str) -> None:
    """Odd and unequal sides; none of them is one that the graphs were converted with."""
    made = load(bundle, key)
    expected = OnnxRuntimeBuilder().load(bundle, key, precision="fp32", threads=1, cache=None)
    assert isinstance(made, NcnnEngine)
    for h, w in ((8, 8), (33, 15), (20, 47)):
        given = inputs(bundle, key, h, w, n=2)  # two timesteps of the SCB, which ncnn takes one by one
        found, wanted = made.run(given), expected.run(given)
        for name, value in wanted.items():
            assert found[name].dtype == np.float32
            error = relative_error(found[name], value)
            # a change is small beside what it is computed from
            budget = tensor_budget("ncnn", "fp32") if key.startswith("head/") else TENSOR
            assert error <= budget, f"{key} {name} at {h}x{w}: {error:.1e}"


@pytest.mark.parametrize("task", TASKS)
def test_every_task_gives_onnxruntimes_picture(restorers: tuple[Restorer, Restorer], task: str) -> None:
    degradations = pytest.importorskip("diffplugin.plugins.train.degradations", exc_type=ImportError)
    acted = False
    for size in ((128, 128), (150, 91)):
        given = degradations.degrade(photo(*size), task, 1)  # a plugin leaves alone what does not need it
        made, expected = (r.restore(given, plugins=[task]).array for r in restorers)
        found = psnr(made, expected)
        print(f"{task} {size}: {found:.1f} dB")
        assert found >= PICTURE_DB, f"{task} at {size}: {found:.1f} dB"
        acted |= not np.array_equal(made, given)
    assert acted, "the plugin did nothing"


def test_words_and_pieces(restorers: tuple[Restorer, Restorer]) -> None:
    """The request's graphs run in ONNX Runtime; a photo in pieces takes several sizes of one engine."""
    made, expected = (r.restore(photo(300, 170), "brighten this dark photo", tile=96) for r in restorers)
    assert (
        made.plan.engine == "ncnn" and [s.plugin for s in made.plan.chain] == ["lowlight"] and len(made.plan.tiles) > 1
    )
    assert psnr(made.array, expected.array) >= PICTURE_DB


def test_bf16_stays_near_float32(bundle: Bundle, ncnn_bundle: Path, restorers: tuple[Restorer, Restorer]) -> None:
    given = inputs(bundle, "unet", 20, 30)
    full, stored = (load(bundle, "unet", precision).run(given)["eps"] for precision in ("fp32", "bf16"))
    assert 1e-4 < relative_error(stored, full) <= BF16_TENSOR
    with diffplugin.load(ncnn_bundle, engine="ncnn", precision="bf16", threads=1) as restorer:
        made, expected = (r.restore(photo(128, 128), plugins=["lowlight"]).array for r in (restorer, restorers[1]))
    assert BF16_DB <= psnr(made, expected) < 65


def test_the_requests_graphs_are_onnxruntimes(bundle: Bundle) -> None:
    for key in ("clip_text", "clip_vision", "selector", "diagnosis", "tpb/derain"):
        assert isinstance(load(bundle, key), OnnxRuntimeEngine), key


def test_several_threads_share_one_engine(bundle: Bundle) -> None:
    engine = load(bundle, "unet_shallow", threads=2)
    cases = [inputs(bundle, "unet_shallow", 8 + i % 3, 11, seed=i) for i in range(12)]
    check_threads_share(engine, cases)


def test_arrays_that_are_not_contiguous_or_read_only(bundle: Bundle) -> None:
    check_any_memory_layout(load(bundle, "vae_decoder"), inputs(bundle, "vae_decoder", 9, 12), "image")


def test_a_result_belongs_to_the_caller(bundle: Bundle) -> None:
    engine, given = load(bundle, "vae_decoder"), inputs(bundle, "vae_decoder", 9, 12)
    made = engine.run(given)["image"]
    kept = made.copy()
    engine.run(inputs(bundle, "vae_decoder", 9, 12, seed=1))
    np.testing.assert_array_equal(made, kept)
    assert made.flags.writeable


def test_a_closed_engine_says_so(bundle: Bundle) -> None:
    engine = load(bundle, "vae_decoder")
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="vae_decoder: this engine is closed"):
        engine.run(inputs(bundle, "vae_decoder", 8, 8))


def test_only_precisions_and_threads_that_it_has(bundle: Bundle) -> None:
    assert NcnnBuilder().precisions() == ("fp32", "bf16")
    for precision in ("fp16", "int8"):
        with pytest.raises(EngineUnavailable, match=rf"engine ncnn: {precision} does not run .*use --precision fp32"):
            load(bundle, "unet", precision)
    with pytest.raises(RequestError, match="threads is 0"):
        load(bundle, "unet", threads=0)


def test_a_bundle_without_its_graphs_names_the_export() -> None:
    with pytest.raises(EngineUnavailable, match=r"has no graphs for ncnn; export it with dp-export --engine ncnn"):
        load(open_bundle(default_bundle()), "unet")


def test_an_older_library_than_the_bundles_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """ncnn 1.0.20260526 loads graphs of 1.0.20261020 and computes them wrongly."""
    monkeypatch.setattr(NcnnBuilder, "version", lambda self: "1.0.20260526")
    said = r"has graphs of ncnn 1\.0\.\d+, which 1\.0\.20260526 may compute wrongly; pip install -U"
    with pytest.raises(EngineUnavailable, match=said):
        load(bundle, "unet")
    builder, precision, reason = choose("auto", "fp32", bundle=bundle)
    assert (builder.name, precision) == ("onnxruntime", "fp32")
    monkeypatch.setattr(OpenVinoBuilder, "unavailable_reason", lambda self: "not here")
    builder, precision, reason = choose(bundle=bundle, device="cpu")
    assert (builder.name, precision) == ("onnxruntime", "fp32") and "may compute wrongly" in reason


def test_auto_takes_in_fp32_what_was_measured_to_be_faster(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFPLUGIN_CACHE", str(tmp_path))
    monkeypatch.setattr(OpenVinoBuilder, "unavailable_reason", lambda self: "not here")
    measured = choose("auto", "fp32", bundle=bundle)[0].name
    (kept,) = json.loads((tmp_path / "fastest.json").read_text()).values()
    assert sorted(kept) == ["ncnn", "onnxruntime"] and kept[0] == measured
    for faster in (True, False):
        monkeypatch.setattr(NcnnBuilder, "faster_than", lambda self, other, bundle, faster=faster: faster)
        taken = "ncnn" if faster else "onnxruntime"
        assert choose("auto", "fp32", bundle=bundle)[0].name == taken
        builder, precision, reason = choose(bundle=bundle, device="cpu")
        other = "onnxruntime" if faster else "ncnn"
        assert (builder.name, precision) == (taken, "fp32") and f"{other}: no faster in fp32" in reason
        assert choose("auto", "bf16", bundle=bundle)[0].name == choose("ncnn", bundle=bundle)[0].name == "ncnn"


@pytest.mark.parametrize("name", ["vae_decoder.bin", "vae_decoder.param"])
def test_a_damaged_file_is_refused(ncnn_bundle: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(ncnn_bundle, tmp_path / "bundle")
    path = tmp_path / "bundle" / folder_name() / name
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(BundleDamaged, match=rf"{name}: contents changed") as caught:
        load(open_bundle(tmp_path / "bundle"), "vae_decoder")
    assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(BundleDamaged, match=rf"{name}: missing"):
        load(open_bundle(tmp_path / "bundle"), "vae_decoder")


def test_files_that_the_library_cannot_read(bundle: Bundle, ncnn_bundle: Path, tmp_path: Path) -> None:
    """As in a bundle that was written wrong: hashes fit, contents do not."""
    spec, source = bundle.spec("unet_shallow"), ncnn_bundle / folder_name()
    text, weights = (source / "unet_shallow.param").read_text(), (source / "unet_shallow.bin").read_bytes()
    other = (source / "vae_decoder.param").read_text()
    cases: tuple[tuple[str, bytes, type[Exception], str], ...] = (
        (text, weights[:-1000], EngineNotLoaded, r"graph\.bin: ncnn cannot load these weights"),
        (text, b"", EngineNotLoaded, r"graph\.bin: ncnn cannot load these weights"),
        ("nothing", weights, EngineNotLoaded, r"graph\.param: ncnn [0-9.]+ cannot read it"),
        (text.replace("Swish", "Swash", 1), weights, EngineNotLoaded, r"graph\.param: ncnn [0-9.]+ cannot read it"),
        (other, weights, BundleDamaged, r"is no unet_shallow graph.*its outputs are image, expected eps"),
    )
    for param, blob, error, said in cases:
        (tmp_path / "graph.param").write_text(param)
        (tmp_path / "graph.bin").write_bytes(blob)
        with pytest.raises(error, match=said) as caught:
            NcnnEngine(spec, tmp_path / "graph.param", 1)
        assert "\n" not in str(caught.value)


_WAITING = """
import os
from diffplugin.engines.ncnn import NcnnBuilder
assert NcnnBuilder().unavailable_reason() is None
print(os.environ.get("OMP_WAIT_POLICY"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads what GNU's OpenMP says of itself")
@pytest.mark.parametrize(("given", "used"), [(None, "PASSIVE"), ("active", "ACTIVE")])
def test_its_threads_wait_without_computing(monkeypatch: pytest.MonkeyPatch, given: str | None, used: str) -> None:
    """The setting is there while the library is loaded, and gone afterwards; the user's own stays."""
    monkeypatch.setenv("OMP_DISPLAY_ENV", "true")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    done = subprocess.run([sys.executable, "-c", _WAITING], capture_output=True, text=True, check=True, cwd=ROOT)
    assert f"OMP_WAIT_POLICY = '{used}'" in done.stderr, done.stderr
    assert done.stdout.strip() == str(given)


def test_its_plan_counts_its_memory(restorers: tuple[Restorer, Restorer]) -> None:
    ours, other = (r.plan(photo(128, 128), plugins=["derain"])[0].memory for r in restorers)
    assert ours.weights == 3 * other.weights and ours.per_latent_pixel > other.per_latent_pixel
