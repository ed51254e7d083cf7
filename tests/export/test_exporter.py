"""A whole export: what comes out, and that nothing comes out where something went wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra [export]")

import torch

from diffplugin.bundle import default_bundle, open_bundle
from diffplugin.errors import CheckpointError, ParityError, RequestError
from diffplugin.export import cli, exporter
from diffplugin.export.checkpoints import Checkpoint, embedded_checkpoint, find
from diffplugin.export.embedded import embedded_checkpoint_folder
from diffplugin.export.exporter import export_bundle
from diffplugin.export.maintenance import verify
from diffplugin.export.measures import psnr, relative_error
from diffplugin.export.parity import Comparison, check
from diffplugin.export.prebuild import parse_size
from diffplugin.plugins.cards import card_to_toml, shipped_cards


@pytest.fixture(scope="module")
def checkpoint(oracle: Path) -> Checkpoint:
    root = oracle / "checkpoint"
    return find(root / "stable-diffusion", root / "clip", root / "pre-trained", ["deblur"])


def _tiny_graphs(monkeypatch: pytest.MonkeyPatch, graphs: tuple[str, ...] = ("tpb/deblur",)) -> None:
    """Leave out the graphs that take long to trace."""
    monkeypatch.setattr(exporter, "graph_keys", lambda checkpoint: graphs)


def test_the_bundle_is_sound_and_says_what_it_is(oracle_bundle: Path) -> None:
    assert verify(oracle_bundle) == []
    bundle = open_bundle(oracle_bundle)
    assert list(bundle.manifest.plugins) == ["derain", "lowlight", "deblur"], "registry order"
    assert bundle.manifest.selector
    assert len(bundle.manifest.source["unet"]["sha256"]) == 64
    text = (oracle_bundle / "manifest.json").read_text()
    assert str(oracle_bundle.parent) not in text and str(Path.home()) not in text


def test_the_embedded_bundle_is_the_embedded_checkpoint(tmp_path: Path) -> None:
    """Exporting the shipped checkpoint again gives the shipped bundle: every graph, card and the tokenizer."""
    checkpoint, cards, name = embedded_checkpoint([])
    again = export_bundle(checkpoint, tmp_path / "again", name=name, cards=cards, engine="onnxruntime", validate=False)
    shipped, made = open_bundle(default_bundle()).manifest, open_bundle(again).manifest
    assert made.files == shipped.files
    assert made.graphs == shipped.graphs and made.source == shipped.source and made.dims == shipped.dims


def test_the_embedded_bundle_has_its_own_cards() -> None:
    from diffplugin.plugins.cards import load_card

    bundle = open_bundle(default_bundle())
    for plugin, card in bundle.cards().items():
        assert card == load_card(embedded_checkpoint_folder() / "pre-trained" / plugin / "card.toml")


def test_the_embedded_bundle_was_validated() -> None:
    parity = open_bundle(default_bundle()).manifest.parity
    errors = [error for graph in parity["relative_error"].values() for error in graph.values()]
    assert set(parity["relative_error"]["unet"]) == {"eps", "deep"} and "unet_shallow" in parity["relative_error"]
    assert errors and max(errors) <= parity["relative_error_budget"] == 1e-4
    assert parity["picture_psnr_db"] >= parity["picture_psnr_budget_db"] == 70


def test_an_interrupted_export_leaves_nothing(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(exporter, "export_graph", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_bundle(checkpoint, tmp_path / "bundle", name="x")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_over_its_budget_fails_the_export(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Break one weight on the way to ONNX: the comparison must see it, and no bundle may be left."""
    _tiny_graphs(monkeypatch)
    from diffplugin.export.onnx import export_graph as trace

    def broken(module: torch.nn.Module, *args: object, **kwargs: object) -> None:
        with torch.no_grad():
            next(module.parameters()).mul_(1.01)
        trace(module, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(exporter, "export_graph", broken)
    monkeypatch.setattr(exporter, "compare_photo", lambda *_, **__: (99.0, 70.0))
    with pytest.raises(ParityError, match=r"tpb/deblur .*tokens .*budget 0\.0001"):
        export_bundle(checkpoint, tmp_path / "bundle", name="x", engine="onnxruntime")
    assert list(tmp_path.iterdir()) == []


def test_check_names_every_fault_and_the_picture() -> None:
    good = Comparison(key="unet", errors={"eps": 1e-6}, budget=1e-4)
    bad = Comparison(key="scb/derain", errors={"residual_0": 1e-6, "residual_1": float("nan")}, budget=1e-4)
    check([good], (80.0, 70.0))
    with pytest.raises(ParityError, match=r"scb/derain.*residual_1 nan.*whole picture 60\.0 dB"):
        check([good, bad], (60.0, 70.0))


def test_a_plugin_without_a_card_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    colour = Checkpoint(checkpoint.base, checkpoint.clip, {"colourise": checkpoint.plugins["deblur"]}, None)
    with pytest.raises(CheckpointError, match=r"no card for colourise.*--cards"):
        export_bundle(colour, tmp_path / "bundle", name="x")


def test_a_card_that_asks_for_a_missing_head_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    card = replace(shipped_cards()["deblur"], output="head")
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards/deblur.toml").write_text(card_to_toml(card), encoding="utf-8")
    with pytest.raises(
        CheckpointError, match=r'deblur: its card says output = "head", but .*head/config\.json is miss'
    ):
        export_bundle(checkpoint, tmp_path / "bundle", name="x", cards=tmp_path)


def test_own_cards_and_compounds_travel_with_the_bundle(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that the package has never heard of, from a folder, without touching the code."""
    _tiny_graphs(monkeypatch, ("tpb/colourise",))
    own = Checkpoint(checkpoint.base, checkpoint.clip, {"colourise": checkpoint.plugins["deblur"]}, None)
    (tmp_path / "own" / "colourise").mkdir(parents=True)
    card = (
        (embedded_checkpoint_folder().parent / "cards" / "deblur.toml").read_text().replace('"deblur"', '"colourise"')
    )
    card = "\n".join(line for line in card.splitlines() if not line.startswith(("order", "aliases")))
    (tmp_path / "own" / "colourise" / "card.toml").write_text(card + '\naliases = ["colour"]\n')
    table = '[old-photo]\nphrases = ["old photo"]\ntasks = ["colourise"]\n'
    (tmp_path / "own" / "compounds.toml").write_text(table)
    out = export_bundle(own, tmp_path / "bundle", name="x", cards=tmp_path / "own", validate=False)
    assert open_bundle(out).card("colourise").aliases == ("colour",)
    assert (out / "plugins" / "compounds.toml").read_text() == table


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("512", ("512", "512")),
        ("768x512", ("768", "512")),
        ("256:512:1024", ("256:512:1024", "256:512:1024")),
        ("1024x256:512:1024", ("1024", "256:512:1024")),
    ],
)
def test_sizes_are_width_first(text: str, sizes: tuple[str, str]) -> None:
    assert tuple(map(str, parse_size(text))) == sizes


@pytest.mark.parametrize(
    "text", ["", "0", "512x", "a", "256:1024", "1024:512:256", "-5", "512x512x512", "512x1:2", "x512"]
)
def test_wrong_sizes_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match=r"expected (N, WxH \(width first\) or )?MIN:OPT:MAX"):
        parse_size(text)


def test_measures() -> None:
    a = np.array([3.0, 4.0])
    assert relative_error(a * 1.1, a) == pytest.approx(0.1)
    black, grey = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 51, np.uint8)
    assert psnr(black, black) == 99
    assert psnr(grey, black) == pytest.approx(20 * np.log10(5))


def _failed(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 1) -> str:
    assert cli.main(argv) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("dp-export: "), lines
    return lines[0]


def test_a_wrong_folder_is_one_line_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [f"--{name}={tmp_path}" for name in ("base", "clip", "plugins")]
    assert "unet: missing" in _failed(capsys, *arguments, "--out", str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_plugin_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "'colourise': not in" in _failed(capsys, "--plugin", "colourise")


def test_parts_of_a_model_come_together(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "without --clip, --plugins" in _failed(capsys, "--base", str(tmp_path), code=2)


def test_an_unknown_engine_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    message = _failed(capsys, "--engine", "quantum", "--out", str(tmp_path / "out"))
    assert "quantum" in message and "onnxruntime" in message


def test_verify_and_list(oracle_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--verify", str(oracle_bundle)]) == 0
    assert cli.main(["--list", "--out", str(oracle_bundle.parent)]) == 0
    assert "derain, lowlight, deblur" in capsys.readouterr().out
    copy = tmp_path / "copy"
    copy.mkdir()
    manifest = json.loads((oracle_bundle / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert cli.main(["--verify", str(copy)]) == 1
    assert "missing" in capsys.readouterr().err


def test_bundles_of_an_interrupted_run_are_swept(oracle_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left = oracle_bundle.with_name(oracle_bundle.name + ".writing-abc")
    left.mkdir()
    (left / "file").write_bytes(b"1234")
    assert cli.main(["--prune", str(oracle_bundle)]) == 0
    assert not left.exists() and verify(oracle_bundle) == []
