"""The graph form for ONNX Runtime's CUDA provider, on a processor: equal to the plain form, float16 as forecast."""

from __future__ import annotations

import re
import shutil
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch", reason="needs the extra [export]")
pytest.importorskip("onnx", reason="needs the extra [export]")
ir = pytest.importorskip("onnx_ir", reason="needs the extra [export]")

import onnx
import torch
from onnx import helper

from diffplugin.bundle import Bundle, default_bundle, list_files, open_bundle, write_manifest
from diffplugin.engines.base import BuildOptions
from diffplugin.engines.choice import get_builder
from diffplugin.engines.onnxruntime import OnnxRuntimeEngine
from diffplugin.errors import EngineUnavailable
from diffplugin.export.checkpoints import embedded_checkpoint
from diffplugin.export.cuda import EmulatedCuda, cuda_graph, export_cuda
from diffplugin.export.fp16.variant import write_step
from diffplugin.export.graphs import module_for
from diffplugin.export.maintenance import verify
from diffplugin.export.measures import psnr, relative_error
from diffplugin.export.onnx import example_inputs, save
from diffplugin.export.parity import compare_graphs
from diffplugin.export.prebuild import choose_builder
from diffplugin.export.reference import ReferenceBuilder
from diffplugin.export.written_out import write_out
from diffplugin.runtime.restorer import Restorer

ROOT = Path(__file__).resolve().parents[2]

STEP = 1e-5  # of a step in float32, against the plain form
# Relative errors that were measured, and twice as much is the bound.
MEASURED = {
    "clip_text": 4.9e-4,
    "clip_vision": 5.9e-4,
    "diagnosis": 2.7e-4,
    "tpb/derain": 1.0e-3,
    "selector": 3e-7,
    "vae_encoder": 4.3e-4,
    "scb/derain": 7.2e-4,
    "head/derain": 4.3e-4,
    "unet": 4.6e-4,
    "unet_shallow": 3.0e-4,
    "vae_decoder": 5.9e-4,
}


@pytest.fixture(scope="module")
def bundle(cuda_bundle: Path) -> Bundle:
    return open_bundle(cuda_bundle)


def _operators(bundle: Bundle, key: str, precision: str = "fp16") -> Counter[str]:
    return Counter(node.op_type for node in ir.load(bundle.graph_file(key, f"cuda-{precision}")).graph)


def test_the_bundle_is_sound_and_has_every_graph(bundle: Bundle) -> None:
    assert verify(bundle.path) == []
    fp16, fp32 = (set(bundle.manifest.variants[f"cuda-{precision}"]) for precision in ("fp16", "fp32"))
    assert fp16 == {*bundle.manifest.graphs, "step"} and fp16 - fp32 == {"vae_encoder", "vae_decoder"}


def test_norms_and_attention_are_fused(bundle: Bundle) -> None:
    """Every norm is GroupNorm, every softmax is in an attention; the step's arithmetic stays float32."""
    for key, norms, attentions in (("unet", 41, 11), ("step", 41, 11), ("vae_decoder", 17, 0), ("vae_encoder", 11, 0)):
        found = _operators(bundle, key)
        assert (found["GroupNorm"], found["MultiHeadAttention"]) == (norms, attentions), (key, found)
        assert not {"Softmax", "GroupNormalization", "InstanceNormalization", "ReduceMean"} & set(found), (key, found)
    graph = ir.load(bundle.graph_file("step", "cuda-fp16")).graph
    for node in graph:
        if node.op_type == "GroupNorm":
            assert [value.dtype for value in node.inputs] == [ir.DataType.FLOAT16, *[ir.DataType.FLOAT] * 2], node.name


def test_a_step_is_the_plain_forms_step(bundle: Bundle, tmp_path: Path) -> None:
    """In float32, at two sizes, one odd: the CUDA operators that a processor lacks are written out again."""
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "unet.onnx").write_bytes(bundle.graph_file("unet").read_bytes())
    write_step(tmp_path, bundle.spec("step"), "plain")
    expected = OnnxRuntimeEngine(bundle.spec("step"), plain / "step.onnx", 1)
    engine = EmulatedCuda().load(bundle, "step", precision="fp32", threads=1, cache=None)
    for h, w in ((16, 24), (13, 11)):
        inputs = example_inputs(bundle.spec("step"), {"h": h, "w": w})
        wanted, made = expected.run(inputs), engine.run(inputs)
        errors = {name: relative_error(made[name], wanted[name]) for name in wanted}
        print(f"{h}x{w}", {name: f"{error:.1e}" for name, error in errors.items()})
        assert max(errors.values()) <= STEP, errors


def test_float16_stays_near_float32(bundle: Bundle) -> None:
    faults, reference = [], ReferenceBuilder(embedded_checkpoint(["derain"])[0])
    for found in compare_graphs(bundle, reference, EmulatedCuda(), precision="fp16", vocabulary=1000):
        print(found.describe())
        worst = max(found.errors.values())
        if not worst <= 2 * MEASURED[found.key]:
            faults.append(f"{found.key}: {worst:.1e}, measured {MEASURED[found.key]:.1e}")
    assert not faults, "; ".join(faults)


