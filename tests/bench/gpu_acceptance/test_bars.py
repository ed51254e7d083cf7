"""The requirements: what is judged, on which card, and what a run that lacks something says."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra [bench]")

from diffplugin.bench import measure
from diffplugin.bench.gpu_acceptance import bars, card
from diffplugin.bench.gpu_acceptance.card_row import COMPILED
from diffplugin.bench.gpu_acceptance.report import markdown, verdict

GOOD: dict[str, dict[str, Any]] = {
    "measure": {"picture_s": {"graph": [0.11, 0.10, 0.12]}, "loop_s": [0.09], "step_in_loop_s": 0.0035},
    "compiled networks": {"step_ms": {COMPILED: 4.5}, "loop_ms": {COMPILED: 130.0}, "faults": {}},
}


def _result(name: str = "NVIDIA H100 80GB HBM3", **changes: Any) -> dict[str, Any]:
    found = GOOD | {key.replace("_", " "): value for key, value in changes.items() if key.startswith(("meas", "comp"))}
    parts = [
        {"model": "full" if part == "measure" else "card", "part": part, "precision": "fp16", "engine": "x", **made}
        for part, made in found.items()
    ]
    gpu = {"name": name, "capability": "sm_90", "memory": 80 * 2**30, "driver": "13.0", "runtime": "13.0"}
    return {
        "environment": {"cpu": "some", "cores": 2, "system": "Linux", "python": "3", "gpu": gpu},
        "conditions": {"engine": "x", "precision": "fp16", "width": 512, "height": 512, "steps": 20, "rounds": 5}
        | changes.get("conditions", {}),
        "parts": parts,
    }


def _judged(result: dict[str, Any]) -> dict[str, bool | None]:
    return {bar.name: bar.ok for bar in bars.bars(result)}


STEP, PICTURE = "a step at Stable Diffusion's widths", "a picture at Stable Diffusion's widths"


def test_a_card_that_reaches_them_is_accepted() -> None:
    result = _result()
    found = {STEP: True, PICTURE: True, "below torch.compile, step": True, "below torch.compile, loop": True}
    assert _judged(result) == found and verdict(result) == "Accepted" and bars.failures(result) == []
    assert "picture at Stable Diffusion's widths: 110.00 ms, at most 120" in _report(result)


def _report(result: dict[str, Any]) -> str:
    """The report; what the measured parts need besides is not of interest here."""
    more = {"steps": 20, "load_s": 1.0, "first_picture_s": 2.0, "second_restore_s": 1.0}
    return markdown(result | {"parts": [part | more for part in result["parts"]]})


@pytest.mark.parametrize(
    ("measured", "missed"),
    [
        ({"step_in_loop_s": 0.00401}, STEP),
        ({"picture_s": {"graph": [0.121]}}, PICTURE),
        ({"loop_s": [0.1301]}, "below torch.compile, loop"),
        ({"picture_s": {"host": [0.1]}}, PICTURE),  # no CUDA graph was captured
    ],
)
def test_each_is_missed_by_itself(measured: dict[str, Any], missed: str) -> None:
    result = _result(measure=GOOD["measure"] | measured)
    assert [name for name, ok in _judged(result).items() if ok is False] == [missed]
    (line,) = bars.failures(result)
    assert line.startswith(missed) and line in _report(result)


def test_a_time_above_torch_compiles_fails_on_any_card() -> None:
    compiled = GOOD["compiled networks"] | {"step_ms": {COMPILED: 3.4}}
    for name in ("NVIDIA H100 NVL", "NVIDIA A100-SXM4-80GB"):
        (line,) = bars.failures(_result(name, compiled_networks=compiled))
        assert line == "below torch.compile, step: 3.50 ms, torch.compile 3.40"


@pytest.mark.parametrize(
    "compiled",
    [
        {"error": "not finished after 200 s"},
        {"skipped": "PyTorch sees no GPU here"},
        {"step_ms": {}, "loop_ms": {}, "faults": {"eager, unet": "?", f"{COMPILED}, unet": "no C compiler"}},
    ],
)
def test_without_torch_compile_the_rest_decides(compiled: dict[str, Any]) -> None:
    result = _result(compiled_networks=compiled)
    told = next(iter(compiled.values())) or "no C compiler"
    assert _judged(result) == {STEP: True, PICTURE: True, "below torch.compile": None}
    assert bars.failures(result) == [] and f"torch.compile was not run: {told}" in _report(result)
    assert len(bars.not_run(result)) == ("error" in compiled)


def test_what_was_measured_before_time_ran_out_is_judged() -> None:
    late = {"step_ms": {COMPILED: 3.0}, "loop_ms": {}, "faults": {}, "error": "not finished after 200 s"}
    assert bars.failures(_result(compiled_networks=late)) == ["below torch.compile, step: 3.50 ms, torch.compile 3.00"]


@pytest.mark.parametrize(
    ("name", "conditions", "reason"),
    [
        ("NVIDIA A100-SXM4-80GB", {}, "required of H100 and H200, and this is NVIDIA A100-SXM4-80GB"),
        ("NVIDIA H200", {"steps": 2, "width": 64}, "required at 512x512 and 20 steps, not at width 64, steps 2"),
    ],
)
def test_elsewhere_speed_is_told_and_not_judged(name: str, conditions: dict[str, int], reason: str) -> None:
    slow = GOOD["measure"] | {"step_in_loop_s": 0.0044}
    result = _result(name, measure=slow, conditions=conditions)
    assert _judged(result)[STEP] is None and _judged(result)[PICTURE] is None
    assert f"not judged: {STEP}: 4.40 ms, at most 4: {reason}" in _report(result)


def test_a_measurement_that_failed_is_one_fault() -> None:
    result = _result(measure={"error": "killed by signal 9"})
    assert _judged(result) == {} and bars.failures(result) == ["full, measure: not run: killed by signal 9"]


def test_the_embedded_model_in_float16_has_a_bar_of_its_own() -> None:
    assert bars.photo_budget("embedded", "fp16") == 60 and bars.photo_budget("oracle", "fp32") == 70


def test_a_part_of_the_run_is_no_acceptance() -> None:
    assert verdict(_result(conditions={"only": "measure"})) == "Accepted, of measure alone"


@pytest.mark.skipif(sys.platform == "win32", reason="runs sh")
def test_networks_are_told_one_by_one() -> None:
    """A part that is stopped keeps what it had printed."""
    with pytest.raises(subprocess.TimeoutExpired) as stopped:
        command = ["sh", "-c", "echo '{\"step_ms\": 1}'; echo library; sleep 9"]
        subprocess.run(command, capture_output=True, text=True, check=False, timeout=1)
    assert measure._partial(stopped.value.stdout) == {"step_ms": 1}
    assert measure._partial(None) == {} and measure._partial(b'{"cut": ') == {}
    made = card._summary({COMPILED: {"unet": {"median": 4.0}}}, {}, 20)
    assert made["step_ms"] == {COMPILED: 4.0} and made["loop_ms"] == {}
    assert json.loads(json.dumps(made)) == made
