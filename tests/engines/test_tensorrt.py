"""TensorRT-RTX engines built on this machine, with no GPU; and what must go wrong in one line, leaving nothing."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from diffplugin.bundle import Bundle, open_bundle
from diffplugin.engines import builder_named
from diffplugin.engines.base import BuildOptions
from diffplugin.engines.tensorrt import TensorRtBuilder, input_shapes, run_job
from diffplugin.engines.tensorrt_build import Job, Refused, capability, check_shapes, make_network
from diffplugin.errors import EngineError, EngineUnavailable, ForeignEngine, RequestError
from diffplugin.shapes import Range
from diffplugin.spec import GraphSpec, TensorSpec

GPUS = ("sm_86", "sm_89", "sm_120")
# (attentions, of them fused; group norms before a SiLU, of them fused) at 512x512. The embedded model is narrow and has
# few groups, where the library has no fused norm for most; at Stable Diffusion's widths all fuse (docs/tensorrt.md).
FUSED = {
    "clip_text": (2, 2, 0, 0),
    "clip_vision": (4, 4, 0, 0),
    "selector": (0, 0, 0, 0),
    "tpb/derain": (0, 0, 0, 0),
    "vae_encoder": (0, 0, 11, 0),
    "scb/derain": (4, 4, 4, 0),
    "unet": (12, 12, 35, 10),
    "unet_shallow": (0, 0, 11, 0),
    "step": (12, 12, 35, 10),
    "vae_decoder": (0, 0, 17, 0),
}


@pytest.fixture(scope="module")
def rtx() -> TensorRtBuilder:
    builder = TensorRtBuilder("tensorrt-rtx")
    if reason := builder.why_cannot_build():
        pytest.skip(reason)
    return builder


@pytest.fixture(scope="module")
def built(rtx: TensorRtBuilder, half_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The embedded model with engines for three GPUs."""
    import shutil
    from dataclasses import replace

    from diffplugin.bundle import list_files, write_manifest
    from diffplugin.export.ahead import build_engines, parse_size

    folder = tmp_path_factory.mktemp("built") / "bundle"
    shutil.copytree(half_bundle, folder)
    bundle = open_bundle(folder)
    options, sizes = BuildOptions(gpus=GPUS), [parse_size("512")]
    engines = build_engines(bundle, rtx, "fp16", sizes, options, lambda line: None)
    write_manifest(folder, replace(bundle.manifest, engines=engines, files=list_files(folder)))
    return open_bundle(folder)


def test_every_graph_is_built_for_three_gpus(built: Bundle) -> None:
    from diffplugin.bundle import verify

    assert verify(built.path) == []
    for entry in built.manifest.engines:
        (file,) = entry.files
        assert entry.devices == GPUS and entry.engine == "tensorrt-rtx" and entry.precision == "fp16"
        assert file == f"engines/{entry.fingerprint}/{entry.graph.replace('/', '-')}.engine"
        assert (built.path / file).stat().st_size > 10_000
    assert {entry.graph for entry in built.manifest.engines} == set(built.keys("fp16")) == set(FUSED)


def test_no_fusion_is_lost(built: Bundle) -> None:
    for entry in built.manifest.engines:
        attention, norms = entry.report["attention"], entry.report["group_norm_silu"]
        found = (attention["of"], attention["fused"], norms["of"], norms["fused"])
        assert found == FUSED[entry.graph], f"{entry.graph}: {attention}, {norms}"


def test_attention_and_norms_fuse_at_stable_diffusions_widths(rtx: TensorRtBuilder, tmp_path: Path) -> None:
    """The SCB is the UNet's first level: 320 channels in 32 groups, 8 heads of 40, 4096 pixels."""
    torch = pytest.importorskip("torch", reason="needs the extra [export]")
    from dataclasses import replace

    from diffplugin.bench.full_width import SCB
    from diffplugin.bundle import default_bundle
    from diffplugin.export.graphs import Scb
    from diffplugin.export.half import to_half
    from diffplugin.export.onnx import save, trace
    from diffplugin.plugins.networks.form import portable
    from diffplugin.plugins.networks.taskplugin import SpatialComplementBranch
    from diffplugin.spec import graph_specs

    torch.manual_seed(0)
    dims = replace(open_bundle(default_bundle()).manifest.dims, residual_channels=320, time_features=320)
    spec = graph_specs(replace(dims, token_width=768))["scb"]
    with portable():
        model = trace(Scb(SpatialComplementBranch(SCB)).eval(), spec, factor=8)
    to_half(model, "scb")
    save(model, tmp_path / "scb.onnx")
    shapes = input_shapes(spec, {"n": Range.of(1), "h": Range.of(64), "w": Range.of(64)})
    report = run_job("scb", _job(tmp_path / "scb.onnx", shapes=shapes))
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
    assert scb.report["tensors"]["time"]["profiles"] == ["1,48:10,48:20,48"] and scb.shapes == "n=1:10:20,h=128,w=128"


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
    made = rtx.build(
        bundle,
        "vae_decoder",
        precision="fp16",
        profile={"h": side, "w": side},
        out=tmp_path / "e",
        options=BuildOptions(gpus=("sm_89",), workspace=2**28, weight_streaming=True),
    )
    assert made.report["tensors"]["latents"]["profiles"] == ["1,4,64,64:1,4,128,128:1,4,256,256"]
    assert made.files == (tmp_path / "e/vae_decoder.engine",) and made.files[0].is_file()