@pytest.mark.slow
def test_every_tasks_picture_in_float16(tmp_path: Path) -> None:
    """What a GPU is held to (bench.gpu_acceptance.bars), with every result rounded: one step, 256x256."""
    from diffplugin.bench.gpu_acceptance.bars import EMBEDDED_FP16_DB

    folder = Path(shutil.copytree(default_bundle(), tmp_path / "embedded"))
    manifest = open_bundle(folder).manifest
    variants = {"cuda-fp16": export_cuda(embedded_checkpoint([])[0], folder, "fp16", lambda line: None)}
    write_manifest(folder, replace(manifest, variants=variants, files=list_files(folder)))
    with Image.open(ROOT / "docs/examples/mountains-rainy.jpg") as image:
        photo = np.asarray(image.convert("RGB").resize((256, 256)))
    faults, found = [], open_bundle(folder)
    with Restorer(found, EmulatedCuda(), "fp16") as half, Restorer(found, get_builder("onnxruntime"), "fp32") as full:
        for plugin in manifest.plugins:
            made, expected = (one.restore(photo, plugins=[plugin], steps=1).array for one in (half, full))
            print(f"{plugin}: {psnr(made, expected):.1f} dB")
            if not psnr(made, expected) >= EMBEDDED_FP16_DB:
                faults.append(plugin)
    assert not faults, f"below {EMBEDDED_FP16_DB:g} dB: {', '.join(faults)}"


def test_large_maps_keep_exact_norms_in_float32(bundle: Bundle, tmp_path: Path) -> None:
    """Squares that are summed in one float32 lose three digits over a photo's maps: the autoencoder's stay apart."""
    key = "vae_encoder"
    spec, module = bundle.spec(key), module_for(embedded_checkpoint(["derain"])[0], key)
    model = cuda_graph(module, spec, "fp32", factor=bundle.manifest.dims.factor)
    found = Counter(node.op_type for node in model.graph)
    assert not found["GroupNorm"] and found["ReduceL2"] == 11, found
    save(model, tmp_path / "encoder.onnx")
    made = OnnxRuntimeEngine(spec, tmp_path / "encoder.onnx", 1)
    expected = OnnxRuntimeEngine(spec, bundle.graph_file(key), 1)
    inputs = example_inputs(spec, {"H": 96, "W": 160})
    assert relative_error(made.run(inputs)["cond"], expected.run(inputs)["cond"]) <= STEP


def test_full_widths_fuse_their_gated_activations() -> None:
    """The provider's kernel has Stable Diffusion's three widths and no other."""
    from diffplugin.plugins.networks.attention import _GEGLU
    from diffplugin.plugins.networks.form import traced_as

    for width, fused in ((320, 1), (640, 1), (1280, 1), (128, 0)):
        layer = _GEGLU(width, width * 4).eval()
        with traced_as("cuda-fp16"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                layer, (torch.zeros(1, 2, width),), opset_version=21, dynamo=True, verbose=False, verify=False
            )
        assert program is not None
        assert sum(node.op_type == "BiasSplitGelu" for node in program.model.graph) == fused, width


# The written-out operators against their formulas, in float64


def _written_out(node: onnx.NodeProto, inputs: dict[str, np.ndarray], tmp_path: Path) -> np.ndarray:
    """What the node computes once it is written out, on ONNX Runtime."""
    import onnxruntime as ort

    entering = [helper.make_tensor_value_info(name, 1, value.shape) for name, value in inputs.items()]
    graph = helper.make_graph([node], "g", entering, [helper.make_tensor_value_info("y", 1, None)])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    assert len(write_out(model)) > 0
    save(model, tmp_path / "g.onnx")
    return np.asarray(ort.InferenceSession(tmp_path / "g.onnx").run(["y"], inputs)[0])


@pytest.mark.parametrize("activation", [0, 1])
def test_group_norm_written_out_is_its_formula(activation: int, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    x, scale, bias = (random.standard_normal(shape).astype(np.float32) for shape in ((2, 5, 7, 12), 12, 12))
    settings = {"groups": 4, "epsilon": 1e-5, "activation": activation, "channels_last": 1}
    node = helper.make_node("GroupNorm", ["x", "s", "b"], ["y"], domain="com.microsoft", **settings)
    made = _written_out(node, {"x": x + 3, "s": scale, "b": bias}, tmp_path)
    grouped = (x + 3).astype(float).reshape(2, 35, 4, 3)
    centred = grouped - grouped.mean((1, 3), keepdims=True)
    normal = (centred / np.sqrt(centred.var((1, 3), keepdims=True) + 1e-5)).reshape(2, 5, 7, 12) * scale + bias
    expected = normal / (1 + np.exp(-normal)) if activation else normal
    assert relative_error(made, expected) <= 1e-6


def test_bias_split_gelu_written_out_is_its_formula(tmp_path: Path) -> None:
    from math import erf

    random = np.random.default_rng(1)
    x, bias = (random.standard_normal(shape).astype(np.float32) for shape in ((1, 6, 16), 16))
    node = helper.make_node("BiasSplitGelu", ["x", "b"], ["y"], domain="com.microsoft")
    made = _written_out(node, {"x": x, "b": bias}, tmp_path)
    value, gate = np.split(x.astype(float) + bias, 2, axis=-1)
    expected = value * gate * (1 + np.vectorize(erf)(gate / np.sqrt(2))) / 2
    assert made.shape == (1, 6, 8) and relative_error(made, expected) <= 1e-6


# Export


def test_an_export_for_it_needs_no_gpu() -> None:
    for precision, chosen in (("auto", "fp16"), ("fp16", "fp16"), ("fp32", "fp32")):
        builder, used, reason = choose_builder("onnxruntime-cuda", precision, BuildOptions())
        assert isinstance(builder, EmulatedCuda) and used == chosen and reason
    with pytest.raises(EngineUnavailable, match=r"has fp16, fp32 alone; use --precision fp16"):
        choose_builder("onnxruntime-cuda", "int8", BuildOptions())


def test_a_bundle_without_such_graphs_names_the_export() -> None:
    remedy = re.escape("has no fp16 graphs for onnxruntime-cuda; export it with dp-export --engine onnxruntime-cuda")
    with pytest.raises(EngineUnavailable, match=remedy):
        EmulatedCuda().load(open_bundle(default_bundle()), "unet", precision="fp16", threads=1, cache=None)
