"""TensorRT-RTX engines of the embedded model, built on this machine with no GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from diffplugin.bundle import Bundle, open_bundle
from diffplugin.engines.base import BuildOptions
from diffplugin.engines.choice import get_builder
from diffplugin.engines.tensorrt.build_process import BuildSpec
from diffplugin.engines.tensorrt.builder import TensorRtBuilder, input_shapes, run_build
from diffplugin.errors import EngineError, EngineUnavailable, ForeignEngine, RequestError
from diffplugin.shapes import Range
from diffplugin.spec import GraphSpec, TensorSpec

GPUS = ("sm_86", "sm_89", "sm_120")
# (attentions, of them fused; group norms before a SiLU, of them fused) at 512x512. The embedded model has
# four groups and one attention head, where the library fuses not every norm and no attention of the UNet; at Stable
# Diffusion's widths all fuse (docs/tensorrt.md).
FUSED = {
    "clip_text": (3, 3, 0, 0),
    "diagnosis": (0, 0, 0, 0),
    "clip_vision": (4, 4, 0, 0),
    "selector": (0, 0, 0, 0),
    "tpb/derain": (0, 0, 0, 0),
    "vae_encoder": (0, 0, 11, 0),
    "scb/derain": (4, 0, 4, 4),
    "unet": (11, 0, 35, 24),
    "unet_shallow": (0, 0, 11, 10),
    "step": (11, 0, 35, 24),
    "head/derain": (0, 0, 0, 0),
    "vae_decoder": (0, 0, 17, 0),
}


@pytest.fixture(scope="module")
def rtx() -> TensorRtBuilder:
    builder = TensorRtBuilder("tensorrt-rtx")
    if reason := builder.build_unavailable_reason():
        pytest.skip(reason)
    return builder


@pytest.fixture(scope="module")
def built(rtx: TensorRtBuilder, half_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The embedded model with engines for three GPUs."""
    import shutil
    from dataclasses import replace

    from diffplugin.bundle import list_files, write_manifest
    from diffplugin.export.prebuild import build_engines, parse_size

    folder = tmp_path_factory.mktemp("built") / "bundle"
    shutil.copytree(half_bundle, folder)
    bundle = open_bundle(folder)
    options, sizes = BuildOptions(gpus=GPUS), [parse_size("512")]
    engines = build_engines(bundle, rtx, "fp16", sizes, options, lambda line: None)
    write_manifest(folder, replace(bundle.manifest, engines=engines, files=list_files(folder)))
    return open_bundle(folder)


def test_every_graph_is_built_for_three_gpus(built: Bundle) -> None:
    from diffplugin.export.maintenance import verify

    assert verify(built.path) == []
    for entry in built.manifest.engines:
        (file,) = entry.files
        assert entry.devices == GPUS and entry.engine == "tensorrt-rtx" and entry.precision == "fp16"
        assert file == f"engines/{entry.fingerprint}/{entry.graph.replace('/', '-')}.engine"
        assert (built.path / file).stat().st_size > 10_000
    assert {entry.graph for entry in built.manifest.engines} == set(built.keys("fp16")) == set(FUSED)


def test_no_fusion_is_lost(built: Bundle) -> None:
    found = {}
    for entry in built.manifest.engines:
        attention, norms = entry.report["attention"], entry.report["group_norm_silu"]
        found[entry.graph] = (attention["of"], attention["fused"], norms["of"], norms["fused"])
    assert found == FUSED


def test_attention_and_norms_fuse_at_stable_diffusions_widths(rtx: TensorRtBuilder, tmp_path: Path) -> None:
    """The SCB is the UNet's first level: 320 channels in 32 groups, 8 heads of 40, 4096 pixels."""
    torch = pytest.importorskip("torch", reason="needs the extra [export]")
    from dataclasses import replace

    from diffplugin.bench.full_width import SCB
    from diffplugin.bundle import default_bundle
    from diffplugin.export.fp16.convert import to_fp16
    from diffplugin.export.graphs import Scb
    from diffplugin.export.onnx import save, trace
    from diffplugin.plugins.networks.form import portable
    from diffplugin.plugins.networks.taskplugin import SpatialComplementBranch
    from diffplugin.spec import graph_specs

    torch.manual_seed(0)
    dims = replace(open_bundle(default_bundle()).manifest.dims, residual_channels=320, time_features=320)
    spec = graph_specs(replace(dims, token_width=768))["scb"]
    with portable():
        model = trace(Scb(SpatialComplementBranch(SCB)).eval(), spec, factor=8)
    to_fp16(model, "scb")
    save(model, tmp_path / "scb.onnx")
    shapes = input_shapes(spec, {"n": Range.of(1), "h": Range.of(64), "w": Range.of(64)})
    report = run_build(
        "scb",
        BuildSpec(
            library="tensorrt_rtx",
            gpus=("sm_89",),
            shapes=shapes,
            onnx=str(tmp_path / "scb.onnx"),
            engine=str(tmp_path / "scb.engine"),
        ),
    )
    for what in ("attention", "group_norm_silu"):
        assert report[what] == {"of": 4, "fused": 4, "unfused": []}, f"{what}: {report[what]}"
    assert report["group_norms"] == 6  # two stand before an attention block, with no SiLU


