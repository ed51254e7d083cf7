"""The whole recipe at toy size: from photos to a checkpoint that the exporter reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffplugin.export.checkpoints import Checkpoint, find
from diffplugin.plugins import cards
from diffplugin.plugins.train import autoencoder, base, cli, recipe, tasks
from tests.plugins.train.toys import TOY, VAE


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Toy networks, and a folder as ``dp-train photos`` leaves it."""
    monkeypatch.setattr(autoencoder, "CONFIG", VAE)
    monkeypatch.setattr(base, "CONFIGS", {**TOY, "vae": VAE})
    monkeypatch.setattr(base, "SCB", TOY["scb"])
    monkeypatch.setattr(base, "TOKEN_WIDTH", 8)
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    rows = []
    for i, split in enumerate(["train"] * 8 + ["val"]):
        smooth = np.clip(rng.normal(128, 40, (9, 9, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(smooth).resize((300, 280), Image.Resampling.BICUBIC).save(tmp_path / f"photos/p{i}.png")
        fields = {"package": "p", "source": "s", "licence": "CC0", "holder": "h", "split": split}
        rows.append({"file": f"p{i}.png", **fields})
    (tmp_path / "photos.json").write_text(json.dumps(rows))
    return tmp_path


def test_recipe_makes_a_checkpoint_and_does_nothing_twice(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["recipe", "--work", str(work), "--steps", "2", "--tasks", "derain", "dehaze"]
    assert cli.main(arguments) == 0
    tree = work / "checkpoint"
    read = find(tree / "base", tree / "clip", tree / "pre-trained")
    assert list(read.plugins) == ["dehaze", "derain"] and read.dims.factor == 4
    parts = (read.unet(), read.autoencoder(), read.vision_encoder(), read.text_encoder(), read.selector_heads())
    assert all(torch.isfinite(value).all() for part in parts for value in part.state_dict().values())
    assert cards.registry(tree)["dehaze"].licence == base.LICENCE
    assert cards.registry(tree)["dehaze"].output == "head" and "head/dehaze" in read.plugin_parts()
    generic = Path(tree / recipe.GENERIC / "tpb.pt").read_bytes()
    assert generic != (tree / "pre-trained/derain/tpb.pt").read_bytes(), "the plugin learned nothing of its own"
    before = {path: path.read_bytes() for path in (*tree.rglob("*.safetensors"), *tree.rglob("*.json"))}
    # the denoiser alone first: a kill after it must not leave an untrained text encoder where a trained one was
    for again in (["base", "--work", str(work), "--steps", "2", "--stage", "denoiser"], arguments):
        assert cli.main(again) == 0
        changed = [str(path) for path, content in before.items() if path.read_bytes() != content]
        assert not changed, (again, changed)
    heads = tree / "pre-trained/plugin_selector/PromptTunner.pt"
    learned = heads.read_bytes()
    (tree / "pre-trained/derain/tpb.pt").write_bytes((tree / "pre-trained/dehaze/tpb.pt").read_bytes())
    capsys.readouterr()
    command = ["selector", "--work", str(work), "--steps", "2"]
    assert cli.main(command) == 2 and heads.read_bytes() == learned
    error = capsys.readouterr().err
    assert "run/selector.pt: plugins derain was" in error and error.count("\n") == 1, error
    assert cli.main([*command, "--restart"]) == 0 and heads.read_bytes() != learned, "for the other plugin, anew"


def test_a_milestone_is_a_start(work: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The milestone's autoencoder is taken over, and the denoiser begins with its weights."""
    stages = ["--stage", "autoencoder", "--stage", "pool", "--stage", "denoiser"]
    assert cli.main(["base", "--work", str(work), "--steps", "1", *stages]) == 0
    other, start = tmp_path_factory.mktemp("other"), tmp_path_factory.mktemp("milestone")
    assert cli.main(["milestone", "--work", str(work), "--out", str(start)]) == 0
    for name in ("photos", "packages"):
        (other / name).symlink_to(work / name)
    (other / "photos.json").write_bytes((work / "photos.json").read_bytes())
    assert cli.main(["base", "--work", str(other), "--steps", "1", "--start", str(start)]) == 0
    vae = "checkpoint/base/vae/diffusion_pytorch_model.safetensors"
    assert (other / vae).read_bytes() == (work / vae).read_bytes()
    weights = [recipe.Work(root=root).read.unet().state_dict()["conv_in.weight"] for root in (work, other)]
    moved = (weights[0] - weights[1]).abs().max()
    assert 0 < moved < 0.01, f"one step from the start's weights, not new ones: moved {moved:.4f}"


def test_cards_promise_few_steps_over_the_small_base_alone() -> None:
    ours, theirs = (tasks.choose_card("derain", None, ours=flag) for flag in (True, False))
    assert (ours.steps_first, ours.first_t, ours.output, ours.coring) == (1, 600, "residual", 12)
    assert ours.licence == base.LICENCE
    assert (theirs.steps_first, theirs.first_t, theirs.output) == (20, 999, "decoded") and "user" in theirs.licence


def test_ablations_are_plugins_of_their_own(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["base", "--work", str(work), "--steps", "1", "--stage", "autoencoder", "--stage", "pool"]
    assert cli.main([*arguments, "--stage", "denoiser"]) == 0
    tree = work / "checkpoint"
    shared = [
        "--work",
        str(work),
        "--steps",
        "1",
        "--batch",
        "2",
        "--start",
        str(tree / recipe.GENERIC),
        "--crop",
        "64",
    ]
    for variant, learned in (("scb", {"scb"}), ("tpb", {"tpb"}), ("E-1", {"scb", "tpb"})):
        if variant == "E-1":
            shared = [word for word in shared if word not in ("--start", str(tree / recipe.GENERIC))]
        capsys.readouterr()
        assert cli.main(["plugin", "derain", *shared, "--variant", variant]) == 0
        state = torch.load(work / f"run/plugin_derain_{variant}.pt", weights_only=True)
        assert {name.split(".")[1] for name in state["model"]} == learned, variant
        told = capsys.readouterr().out
        assert ("derain: not written; 4 held-out pictures" in told) is (variant == "E-1"), told
        assert (tree / f"pre-trained/derain-{variant}/tpb.pt").exists() is (variant != "E-1")
    assert not (tree / "pre-trained/derain").exists(), "an ablation takes the place of no plugin"
    found = find(tree / "base", tree / "clip", tree / "pre-trained")
    assert list(found.plugins) == ["derain-scb", "derain-tpb"]
    assert cards.registry(tree)["derain-scb"].title == "Rain removal (scb)"


def test_a_plugin_is_finished_on_pictures(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["base", "--work", str(work), "--steps", "1", "--stage", "autoencoder", "--stage", "pool"]
    assert cli.main([*arguments, "--stage", "denoiser"]) == 0
    tree = work / "checkpoint"
    start = ["--start", str(tree / recipe.GENERIC)]
    shared = ["plugin", "deblur", "--work", str(work), "--steps", "2", "--batch", "2", "--crop", "64", *start]
    assert cli.main([*shared, "--loss", "picture"]) == 0
    assert (work / "run/plugin_deblur_picture.pt").exists() and not (work / "run/plugin_deblur.pt").exists()
    branches = [
        Checkpoint(tree / "base", tree / "clip", {"deblur": place}, None)
        for place in (tree / "pre-trained/deblur", tree / recipe.GENERIC)
    ]
    one, other = (read.tpb("deblur").state_dict() for read in branches)
    assert all(torch.equal(value, other[name]) for name, value in one.items()), "the selector compares with the TPB"
    one, other = (read.scb("deblur").state_dict() for read in branches)
    assert not all(torch.equal(value, other[name]) for name, value in one.items())
    assert "4 held-out pictures" in capsys.readouterr().out


def test_recipe_takes_a_part_of_every_stage_and_finishes_deblurring(work: Path) -> None:
    assert cli.main(["recipe", "--work", str(work), "--scale", "0.0002", "--tasks", "deblur"]) == 0
    states = {p.stem: torch.load(p, weights_only=True)["step"] for p in (work / "run").glob("*.pt")}
    once = ("decoder", "plugin_deblur", "plugin_deblur_picture", "head_deblur", "diagnosis")
    assert states == {**dict.fromkeys(once, 1), "vae": 2, "denoiser": 2, "selector": 4}, states
    assert [p.name for p in (work / "pool").iterdir()] == ["shard000"]


@pytest.mark.parametrize("scale", ["0", "-1", "nan", "2"])
def test_a_part_is_a_part(work: Path, scale: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipe", "--work", str(work), "--scale", scale]) == 2
    assert f"--scale is {scale}, expected more than 0 and at most 1" in capsys.readouterr().err
