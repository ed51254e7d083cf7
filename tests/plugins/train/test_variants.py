"""Ablated plugins: what learns, and where the residuals enter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diffplugin.errors import RequestError
from diffplugin.plugins.networks.taskplugin import SpatialComplementBranch, TaskPromptBranch
from diffplugin.plugins.train import variants
from diffplugin.plugins.train.plugin import Denoiser, scb_config
from tests.plugins.train.toys import TOY

SD: dict[str, Any] = {  # Stable Diffusion 1.4's widths
    "block_out_channels": [320, 640, 1280, 1280],
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "in_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "act_fn": "silu",
    "downsample_padding": 1,
}


@pytest.mark.parametrize(("stage", "paper"), [(0, 14.88), (1, 48.77), (2, 182.31), (3, 182.31)])
def test_plugins_have_the_parameters_of_table_4(stage: int, paper: float) -> None:
    with torch.device("meta"):
        scb = SpatialComplementBranch({**scb_config(SD), "block_out_channels": [SD["block_out_channels"][stage]]})
        parts = (scb, TaskPromptBranch(1024, 768))
    found = sum(p.numel() for part in parts for p in part.parameters()) / 1e6
    assert found == pytest.approx(paper, rel=2e-3), f"{found:.2f} million, paper {paper}"


def inside(model: Denoiser, with_plugin: bool) -> dict[str, torch.Tensor]:
    """What leaves each block."""
    torch.manual_seed(1)
    latents, cond, t = torch.randn(1, 4, 16, 16), torch.randn(1, 4, 16, 16), torch.tensor([500])
    tokens = torch.randn(1, 256, TOY["unet"]["cross_attention_dim"])
    seen: dict[str, torch.Tensor] = {}
    names = [("conv_in", model.unet.conv_in), ("mid", model.unet.mid_block)]
    names += [(f"down{i}", block) for i, block in enumerate(model.unet.down_blocks)]
    names += [(f"up{i}", block) for i, block in enumerate(model.unet.up_blocks)]
    hooks = [
        block.register_forward_hook(
            lambda _, __, made, name=name: seen.__setitem__(name, made[0] if isinstance(made, tuple) else made)
        )
        for name, block in names
    ]
    with torch.no_grad():
        model(latents, t, tokens, cond if with_plugin else None)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("place", ["E-1", "E-2", "E-3", "D-3", "D-2", "D-1"])
def test_residuals_enter_at_their_place_and_nowhere_before(place: str) -> None:
    """The toy has three stages; what runs before the place is untouched by the plugin."""
    torch.manual_seed(0)
    model = variants.maker(place)(TOY)
    for layer in model.scb.controlnet_down_blocks.parameters():
        torch.nn.init.normal_(layer)
    without, with_plugin = inside(model, False), inside(model, True)
    moved = {name for name in without if not torch.equal(without[name], with_plugin[name])}
    side, stage = place[0], int(place[2])
    if side == "D":
        assert moved == {f"up{i}" for i in range(3 - stage, 3)}, moved
    else:
        first = set() if stage == 1 else {f"down{stage - 2}"}  # its stride-2 convolution enters the stage
        later = {f"down{i}" for i in range(stage - 1, 3)}
        assert moved == first | later | {"mid", "up0", "up1", "up2"}, moved


def test_d1_is_the_released_plugin() -> None:
    torch.manual_seed(0)
    placed, released = variants.Placed(TOY, "D-1"), Denoiser(TOY)
    released.load_state_dict(placed.state_dict())
    one, other = inside(placed, True), inside(released, True)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("variant", ["scb", "tpb", "E-2", "reconstruction"])
def test_what_learns(variant: str) -> None:
    model = variants.maker(variant)(TOY).requires_grad_(False)
    variants.freeze(model, variant)
    learn = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert learn == {"scb": {"scb"}, "tpb": {"tpb"}, "reconstruction": {"scb"}}.get(variant, {"tpb", "scb"})


def test_faults_are_named() -> None:
    with pytest.raises(RequestError, match="variant 'F-1': expected one of released"):
        variants.maker("F-1")
    with pytest.raises(RequestError, match="E-4: the base has 3 stages"):
        variants.maker("E-4")(TOY)
