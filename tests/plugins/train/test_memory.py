"""The estimate of a training's memory against PyTorch's own count of a whole step."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch

from diffplugin.plugins.train import eq3, memory
from diffplugin.plugins.train.plugin import scb_config
from tests.plugins.train.toys import TOY, VAE

SD_UNET = {
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "out_channels": 4,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
SD: dict[str, dict[str, Any]] = {
    "unet": SD_UNET,
    "scb": scb_config(SD_UNET),
    "scheduler": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "vae": {
        "block_out_channels": [128, 256, 512, 512],
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
    },
    "vision": {
        "hidden_act": "quick_gelu",
        "hidden_size": 1024,
        "image_size": 224,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_channels": 3,
        "num_hidden_layers": 24,
        "patch_size": 14,
    },
}


def counted(configs: dict[str, dict[str, Any]], side: int, precision: str, batch: int, checkpointing: bool) -> float:
    """Peak bytes of one step by torch.distributed's MemTracker, on tensors without storage."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker

    with FakeTensorMode():
        objective = memory.published(configs, memory.TYPES[precision])
        if checkpointing:
            memory.checkpoint_blocks(objective.model)
        optimiser = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad])
        tracker = MemTracker()
        handle = torch.utils.hooks.RemovableHandle(OrderedDict())
        for parameter in objective.parameters():  # it would put hooks on the gradients of frozen weights, too
            if not parameter.requires_grad:
                tracker._param_to_grad_hook_handles[parameter] = (handle, handle)
        tracker.track_external(objective, optimiser)
        latents, draws = memory.fake_inputs(objective, configs, side, batch)
        with tracker:
            with memory.autocast(precision):
                loss = eq3.eq3_loss(objective.model, latents, draws)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        return float(sum(values["Total"] for values in tracker.get_tracker_snapshot("peak").values()))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "batch", "checkpointing"),
    [("no", 1, False), ("bf16", 4, False), ("bf16", 16, True)],
)
def test_estimate_is_pytorchs_own_count_at_stable_diffusions_widths(
    precision: str, batch: int, checkpointing: bool
) -> None:
    found = memory.estimate(SD, 512, precision, checkpointing=checkpointing).total(batch) - memory.CONTEXT
    want = counted(SD, 512, precision, batch, checkpointing)
    print(f"{precision} x{batch}: {found / memory.GIB:.2f} GiB, counted {want / memory.GIB:.2f}")
    assert found == pytest.approx(want, rel=0.2), f"{found / memory.GIB:.2f} GiB, counted {want / memory.GIB:.2f}"


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_estimate_of_a_toy(checkpointing: bool) -> None:
    """Activations far outweigh the weights here."""
    configs = {**TOY, "vae": VAE}
    found = memory.estimate(configs, 256, "no", checkpointing=checkpointing).total(8) - memory.CONTEXT
    want = counted(configs, 256, "no", 8, checkpointing)
    assert found == pytest.approx(want, rel=0.2), f"{found:.3g} bytes, counted {want:.3g}"


def test_the_batch_that_fits() -> None:
    estimate = memory.Estimate(fixed_bytes=4 * memory.GIB, photo_bytes=memory.GIB)
    assert estimate.largest_batch(10 * memory.GIB) == 5, "4 and CUDA's 0.6 are taken before any picture"
    assert estimate.largest_batch(3 * memory.GIB) == 0


def test_checkpointed_blocks_give_the_same_gradients() -> None:
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        objective = memory.published({**TOY, "vae": VAE}, torch.float32)
        if checkpointing:
            memory.checkpoint_blocks(objective.model)
        torch.manual_seed(1)
        latents, draws = memory.fake_inputs(objective, {**TOY, "vae": VAE}, 64, 2)
        latents = eq3.Latents(
            *(torch.randn_like(x) for x in (latents.patches, latents.cond, latents.mean, latents.mean))
        )
        draws = eq3.Draws(torch.tensor([10, 900]), torch.randn_like(draws.noise), torch.randn_like(draws.posterior))
        eq3.eq3_loss(objective.model, latents, draws).backward()  # type: ignore[no-untyped-call]
        found.append([p.grad for p in objective.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1]) > 10
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*found, strict=True))
