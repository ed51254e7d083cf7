"""Training of the base and of a Task-Plugin, at toy size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from diffplugin.export.checkpoints import Checkpoint
from diffplugin.plugins.train import autoencoder, loop, pairs, plugin, pool
from tests.plugins.train.toys import TOY, VAE

STAGES = (plugin.Stage(until=6, pictures=1, crops=2, side=8), plugin.Stage(until=12, pictures=1, crops=1, side=16))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    vae = autoencoder.build(VAE)
    rng = np.random.default_rng(0)
    photos = [rng.integers(0, 255, (80, 70, 3), dtype=np.uint8) for _ in range(3)]
    for number in range(2):
        views = pairs.synthetic(photos, ["derain", "dehaze"], number, 64)
        pool.write_shard(tmp_path / "pool", number, views, vae, side=64)
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


def test_plugin_training_leaves_the_base_alone(shards: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = plugin.Denoiser(TOY)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    objective = plugin.Denoising(model, pool.Pool(shards, ["derain", "dehaze"]), STAGES, train_base=False)
    loop.fit(objective, loop.TrainingArguments(steps=8, peak=1e-3, warmup=1), tmp_path / "plugin.pt", name="derain")
    changed = {name.split(".")[0] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"tpb", "scb"}, changed


def test_base_training_lowers_the_loss(shards: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = plugin.Denoiser(TOY)
    data = pool.Pool(shards, ["derain"])

    def loss() -> float:
        rng, times = np.random.default_rng(1), plugin.Times()
        with torch.no_grad():
            found = [plugin.denoising_loss(model, data.draw(rng, 1, 4, 8), rng, times).item() for _ in range(8)]
        return float(np.mean(found))

    start = loss()
    stages = (plugin.Stage(until=24, pictures=1, crops=4, side=8),)
    objective = plugin.Denoising(model, data, stages, train_base=True)
    loop.fit(
        objective, loop.TrainingArguments(steps=24, peak=5e-3, warmup=2, ema=0.8), tmp_path / "base.pt", name="base"
    )
    assert loss() < 0.97 * start, (start, loss())
    out = model.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_out[0]  # type: ignore[index, union-attr]
    assert not out.weight.any(), "the middle self-attention must stay silent"


def test_fresh_branches_start_from_the_base_alone(oracle: Path) -> None:
    """Paper section 3.2: zero-initialised outputs, so the first picture is the base's own."""
    root = oracle / "checkpoint"
    read = Checkpoint(root / "stable-diffusion", root / "clip", {}, None)
    torch.manual_seed(0)
    model = plugin.from_checkpoint(read, None)
    side = 4 * 2 ** (model.unet.levels - 1)
    latents, cond = torch.randn(1, 4, side, side), torch.randn(1, 4, side, side)
    tokens, t = torch.randn(1, 256, read.dims.token_width), torch.tensor([500])
    with torch.no_grad():
        with_plugin, alone = model(latents, t, tokens, cond), model(latents, t, tokens, None)
    assert torch.equal(with_plugin, alone), (with_plugin - alone).abs().max()
    copied = model.scb.down_blocks[0].resnets[0].conv1.weight  # type: ignore[index, union-attr]
    assert torch.equal(copied, model.unet.down_blocks[0].resnets[0].conv1.weight)  # type: ignore[index, union-attr]
    assert plugin.scb_config(read.config("unet"))["block_out_channels"] == read.config("unet")["block_out_channels"][:1]


@pytest.mark.parametrize("train_base", [True, False])
def test_nothing_stays_behind_on_the_processor(shards: Path, train_base: bool) -> None:
    """On the meta device, as on a GPU, an operation on tensors of two devices fails."""
    model = plugin.Denoiser(TOY)
    objective = plugin.Denoising(model, pool.Pool(shards, ["derain"]), STAGES, train_base=train_base).to("meta")
    loss = objective(0, np.random.default_rng(0))
    assert loss.device.type == "meta" and loss.shape == ()
    loss.backward()


def crops(rng: np.random.Generator) -> pool.Crops:
    photos = [np.random.default_rng(5).integers(0, 255, (80, 70, 3), dtype=np.uint8)]
    return pool.draw_crops(pairs.degraded(photos, "deblur", 64), rng, 2, 32)


def test_picture_loss_is_minus_psnr_picture_by_picture() -> None:
    truth = torch.zeros(2, 3, 4, 4)
    made = truth + torch.tensor([0.2, 0.02])[:, None, None, None]  # 20 dB and 40 dB of a range of 2
    found = plugin.picture_loss(made, truth).item()
    assert found == pytest.approx(-30, abs=0.7), found
    unseen = [plugin.picture_loss(truth + 2 * levels / 255, truth).item() for levels in (0.0, 0.5, 6.0, 12.0)]
    assert unseen[1] - unseen[0] < 0.5, "half a level nobody sees counts nothing"
    assert unseen[3] - unseen[2] > 5.5, "an error halved is 6 dB less where it is seen"


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("cold", [True, False])
def test_picture_training_moves_the_plugin_alone(cold: bool, residual: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, vae = plugin.Denoiser(TOY), autoencoder.build(VAE)
    before = {name: value.clone() for name, value in (*model.state_dict().items(), *vae.state_dict().items())}
    times = plugin.Times(top=121, first=0.75, cold=cold)
    objective = plugin.Restoring(model, vae, crops, times=times, residual=residual)
    loop.fit(objective, loop.TrainingArguments(steps=3, peak=1e-3, warmup=1), tmp_path / "p.pt", name="deblur")
    after = (*model.state_dict().items(), *vae.state_dict().items())
    changed = {name.split(".")[0] for name, value in after if not torch.equal(value, before[name])}
    assert changed == {"scb"}, changed


def test_picture_loss_sees_what_the_runtime_shows() -> None:
    """A plugin that says "the input" changes nothing of a residual picture, and shows a decoded one as decoded."""
    model, vae = plugin.Denoiser(TOY), autoencoder.build(VAE)
    times = plugin.Times(top=121, bottom=119, first=1.0, cold=True)
    given = crops(np.random.default_rng(0))
    # at the start x_t = alpha * cond, and the output -(1 - alpha^2) / sigma * cond leads to x_0 = cond
    alpha, sigma = model.levels(torch.tensor([120]))

    def same(latents: torch.Tensor, t: torch.Tensor, tokens: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        return -(1 - alpha**2) / sigma * cond

    model.forward = same  # type: ignore[method-assign, assignment]
    with torch.no_grad():
        for residual in (True, False):
            objective = plugin.Restoring(model, vae, crops, times=times, residual=residual)
            shown = given.given if residual else vae.decode(vae.encode(given.given))
            found, wanted = objective(0, np.random.default_rng(0)), plugin.picture_loss(shown, given.truth)
            assert torch.allclose(found, wanted, atol=1e-2), (residual, found, wanted)


def test_picture_training_leaves_nothing_on_the_processor() -> None:
    times = plugin.Times(top=121, cold=True)
    objective = plugin.Restoring(plugin.Denoiser(TOY), autoencoder.build(VAE), crops, times=times, residual=True)
    loss = objective.to("meta")(0, np.random.default_rng(0))
    assert loss.device.type == "meta" and loss.shape == ()
    loss.backward()
