"""docs/adding-a-plugin.md, run as it is written, at toy size."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffplugin import load
from diffplugin.bundle import open_bundle
from diffplugin.export import cli as export_cli
from diffplugin.plugins.cards import load_card
from diffplugin.plugins.train import cli as train_cli
from diffplugin.plugins.train import eval_cli
from diffplugin.runtime import cli as infer_cli

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs/adding-a-plugin.md").read_text()
COMMANDS = {
    "dp-train": train_cli.main,
    "dp-export": export_cli.main,
    "dp-infer": infer_cli.main,
    "dp-eval": eval_cli.main,
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.S)


def run(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One command of the page, in this process: the same entry points as installed."""
    name, *arguments = shlex.split(os.path.expandvars(line))
    if name == "cp":
        for source in arguments[1:-1]:
            shutil.copytree(source, Path(arguments[-1]) / Path(source).name)
        return
    code = COMMANDS[name](arguments)
    assert code == 0, f"{line}\n{capsys.readouterr().err}"


@pytest.mark.slow
def test_the_page_works(
    oracle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = oracle / "checkpoint"
    for name, place in (("BASE", "stable-diffusion"), ("CLIP", "clip"), ("PLUGINS", "pre-trained")):
        monkeypatch.setenv(name, str(root / place))
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    Path("photos").mkdir()
    for name in "abcd":
        pixels = np.clip(rng.normal(128, 40, (9, 9, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).resize((96, 80), Image.Resampling.BICUBIC).save(f"photos/{name}.png")

    (python,) = blocks("python")
    exec(compile(python, "adding-a-plugin.md", "exec"), {})
    assert all(len(Path(f"{name}.csv").read_text().splitlines()) == 5 for name in ("colourise", "add-snow"))
    for name, card in zip(("colourise", "add-snow"), blocks("toml"), strict=True):
        Path(f"{name}.toml").write_text(card)
        assert load_card(f"{name}.toml", expected_id=name).steps_first == 20
    for block in blocks("bash"):
        for line in block.replace("\\\n", " ").strip().splitlines():
            run(line, capsys)

    for name in ("colourise", "add-snow"):
        plugin = Path("work/checkpoint/pre-trained") / name
        assert {"tpb.pt", "scb", "card.toml"} <= {path.name for path in plugin.iterdir()}
    assert Path("work/checkpoint/pre-trained/plugin_selector/PromptTunner.pt").exists()
    assert list(Path("work/run/curves/colourise").iterdir()), "curves"
    for name in ("coloured.png", "snowy.png"):
        made = np.asarray(Image.open(name))
        assert made.shape == (80, 96, 3) and made.std() > 0
    assert "| colourise |" in Path("measured/restore.md").read_text()
    manifest = open_bundle("bundle").manifest
    assert set(manifest.plugins) == {"derain", "lowlight", "colourise", "add-snow"}
    assert set(manifest.parity["kept_db"]) == set(manifest.plugins), "each passed the purpose check, or is named by it"

    line = "dp-export --base $BASE --clip $CLIP --plugins $PLUGINS --plugin derain --plugin lowlight"
    run(f"{line} --engine onnxruntime --precision fp32 --size 64 --out before", capsys)
    photo = Path("photos/a.png")
    with load("before", engine="onnxruntime") as before, load("bundle", engine="onnxruntime") as after:
        for task, kept in before.cards.items():
            assert after.cards[task] == kept, f"{task}: another card"
            one, two = (restorer.restore(photo, plugins=[task], steps=2).array for restorer in (before, after))
            assert np.array_equal(one, two), f"{task}: {np.abs(one.astype(int) - two).max()} levels off"


def test_faults_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["plugin", "colourise"], "no shipped card"),
        (["base", "--stage", "autoencoder"], "run `dp-train photos"),
        (["base", "--stage", "pool"], "base/vae: missing"),
        (["selector"], "missing"),
    ):
        assert train_cli.main([*arguments, "--work", str(tmp_path)]) in (1, 2), arguments
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and error.startswith("dp-train: "), error
