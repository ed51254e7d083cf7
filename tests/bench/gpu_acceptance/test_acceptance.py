"""The coordinator: parts in processes, what fails is recorded, and the verdict."""

from __future__ import annotations

import json
import shutil
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
from diffplugin.bench.gpu_acceptance.report import markdown, rows
from diffplugin.bench.gpu_acceptance.trial import Trial
from diffplugin.bundle import default_bundle, open_bundle
from diffplugin.engines.choice import get_builder
from diffplugin.engines.device import DeviceBuilder
from diffplugin.errors import RequestError

ROOT = Path(__file__).resolve().parents[3]
MEASURED = {
    "picture_s": {"graph": [0.5, 0.7, 0.6], "host": [1.0, 1.0, 1.0]},
    "stages_s": {"step": 0.4, "scb": 0.1},
    "steps": 20,
    "load_s": 1.0,
    "first_picture_s": 3.0,
    "first_restore_s": 2.0,
    "second_restore_s": 0.6,
    "device_bytes": 3 * 2**30,
}
EAGER = MEASURED | {
    "picture_s": {"loop": [2.0, 2.0, 2.0]},
    "stages_s": {"unet": 1.6},
    "device": "cuda",
    "psnr_to_ours_db": 41.0,
}
GOOD: dict[str, dict[str, Any]] = {
    "build": {"engines": []},
    "cold start": {"load_s": 2.0, "first_picture_s": 9.0},
    "goldens": {"checks": [{"name": "tensors", "ok": True, "found": "eps 1e-3 <= 0.01"}]},
    "replay": {"checks": [{"name": "replay", "ok": True, "found": "0 differ"}]},
    "fidelity": {"psnr_db": {"derain": 44.0, "dehaze": 43.0}, "checks": []},
    "measure": MEASURED,
    "pytorch eager": EAGER,
    "torch.compile": {"error": "BackendCompilerFailed: no compiler"},
}
HEAD: dict[str, Any] = {
    "environment": {"cpu": "some", "cores": 2, "system": "Linux", "python": "3", "numpy": "2"},
    "conditions": {"engine": "x", "precision": "fp16", "width": 64, "height": 64, "steps": 2, "rounds": 3},
}


def trials(*parts: tuple[str, str], out: Path) -> list[Trial]:
    one = Trial(part="", model="", engine="x", precision="fp16", out=str(out), width=64, height=64, steps=2, rounds=3)
    return [replace(one, model=model, part=part) for model, part in parts]


def run(out: Path, answers: dict[str, dict[str, Any]], *parts: tuple[str, str]) -> tuple[dict[str, Any], list[str]]:
    """The coordinator over parts that answer so; (result, what was run)."""
    ran: list[str] = []

    def execute(trial: dict[str, Any], timeout: float) -> dict[str, Any]:
        ran.append(f"{trial['model']} {trial['part']}")
        assert (out / acceptance.RESULTS).is_file() or len(ran) == 1, "the parts before are not on disk"
        return answers[trial["part"]]

    result = acceptance.run(trials(*parts, out=out), HEAD, out, execute, 1.0)
    assert json.loads((out / acceptance.RESULTS).read_text()) == result
    assert (out / acceptance.REPORT).read_text() == markdown(result)
    return result, ran


def test_a_part_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    every = [("embedded", part) for part in acceptance.PARTS["embedded"]]
    result, ran = run(tmp_path, GOOD, *every)
    assert ran == [f"embedded {part}" for _, part in every]
    assert failures(result) == [], "a peer that cannot run here says nothing of the engine"
    assert not_run(result) == ["embedded, torch.compile: not run: BackendCompilerFailed: no compiler"]
    report = markdown(result)
    assert "Accepted (not run, and not required: 1 parts)." in report and not_run(result)[0] in report
    result, _ = run(tmp_path, GOOD | {"fidelity": {"error": "killed by signal 9"}}, *every)
    assert failures(result) == ["embedded, fidelity: not run: killed by signal 9"]
    assert "Not accepted, 1 faults" in markdown(result)


def test_nothing_is_asked_of_engines_that_were_not_built(tmp_path: Path) -> None:
    answers = GOOD | {"build": {"error": "unet: no space left on device"}}
    result, ran = run(tmp_path, answers, ("oracle", "build"), ("oracle", "goldens"), ("embedded", "build"))
    assert ran == ["oracle build", "embedded build"]
    assert failures(result)[:2] == [
        "oracle, build: not run: unet: no space left on device",
        "oracle, goldens: not run: its engines were not built",
    ]


