"""A prepared folder: what is read from it, what is refused, and a run from it within a budget."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra [bench]")
pytest.importorskip("skimage", reason="needs the extra [bench]")

from diffplugin.bench.gpu_acceptance import __main__ as acceptance
from diffplugin.bench.gpu_acceptance import prepared
from diffplugin.bench.gpu_acceptance.bars import failures, not_run
from diffplugin.bench.gpu_acceptance.trial import Trial
from diffplugin.engines.device import DeviceBuilder
from diffplugin.errors import RequestError
from tests.bench.gpu_acceptance.answers import GOOD, HEAD, MEASURED, trials

ROOT = Path(__file__).resolve().parents[3]


def test_a_prepared_run_stops_with_its_budget_and_has_a_row(tmp_path: Path) -> None:
    """Parts in the order of what is worth most; what comes too late is told, and what is measured is in one row."""
    answers = GOOD | {
        "ceilings": {
            "tflops": 800.0, "gbs": 4000.0, "floor_step_ms": 1.02, "floor_loop_ms": 27.8,
            "checks": [],
        },
        "goldens": {"picture_db": 80.0, "checks": []},
        "draw": {"bytes": 5},
        "operators": {"checks": [{"name": "Conv 3x3, fp16", "ok": True, "found": "3e-4 <= 2e-3"}]},
        "measure": MEASURED | {"loop_s": [0.1, 0.11, 0.12], "step_in_loop_s": 0.0035},
        "compiled networks": {
            "step_ms": {"torch.compile, one CUDA graph": 4.5},
            "loop_ms": {"torch.compile, one CUDA graph": 130.0},
        },
        "networks": {
            "step_ms": {"eager": 12.0},
            "loop_ms": {"eager": 300.0},
            "ways_ms": {"eager": {"unet": {"median": 12.0, "least": 11.0, "most": 13.0}}},
            "faults": {"eager, one CUDA graph, unet": "no capture"},
        },
        "native": {"checks": [{"name": "native", "ok": True, "found": "14 cases"}]},
        "profile": {"kernels": [{"name": "group_norm", "calls": 1220, "ms": 9.5}]},
    }  # fmt: skip
    one = Trial(
        part="", model="", engine="onnxruntime-cuda", precision="fp16", out=str(tmp_path), width=512, height=512,
        steps=20, rounds=3, prepared=str(tmp_path),
    )  # fmt: skip
    trials = [replace(one, model=m, part=p, precision=c) for m, p, c in acceptance.PREPARED_PARTS]
    gpu = {"name": "A card", "capability": "sm_90", "memory": 80 * 2**30, "driver": "13.0", "runtime": "13.0"}
    head = HEAD | {"environment": HEAD["environment"] | {"gpu": gpu}}
    given: list[float] = []

    def execute(trial: dict[str, Any], timeout: float) -> dict[str, Any]:
        given.append(timeout)
        return answers[trial["part"]]

    result = acceptance.run(trials, head, tmp_path, execute, 3600, budget=600)
    assert failures(result) == [] and max(given) <= 600 and len(given) == len(trials)
    row = (tmp_path / acceptance.ROW).read_text()
    for cell in ("A card", "110.0", "3.50", "300.0 / 12.00", "130.0 / 4.50", "27.8 / 1.02", "25%", "fp32 80.0"):
        assert cell in row, (cell, row)
    report = (tmp_path / acceptance.REPORT).read_text()
    assert row.strip() in report and "800 TFLOP/s" in report and "Not run: eager, one CUDA graph, unet" in report
    assert "| `group_norm` | 1220 | 9.500 |" in report
    late = acceptance.run(trials, head, tmp_path, execute, 3600, budget=5)
    missing = [*failures(late), *not_run(late)]
    assert all("no time left of 5 s" in line for line in missing) and len(missing) == len(trials)
    assert len(failures(late)) == len([one for one in trials if one.model != "card" and one.part != "profile"])


def _prepared(folder: Path) -> Path:
    """As :mod:`prepare` leaves it, with one file."""
    folder.mkdir()
    (folder / "photo.png").write_bytes(b"pixels")
    prepared.seal(folder, engine="onnxruntime-cuda", width=64, height=64, steps=2)
    return folder


def _read(folder: Path, engine: str = "onnxruntime-cuda") -> list[Trial]:
    parsed = acceptance._parser().parse_args(["--out", "out", "--prepared", str(folder), "--engine", engine])
    return list(acceptance._jobs(parsed))


def test_a_prepared_folder_is_read(tmp_path: Path) -> None:
    trials = _read(_prepared(tmp_path / "prepared"))
    assert [(t.model, t.part, t.precision) for t in trials] == list(acceptance.PREPARED_PARTS)
    assert trials[0].steps == 2 and prepared.by_this_code(tmp_path / "prepared")


@pytest.mark.parametrize(
    ("only", "kept"),
    [
        ("goldens", ["oracle goldens", "oracle goldens"]),
        ("replay,native", ["embedded replay", "full draw", "full replay", "card native"]),
    ],
)
def test_some_parts_alone(only: str, kept: list[str], tmp_path: Path) -> None:
    """To do one again on a card; the weights that it needs are drawn."""
    trials = acceptance._chosen(_read(_prepared(tmp_path / "prepared")), only)
    assert [f"{trial.model} {trial.part}" for trial in trials] == kept


def test_a_part_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no part is called 'golden'; expected some of ceilings, operators, goldens"):
        acceptance._chosen(_read(_prepared(tmp_path / "prepared")), "golden")


def _edit(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        told = folder / "prepared.json"
        told.write_text(json.dumps(json.loads(told.read_text()) | changes))

    return edit


@pytest.mark.parametrize(
    ("damage", "engine", "says"),
    [
        (lambda folder: (folder / "prepared.json").unlink(), "", "not a folder of bench.gpu_acceptance.prepare"),
        (lambda folder: (folder / "prepared.json").write_text("[]"), "", "not a folder of bench.gpu_acceptance"),
        (lambda folder: (folder / "photo.png").write_bytes(b"pixelz"), "", "photo.png is damaged; copy the folder"),
        (lambda folder: (folder / "photo.png").unlink(), "", "photo.png is missing; copy the folder again"),
        (_edit(format=1), "", "is in format 1, this program reads 3; prepare it again"),
        (lambda folder: None, "onnxruntime", "is for --engine onnxruntime-cuda, not onnxruntime"),
    ],
)
def test_a_folder_that_is_not_as_prepared_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], engine: str, says: str
) -> None:
    folder = _prepared(tmp_path / "prepared")
    damage(folder)
    with pytest.raises(RequestError, match=says):
        _read(folder, engine or "onnxruntime-cuda")


def test_other_code_than_prepared_is_told(tmp_path: Path) -> None:
    folder = _prepared(tmp_path / "prepared")
    _edit(code="0" * 64)(folder)
    assert not prepared.by_this_code(folder) and _read(folder)


def test_where_the_engine_cannot_run_the_card_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The GPU is there and the provider refuses it: what needs only PyTorch and nvcc runs."""

    class Refused(DeviceBuilder):
        def driver(self) -> Any:
            return SimpleNamespace(unavailable_reason=lambda: None, describe=dict)

        def unavailable_reason(self) -> str:
            return "no code for this GPU"

    monkeypatch.setattr(acceptance, "get_builder", lambda name: Refused())
    monkeypatch.setattr(acceptance, "worker", lambda trial, timeout, module: {"skipped": "asked"})
    folder, out = _prepared(tmp_path / "prepared"), tmp_path / "out"
    assert acceptance.main(["--out", str(out), "--prepared", str(folder), "--engine", "onnxruntime-cuda"]) == 1
    parts = json.loads((out / acceptance.RESULTS).read_text())["parts"]
    assert all(("skipped" in part) == (part["model"] == "card") for part in parts), parts
    refused = {part["error"] for part in parts if "error" in part}
    assert refused == {"engine onnxruntime-cuda cannot run here: no code for this GPU", "its engines were not built"}
    assert (out / acceptance.ROW).is_file()


def test_one_part_takes_a_share_of_the_budget(tmp_path: Path) -> None:
    """One that hangs leaves time for those after it."""
    limits: list[float] = []

    def execute(trial: dict[str, Any], timeout: float) -> dict[str, Any]:
        limits.append(timeout)
        return {"skipped": "-"}

    two = [replace(trial, prepared="prepared") for trial in trials(("card", "a"), ("card", "b"), out=tmp_path)]
    for budget in (600, 20):
        acceptance.run(two, HEAD, tmp_path, execute, 3600, budget)
    assert limits == [200, 200, 10, 10]
