"""The written layouts are read back by the exporter's own reader."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from diffplugin.export.checkpoints import find
from diffplugin.plugins import cards
from diffplugin.plugins.train import autoencoder, base, layout, plugin, selector
from tests.sources import ROOT

EMBEDDED = ROOT / "plugins" / "embedded_checkpoint"


def test_reads_back_as_half_precision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = plugin.Denoiser(base.CONFIGS)
    text = selector.text_config({f"t{i}": i for i in range(8)} | {selector.BEGIN: 8, selector.END: 9}, base.TOKEN_WIDTH)
    chosen = selector.fresh(text)
    layout.write_vae(tmp_path, autoencoder.CONFIG, autoencoder.build().state_dict())
    layout.write_denoiser(tmp_path, base.CONFIGS, unet=model.unet.state_dict(), vision=model.vision.state_dict())
    layout.write_text(tmp_path, text, chosen.text.state_dict())
    layout.write_selector(tmp_path, chosen.heads.state_dict())
    layout.write_tokenizer(tmp_path, {selector.BEGIN: 0, selector.END: 1}, [])
    card = dataclasses.replace(cards.shipped_cards()["derain"], steps_first=2)
    layout.write_plugin(
        tmp_path,
        "derain",
        base.SCB,
        tpb=model.tpb.state_dict(),
        scb=model.scb.state_dict(),
        card=cards.card_to_toml(card),
    )
    read = find(tmp_path / "base", tmp_path / "clip", tmp_path / "pre-trained")
    assert read.dims.factor == 4 and list(read.plugins) == ["derain"]
    for name, mine, theirs in (
        ("unet", model.unet, read.unet()),
        ("vision", model.vision, read.vision_encoder()),
        ("scb", model.scb, read.scb("derain")),
        ("tpb", model.tpb, read.tpb("derain")),
        ("text", chosen.text, read.text_encoder()),
        ("heads", chosen.heads, read.selector_heads()),
    ):
        for key, value in theirs.state_dict().items():
            assert torch.equal(value, mine.state_dict()[key].half().float()), f"{name} {key}"
    read.autoencoder()
    assert cards.load_card(tmp_path / "pre-trained/derain/card.toml", expected_id="derain").steps_first == 2
    assert not list(tmp_path.rglob("*.part")), "unfinished files left behind"


@pytest.mark.skipif(not EMBEDDED.is_dir(), reason="the embedded checkpoint is not in this tree")
def test_embedded_checkpoint_is_complete_and_small() -> None:
    read = find(EMBEDDED / "base", EMBEDDED / "clip", EMBEDDED / "pre-trained")
    found = cards.registry(EMBEDDED)
    assert len(read.plugins) == 8
    for task in read.plugins:
        read.tpb(task), read.scb(task)
        assert (EMBEDDED / "pre-trained" / task / "card.toml").is_file() and found[task].steps_first <= 5
    for part in (read.unet(), read.autoencoder(), read.vision_encoder(), read.text_encoder(), read.selector_heads()):
        assert all(torch.isfinite(value).all() for value in part.state_dict().values())
    assert sum(f.stat().st_size for f in EMBEDDED.rglob("*") if f.is_file()) < 36 * 2**20


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device")
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    def full(part: Path) -> None:
        part.write_text("a beginning")
        with Path("/dev/full").open("wb") as device:
            torch.save({"a": torch.zeros(100_000)}, device)

    (tmp_path / "state.pt").write_text("the old one")
    with pytest.raises(OSError, match=r"state\.pt: not written \(.+\); \d+ MiB are free on its disk$"):
        layout.place(tmp_path / "state.pt", full)
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]
    assert (tmp_path / "state.pt").read_text() == "the old one"