def _graph(path: Path, node: Any, *, half: Sequence[str] = (), axes: Sequence[Any] = (1, "h")) -> Path:
    """``y = node(a, b)``; inputs in ``half`` are float16."""
    onnx = pytest.importorskip("onnx", reason="makes its graphs with the package onnx")
    kind = {name: onnx.TensorProto.FLOAT16 if name in half else onnx.TensorProto.FLOAT for name in "ab"}
    made = onnx.helper.make_graph(
        [onnx.helper.make_node(node[0], ["a", "b"], ["y"], name="the_node", domain=node[1])],
        "g",
        [onnx.helper.make_tensor_value_info(name, kind[name], axes) for name in "ab"],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, axes)],
    )
    imports = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("elsewhere", 1)]
    onnx.save(onnx.helper.make_model(made, opset_imports=imports, ir_version=10), path)
    return path


ADD, FOREIGN = ("Add", ""), ("Frobnicate", "elsewhere")
FITS = {"a": ((1, 1), (1, 2), (1, 4)), "b": ((1, 1), (1, 2), (1, 4))}


def _job(path: Path, **changes: Any) -> Job:
    engine = str(path.parent / "out/g.engine")
    about = {"library": "tensorrt_rtx", "onnx": str(path), "engine": engine, "gpus": ("sm_89",), "shapes": FITS}
    return Job(**(about | changes))


def test_a_small_graph_builds(rtx: TensorRtBuilder, tmp_path: Path) -> None:
    lines: list[str] = []
    report = run_job("g", _job(_graph(tmp_path / "g.onnx", ADD)), lines.append)
    assert (tmp_path / "out/g.engine").is_file() and report["operators"] == {"Add": 1}
    assert lines[0] == "g: building for sm_89" and "MiB in" in lines[-1] and "GiB of memory" in lines[-1]


