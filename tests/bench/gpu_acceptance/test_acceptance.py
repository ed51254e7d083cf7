"""The coordinator: parts in processes, what fails is recorded, and the verdict."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra [bench]")
pytest.importorskip("skimage", reason="needs the extra [bench]")

from diffplugin.bench.gpu_acceptance import __main__ as acceptance
from diffplugin.bench.gpu_acceptance.bars import failures, not_run
from diffplugin.bench.gpu_acceptance.report import markdown, rows
from diffplugin.bundle import default_bundle, open_bundle
from diffplugin.engines.choice import get_builder
from tests.bench.gpu_acceptance.answers import GOOD, HEAD, trials

ROOT = Path(__file__).resolve().parents[3]


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
