"""Multi-head attention: one function, so that the exporter has one place to swap in a fused operator."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffplugin.plugins.networks.blocks import GroupNorm
from diffplugin.plugins.networks.form import for_cuda, for_processors, in_portable


def _attention(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    def split(x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], heads, x.shape[2] // heads).transpose(1, 2)

    if in_portable():
        # one scaling, before the product: float16 scores stay small, and compilers for GPUs fuse this pattern
        scores = (split(query) * (heads / query.shape[2]) ** 0.5) @ split(key).transpose(2, 3)
        out = (scores if mask is None else scores + mask).softmax(-1) @ split(value)
    else:
        out = F.scaled_dot_product_attention(split(query), split(key), split(value), attn_mask=mask)
    merged: Tensor = out.transpose(1, 2).flatten(2)
    return merged


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Softmax(QK^T / sqrt(head width)) V per head; arXiv:1706.03762 Eq. 1.

    Args:
        query: [n, q, heads * width]; key and value: [n, k, heads * width].
        mask: added to the scores, [1, 1, q, k] (the causal mask of the text encoder).

    Returns:
        [n, q, heads * width].

    In an ONNX export this becomes ``com.microsoft::MultiHeadAttention``, which engines on processors and on CUDA run
    fused; in a portable one (:mod:`.form`) two products and a softmax.
    """
    if for_processors() or for_cuda():
        # bias and key padding mask, which we have not, stand between the value and the additive mask
        optional = () if mask is None else (None, None, mask)
        return torch.onnx.ops.symbolic(
            "com.microsoft::MultiHeadAttention",
            (query, key, value, *optional),
            {"num_heads": heads},
            dtype=query.dtype,
            shape=query.shape,
            version=1,
        )
    return _attention(query, key, value, heads, mask)


class Attention(nn.Module):
    """diffusers' ``Attention``: no bias on q, k, v; ``context`` is the sequence itself or the prompt tokens."""

    def __init__(self, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width, width, bias=False)
        self.to_v = nn.Linear(context_width, width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        out: Tensor = self.to_out[0](attention(self.to_q(x), self.to_k(context), self.to_v(context), self.heads))
        return out


# Widths that the CUDA provider's fused kernel has: four times those of Stable Diffusion's levels.
_FUSED_GEGLU = (1280, 2560, 5120)


class _GEGLU(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, inner * 2)

    def forward(self, x: Tensor) -> Tensor:
        if for_cuda() and self.proj.out_features // 2 in _FUSED_GEGLU:
            made: Tensor = torch.onnx.ops.symbolic(
                "com.microsoft::BiasSplitGelu",
                (F.linear(x, self.proj.weight), self.proj.bias),
                {},
                dtype=x.dtype,
                shape=(*x.shape[:-1], self.proj.out_features // 2),
                version=1,
            )
            return made
        value, gate = self.proj(x).chunk(2, dim=-1)
        gated: Tensor = value * F.gelu(gate)
        return gated


class _FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        # index 1 is the dropout of the original, which has no parameters
        self.net = nn.ModuleList([_GEGLU(width, width * 4), nn.Identity(), nn.Linear(width * 4, width)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = layer(x)
        return x


class _TransformerBlock(nn.Module):
    def __init__(self, width: int, token_width: int, heads: int, only_cross: bool) -> None:
        super().__init__()
        self.only_cross = only_cross
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, token_width if only_cross else width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, token_width, heads)
        self.norm3 = nn.LayerNorm(width)
        self.ff = _FeedForward(width)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attn1(y, tokens if self.only_cross else y)
        x = x + self.attn2(self.norm2(x), tokens)
        return x + self.ff(self.norm3(x))  # type: ignore[no-any-return]


def _rows(x: Tensor) -> Tensor:
    """Maps [n, C, h, w] -> rows of pixels [n, h*w, C]."""
    # engines that keep channels last then move nothing
    return x.permute(0, 2, 3, 1).flatten(1, 2) if for_cuda() else x.flatten(2).transpose(1, 2)


def _maps(rows: Tensor, size: torch.Size) -> Tensor:
    """:func:`_rows` back to maps of ``size`` (h, w)."""
    made: Tensor = (
        rows.unflatten(1, size).permute(0, 3, 1, 2)  # type: ignore[no-untyped-call]
        if for_cuda()
        else rows.transpose(1, 2).unflatten(2, size)  # type: ignore[no-untyped-call]
    )
    return made


class SpatialTransformer(nn.Module):
    """Transformer over the pixels of a feature map (diffusers ``Transformer2DModel``).

    [n, C, h, w] and tokens [n, 256, D] -> [n, C, h, w].
    """

    def __init__(
        self, width: int, token_width: int, *, heads: int, groups: int, linear_projection: bool, only_cross: bool
    ) -> None:
        super().__init__()
        self.linear_projection = linear_projection
        self.norm = GroupNorm(groups, width, eps=1e-6)
        make = (lambda: nn.Linear(width, width)) if linear_projection else (lambda: nn.Conv2d(width, width, 1))
        self.proj_in = make()
        self.transformer_blocks = nn.ModuleList([_TransformerBlock(width, token_width, heads, only_cross)])
        self.proj_out = make()

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        size = x.shape[-2:]
        y = self.norm(x)
        # a 1x1 convolution and a linear layer over the channels commute with the flattening
        y = self.proj_in(_rows(y)) if self.linear_projection else _rows(self.proj_in(y))
        for block in self.transformer_blocks:
            y = block(y, tokens)
        y = _maps(self.proj_out(y), size) if self.linear_projection else self.proj_out(_maps(y, size))
        return x + y


class PixelAttention(nn.Module):
    """Single-head self-attention of the autoencoder's middle block, with its own norm and residual."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.group_norm = GroupNorm(groups, width, eps=1e-6)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        y = _rows(self.group_norm(x))
        y = self.to_out[0](attention(self.to_q(y), self.to_k(y), self.to_v(y), heads=1))
        return x + _maps(y, x.shape[-2:])


def causal_mask(length: int, device: torch.device | None = None) -> Tensor:
    """[1, 1, length, length]: 0 where a position may look, -inf (the lowest float) ahead of it."""
    mask = torch.full((length, length), -torch.finfo(torch.float32).max, device=device)
    return mask.triu(1)[None, None]


def sinusoidal(timesteps: Tensor, width: int, *, flip_sin_to_cos: bool, freq_shift: float) -> Tensor:
    """Sinusoidal time features [n, width] of timesteps [n]; arXiv:1706.03762 section 3.5, computed in float32.

    ``flip_sin_to_cos`` puts the cosines first (SD does); the order matters silently.
    """
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    exponent = -math.log(10000.0) * steps / (half - freq_shift)
    angles = timesteps.to(torch.float32)[:, None] * exponent.exp()[None]
    parts = (angles.cos(), angles.sin()) if flip_sin_to_cos else (angles.sin(), angles.cos())
    return torch.cat(parts, dim=-1)
