"""``dp-train head`` at toy size: views, what it learns, what it writes, and what a state is made from."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra [train]")

from diffplugin.export.checkpoints import find
from diffplugin.plugins.cards import card_to_toml, load_card, shipped_cards
from diffplugin.plugins.networks.head import ChangeHead
from diffplugin.plugins.train import change_head, cli, loop, tasks
from tests.plugins.train.test_tasks import make_pairs

CONFIG = {"factor": 4, "latent_channels": 4, "widths": [8, 8, 8], "blocks": [1, 1, 1]}


def _shard(count: int = 4, side: int = 48) -> dict[str, np.ndarray]:
    """Inputs that are 40 levels too dark, which the latents tell."""
    rng = np.random.default_rng(0)
    truth = rng.integers(60, 200, (count, side, side, 3), dtype=np.uint8)
    cond = rng.standard_normal((count, 4, side // 4, side // 4)).astype(np.float16)
    return {"given": truth - 40, "truth": truth, "cond": cond, "latents": cond + np.float16(1)}


def test_it_learns_the_change(tmp_path: Path) -> None:
    torch.manual_seed(0)
    head, shard = ChangeHead(CONFIG), _shard()
    objective = change_head.Changing(head, [shard], factor=4, batch=2, side=32)
    clean = shard | {"given": shard["truth"]}
    report = change_head.quality(head, shard, clean)
    assert abs(float(report(0)["gain"])) < 1e-6 and report(0)["clean change"] == 0, "a new one changes nothing"
    arguments = loop.TrainingArguments(steps=60, peak=5e-3, warmup=5, ema=None, trackers=())
    loop.fit(objective, arguments, tmp_path / "head.pt", name="head")
    found = report(60)
    assert float(found["gain"]) > 10, found


def test_windows_of_image_and_latents_are_of_the_same_place() -> None:
    shard = _shard(2, 48)
    places = np.arange(144, dtype=np.float32).reshape(12, 12)
    shard["cond"] = np.broadcast_to(places, (2, 4, 12, 12)).astype(np.float16)
    shard["given"] = np.broadcast_to(places.repeat(4, 0).repeat(4, 1)[..., None], (2, 48, 48, 3)).astype(np.uint8)
    objective = change_head.Changing(ChangeHead(CONFIG), [shard], factor=4, batch=8, side=16)
    given, _, _, cond = objective.draw(np.random.default_rng(0))
    assert torch.equal(((given + 1) * 127.5).round()[:, :1, ::4, ::4], cond[:, :1])
    assert cond.min() >= places[2, 2] and cond.max() <= places[9, 9], "8 pixels at the edges are left out"


@pytest.fixture
def options(oracle: Path, tmp_path: Path) -> list[str]:
    """A plugin of the oracle's with a card, and pairs."""
    root, plugins = oracle / "checkpoint", tmp_path / "plugins"
    shutil.copytree(root / "pre-trained/derain", plugins / "derain")
    card = card_to_toml(shipped_cards()["derain"])
    (plugins / "derain/card.toml").write_text(card.replace("steps_first = 20", "steps_first = 1"), encoding="utf-8")
    return [
        *("head", "derain", "--work", str(tmp_path / "work"), "--plugin", str(plugins / "derain"), "--steps", "2"),
        *("--base", str(root / "stable-diffusion"), "--clip", str(root / "clip"), "--side", "64", "--crop", "32"),
        *("--pairs", str(make_pairs(tmp_path / "a", 3)), "--views", "4", "--batch", "2", "--report-to", "none"),
    ]


def test_the_command_writes_a_head_and_the_card_that_uses_it(
    options: list[str], oracle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(options) == 0, capsys.readouterr().err
    place = tmp_path / "plugins/derain"
    card = load_card(place / "card.toml")
    assert card.output == "head" and card.steps_first == 1
    root = oracle / "checkpoint"
    checkpoint = find(root / "stable-diffusion", root / "clip", tmp_path / "plugins")
    assert checkpoint.plugin_parts() == ("tpb/derain", "scb/derain", "head/derain") and checkpoint.dims.factor == 8
    first = {name: value.clone() for name, value in checkpoint.head("derain").state_dict().items()}

    shutil.rmtree(tmp_path / "work/run")
    assert cli.main([*options, "--steps", "1"]) == 0 and cli.main([*options, "--steps", "2"]) == 0
    resumed = checkpoint.head("derain").state_dict()
    assert all(torch.equal(value, first[name]) for name, value in resumed.items()), "resumed, it ends elsewhere"

    capsys.readouterr()
    assert cli.main([*options, "--clean-share", "0.5"]) == 2
    assert "clean_share was 0.12, now 0.5" in capsys.readouterr().err


def test_training_a_plugin_anew_begins_without_its_head(tmp_path: Path) -> None:
    path = tmp_path / "card.toml"
    path.write_text(card_to_toml(replace(shipped_cards()["derain"], output="head")), encoding="utf-8")
    assert tasks.choose_card("derain", path, ours=False).output == "residual"


def test_a_plugin_without_a_card_is_refused(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plugins/derain/card.toml").unlink()
    assert cli.main(options) == 1
    assert "card.toml: missing; a head is trained for the card's own start and steps" in capsys.readouterr().err
