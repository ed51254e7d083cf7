"""What OpenVINO offers on a device: processors with and without bf16, and devices that are not here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openvino", reason="needs the extra [openvino]")

from diffplugin.engines.base import BuildOptions
from diffplugin.engines.choice import choose
from diffplugin.engines.devices import Device
from diffplugin.engines.openvino import builder as builder_module
from diffplugin.engines.openvino import library
from diffplugin.engines.openvino.builder import OpenVinoBuilder
from diffplugin.errors import EngineUnavailable, RequestError
from diffplugin.shapes import Range
from tests.engines.openvino.conftest import load
from tests.lesser import openvino_below, run_tests

NATIVE = OpenVinoBuilder().precisions()


def test_threads(tiny: Any) -> None:
    load(tiny, threads=None).run(tiny.inputs())
    with pytest.raises(RequestError, match="threads is -1"):
        load(tiny, threads=-1)


def test_bf16_is_refused_where_it_would_be_float32(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here where the processor has no native bf16, else below in a process that is denied it."""
    if "bf16" in NATIVE:
        pytest.skip("this processor computes bf16: test_a_lesser_processor runs this one")
    with pytest.raises(EngineUnavailable, match=r"bf16 does not run natively on .*AVX512-BF16.*--precision fp32"):
        load(tiny, precision="bf16")
    # Past that gate OpenVINO takes the hint. Without AVX-512 it computes in float32 and says so only when asked; with
    # it, it computes in bf16 by emulation, slower than float32.
    emulated = "WINOGRAD" in library.core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")  # reported with AVX-512
    with monkeypatch.context() as patch:
        patch.setattr(OpenVinoBuilder, "precisions", lambda self: ("bf16", "fp32"))
        if emulated:
            assert load(tiny, precision="bf16").run(tiny.inputs())["eps"].shape == (1, 4, 8, 8)
        else:
            with pytest.raises(EngineUnavailable, match="asked for bf16, it computes in f32"):
                load(tiny, precision="bf16").run(tiny.inputs())
    with pytest.raises(EngineUnavailable, match="bf16 does not run natively"):
        OpenVinoBuilder().build(
            tiny.bundle,
            "unet",
            precision="bf16",
            profile={"h": Range.of(8), "w": Range.of(8)},
            out=tmp_path / "out",
            options=BuildOptions(),
        )
    assert not (tmp_path / "out").exists()


def test_the_builder_names_its_machine() -> None:
    builder = OpenVinoBuilder()
    assert builder.unavailable_reason() is None
    assert builder.version()[:2].isdigit()
    assert "FP32" in builder.device()
    *floats, last = builder.precisions()
    assert last == "int8" and set(floats) <= {"fp32", "bf16"} and "fp32" in floats
    assert builder.hint("int8") == builder.hint(floats[0])


ENGINE_TESTS = Path(__file__).with_name("test_engine.py")
LESSER = (  # what a processor decides
    f"{__file__}::test_bf16_is_refused_where_it_would_be_float32",
    f"{__file__}::test_the_builder_names_its_machine",
    f"{ENGINE_TESTS}::test_equal_to_numpy_at_any_size",
)
INT8 = f"{ENGINE_TESTS}::test_int8_runs_the_quantised_graph_and_is_close"


@pytest.mark.parametrize(
    ("ceiling", "tests"),
    [
        ("AVX2", LESSER),
        pytest.param("AVX2", (INT8,), marks=pytest.mark.slow),
        pytest.param("AVX512_CORE_VNNI", (*LESSER, INT8), marks=pytest.mark.slow),
    ],
)
def test_a_lesser_processor(ceiling: str, tests: tuple[str, ...], tmp_path: Path) -> None:
    """The tests that a processor decides, on a processor without bf16, and without or with AVX-512."""
    run_tests(openvino_below(ceiling), *tests, cache=tmp_path)


@pytest.mark.parametrize(
    ("abilities", "order", "floats"),
    [
        (["FP32", "INT8"], None, ("fp32",)),
        (["BF16", "FP32", "INT8"], ("bf16", "fp32"), ("bf16", "fp32")),
        (["BF16", "FP32", "INT8"], ("fp32", "bf16"), ("fp32", "bf16")),
    ],
)
def test_precisions_are_what_the_processor_can_in_the_order_of_their_speed(
    monkeypatch: pytest.MonkeyPatch, abilities: list[str], order: tuple[str, ...] | None, floats: tuple[str, ...]
) -> None:
    """Processors that cannot be simulated, such as one with bf16 where this one has none, by what they report."""

    class Core:
        def get_property(self, device: str, name: str) -> object:
            return abilities if name == "OPTIMIZATION_CAPABILITIES" else "some processor"

    def measured(name: str, precisions: tuple[str, ...], runner: object) -> tuple[str, ...]:
        assert order is not None, "nothing to measure"
        assert set(precisions) == {"bf16", "fp32"} and "BF16" in name
        return order

    monkeypatch.setattr(library, "core", Core)
    monkeypatch.setattr(library, "facts", library.facts.__wrapped__)
    monkeypatch.setattr(builder_module, "fastest_first", measured)
    builder = OpenVinoBuilder()
    assert builder.precisions() == (*floats, "int8")
    assert builder.hint("int8") == builder.hint(floats[0]) == {"fp32": "f32", "bf16": "bf16"}[floats[0]]


def test_int8_without_int8_graphs_names_the_remedy(tiny: Any) -> None:
    with pytest.raises(EngineUnavailable, match="has no int8 graphs; export it with dp-export --precision int8"):
        load(tiny, precision="int8")


# Other devices: this machine has none of Intel's, so they are refused, and what would be asked of them is compared.


@pytest.mark.parametrize(("device", "target"), [("gpu", "GPU.0"), ("gpu:1", "GPU.1"), ("npu", "NPU"), ("cpu", "CPU")])
def test_a_device_that_is_not_here_is_refused_by_name(device: str, target: str) -> None:
    builder = OpenVinoBuilder(Device.parse(device))
    here = library.core().available_devices
    reason = builder.unavailable_reason()
    assert builder.target == target
    if target in here or target.partition(".")[0] in here:
        assert reason is None
        return
    assert reason is not None and f"finds no device {target} here, only CPU" in reason and "Intel's driver" in reason
    with pytest.raises(EngineUnavailable, match=f"engine openvino: OpenVINO finds no device {target}"):
        choose("openvino", device=device)


@pytest.mark.parametrize(
    ("abilities", "precisions"),
    [(["FP32", "FP16", "INT8", "EXPORT_IMPORT"], ("fp16", "fp32", "int8")), (["FP16", "INT8"], ("fp16", "int8"))],
)
def test_precisions_are_what_the_device_says(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, abilities: list[str], precisions: tuple[str, ...]
) -> None:
    """Float16 there needs no graphs of its own: OpenVINO takes the float32 ones."""
    builder = OpenVinoBuilder(Device("gpu"))
    monkeypatch.setattr(OpenVinoBuilder, "_abilities", lambda self: abilities)
    assert builder.precisions() == precisions and builder.hint("fp16") == builder.hint("int8") == "f16"
    assert builder.missing_variant(tiny.bundle, "fp16") is None and builder.variant("fp16") == "fp32"
    assert "has no int8 graphs" in str(builder.missing_variant(tiny.bundle, "int8"))
