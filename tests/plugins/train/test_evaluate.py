"""Tables of a bundle on held-out photos and requests, through the engines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import diffplugin
from diffplugin.export.measures import psnr
from diffplugin.plugins.train import clean_photos, eval_cli, eval_restore, evaluate, paper, perceptual, selection_scores
from diffplugin.plugins.train.degradations import degrade
from diffplugin.runtime.restorer import Restorer


@pytest.fixture(scope="module")
def restorer(oracle_bundle: Path) -> Iterator[Restorer]:
    with diffplugin.load(oracle_bundle, "onnxruntime", "fp32") as loaded:
        yield loaded


def test_row_is_measured_on_the_bundle(restorer: Restorer) -> None:
    task = next(iter(restorer.cards))
    clean = [np.full((64, 64, 3), 100 + 20 * i, np.uint8) for i in range(2)]
    made: list[np.ndarray] = []
    sheet: list[np.ndarray] = []
    bad = [degrade(c, task, evaluate.SEED + i) for i, c in enumerate(clean)]
    row = evaluate.measure(restorer, task, zip(bad, clean, strict=True), steps=2, made=made, sheet=sheet, tile="off")
    assert row.steps == 2 and row.photos == 2 and row.side == 64 and row.baseline_name
    again = restorer.restore(bad[0], plugins=[task], steps=2, tile="off").array
    assert np.array_equal(made[0], again), "what the engines make"
    assert row.made is not None and row.given is not None
    assert row.made.psnr == pytest.approx(np.mean([psnr(m, c) for m, c in zip(made, clean, strict=True)]))
    assert row.given.psnr == pytest.approx(np.mean([psnr(b, c) for b, c in zip(bad, clean, strict=True)]))
    assert sheet[0].shape == (192, 64, 3) and row.task in row.line()
    assert row.line().count("|") == evaluate.HEAD.splitlines()[0].count("|")


def test_photos_without_truth_are_measured_against_a_reference(restorer: Restorer) -> None:
    task = next(iter(restorer.cards))
    photos = [np.full((40 + 8 * i, 64, 3), 60 + 20 * i, np.uint8) for i in range(3)]

    def extract(pixels: np.ndarray) -> np.ndarray:
        return np.array([pixels.mean(), pixels.std(), float(pixels[0, 0, 0])])

    pairs = [(p, None) for p in photos]
    row = evaluate.measure(restorer, task, pairs, steps=2, extract=extract, reference=photos[:2])
    assert row.made is None and row.gate is None and row.side == 0 and row.sets["fid"] > 0
    assert row.line().count("|") == evaluate.HEAD.splitlines()[0].count("|") and "as they are" in row.line()
    assert evaluate.measure(restorer, task, pairs, steps=2, extract=extract).sets == {}, "nothing to compare with"


def test_a_measure_is_given_the_truth_where_it_needs_one(restorer: Restorer) -> None:
    def mean_error(made: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return (made - truth).abs().mean()

    mean_error.metric_mode, mean_error.lower_better = "FR", True  # type: ignore[attr-defined]
    against, alone = (
        perceptual.Measure("error", mean_error),
        perceptual.Measure("light", lambda made: made.mean()),
    )
    assert (against.title, alone.title, against.needs_truth, alone.needs_truth) == ("error ↓", "light ↑", True, False)
    task = next(iter(restorer.cards))
    rng = np.random.default_rng(0)
    clean, bad = (rng.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(2))
    made: list[Any] = []
    named = {m.title: m for m in (against, alone)}
    with_truth = evaluate.measure(restorer, task, [(bad, clean)], steps=1, measures=named, made=made)
    without = evaluate.measure(restorer, task, [(bad, None)], steps=1, measures=named)
    error = [np.abs(p / 255 - clean / 255).mean() for p in (bad, made[0])]
    assert with_truth.more["error ↓"] == pytest.approx(error, rel=1e-5)
    assert with_truth.more["light ↑"] == pytest.approx([p.mean() / 255 for p in (bad, made[0])], rel=1e-5)
    assert without.more["error ↓"] is None and without.more["light ↑"] == with_truth.more["light ↑"]
    assert "error ↓ needs a ground truth; light ↑ 0." in without.line()


@pytest.mark.parametrize(("psnr", "passes"), [(19.0, False), (21.0, False), (23.0, True)])
def test_gate_is_input_and_baseline(psnr: float, passes: bool) -> None:
    """Input 20 dB, trivial filter 22 dB."""
    given, made, simple = (evaluate.Scores(psnr=value, ssim=0.5, gmsd=0.1) for value in (20.0, psnr, 22.0))
    fields = {"task": "derain", "start": "noise", "steps": 1, "side": 64, "photos": 1, "better": 1}
    row = evaluate.Row(**fields, given=given, made=made, baseline=simple, baseline_name="median")  # type: ignore[arg-type]
    assert row.gate is passes and ("experimental" in row.line()) is not passes


def test_selection_metrics_of_the_bundle(restorer: Restorer) -> None:
    photos = [np.full((64, 64, 3), 90, np.uint8)]
    found = selection_scores.selections(restorer, photos, count=3)
    assert list(found) == [kind for kind in selection_scores.TITLES if not kind.startswith("combinations")]
    assert all(0 <= values[name] <= 1 for values in found.values() for name in ("ZTA", "CP", "OF1", "mAP"))
    assert selection_scores.selections(restorer, photos, count=3) == found, "seeded"
    table = selection_scores.selection_table(found)
    assert "(0.998)" in table and table.count("\n") == 1 + len(found) and "raw ZTA" in table


def test_command_writes_tables_sheets_and_plots(oracle_bundle: Path, work: Path) -> None:
    shared = [
        "--work",
        str(work),
        "--bundle",
        str(oracle_bundle),
        "--engine",
        "onnxruntime",
        "--out",
        str(work / "out"),
    ]
    assert eval_cli.main(["restore", *shared, "--size", "64", "--count", "2", "--steps", "2", "--tasks", "derain"]) == 0
    written = {path.name for path in (work / "out").iterdir()}
    assert {"restore.md", "restore.json", "restore.svg", "derain-2-64.jpg"} <= written, written
    rows = json.loads((work / "out/restore.json").read_text())["rows"]
    assert [row["steps"] for row in rows][-1] == 2 and len(rows) == 2
    assert eval_cli.main(["selector", *shared, "--requests", "2"]) == 0
    assert (work / "out/selector.svg").stat().st_size > 1000


def test_command_says_what_is_wrong(oracle_bundle: Path, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = ["--work", str(work), "--bundle", str(oracle_bundle), "--out", str(work / "out")]
    for arguments, message in (
        (["restore", *shared, "--tasks", "colourise"], "colourise: not in the bundle"),
        (["selector", *shared, "--requests", "0"], "argument --requests: '0' is not a whole number of at least 1"),
        (
            ["restore", *shared[2:], "--tasks", "derain"],
            "derain: nothing to measure on: give --pairs, --photos, or --work",
        ),
        (["restore", *shared, "--photos", str(work / "nothing")], "nothing"),
        (["restore", "--work", str(work / "empty"), *shared[2:]], "no photos.json; run `dp-train photos"),
    ):
        assert eval_cli.main(arguments) in (1, 2)
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error


def test_own_pairs_and_photos_of_two_bundles_side_by_side(
    oracle_bundle: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for kind in ("target", "input"):
        (work / "pairs" / kind).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 255, (40 + 8 * i, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(work / f"pairs/{kind}/{i}.png")
    bundles = ["--bundle", str(oracle_bundle), "--bundle", str(oracle_bundle)]
    shared = ["restore", *bundles, "--engine", "onnxruntime", "--out", str(work / "out"), "--tasks", "derain", "deblur"]
    pairs = ["--pairs", f"derain={work / 'pairs'}", "--photos", f"deblur={work / 'pairs/input'}"]
    assert eval_cli.main([*shared, *pairs, "--count", "2"]) == 0, capsys.readouterr().err
    rows = json.loads((work / "out/restore.json").read_text())["rows"]
    assert [(row["task"], row["photos"]) for row in rows] == [("derain", 2), ("deblur", 2)] * 2
    assert rows[0]["made"]["psnr"] > 0 and rows[1]["made"] is None
    assert rows[0]["made"] == rows[2]["made"], "one bundle, twice"
    table = (work / "out/table1.md").read_text()
    assert "Diff-Plugin (paper)" in table and "50.55 / 13.84" in table, table


def test_table_1_has_the_papers_rows_and_ours() -> None:
    scores = evaluate.Scores(psnr=20.0, ssim=0.5, gmsd=0.1)
    fields = {"start": "noise", "steps": 1, "side": 64, "photos": 2, "better": 1, "baseline_name": "x"}
    rows = [
        evaluate.Row(task=task, bundle="mine", given=scores, made=scores, baseline=scores, sets=sets, **fields)  # type: ignore[arg-type]
        for task, sets in (("derain", {"fid": 12.345, "kid": 1.5}), ("colourise", {"fid": 3.0, "kid": 0.1}))
    ]
    lines = eval_restore.table_1(rows).splitlines()
    assert lines[0] == "| method | derain FID ↓ / KID ↓ | colourise FID ↓ / KID ↓ |"
    assert lines[2] == "| mine | 12.35 / 1.50 | 3.00 / 0.10 |"
    assert lines[-1] == "| Diff-Plugin (paper) | 50.55 / 13.84 | – |"
    assert len(lines) == 3 + len(paper.TABLE_1)


def test_clean_photos_are_measured_by_their_change(oracle_bundle: Path, work: Path) -> None:
    out = work / "sets"
    shared = ["--work", str(work), "--bundle", str(oracle_bundle), "--engine", "onnxruntime", "--out", str(out)]
    sets = ["--sets", "standard", "harder", "clean", "--size", "64", "--count", "2", "--tasks", "derain"]
    assert eval_cli.main(["restore", *shared, *sets]) == 0
    rows = json.loads((out / "restore.json").read_text())["rows"]
    assert [row["family"] for row in rows] == ["standard", "harder"]
    assert rows[0]["given"] != rows[1]["given"], "other degradations"
    (clean,) = json.loads((out / "clean.json").read_text())["rows"]
    assert clean["photos"] == 2 and clean["worst_change"] >= clean["change"] > 0, clean
    assert clean["shift"] <= clean["change"], clean
    assert "| derain | 64 | 2 |" in (out / "clean.md").read_text()


def test_change_is_absolute_and_shift_is_of_the_mean() -> None:
    given = np.full((4, 4, 3), 100, np.uint8)
    made = given.copy()
    made[:2] += 6
    made[2:] -= 2
    assert clean_photos.change(given, made) == (4.0, 2.0)
