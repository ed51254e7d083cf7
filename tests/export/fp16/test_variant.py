"""The fp16 variant of the embedded trained model, with every float16 result rounded: budgets, the step, the picture."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch", reason="needs the extra [export]")
onnx = pytest.importorskip("onnx", reason="needs the extra [export]")
ir = pytest.importorskip("onnx_ir", reason="needs the extra [export]")

from diffplugin.bundle import Bundle, open_bundle
from diffplugin.errors import ParityError
from diffplugin.export import parity
from diffplugin.export.checkpoints import embedded_checkpoint
from diffplugin.export.fp16.convert import ISLANDS, to_fp16
from diffplugin.export.fp16.emulate import EmulatedFp16
from diffplugin.export.graphs import module_for
from diffplugin.export.maintenance import verify
from diffplugin.export.measures import psnr, relative_error
from diffplugin.export.onnx import example_inputs, save, trace
from diffplugin.export.parity import compare_graphs
from diffplugin.export.reference import ReferenceBuilder
from diffplugin.plugins.networks.form import portable
from diffplugin.runtime.restorer import Restorer
from diffplugin.runtime.sampling.loop import sample, step_weights
from diffplugin.runtime.sampling.noise_schedule import NoiseSchedule
from diffplugin.runtime.sampling.samplers import step_table
from diffplugin.runtime.sampling.time_features import sinusoidal
from diffplugin.spec import Array

ROOT = Path(__file__).resolve().parents[3]
# Relative errors that were measured, and twice as much is the bound.
MEASURED = {
    "clip_text": 4.9e-4,
    "clip_vision": 8.5e-4,
    "diagnosis": 2.7e-4,
    "tpb/derain": 1e-3,
    "selector": 3e-7,
    "vae_encoder": 5.4e-4,
    "scb/derain": 7.1e-4,
    "head/derain": 4.3e-4,
    "unet": 4.8e-4,
    "unet_shallow": 3.2e-4,
    "step": 3.3e-4,
    "vae_decoder": 6.7e-4,
}


@pytest.fixture(scope="module")
def bundle(half_bundle: Path) -> Bundle:
    return open_bundle(half_bundle)


@pytest.fixture(scope="module")
def engines() -> EmulatedFp16:
    return EmulatedFp16()


def test_the_bundle_is_sound_and_has_every_graph(bundle: Bundle) -> None:
    assert verify(bundle.path) == []
    assert set(bundle.manifest.variants["fp16"]) == {*bundle.manifest.graphs, "step"} == set(MEASURED)
    assert all(bundle.graph_file(key, "fp16").is_relative_to(bundle.path / "fp16") for key in bundle.keys("fp16"))


def test_the_graphs_are_portable(bundle: Bundle) -> None:
    """ONNX's own operators alone, and attention and norms in the forms that compilers fuse."""
    for key in bundle.keys("fp16"):
        nodes = list(ir.load(bundle.graph_file(key, "fp16")).graph)
        assert {node.domain for node in nodes} <= {""}, key
        onnx.checker.check_model(bundle.graph_file(key, "fp16"), full_check=True)  # types among others
        kinds, one_group = {n.op_type for n in nodes}, key.startswith("vae")
        assert ("InstanceNormalization" in kinds) == one_group, key
        norms = [n for n in nodes if n.op_type == "GroupNormalization"]
        assert all(n.attributes["num_groups"].as_int() > 1 for n in norms), f"{key}: TensorRT's issue 4756"
    found = [node.op_type for node in ir.load(bundle.graph_file("unet", "fp16")).graph]
    assert (found.count("Softmax"), found.count("GroupNormalization")) == (11, 41)


def test_every_graph_stays_near_float32(bundle: Bundle, engines: EmulatedFp16) -> None:
    faults, reference = [], ReferenceBuilder(embedded_checkpoint(["derain"])[0])
    for found in compare_graphs(bundle, reference, engines, precision="fp16", vocabulary=1000):
        print(found.describe())
        worst = max(found.errors.values())
        if not worst <= 2 * MEASURED[found.key]:
            faults.append(f"{found.key}: {worst:.1e}, measured {MEASURED[found.key]:.1e}")
    assert not faults, "; ".join(faults)