@pytest.mark.parametrize(
    ("node", "half", "changes", "said"),
    [
        (ADD, ("a",), {}, r"node the_node \(Add\): .*type"),
        (FOREIGN, (), {}, r"node the_node \(Frobnicate\): .*; export it from operators that TensorRT has"),
        (ADD, (), {"shapes": {"a": FITS["a"], "b": ((1, 4), (1, 2), (1, 4))}}, r"input b, axis 1: 4:2:4, expected ris"),
        (ADD, (), {"shapes": {"a": FITS["a"]}}, r"input b has free axes and no shapes; give its MIN:OPT:MAX"),
        (
            ADD,
            (),
            {"shapes": {"a": FITS["a"], "b": ((1, 2), (1, 2), (1, 8))}},
            r"axis h is 1:2:4 in a and 2:2:8 in b",
        ),
        (ADD, (), {"shapes": FITS | {"c": FITS["a"]}}, r"c is no input of it"),
        (ADD, (), {"gpus": ("sm_90",)}, r"tensorrt_rtx builds for sm_75, .*, not for sm_90"),
        (ADD, (), {"onnx": "/nowhere/g.onnx"}, r"g\.onnx"),
    ],
    ids=["mixed types", "operator", "profile", "no profile", "named dimension", "input", "gpu", "file"],
)
def test_what_cannot_be_built_is_one_line_and_leaves_nothing(
    rtx: TensorRtBuilder, tmp_path: Path, node: Any, half: Any, changes: dict[str, Any], said: str
) -> None:
    path = _graph(tmp_path / "g.onnx", node, half=half)
    with pytest.raises(EngineError, match=rf"^g: .*{said}") as caught:
        run_job("g", _job(path, **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_graph_that_is_no_graph(rtx: TensorRtBuilder, tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(b"not a graph at all")
    with pytest.raises(EngineError, match=r"^g: ") as caught:
        run_job("g", _job(tmp_path / "g.onnx"))
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the full disk is Linux's /dev/full")
def test_a_full_disk_leaves_nothing(rtx: TensorRtBuilder, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/g.engine").symlink_to("/dev/full")
    with pytest.raises(EngineError, match=r"g: .*No space left on device"):
        run_job("g", _job(_graph(tmp_path / "g.onnx", ADD)))
    assert list((tmp_path / "out").iterdir()) == [] and Path("/dev/full").exists()


def _child(job: str) -> int:
    """The process that builds, once it is there."""
    for _ in range(2000):
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = entry.read_bytes().split(b"\0")
                parent = int(entry.with_name("stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, ValueError):
                continue
            if parent == os.getpid() and job.encode() in words:
                return int(entry.parent.name)
        time.sleep(0.005)
    raise AssertionError("no child")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the child in Linux's /proc")
@pytest.mark.parametrize(
    ("number", "said"),
    [(signal.SIGKILL, "the build was killed.*ran out of memory"), (signal.SIGABRT, "the build ended with SIGABRT")],
)
def test_a_killed_build_leaves_nothing(rtx: TensorRtBuilder, tmp_path: Path, number: int, said: str) -> None:
    job = _job(_graph(tmp_path / "g.onnx", ADD))
    killer = threading.Thread(target=lambda: os.kill(_child("diffplugin.engines.tensorrt_build"), number))
    killer.start()
    with pytest.raises(EngineError, match=f"^g: {said}"):
        run_job("g", job)
    killer.join()
    assert not (tmp_path / "out").exists()


def test_an_interrupt_ends_the_build(rtx: TensorRtBuilder, tmp_path: Path) -> None:
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job("g", _job(_graph(tmp_path / "g.onnx", ADD)), interrupt)
    assert not (tmp_path / "out").exists()


def test_options_are_refused_before_the_work(rtx: TensorRtBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    rtx.check_options(BuildOptions(gpus=GPUS))
    with pytest.raises(RequestError, match=r"sm_90, ampere is not among sm_75, sm_80, sm_86, sm_89, sm_120, sm_121"):
        rtx.check_options(BuildOptions(gpus=("sm_90", "sm_89", "ampere")))
    monkeypatch.setattr(TensorRtBuilder, "why_unavailable", lambda self: "no GPU")
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
    builder = builder_named(name)
    for reason in (builder.why_unavailable(), builder.why_cannot_build()):
        assert reason is not None and f"pip install 'diffplugin[{name}]'" in reason
    assert builder.only_built and builder.ahead == (name == "tensorrt-rtx") and builder.precisions() == ("fp16",)


class _Flags:
    """TensorRT as far as a network is made and configured; the real one is a GPU machine's."""

    def __init__(self, **flags: int) -> None:
        self.__name__ = "tensorrt"
        self.NetworkDefinitionCreationFlag = SimpleNamespace(**flags)


@pytest.mark.parametrize(("flags", "expected"), [({"STRONGLY_TYPED": 1}, 2), ({}, 0)], ids=["TensorRT 10", "11"])
def test_networks_are_strongly_typed_with_every_version(flags: dict[str, int], expected: int) -> None:
    made: list[int] = []
    builder = SimpleNamespace(create_network=made.append)
    make_network(_Flags(**flags), builder)
    assert made == [expected]


def test_tensorrt_builds_for_its_own_gpu_alone() -> None:
    with pytest.raises(Refused, match="tensorrt builds for the GPU of this machine, not for sm_89"):
        capability(_Flags(), "sm_89")


def _network(**inputs: tuple[tuple[int, ...], tuple[str, ...]]) -> Any:
    def tensor(name: str) -> Any:
        shape, names = inputs[name]
        return SimpleNamespace(name=name, shape=shape, get_dimension_name=lambda i: names[i])

    tensors: list[Any] = [tensor(name) for name in inputs]
    get: Callable[[int], Any] = tensors.__getitem__
    return SimpleNamespace(num_inputs=len(tensors), get_input=get)


def test_all_faults_of_the_shapes_at_once() -> None:
    network = _network(a=((1, -1), ("", "h")), b=((-1, 8), ("h", "")), c=((-1,), ("n",)))
    shapes = {"a": ((1, 2), (1, 4), (1, 8)), "b": ((2, 8), (4, 8), (9, 7)), "d": ((1,),) * 3}
    with pytest.raises(Refused) as caught:
        check_shapes(network, shapes)
    for part in (
        "d is no input of it",
        "input b, axis 1: 8:8:7, expected 8",
        "axis h is 2:4:8 in a and 2:4:9 in b",
        "input c has free axes and no shapes",
    ):
        assert part in str(caught.value), caught.value
