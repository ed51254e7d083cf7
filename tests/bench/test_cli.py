"""``dp-bench`` end to end on the embedded model, and its complaints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="a peer runs on PyTorch")
pytest.importorskip("matplotlib", reason="draws with matplotlib")

from diffplugin.bench.cli import main
from diffplugin.bench.measure import SAMPLES, order
from diffplugin.export.measures import gmsd


def run(out: Path, *more: str) -> int:
    names = ("diffplugin ort f32", "pytorch eager f32")
    chosen = [word for name in names for word in ("--contender", name)]
    return main(["run", "--work", "64x64", "--steps", "2", "--rounds", "1", *chosen, "--out", str(out), *more])


def test_two_contenders_end_to_end_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFPLUGIN_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    assert run(out) == 0
    result = json.loads((out / "results.json").read_text())
    samples = {s["contender"]: s for s in result["samples"]}
    assert set(samples) == {"diffplugin ort f32", "pytorch eager f32"}
    for name, sample in samples.items():
        assert sample["wall_s"] > 0 and sample["peak_bytes"] > 0 and sample["stages_s"]["unet"] > 0, name
        assert min(sample["psnr_db"]) > 60, f"{name}: {sample['psnr_db']} dB"
        assert max((sample.get("unet_error") or {"": 0.0}).values()) < 1e-4, name
    text = (out / "results.md").read_text()
    assert "pytorch eager f32" in text and str(tmp_path) not in text
    assert (out / "stages.png").stat().st_size > 1000

    before = (out / SAMPLES).read_text()
    assert run(out) == 2  # refuses to write over a result
    assert run(out, "--resume") == 0
    assert (out / SAMPLES).read_text() == before, "measured again what was there"
    assert main(["compare", str(out), str(out)]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--contender", "nobody", "--out", "x"], "nobody"),
        (["run", "--work", "ten", "--out", "x"], "ten"),
        (["report", "nowhere"], "nowhere"),
    ],
)
def test_complaints_are_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("dp-bench: ") and complaint.count("\n") == 1 and said in complaint


def test_every_contender_takes_each_place_once() -> None:
    names = ["a", "b", "c"]
    rounds = [order(names, "b", i) for i in range(3)]
    assert rounds[0][0] == "b"
    assert all({r[place] for r in rounds} == set(names) for place in range(3))


def test_gmsd() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    blurred = ((picture.astype(int) + np.roll(picture, 1, 0) + np.roll(picture, 1, 1)) // 3).astype(np.uint8)
    assert gmsd(picture, picture) == 0
    assert gmsd(picture, blurred) > 0.05
