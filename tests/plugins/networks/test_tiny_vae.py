"""The tiny autoencoder is diffusers' ``AutoencoderTiny``, key by key and value by value."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs the extra [export]")

from diffplugin.plugins.networks.tiny_vae import TinyAutoencoder


@pytest.mark.parametrize(("width", "levels"), [(64, 4), (8, 3)])
def test_it_is_diffusers_own(width: int, levels: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    config = {
        "encoder_block_out_channels": (width,) * levels,
        "decoder_block_out_channels": (width,) * levels,
        "num_encoder_blocks": (1, *[2] * (levels - 1)),
        "num_decoder_blocks": (*[2] * (levels - 1), 1),
    }
    theirs = diffusers.AutoencoderTiny(**config).eval()
    ours = TinyAutoencoder(dict(theirs.config)).eval()
    ours.load_state_dict(theirs.state_dict())
    image = torch.rand(1, 3, 32, 48) * 2 - 1
    with torch.no_grad():
        latents = theirs.encode(image).latents
        assert latents.shape[-2:] == (32 >> (levels - 1), 48 >> (levels - 1))
        assert torch.equal(ours.encode(image), latents)
        for scale in (1, 30):  # outliers are bent
            assert torch.equal(ours.decode(scale * latents), theirs.decode(scale * latents).sample)
