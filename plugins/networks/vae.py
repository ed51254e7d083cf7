"""The autoencoder of Stable Diffusion (diffusers ``AutoencoderKL``), used without sampling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from diffplugin.plugins.networks.attention import PixelAttention
from diffplugin.plugins.networks.blocks import Downsample, PictureNorm, ResnetBlock, Upsample

Config = Mapping[str, Any]
_EPS = 1e-6


def _resnet(inputs: int, outputs: int, groups: int) -> ResnetBlock:
    return ResnetBlock(inputs, outputs, time_width=0, groups=groups, eps=_EPS, norm=PictureNorm)


class _Level(nn.Module):
    """One resolution: resnets, then a change of resolution on all but the last level."""

    def __init__(self, inputs: int, outputs: int, layers: int, groups: int, resample: str | None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(_resnet(inputs if i == 0 else outputs, outputs, groups) for i in range(layers))
        if resample == "down":
            self.downsamplers = nn.ModuleList([Downsample(outputs, asymmetric=True)])
        elif resample == "up":
            self.upsamplers = nn.ModuleList([Upsample(outputs)])

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        for name in ("downsamplers", "upsamplers"):
            if hasattr(self, name):
                x = getattr(self, name)[0](x)
        return x


class _Mid(nn.Module):
    """``mid_block_add_attention`` false (diffusers' name): without the attention over all latent pixels."""

    def __init__(self, width: int, groups: int, config: Config) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(_resnet(width, width, groups) for _ in range(2))
        if config.get("mid_block_add_attention", True):
            self.attentions = nn.ModuleList([PixelAttention(width, groups)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        if hasattr(self, "attentions"):
            x = self.attentions[0](x)
        return self.resnets[1](x)  # type: ignore[no-any-return]


class _Encoder(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        widths, groups = config["block_out_channels"], config["norm_num_groups"]
        self.conv_in = nn.Conv2d(config["in_channels"], widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            _Level(
                widths[max(i - 1, 0)],
                width,
                config["layers_per_block"],
                groups,
                "down" if i < len(widths) - 1 else None,
            )
            for i, width in enumerate(widths)
        )
        self.mid_block = _Mid(widths[-1], groups, config)
        self.conv_norm_out = PictureNorm(groups, widths[-1], eps=_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config["latent_channels"], 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(self.conv_norm_out.silu(self.mid_block(x)))  # type: ignore[no-any-return]


class _Decoder(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        widths, groups = list(reversed(config["block_out_channels"])), config["norm_num_groups"]
        self.conv_in = nn.Conv2d(config["latent_channels"], widths[0], 3, padding=1)
        self.mid_block = _Mid(widths[0], groups, config)
        self.up_blocks = nn.ModuleList(
            _Level(
                widths[max(i - 1, 0)],
                width,
                config["layers_per_block"] + 1,
                groups,
                "up" if i < len(widths) - 1 else None,
            )
            for i, width in enumerate(widths)
        )
        self.conv_norm_out = PictureNorm(groups, widths[-1], eps=_EPS)
        self.conv_out = nn.Conv2d(widths[-1], config["out_channels"], 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(self.conv_norm_out.silu(x))  # type: ignore[no-any-return]


class Autoencoder(nn.Module):
    """Picture <-> scaled latent. ``config``: ``vae/config.json``; factor = 2 ** (levels - 1)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        channels = config["latent_channels"]
        self.scaling: float = config.get("scaling_factor", 0.18215)
        self.encoder = _Encoder(config)
        self.decoder = _Decoder(config)
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.post_quant_conv = nn.Conv2d(channels, channels, 1)

    def moments(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latent, unscaled, for training. [n, 3, H, W] in [-1, 1] -> 2 x [n, 4, h, w]."""
        mean, log_variance = self.quant_conv(self.encoder(image)).chunk(2, dim=1)
        return mean, log_variance

    def encode(self, image: Tensor) -> Tensor:
        """The release takes the *mean* and scales it. [n, 3, H, W] in [-1, 1] -> [n, 4, h, w]."""
        return self.moments(image)[0] * self.scaling

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents [n, 4, h, w] -> picture [n, 3, H, W] about [-1, 1], not clamped."""
        return self.decoder(self.post_quant_conv(latents / self.scaling))  # type: ignore[no-any-return]