def test_a_check_that_fails_is_the_verdict(tmp_path: Path) -> None:
    bad = {"checks": [{"name": "replay", "ok": False, "found": "2 differ, by 0.5 at most"}]}
    result, _ = run(tmp_path, GOOD | {"replay": bad}, ("embedded", "build"), ("embedded", "replay"))
    assert failures(result) == ["embedded, replay, replay: 2 differ, by 0.5 at most"]
    assert "**failed**: embedded, replay" in markdown(result)


def test_one_row_per_configuration(tmp_path: Path) -> None:
    every = [("embedded", part) for part in ("build", "cold start", "fidelity", "measure", "pytorch eager")]
    result, _ = run(tmp_path, GOOD, *every)
    made = rows(result)
    assert [row["program"] for row in made] == [
        "diffplugin x fp16, one CUDA graph per picture",
        "diffplugin x fp16, graph by graph from the host",
        "pytorch eager float16",
    ]
    first, _, eager = made
    assert first["picture_s"].median == 0.6 and first["psnr_db"] == 43.0 and first["device_gib"] == 3
    assert (first["cold_s"], first["first_picture_s"], eager["cold_s"]) == (9.0, 3.0, 3.0)
    assert first["step_s"] == pytest.approx(0.02) and eager["step_s"] == pytest.approx(0.08)
    line = next(line for line in markdown(result).splitlines() if "one CUDA graph" in line)
    assert line.startswith("| embedded |") and "0.600 (0.500–0.700)" in line and "| 0.30 |" in line
    assert "Accepted." in markdown(result)


def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if get_builder("tensorrt-rtx").unavailable_reason() is None:
        pytest.skip("there is a GPU")
    assert acceptance.main(["--out", str(tmp_path / "out")]) == 1
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1 and "tensorrt-rtx cannot run here" in complaint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--work", "100x100"], "multiples of 8"),
        (["--steps", "0"], "steps is 0"),
        (["--full", "nowhere"], "nowhere"),
    ],
)
def test_complaints_are_one_line(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert acceptance.main(["--engine", "onnxruntime", "--out", str(tmp_path / "out"), *words]) == 2
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1 and said in complaint


def _rehearse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> dict[str, Any]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("DIFFPLUGIN_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    words = ["--engine", "onnxruntime", "--work", "64x64", "--steps", "2", "--rounds", "1", "--out", str(out), *more]
    assert acceptance.main(words) == 0, (out / acceptance.REPORT).read_text()
    assert str(tmp_path) not in (out / acceptance.REPORT).read_text(), "the machine's folders are in the report"
    result: dict[str, Any] = json.loads((out / acceptance.RESULTS).read_text())
    assert not [part for part in result["parts"] if "error" in part]
    return result


def test_parts_run_in_processes_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (trial,) = trials(("embedded", "cold start"), out=tmp_path)
    trial = replace(trial, engine="onnxruntime", precision="fp32", steps=1)
    failed = acceptance._in_a_process(None, trial.to_json(), 120)
    assert "no manifest.json" in failed["error"] and str(tmp_path) not in failed["error"]
    shutil.copytree(default_bundle(), trial.bundle)
    made = acceptance._in_a_process(None, trial.to_json(), 120)
    assert 0 < made["load_s"] < made["first_picture_s"], made


@pytest.mark.slow
def test_a_rehearsal_on_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part but the peers, in processes of their own, as on a GPU."""
    result = _rehearse(tmp_path, monkeypatch, "--no-peers")
    found = {(part["model"], part["part"]): part for part in result["parts"]}
    assert found["oracle", "goldens"]["picture_db"] > 70
    assert set(found["embedded", "fidelity"]["psnr_db"]) == set(open_bundle(default_bundle()).manifest.plugins)
    assert len(rows(result)) == 1 and "skipped" in found["embedded", "replay"]


@pytest.mark.slow
def test_a_rehearsal_with_peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = _rehearse(tmp_path, monkeypatch)
    assert [row["part"] for row in rows(result)] == ["measure", "pytorch eager", "torch.compile"]
    assert all(row["psnr_db"] > 70 for row in rows(result)), rows(result)


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["tensorrt-rtx", "tensorrt"])
def test_on_a_gpu(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All parts but the peers, for real."""
    if reason := get_builder(engine).unavailable_reason():
        pytest.skip(reason)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    out = tmp_path / "out"
    words = ["--engine", engine, "--work", "256x256", "--steps", "4", "--rounds", "2", "--no-peers", "--out", str(out)]
    assert acceptance.main(words) == 0, (out / acceptance.REPORT).read_text()


# Prepared


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
