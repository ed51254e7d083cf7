"""The choice of an engine, on machines with and without bf16."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diffplugin.bundle import Bundle
from diffplugin.engines import choice
from diffplugin.engines.choice import ENGINES, choose, get_builder
from diffplugin.engines.ncnn import NcnnBuilder
from diffplugin.engines.onnxruntime import OnnxRuntimeBuilder
from diffplugin.engines.openvino.builder import OpenVinoBuilder
from diffplugin.engines.tensorrt.builder import TensorRtBuilder
from diffplugin.errors import EngineUnavailable, RequestError
from diffplugin.manifest import EngineEntry

HEAVY = ("torch", "onnx", "onnxruntime", "openvino", "ncnn", "transformers", "diffusers", "PIL", "tokenizers")


def machine(monkeypatch: pytest.MonkeyPatch, *, openvino: tuple[str, ...] | None, onnxruntime: bool = True) -> None:
    """A machine where OpenVINO runs these precisions, or is not installed (None)."""
    monkeypatch.setattr(OpenVinoBuilder, "unavailable_reason", lambda self: None if openvino else "not here")
    monkeypatch.setattr(OpenVinoBuilder, "precisions", lambda self: openvino)
    monkeypatch.setattr(OpenVinoBuilder, "device", lambda self: "some processor")
    monkeypatch.setattr(OnnxRuntimeBuilder, "unavailable_reason", lambda self: None if onnxruntime else "gone")
    monkeypatch.setattr(choice, "nvidia_driver", lambda: False)


def chosen(engine: str = "auto", precision: str = "auto") -> tuple[str, str]:
    builder, used, reason = choose(engine, precision)
    assert reason
    return builder.name, used


def test_the_fastest_floating_point_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, openvino=("bf16", "fp32"))
    assert chosen() == chosen(precision="bf16") == ("openvino", "bf16")
    assert chosen(precision="fp32") == ("onnxruntime", "fp32")
    assert chosen("openvino", "fp32") == ("openvino", "fp32")
    assert chosen("openvino") == ("openvino", "bf16")


def test_without_bf16_the_light_engine_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, openvino=("fp32",))
    assert chosen() == chosen(precision="fp32") == ("onnxruntime", "fp32")
    assert chosen("openvino") == ("openvino", "fp32")
    assert "no faster in fp32" in choose()[2]


def test_bf16_that_is_native_but_slow_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, openvino=("fp32", "bf16", "int8"))
    assert chosen() == ("onnxruntime", "fp32")
    assert chosen("openvino") == ("openvino", "fp32")
    assert chosen(precision="bf16") == ("openvino", "bf16")


def test_int8_is_taken_only_where_asked_or_preferred_and_where_the_bundle_has_it(
    monkeypatch: pytest.MonkeyPatch, tiny: Any
) -> None:
    machine(monkeypatch, openvino=("fp32", "int8"))
    entry = tiny.bundle.manifest.graphs["unet"]
    quantized = replace(tiny.bundle, manifest=replace(tiny.bundle.manifest, variants={"int8": {"unet": entry}}))

    def taken(bundle: Bundle, precision: str = "auto", prefer: tuple[str, ...] = ()) -> tuple[str, str]:
        builder, used, _ = choose("auto", precision, bundle=bundle, prefer=prefer)
        return builder.name, used

    assert taken(quantized) == ("onnxruntime", "fp32")
    assert taken(quantized, prefer=("int8",)) == taken(quantized, "int8") == ("openvino", "int8")
    assert taken(quantized, "fp32", prefer=("int8",)) == ("onnxruntime", "fp32")
    assert taken(tiny.bundle, prefer=("int8",)) == ("onnxruntime", "fp32")
    with pytest.raises(EngineUnavailable, match=r"has no int8 graphs; export it with dp-export --precision int8"):
        taken(tiny.bundle, "int8")


def test_the_only_usable_engine_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, openvino=None)
    assert chosen() == ("onnxruntime", "fp32")
    assert "openvino: not here" in choose()[2]
    machine(monkeypatch, openvino=("fp32",), onnxruntime=False)
    assert chosen() == ("openvino", "fp32")
    machine(monkeypatch, openvino=None, onnxruntime=False)
    with pytest.raises(EngineUnavailable, match=r"openvino: not here; onnxruntime: gone"):
        choose()


@pytest.mark.parametrize("engine", ["auto", "openvino", "onnxruntime"])
def test_a_missing_precision_is_refused_and_never_replaced(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    machine(monkeypatch, openvino=("fp32",))
    with pytest.raises(EngineUnavailable, match=r"bf16 does not run natively .*AVX512-BF16.*--precision fp32"):
        choose(engine, "bf16")
    with pytest.raises(EngineUnavailable, match=r"fp16 does not run natively .*--precision fp32"):
        choose(engine, "fp16")


def test_an_engine_that_is_not_here_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # what an import finds where it is not installed
    with pytest.raises(EngineUnavailable, match=r"engine openvino: .*pip install 'diffplugin\[openvino\]'"):
        choose("openvino")
    monkeypatch.setitem(sys.modules, "ncnn", None)
    with pytest.raises(EngineUnavailable, match=r"engine ncnn: .*pip install 'diffplugin\[ncnn\]'"):
        choose("ncnn")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineUnavailable, match=r"engine onnxruntime: .*pip install 'diffplugin\[cpu\]'"):
        choose("onnxruntime")


def test_unknown_engine() -> None:
    with pytest.raises(
        EngineUnavailable,
        match=r"'tensorflow': unknown; expected auto or one of tensorrt, tensorrt-rtx, onnxruntime-cuda, openvino",
    ):
        get_builder("tensorflow")
    assert [get_builder(name).name for name in ENGINES] == list(ENGINES)


def test_importing_costs_no_library() -> None:
    code = (
        "import diffplugin, diffplugin.bundle, diffplugin.engines.choice, diffplugin.engines.onnxruntime\n"
        "import diffplugin.engines.openvino.builder, diffplugin.engines.ncnn, sys\n"
        f"print(*[name for name in {HEAVY} if name in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.split() == []


def test_a_gpu_is_taken_where_a_bundle_has_engines_for_it(monkeypatch: pytest.MonkeyPatch, tiny: Any) -> None:
    """Without such engines TensorRT is not even looked at; without a GPU the processor does it."""
    machine(monkeypatch, openvino=("fp32",))
    gpu: list[str | None] = [None]
    monkeypatch.setattr(TensorRtBuilder, "unavailable_reason", lambda self: gpu[0])
    entry = EngineEntry(
        fingerprint="0",
        engine="tensorrt-rtx",
        version="1",
        precision="fp16",
        devices=("sm_89",),
        shapes="h=8,w=8",
        graph="unet",
        graph_sha256="0",
        files=(),
    )
    variants = {"fp16": {"unet": tiny.bundle.manifest.graphs["unet"]}}
    ready = replace(tiny.bundle, manifest=replace(tiny.bundle.manifest, engines=(entry,), variants=variants))

    def taken(bundle: Bundle, precision: str = "auto", prefer: tuple[str, ...] = ()) -> tuple[str, str]:
        builder, used, _ = choose("auto", precision, bundle=bundle, prefer=prefer)
        return builder.name, used

    assert taken(ready, prefer=("int8", "fp32")) == ("tensorrt-rtx", "fp16")
    assert taken(ready) == taken(ready, "fp16") == ("tensorrt-rtx", "fp16")
    assert taken(ready, "fp32") == ("onnxruntime", "fp32")
    assert taken(tiny.bundle) == ("onnxruntime", "fp32")
    gpu[0] = "there is no GPU here"
    assert taken(ready) == ("onnxruntime", "fp32")
    with pytest.raises(EngineUnavailable, match=r"tensorrt-rtx: there is no GPU here"):
        taken(ready, "fp16")


def test_ncnn_is_taken_in_fp32_where_a_bundle_has_its_graphs(monkeypatch: pytest.MonkeyPatch, tiny: Any) -> None:
    here: list[str | None] = [None]
    monkeypatch.setattr(NcnnBuilder, "unavailable_reason", lambda self: here[0])
    monkeypatch.setattr(NcnnBuilder, "version", lambda self: "1.0")
    variants = {"ncnn": {"unet": replace(tiny.bundle.manifest.graphs["unet"], file="ncnn-1.0/unet.param")}}
    ready = replace(tiny.bundle, manifest=replace(tiny.bundle.manifest, variants=variants))

    def taken(bundle: Bundle, precision: str = "auto", device: str = "auto") -> tuple[str, str]:
        builder, used, _ = choose("auto", precision, bundle=bundle, device=device)
        return builder.name, used

    machine(monkeypatch, openvino=("fp32",))
    assert taken(ready) == taken(ready, "fp32") == taken(ready, device="cpu") == ("ncnn", "fp32")
    assert taken(ready, "bf16") == ("ncnn", "bf16")
    assert taken(tiny.bundle) == ("onnxruntime", "fp32")
    with pytest.raises(EngineUnavailable, match=r"bf16 needs .* or a bundle exported with dp-export --engine ncnn"):
        taken(tiny.bundle, "bf16")
    machine(monkeypatch, openvino=("bf16", "fp32"))
    assert taken(ready) == taken(ready, "bf16") == ("openvino", "bf16"), "bf16 is the fastest there"
    assert taken(ready, "fp32") == ("ncnn", "fp32")
    here[0] = "not installed"
    machine(monkeypatch, openvino=None)
    assert taken(ready) == ("onnxruntime", "fp32") and "ncnn: not installed" in choose(bundle=ready)[2]


# A device by name


def test_a_device_picks_the_engines_that_run_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, openvino=("bf16", "fp32"), onnxruntime=True)
    assert choose(device="cpu")[0].name == "openvino"
    assert choose("onnxruntime", device="cpu")[0].name == "onnxruntime"
    with pytest.raises(
        EngineUnavailable, match=r"^onnxruntime-cuda: this ONNX Runtime has no CUDAExecutionProvider; pip"
    ):
        choose(device="cuda:1")


@pytest.mark.parametrize(
    ("engine", "device", "says"),
    [
        (
            "onnxruntime",
            "cuda:1",
            "runs on cpu, not on cuda:1; leave out --device, or use --engine tensorrt, tensorrt-rtx",
        ),
        ("onnxruntime-cuda", "gpu", "runs on cuda, not on gpu:0; leave out --device, or use --engine openvino"),
        ("tensorrt", "cpu", "runs on cuda, not on cpu"),
    ],
)
def test_an_engine_is_not_run_elsewhere_than_asked(engine: str, device: str, says: str) -> None:
    with pytest.raises(EngineUnavailable, match=says):
        choose(engine, device=device)


@pytest.mark.parametrize("device", ["gpus", "cuda1", "cuda:", "cuda:-1", "cpu:0", "npu:1", "", "CUDA"])
def test_a_device_that_is_not_understood(device: str) -> None:
    with pytest.raises(RequestError, match=r"device .* is not understood; expected auto, cpu, cuda or cuda:N"):
        choose(device=device)
