"""A tiny autoencoder of another autoencoder's scaled latents, shaped as TAESD (diffusers ``AutoencoderTiny``): plain
convolutions and ReLU, no norms, no attention. Its errors do not depend on the size of the picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

Config = Mapping[str, Any]


class _Block(nn.Module):
    """Three convolutions and a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(width, width, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), convolutions[2])

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + x)


class TinyEncoder(nn.Module):
    """Picture [n, 3, H, W] in [-1, 1] -> scaled latent [n, 4, h, w]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths: list[int] = config["encoder_block_out_channels"]
        layers: list[nn.Module] = []
        for i, (width, blocks) in enumerate(zip(widths, config["num_encoder_blocks"], strict=True)):
            if i == 0:
                layers.append(nn.Conv2d(config["in_channels"], width, 3, padding=1))
            else:
                layers.append(nn.Conv2d(width, width, 3, padding=1, stride=2, bias=False))
            layers += [_Block(width) for _ in range(blocks)]
        layers.append(nn.Conv2d(widths[-1], config["latent_channels"], 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        return self.layers((image + 1) / 2)  # type: ignore[no-any-return]


class TinyDecoder(nn.Module):
    """Scaled latent [n, 4, h, w] -> picture [n, 3, H, W] about [-1, 1], not clamped."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths: list[int] = config["decoder_block_out_channels"]
        layers: list[nn.Module] = [nn.Conv2d(config["latent_channels"], widths[0], 3, padding=1), nn.ReLU()]
        for i, (width, blocks) in enumerate(zip(widths, config["num_decoder_blocks"], strict=True)):
            last = i == len(widths) - 1
            layers += [_Block(width) for _ in range(blocks)]
            if not last:
                layers.append(nn.Upsample(scale_factor=2))
            layers.append(nn.Conv2d(width, config["out_channels"] if last else width, 3, padding=1, bias=last))
        self.layers = nn.Sequential(*layers)
        self.magnitude = float(config["latent_magnitude"])

    def forward(self, latents: Tensor) -> Tensor:
        kept = torch.tanh(latents / self.magnitude) * self.magnitude  # outliers of a sampler
        return self.layers(kept) * 2 - 1  # type: ignore[no-any-return]


class TinyAutoencoder(nn.Module):
    """``config``: of diffusers' ``AutoencoderTiny``; the factor is 2 ** (levels - 1)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.encoder, self.decoder = TinyEncoder(config), TinyDecoder(config)

    def encode(self, image: Tensor) -> Tensor:
        return self.encoder(image)  # type: ignore[no-any-return]

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder(latents)  # type: ignore[no-any-return]