def test_a_graph_over_its_budget_names_its_layer(
    bundle: Bundle, engines: EmulatedFp16, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(parity.TENSOR_BUDGET, "fp16", 1e-5)
    graphs = {"tpb/derain": bundle.manifest.graphs["tpb/derain"]}
    variants = {"fp16": {"tpb/derain": bundle.graph("tpb/derain", "fp16")}}
    alone = Bundle(bundle.path, replace(bundle.manifest, graphs=graphs, variants=variants))
    (found,) = compare_graphs(alone, engines, engines, precision="fp16", vocabulary=1000)
    assert not found.within
    with pytest.raises(
        ParityError, match=r"tpb/derain .*budget 1e-05\); \S+ leaves it first: \d\.\de-0[45], values up to"
    ):
        parity.check([found], (99.0, 40.0))


def test_the_patches_island_does_no_harm(bundle: Bundle, engines: EmulatedFp16, tmp_path: Path) -> None:
    """Its measurement in ISLANDS: without it the error was a multiple over one model, and is the same over another."""
    assert {island.name for island in ISLANDS} == {"patches", "selector"}
    spec = bundle.spec("clip_vision")
    inputs = example_inputs(spec, {})
    exact = engines.load(bundle, "clip_vision", precision="fp32", threads=2, cache=None).run(inputs)["patches"]
    with portable():
        model = trace(module_for(embedded_checkpoint([])[0], "clip_vision"), spec, factor=4)
    to_fp16(model, "clip_vision", ())
    path = bundle.graph_file("clip_vision", "fp16")
    errors = {}
    for name, file in (("with", path), ("without", tmp_path / "clip_vision.onnx")):
        if name == "without":
            save(model, file)
        made = engines.load_file(spec, file, threads=2).run(inputs)["patches"]
        errors[name] = relative_error(made, exact)
    print(errors)
    assert errors["without"] > errors["with"], errors


def _loop(bundle: Bundle, engines: EmulatedFp16) -> Iterator[tuple[str, Array, Array]]:
    """(start, latent of the loop around ``unet``, latent of the loop of ``step``)."""
    dims, random = bundle.manifest.dims, np.random.default_rng(0)
    shape = (1, dims.latent_channels, 16, 24)
    noise, cond = (random.standard_normal(shape).astype(np.float32) for _ in range(2))
    table = step_table("unipc", NoiseSchedule.from_config(bundle.manifest.scheduler), 6)
    time = sinusoidal(table.t, dims.time_features, flip_sin_to_cos=True, freq_shift=0)
    drawn = example_inputs(bundle.spec("unet"), {"h": 16, "w": 24})
    fixed = {name: drawn[name] for name in ("tokens", "residual_0", "residual_1", "residual_2")}
    unet, step = (engines.load(bundle, key, precision="fp16", threads=2, cache=None) for key in ("unet", "step"))

    def denoise(i: int, latents: Array) -> Array:
        return unet.run(fixed | {"latents": latents, "time": time[i : i + 1]})["eps"]

    starts: tuple[Literal["noised_input", "noise"], ...] = ("noised_input", "noise")
    for start in starts:
        expected = sample(table, denoise, noise, cond, start=start, renoise_from_t=700)
        latents = last = x0_1 = x0_2 = np.zeros_like(noise)
        for i in range(len(table)):
            known = {"latents": latents, "cond": cond, "noise": noise, "last": last, "x0_1": x0_1, "x0_2": x0_2}
            weights = {"weights": step_weights(table, i, start, 700), "time": time[i : i + 1]}
            made = step.run(fixed | known | weights)
            latents, last, x0_1, x0_2 = made["next_latents"], made["next_last"], made["next_x0"], x0_1
        yield start, expected, latents


def test_a_loop_of_step_is_the_loop_of_the_sampler(bundle: Bundle, engines: EmulatedFp16) -> None:
    for start, expected, found in _loop(bundle, engines):
        error = relative_error(found, expected)
        print(f"{start}: {error:.1e}")
        assert error <= 1e-6, f"{start}: {error:.1e}"


def test_weights_beside_the_unet_are_not_repeated(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the UNet is large, ``step`` names its weights."""
    from diffplugin.export import onnx
    from diffplugin.export.fp16 import variant

    monkeypatch.setattr(onnx, "EXTERNAL_ABOVE", 2**20)
    entries = {"unet": variant.write(ir.load(bundle.graph_file("unet", "fp16")), tmp_path, "unet")}
    entries["step"] = variant.write_step(tmp_path, bundle.spec("step"))
    assert sorted(p.name for p in (tmp_path / "fp16").iterdir()) == ["step.onnx", "unet.onnx", "unet.onnx.data"]
    assert (tmp_path / "fp16/step.onnx").stat().st_size < 2**20
    assert entries["step"].sha256 != entries["unet"].sha256 and entries["step"].weights_bytes > 7e6
    weights = {v.name: v.const_value for v in ir.load(tmp_path / "fp16/step.onnx").graph.initializers.values()}
    assert {t.location for t in weights.values() if isinstance(t, ir.ExternalTensor)} == {"unet.onnx.data"}


@pytest.mark.slow
def test_polygraphy_finds_no_fault(bundle: Bundle) -> None:
    """Its linter, on every graph: nodes that cannot run, or run otherwise than they say."""
    for package in ("polygraphy", "onnx_graphsurgeon"):
        pytest.importorskip(package, reason=f"lints with the package {package}")
    lint = "import sys, polygraphy.tools; sys.exit(polygraphy.tools.main())"
    sizes = {"h": 8, "w": 12, "H": 32, "W": 48, "n": 2, "p": 3}
    for key in bundle.keys("fp16"):
        shapes = {t.name: [sizes[a] if isinstance(a, str) else a for a in t.axes] for t in bundle.spec(key).inputs}
        given = [f"{name}:{shape}".replace(" ", "") for name, shape in shapes.items()]
        command = [sys.executable, "-c", lint, "check", "lint", str(bundle.graph_file(key, "fp16"))]
        done = subprocess.run([*command, "--input-shapes", *given], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{key}: {done.stdout[-2000:]}"


def _photo(side: int) -> Array:
    with Image.open(ROOT / "docs/examples/mountains-rainy.jpg") as image:
        return np.asarray(image.convert("RGB").resize((side, side)))


@pytest.mark.parametrize(
    ("steps", "side", "bound"), [(1, 128, 55), pytest.param(20, 256, 50, marks=pytest.mark.slow)], ids=str
)
def test_the_picture_is_that_of_float32(
    bundle: Bundle, engines: EmulatedFp16, steps: int, side: int, bound: float
) -> None:
    """The issue asks for 40 dB."""
    made = []
    for precision in ("fp16", "fp32"):
        with Restorer(bundle, engines, precision) as restorer:
            made.append(restorer.restore(_photo(side), plugins=["derain"], steps=steps).array)
    found = psnr(*made)
    print(f"{steps} steps: {found:.1f} dB")
    assert found >= bound, f"{found:.1f} dB"


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(512, 512), (768, 1024)])
def test_no_graph_overflows_at_full_size(bundle: Bundle, engines: EmulatedFp16, height: int, width: int) -> None:
    """In the order of a restoration, every graph on what the one before made."""
    from diffplugin.export.parity import Chain, in_order

    factor = bundle.manifest.dims.factor
    chain = Chain(bundle.manifest, 1000, height // factor, width // factor)
    for key in in_order(bundle.keys("fp16")):
        engine = engines.load(bundle, key, precision="fp16", threads=2, cache=None)
        outputs = engine.run(chain.inputs(bundle.spec(key)))
        engine.close()
        for name, value in outputs.items():
            assert np.isfinite(value).all(), f"{key}, {name} at {height}x{width}"
        chain.learn(outputs)
