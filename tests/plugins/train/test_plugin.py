"""Training of the base and of a Task-Plugin, at toy size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffplugin.plugins.train import autoencoder, base, plugin, pool

TOY: dict[str, dict[str, Any]] = {
    **base.CONFIGS,
    "unet": {**base.UNET, "block_out_channels": [8, 8, 16], "cross_attention_dim": 8},
    "scb": {**base.SCB, "block_out_channels": [8], "cross_attention_dim": 8},
    "vision": {
        **base.VISION,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
}
STAGES = (plugin.Stage(until=6, pictures=1, crops=2, side=8), plugin.Stage(until=12, pictures=1, crops=1, side=16))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    vae = autoencoder.build({**autoencoder.CONFIG, "block_out_channels": [4, 4, 4]})
    rng = np.random.default_rng(0)
    photos = [rng.integers(0, 255, (80, 70, 3), dtype=np.uint8) for _ in range(3)]
    for number in range(2):
        pool.write_shard(tmp_path / "pool", number, photos, ["derain", "dehaze"], vae, side=64)
    return tmp_path / "pool"


def test_pool_draws_what_was_asked(shards: Path) -> None:
    batch = pool.Pool(shards, ["dehaze"]).draw(np.random.default_rng(0), pictures=2, crops=3, side=8)
    assert batch.pixels.shape == (2, 3, 224, 224) and batch.clean.shape == batch.cond.shape == (6, 4, 8, 8)
    assert not torch.equal(batch.clean, batch.cond)
    assert pool.Pool(shards, ["lowlight"]).shards == {}, "a task that was not made has no shards"


def test_target_leads_to_the_clean_latent() -> None:
    """x0 = alpha * x_t - sigma * v for every way in which x_t is made."""
    model = plugin.Denoiser(TOY)
    alpha, sigma = model.levels(torch.tensor([999, 300]))
    clean, noisy = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    v = (alpha * noisy - clean) / sigma
    # since alpha^2 + sigma^2 = 1 holds for the noise that v implies
    error = (alpha * noisy - sigma * v - clean).abs().max()
    assert error < 1e-5, float(error)


def test_plugin_training_leaves_the_base_alone_and_resumes(shards: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = plugin.Denoiser(TOY)
    plugin.freeze_self_attention(model.unet)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data = pool.Pool(shards, ["derain", "dehaze"])
    path = tmp_path / "plugin.pt"
    plugin.fit(model, data, path, STAGES[:1], peak=1e-3, train_base=False, every=3)
    assert plugin.load_state(path)["step"] == 6  # type: ignore[index]
    plugin.fit(model, data, path, STAGES, peak=1e-3, train_base=False, every=3)
    assert plugin.load_state(path)["step"] == 12  # type: ignore[index]
    changed = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"tpb", "scb"}, changed


def test_base_training_lowers_the_loss(shards: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = plugin.Denoiser(TOY)
    data = pool.Pool(shards, ["derain"])

    def loss() -> float:
        rng = np.random.default_rng(1)
        with torch.no_grad():
            return float(np.mean([plugin.denoising_loss(model, data.draw(rng, 1, 4, 8), rng).item() for _ in range(8)]))

    start = loss()
    stage = plugin.Stage(until=40, pictures=1, crops=4, side=8)
    plugin.fit(model, data, tmp_path / "base.pt", (stage,), peak=3e-3, train_base=True, every=40, decay=0.8)
    assert loss() < 0.97 * start, (start, loss())
    out = model.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_out[0]  # type: ignore[index, union-attr]
    assert not out.weight.any(), "the middle self-attention must stay silent"  # type: ignore[operator]
