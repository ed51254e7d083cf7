"""The networks against the oracle's goldens, and against diffusers where the oracle does not reach."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra [export]")

from diffplugin.errors import CheckpointError
from diffplugin.export.checkpoints import Checkpoint, embedded_checkpoint, find
from diffplugin.export.measures import relative_error
from diffplugin.plugins.networks.attention import sinusoidal
from diffplugin.plugins.networks.clip import TextEncoder
from diffplugin.plugins.networks.taskplugin import SpatialComplementBranch
from diffplugin.plugins.networks.unet import UNet
from diffplugin.plugins.networks.vae import Autoencoder

GOLDENS = {"deblur_landscape_20": "deblur", "lowlight_portrait_6": "lowlight", "derain_small_4": "derain"}
# The longer ones compute the same graphs at more steps and sizes.
SLOWLY = [pytest.param(name, marks=pytest.mark.slow) for name in GOLDENS]  # tests/test_goldens.py runs one of them
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def checkpoint(oracle: Path) -> Checkpoint:
    root = oracle / "checkpoint"
    return find(root / "stable-diffusion", root / "clip", root / "pre-trained")


@pytest.fixture(scope="module")
def unet(checkpoint: Checkpoint) -> UNet:
    return checkpoint.unet()


@pytest.mark.parametrize("name", SLOWLY)
def test_unet_and_scb_reproduce_the_release_step_by_step(
    name: str, oracle: Path, checkpoint: Checkpoint, unet: UNet
) -> None:
    golden = np.load(oracle / "golden" / f"{name}.npz")
    scb = checkpoint.scb(GOLDENS[name])
    tokens = torch.from_numpy(golden["tokens"]) if "tokens" in golden else None
    if tokens is None:
        pytest.skip("this copy of the golden holds no tokens")
    cond = torch.from_numpy(golden["cond"])
    for row, step in enumerate(golden["kept_steps"]):
        time = sinusoidal(torch.tensor([golden["t"][step]]), 32, flip_sin_to_cos=True, freq_shift=0)
        with torch.inference_mode():
            residuals = scb(time, tokens, cond)
            eps = unet(torch.from_numpy(golden["latents"][row])[None], time, tokens, residuals)
        error = relative_error(eps.numpy()[0], golden["eps"][row])
        assert error <= TOLERANCE, f"{name}: eps at step {step} is {error:.1e} off"
        kept = {0: 0, len(golden["t"]) - 1: 1}.get(int(step))
        for i, residual in enumerate(residuals):
            stored = golden[f"residual{i}"]
            if kept is not None and kept < len(stored):
                error = relative_error(residual.numpy()[0], stored[kept])
                assert error <= TOLERANCE, f"{name}: residual_{i} at step {step} is {error:.1e} off"


def test_the_residuals_stand_where_controlnet_adds_them(oracle: Path, checkpoint: Checkpoint, unet: UNet) -> None:
    """A T2I-Adapter would add them on the way down: the golden tells the two apart."""
    golden = np.load(oracle / "golden" / "derain_small_4.npz")
    tokens, cond = torch.from_numpy(golden["tokens"]), torch.from_numpy(golden["cond"])
    time = sinusoidal(torch.tensor([golden["t"][0]]), 32, flip_sin_to_cos=True, freq_shift=0)
    latents = torch.from_numpy(golden["latents"][0])[None]
    with torch.inference_mode():
        residuals = checkpoint.scb("derain")(time, tokens, cond)
        without = unet(latents, time, tokens)
        zeroed = unet(latents, time, tokens, [torch.zeros_like(r) for r in residuals])
    assert torch.equal(without, zeroed)
    assert relative_error(without.numpy()[0], golden["eps"][0]) > 1e-2, "the residuals change nothing in this golden"


def test_order_of_sine_and_cosine_matters(oracle: Path, checkpoint: Checkpoint, unet: UNet) -> None:
    golden = np.load(oracle / "golden" / "derain_small_4.npz")
    tokens, cond = torch.from_numpy(golden["tokens"]), torch.from_numpy(golden["cond"])
    wrong = sinusoidal(torch.tensor([golden["t"][0]]), 32, flip_sin_to_cos=False, freq_shift=0)
    with torch.inference_mode():
        residuals = checkpoint.scb("derain")(wrong, tokens, cond)
        eps = unet(torch.from_numpy(golden["latents"][0])[None], wrong, tokens, residuals)
    assert relative_error(eps.numpy()[0], golden["eps"][0]) > 1e-3


def test_scb_takes_several_timesteps_of_one_picture(checkpoint: Checkpoint) -> None:
    scb = checkpoint.scb("deblur")
    generator = torch.Generator().manual_seed(0)
    tokens, cond = torch.randn(1, 256, 768, generator=generator), torch.randn(1, 4, 9, 14, generator=generator)
    time = sinusoidal(torch.tensor([999.0, 500.0, 1.0]), 32, flip_sin_to_cos=True, freq_shift=0)
    with torch.inference_mode():
        together = scb(time, tokens, cond)
        alone = [scb(time[i : i + 1], tokens, cond) for i in range(3)]
    assert together[0].shape[0] == 1
    for i in range(3):
        for output in (1, 2):
            error = relative_error(together[output][i].numpy(), alone[i][output][0].numpy())
            assert error <= 1e-6, f"residual_{output} of timestep {i} is {error:.1e} off"


def _small_unet(**changes: Any) -> dict[str, Any]:
    return {
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [16, 32, 32],
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 2,
        "attention_head_dim": 4,
        "cross_attention_dim": 24,
        "norm_num_groups": 8,
        "norm_eps": 1e-5,
        "sample_size": 16,
    } | changes


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_linear_projection": True},
        {"only_cross_attention": [True, False, False]},
        {"attention_head_dim": [2, 4, 8]},
    ],
    ids=["plain", "linear projection", "only cross-attention", "heads per level"],
)
@pytest.mark.parametrize("size", [(16, 16), (11, 14), (9, 5)])
def test_unet_equals_diffusers(changes: dict[str, Any], size: tuple[int, int]) -> None:
    diffusers = pytest.importorskip("diffusers", reason="needs the extra [test]")
    torch.manual_seed(1)
    config = _small_unet(**changes)
    other = diffusers.UNet2DConditionModel(**config).eval()
    ours = UNet(config).eval()
    ours.load_state_dict(other.state_dict())
    latents, tokens = torch.randn(1, 4, *size), torch.randn(1, 7, 24)
    t = torch.tensor([321.0])
    residuals = [torch.randn(1, 16, *size) for _ in range(3)]
    with torch.inference_mode():
        # diffusers wants a residual for every skip and one for the middle, or takes them for a T2I-Adapter's
        _, shapes = [], []
        x = other.conv_in(latents)
        for block in other.down_blocks:
            x, made = block(
                hidden_states=x,
                temb=torch.zeros(1, 64),
                **({"encoder_hidden_states": tokens} if hasattr(block, "attentions") else {}),
            )
            shapes += [m.shape for m in made]
        rest = [torch.zeros(shape) for shape in shapes[2:]]
        want = other(
            latents,
            t,
            tokens,
            down_block_additional_residuals=[*residuals, *rest],
            mid_block_additional_residual=torch.zeros_like(x),
        ).sample
        time = sinusoidal(t, 16, flip_sin_to_cos=True, freq_shift=0)
        got = ours(latents, time, tokens, residuals)
    error = relative_error(got.numpy(), want.numpy())
    assert error <= 1e-5, f"{changes or 'plain'} at {size}: {error:.1e}"


# --- the split of step caching ---


def _check_split(unet: UNet, width: int, tokens: Any, size: tuple[int, int], residuals: list[Any], deep: int) -> None:
    """whole() and shallow() with its deep feature are forward(), and shallow() does depend on that feature."""
    latents, time = torch.randn(1, 4, *size), torch.randn(1, width)
    with torch.inference_mode():
        want = unet(latents, time, tokens, residuals).numpy()
        eps, feature = unet.whole(latents, time, tokens, residuals)
        again = unet.shallow(latents, time, tokens, residuals, feature)
        other = unet.shallow(latents, time, tokens, residuals, 2 * feature)
        plain = unet.shallow(latents, time, tokens, [2 * r for r in residuals], feature)
    assert feature.shape == (1, deep, *size)
    assert np.array_equal(eps.numpy(), want)
    error = relative_error(again.numpy(), want)
    assert error <= 1e-6, f"{size}: {error:.1e} off"
    assert relative_error(other.numpy(), want) > 1e-3, "the deep feature changes nothing"
    assert relative_error(plain.numpy(), want) > 1e-3, "the residuals change nothing"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layers_per_block": 1},
        {"layers_per_block": 3},
        {"only_cross_attention": True, "attention_head_dim": [2, 4, 8]},
        {
            "block_out_channels": [16, 32],
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        },
        {
            "down_block_types": ["DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
        },
    ],
    ids=["plain", "one layer", "three layers", "only cross-attention", "two levels", "no attention outside"],
)
@pytest.mark.parametrize("size", [(16, 16), (11, 14)])
def test_the_outermost_blocks_with_their_own_deep_feature_are_the_unet(
    changes: dict[str, Any], size: tuple[int, int]
) -> None:
    torch.manual_seed(4)
    config = _small_unet(**changes)
    # with one layer a block has two skips of its own, and the third residual belongs to the stride-2 convolution
    half = tuple(-(-side // 2) for side in size)
    sides = [size, size, half if config["layers_per_block"] == 1 else size]
    residuals = [torch.randn(1, 16, *side) for side in sides]
    _check_split(UNet(config).eval(), 16, torch.randn(1, 7, 24), size, residuals, 32)


def test_the_split_of_the_released_layout_and_of_the_embedded_model(checkpoint: Checkpoint) -> None:
    torch.manual_seed(5)
    for made in (checkpoint, embedded_checkpoint([])[0]):
        dims = made.dims
        residuals = [torch.randn(1, dims.residual_channels, 10, 13) for _ in range(3)]
        tokens = torch.randn(1, dims.tokens, dims.token_width)
        _check_split(made.unet(), dims.time_features, tokens, (10, 13), residuals, dims.deep_channels)


def test_one_level_has_nothing_to_split() -> None:
    config = _small_unet(
        block_out_channels=[16], down_block_types=["CrossAttnDownBlock2D"], up_block_types=["CrossAttnUpBlock2D"]
    )
    unet = UNet(config).eval()
    inputs = (torch.randn(1, 4, 8, 8), torch.randn(1, 16), torch.randn(1, 7, 24), [torch.randn(1, 16, 8, 8)] * 3)
    with torch.inference_mode():
        assert unet(*inputs).shape == (1, 4, 8, 8)
    with pytest.raises(CheckpointError, match="1 level, expected at least 2"):
        unet.whole(*inputs)
    with pytest.raises(CheckpointError, match="1 level, expected at least 2"):
        unet.shallow(*inputs, torch.randn(1, 16, 8, 8))


def test_autoencoder_equals_diffusers_on_odd_sizes() -> None:
    diffusers = pytest.importorskip("diffusers", reason="needs the extra [test]")
    torch.manual_seed(2)
    config = {
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": [8, 16, 16],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
    }
    other = diffusers.AutoencoderKL(**config).eval()
    ours = Autoencoder(config).eval()
    ours.load_state_dict(other.state_dict())
    image = torch.randn(1, 3, 44, 28)
    with torch.inference_mode():
        mean = other.encode(image).latent_dist.mean * 0.18215
        assert relative_error(ours.encode(image).numpy(), mean.numpy()) <= 1e-5
        picture = other.decode(mean / 0.18215).sample
        assert relative_error(ours.decode(mean).numpy(), picture.numpy()) <= 1e-5


@pytest.mark.parametrize("eos", [2, 49])
def test_text_encoder_pools_at_the_end_of_text(eos: int) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra [test]")
    torch.manual_seed(3)
    config = {
        "vocab_size": 50,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 12,
        "hidden_act": "quick_gelu",
        "eos_token_id": eos,
        "bos_token_id": 0,
        "pad_token_id": 1,
    }
    other = transformers.CLIPTextModel(transformers.CLIPTextConfig(**config)).eval()
    ours = TextEncoder(config).eval()
    state = other.state_dict()
    ours.load_state_dict({n if n.startswith("text_model.") else f"text_model.{n}": v for n, v in state.items()})
    ids = torch.tensor([[48, 5, 9, 49, 49, 49, 49, 49, 49, 49, 49, 49]])
    with torch.inference_mode():
        want = other(input_ids=ids, attention_mask=torch.ones_like(ids)).pooler_output
        assert relative_error(ours(ids).numpy(), want.numpy()) <= 1e-5


def test_an_unknown_architecture_is_refused_with_all_its_faults() -> None:
    config = _small_unet(
        act_fn="gelu", class_embed_type="timestep", down_block_types=["DownBlock2D", "Odd", "DownBlock2D"]
    )
    with pytest.raises(CheckpointError, match=r"act_fn='gelu'.*class_embed_type='timestep'.*unknown block Odd"):
        UNet(config)


def test_scb_config_is_checked(checkpoint: Checkpoint) -> None:
    config = json.loads((checkpoint.plugins["deblur"] / "scb" / "config.json").read_text()) | {"act_fn": "relu"}
    with pytest.raises(CheckpointError, match=r"SCB config.*act_fn='relu'"):
        SpatialComplementBranch(config)
