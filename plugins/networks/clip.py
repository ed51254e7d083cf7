"""CLIP's vision and text transformers (arXiv:2103.00020), as far as Diff-Plugin uses them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffplugin.errors import CheckpointError
from diffplugin.plugins.networks.attention import attention, causal_mask
from diffplugin.plugins.networks.form import for_cuda

Config = Mapping[str, Any]
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "gelu": F.gelu,
}


class _SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.out_proj(attention(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads, mask))  # type: ignore[no-any-return]


class _MLP(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        if config["hidden_act"] not in _ACTIVATIONS:
            raise CheckpointError(
                f"CLIP config: hidden_act={config['hidden_act']!r}, expected one of {sorted(_ACTIVATIONS)}"
            )
        self.activation = _ACTIVATIONS[config["hidden_act"]]
        self.fc1 = nn.Linear(config["hidden_size"], config["intermediate_size"])
        self.fc2 = nn.Linear(config["intermediate_size"], config["hidden_size"])

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))  # type: ignore[no-any-return]


class _Layer(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        width, eps = config["hidden_size"], config.get("layer_norm_eps", 1e-5)
        self.self_attn = _SelfAttention(width, config["num_attention_heads"])
        self.layer_norm1 = nn.LayerNorm(width, eps=eps)
        self.mlp = _MLP(config)
        self.layer_norm2 = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))  # type: ignore[no-any-return]


class _Encoder(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config["num_hidden_layers"]))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x, mask)
        return x


class _VisionEmbeddings(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        width, patch = config["hidden_size"], config["patch_size"]
        self.class_embedding = nn.Parameter(torch.randn(width) * 0.02)
        self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding((config["image_size"] // patch) ** 2 + 1, width)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(patches.shape[0], 1, -1)
        return torch.cat((first, patches), dim=1) + self.position_embedding.weight


class _VisionTransformer(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        eps = config.get("layer_norm_eps", 1e-5)
        self.embeddings = _VisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config["hidden_size"], eps=eps)  # the checkpoint's own spelling
        self.encoder = _Encoder(config)
        self.post_layernorm = nn.LayerNorm(config["hidden_size"], eps=eps)  # in the checkpoint; the patches skip it


class VisionEncoder(nn.Module):
    """CLIP vision. ``config``: the vision part of CLIP's config.json."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.vision_model = _VisionTransformer(config)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [n, 3, 224, 224] -> patches [n, 256, Dv]: the last hidden state (ViT-L's
        ``hidden_states[24]``) without the class token and before the final norm."""
        model = self.vision_model
        return model.encoder(model.pre_layrnorm(model.embeddings(pixels)))[:, 1:]  # type: ignore[no-any-return]


class _TextEmbeddings(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.position_embedding = nn.Embedding(config["max_position_embeddings"], config["hidden_size"])

    def forward(self, ids: Tensor) -> Tensor:
        return self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]  # type: ignore[no-any-return]


class _TextTransformer(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embeddings = _TextEmbeddings(config)
        self.encoder = _Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config["hidden_size"], eps=config.get("layer_norm_eps", 1e-5))


class TextEncoder(nn.Module):
    """CLIP text. ``config``: ``text_encoder/config.json``."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.eos: int = config.get("eos_token_id", 2)
        self.text_model = _TextTransformer(config)

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids int64 [n, 77] -> pooled embedding [n, D]: the state at the end-of-text token."""
        model = self.text_model
        states = model.final_layer_norm(model.encoder(model.embeddings(ids), causal_mask(ids.shape[1], ids.device)))
        # configs written before the ids were fixed say eos = 2; there the end of text is the highest id
        end = ids.argmax(dim=-1) if self.eos == 2 else (ids == self.eos).to(torch.int64).argmax(dim=-1)
        if for_cuda():  # whose ArgMax takes no integers: the first end has the highest of these, exact in float16
            ends = ids == (ids.amax(dim=-1, keepdim=True) if self.eos == 2 else self.eos)
            end = (ends.to(torch.float32) * torch.arange(ids.shape[1], 0, -1, dtype=torch.float32)).argmax(dim=-1)
        return states.gather(1, end[:, None, None].expand(-1, 1, states.shape[-1]))[:, 0]  # type: ignore[no-any-return]