def test_the_report_is_the_contract(built: Bundle) -> None:
    """Inputs and outputs of every engine, their types and profiles, are those of the table of graphs."""
    for entry in built.manifest.engines:
        spec, tensors = built.spec(entry.graph), entry.report["tensors"]
        modes = {t.name: "input" for t in spec.inputs} | {t.name: "output" for t in spec.outputs}
        assert {name: about["mode"] for name, about in tensors.items()} == modes
        kinds = {"f32": "Float", "i64": "Int64"}
        assert all(tensors[t.name]["dtype"] == kinds[t.dtype] for t in (*spec.inputs, *spec.outputs)), entry.graph
        assert entry.report["activation_bytes"] > 0 and entry.report["weights_bytes"] > 0
    scb = next(e for e in built.manifest.engines if e.graph == "scb/derain")
    width = built.manifest.dims.time_features
    assert scb.report["tensors"]["time"]["profiles"] == [f"1,{width}:10,{width}:20,{width}"]
    assert scb.shapes == "n=1:10:20,h=128,w=128"


def test_an_engine_is_found_by_size_gpu_and_version(built: Bundle, rtx: TensorRtBuilder) -> None:
    def find(version: str = rtx.version(), device: str = "sm_89", **sizes: int) -> Any:
        wanted = {"n": 7, "h": 128, "w": 128} | sizes
        return built.engine(
            "scb/derain", engine="tensorrt-rtx", precision="fp16", sizes=wanted, version=version, device=device
        )

    assert find().graph == "scb/derain" and find(device="sm_120") == find()
    assert find(n=21) is None and find(h=64) is None
    with pytest.raises(
        ForeignEngine, match=r"built for version 1\.\S+ on sm_86, sm_89, sm_120; here are \S+ and sm_75"
    ):
        find(device="sm_75")
    with pytest.raises(ForeignEngine, match=r"here are 9\.9 and sm_89"):
        find(version="9.9")


def test_a_range_of_sizes(rtx: TensorRtBuilder, half_bundle: Path, tmp_path: Path) -> None:
    bundle = open_bundle(half_bundle)
    side = Range(64, 128, 256)

    def build(mib: int) -> Any:
        options = BuildOptions(gpus=("sm_89",), workspace=mib * 2**20, weight_streaming=True)
        profile = {"h": side, "w": side}
        return rtx.build(bundle, "vae_decoder", precision="fp16", profile=profile, out=tmp_path / "e", options=options)

    with pytest.raises(EngineError, match=r"vae_decoder: .*; raise --workspace, which is 1 MiB"):
        build(1)
    assert not (tmp_path / "e").exists()
    made = build(1024)
    assert made.report["tensors"]["latents"]["profiles"] == ["1,4,64,64:1,4,128,128:1,4,256,256"]
    assert made.files == (tmp_path / "e/vae_decoder.engine",) and made.files[0].is_file()


def test_options_are_refused_before_the_work(rtx: TensorRtBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    rtx.check_options(BuildOptions(gpus=GPUS))
    with pytest.raises(RequestError, match=r"sm_90, ampere is not among sm_75, sm_80, sm_86, sm_89, sm_120, sm_121"):
        rtx.check_options(BuildOptions(gpus=("sm_90", "sm_89", "ampere")))
    monkeypatch.setattr(TensorRtBuilder, "unavailable_reason", lambda self: "no GPU")
    with pytest.raises(RequestError, match=r"name the GPUs to build for, --gpus sm_89,sm_120 \(no GPU\)"):
        rtx.check_options(BuildOptions())


def test_too_little_memory_is_said_before_the_work(rtx: TensorRtBuilder, half_bundle: Path, tmp_path: Path) -> None:
    side, options = Range.of(8), BuildOptions(gpus=("sm_89",), memory=2**28)
    with pytest.raises(EngineError, match=r"unet: building its engine takes about 0\.\d GiB of memory, 0\.2 are free"):
        rtx.build(
            open_bundle(half_bundle),
            "unet",
            precision="fp16",
            profile={"h": side, "w": side},
            out=tmp_path / "e",
            options=options,
        )
    assert not (tmp_path / "e").exists()


def test_a_bundle_without_fp16_graphs_names_the_remedy(rtx: TensorRtBuilder, tmp_path: Path) -> None:
    from diffplugin.bundle import default_bundle

    options = BuildOptions(gpus=("sm_89",))
    with pytest.raises(EngineUnavailable, match="has no fp16 graphs; export it with dp-export --precision fp16"):
        rtx.build(
            open_bundle(default_bundle()), "unet", precision="fp16", profile={}, out=tmp_path / "e", options=options
        )


def test_input_shapes_are_those_of_the_free_inputs() -> None:
    spec = GraphSpec("g", (TensorSpec("x", "f32", (1, "h", "w")), TensorSpec("t", "f32", (1, 6))), ())
    shapes = input_shapes(spec, {"h": Range(1, 2, 3), "w": Range.of(5)})
    assert shapes == {"x": ((1, 1, 5), (1, 2, 5), (1, 3, 5))}


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_without_the_library_the_remedy_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for module in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, module, None)
    builder = get_builder(name)
    for reason in (builder.unavailable_reason(), builder.build_unavailable_reason()):
        assert reason is not None and f"pip install 'diffplugin[{name}]'" in reason
    assert builder.prebuilt_only and builder.ahead == (name == "tensorrt-rtx") and builder.precisions() == ("fp16",)
