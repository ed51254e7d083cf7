"""The change head: what turns a plugin's latents into a change of the photo, without a decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class ResidualBlock(nn.Module):
    """Two convolutions without norm, as in EDSR (arXiv:1707.02921, figure 2c); at first the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        _silence(self.second)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(functional.relu(self.first(x)))  # type: ignore[no-any-return]


class ChangeHead(nn.Module):
    """The input image, the plugin's final latents and the input's own -> the change that the plugin makes.

    A U-Net (arXiv:1505.04597) of three sides: twice that of the latents, where groups of pixels are channels (sub-pixel
    convolution, arXiv:1609.05158), that of the latents, which enter there, and half of it. A new one changes nothing.

    Args:
        config: ``latent_channels`` and ``factor`` (even) of the base's autoencoder; ``widths`` at the three sides;
            residual ``blocks`` on the way down and again on the way up at the first two sides, and at the third.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        (fine, middle, coarse), blocks = config["widths"], config["blocks"]
        self.group: int = config["factor"] // 2
        pixels = 3 * self.group**2
        self.enter = nn.Conv2d(pixels, fine, 3, padding=1)
        self.down_1 = _blocks(fine, blocks[0])
        self.halve_1 = nn.Conv2d(fine, middle, 3, stride=2, padding=1)
        self.latents = nn.Conv2d(2 * config["latent_channels"], middle, 3, padding=1)
        self.down_2 = _blocks(middle, blocks[1])
        self.halve_2 = nn.Conv2d(middle, coarse, 3, stride=2, padding=1)
        self.bottom = _blocks(coarse, blocks[2])
        self.double_2 = nn.Conv2d(coarse, 4 * middle, 1)
        self.up_2 = _blocks(middle, blocks[1])
        self.double_1 = nn.Conv2d(middle, 4 * fine, 1)
        self.up_1 = _blocks(fine, blocks[0])
        self.leave = nn.Conv2d(fine, pixels, 3, padding=1)
        _silence(self.leave)

    def forward(self, image: Tensor, latents: Tensor, cond: Tensor) -> Tensor:
        """The change [n, 3, H, W].

        Args:
            image: the input [n, 3, H, W] in [-1, 1], H = h x factor.
            latents: scaled, after the last step [n, 4, h, w].
            cond: the input's scaled latents [n, 4, h, w]: what counts beside the final ones is by how much they differ.
        """
        fine = self.down_1(self.enter(functional.pixel_unshuffle(image, self.group)))
        middle = self.halve_1(fine) + self.latents(torch.cat((latents, latents - cond), dim=1))
        middle = self.down_2(functional.relu(middle))
        small = functional.pixel_shuffle(self.double_2(self.bottom(functional.relu(self.halve_2(middle)))), 2)
        middle = self.up_2(middle + small[:, :, : middle.shape[2], : middle.shape[3]])  # a side may be odd
        fine = self.up_1(fine + functional.pixel_shuffle(self.double_1(middle), 2))
        return functional.pixel_shuffle(self.leave(fine), self.group)


def _blocks(width: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(ResidualBlock(width) for _ in range(count)))


@torch.no_grad()
def _silence(layer: nn.Conv2d) -> None:
    for parameter in layer.parameters():
        parameter.zero_()
