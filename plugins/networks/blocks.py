"""Convolutional blocks shared by the UNet, the SCB and the autoencoder (names as in diffusers)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffplugin.plugins.networks.form import for_cuda, for_cuda_fp32, for_processors, in_portable


class TimeEmbedding(nn.Module):
    """Two linear layers over the sinusoidal features: [n, C0] -> [n, 4 * C0]."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(features, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, time: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(time)))  # type: ignore[no-any-return]


class GroupNorm(nn.GroupNorm):
    """Group normalisation, arXiv:1803.08494. In a portable export (:mod:`.form`) it is ONNX's operator of this name,
    with statistics in float32, which compilers for GPUs fuse with the activation behind it. For CUDA it is ONNX
    Runtime's ``com.microsoft::GroupNorm``, channels last, with the activation inside.

    Not with one group, where TensorRT's parser (10.16, its issue 4756) takes every channel for itself: that is an
    instance norm of one channel.
    """

    def silu(self, x: Tensor) -> Tensor:
        """SiLU of :meth:`forward`, arXiv:1702.03118."""
        return self._fused(x, silu=True) if self._is_fused() else F.silu(self(x))

    def forward(self, x: Tensor) -> Tensor:
        if self._is_fused():
            return self._fused(x, silu=False)
        if not in_portable():
            return super().forward(x)
        if self.num_groups > 1:
            return self._operator("GroupNormalization", x, self.weight, self.bias, num_groups=self.num_groups)
        whole = x.reshape(x.shape[0], 1, -1)
        normalised = self._operator("InstanceNormalization", whole, x.new_ones(1), x.new_zeros(1))
        scaled: Tensor = normalised.reshape(x.shape) * self.weight[:, None, None] + self.bias[:, None, None]
        return scaled

    def _is_fused(self) -> bool:
        return for_cuda()

    def _fused(self, x: Tensor, *, silu: bool) -> Tensor:
        last = x.permute(0, 2, 3, 1)
        settings: dict[str, Any] = {
            "groups": self.num_groups,
            "epsilon": self.eps,
            "activation": int(silu),
            "channels_last": 1,
        }
        made: Tensor = torch.onnx.ops.symbolic(
            "com.microsoft::GroupNorm",
            (last, self.weight, self.bias),
            settings,
            dtype=x.dtype,
            shape=last.shape,
            version=1,
        )
        return made.permute(0, 3, 1, 2)

    def _operator(self, name: str, x: Tensor, weight: Tensor, bias: Tensor, **attributes: float) -> Tensor:
        settings: dict[str, Any] = {"epsilon": self.eps, **attributes}
        return torch.onnx.ops.symbolic(name, (x, weight, bias), settings, dtype=x.dtype, shape=x.shape, version=21)


class PictureNorm(GroupNorm):
    """Group normalisation of maps as large as the picture.

    Engines sum a group's squares in one float32: over the million values of a 512x512 map that costs three digits
    (2.5e-4 after ONNX Runtime's encoder). Exported, it is taken in two levels, lines first, which keeps them.
    In float16 nothing of it would be left.
    """

    def _is_fused(self) -> bool:
        return for_cuda() and not for_cuda_fp32()

    def forward(self, x: Tensor) -> Tensor:
        if not (for_processors() or for_cuda_fp32()):
            return super().forward(x)
        channels, height, width = x.shape[1:]
        lines = x.reshape(x.shape[0], self.num_groups, channels // self.num_groups * height, width)
        mean = lines.mean(-1, keepdim=True).mean(-2, keepdim=True)
        norms = torch.linalg.vector_norm(lines - mean, dim=-1, keepdim=True)
        variance = (norms * norms).mean(-2, keepdim=True) / width
        members = channels // self.num_groups
        mean, variance = (m.repeat_interleave(members, 1) for m in (mean, variance))
        if for_processors():
            # with the moments of its one picture, this operator is one pass over the map; a product and a sum are two
            normalised: Tensor = torch.onnx.ops.symbolic(
                "BatchNormalization",
                (x, self.weight, self.bias, mean.flatten(), variance.flatten()),
                {"epsilon": self.eps},
                dtype=x.dtype,
                shape=x.shape,
                version=15,
            )
            return normalised
        scale = (variance + self.eps).rsqrt() * self.weight[:, None, None]
        made: Tensor = x * scale + (self.bias[:, None, None] - mean * scale)
        return made


class ResnetBlock(nn.Module):
    """norm, SiLU, 3x3 convolution, twice; the time embedding enters between. ``time_width=0``: without time."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        time_width: int,
        groups: int,
        eps: float,
        norm: type[GroupNorm] = GroupNorm,
    ) -> None:
        super().__init__()
        self.norm1 = norm(groups, inputs, eps=eps)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_width, outputs) if time_width else None
        self.norm2 = norm(groups, outputs, eps=eps)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        y = self.conv1(self.norm1.silu(x))
        if self.time_emb_proj is not None and time is not None:
            y = y + self.time_emb_proj(F.silu(time))[:, :, None, None]
        y = self.conv2(self.norm2.silu(y))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + y  # type: ignore[no-any-return]


class Downsample(nn.Module):
    """3x3 convolution of stride 2. The autoencoder pads right and below only, the UNet all around."""

    def __init__(self, width: int, *, asymmetric: bool) -> None:
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Nearest neighbour x 2, then a 3x3 convolution.

    ``like`` gives the wanted size where a side was odd on the way down. The release resizes to 2n-1 by nearest
    neighbour; floor(i * n / (2n - 1)) = floor(i / 2) for all i < 2n-1, so cutting off the last line is the same.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, like: Tensor | None = None) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        if like is not None:
            x = x[:, :, : like.shape[2], : like.shape[3]]
        return self.conv(x)  # type: ignore[no-any-return]
