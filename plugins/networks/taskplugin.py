"""What Diff-Plugin adds to the base: the two branches of a Task-Plugin and the selector's heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffplugin.plugins.networks.blocks import TimeEmbedding
from diffplugin.plugins.networks.unet import DownBlock, check_config, per_block

Config = Mapping[str, Any]


class TaskPromptBranch(nn.Module):
    """TPB, paper Eq. 1: CLIP patches [n, 256, Dv] -> prompt tokens [n, 256, D]."""

    def __init__(self, vision_width: int, token_width: int) -> None:
        super().__init__()
        self.visual_projection = nn.Sequential(
            nn.Linear(vision_width, vision_width),
            nn.LayerNorm(vision_width),
            nn.LeakyReLU(),
            nn.Linear(vision_width, vision_width),
            nn.LayerNorm(vision_width),
            nn.LeakyReLU(),
            nn.Linear(vision_width, token_width),
        )

    def forward(self, patches: Tensor) -> Tensor:
        return self.visual_projection(patches)  # type: ignore[no-any-return]


class SpatialComplementBranch(nn.Module):
    """SCB, paper Eq. 2: input latent, time and tokens -> three residuals for the UNet's first skips.

    It never reads the noisy latents. ``config``: ``scb/config.json``.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        check_config(config, "SCB", {"CrossAttnDownBlock2D"})
        width = config["block_out_channels"][0]
        self.controlnet_cond_embedding = nn.Conv2d(config["in_channels"], width, 3, padding=1)
        self.time_embedding = TimeEmbedding(width, 4 * width)
        self.down_blocks = nn.ModuleList(
            [
                DownBlock(
                    width,
                    width,
                    config,
                    heads=per_block(config["attention_head_dim"], 1)[0],
                    cross=True,
                    only_cross=per_block(config.get("only_cross_attention", False), 1)[0],
                    last=True,
                )
            ]
        )
        self.controlnet_down_blocks = nn.ModuleList(
            nn.Conv2d(width, width, 1) for _ in range(config["layers_per_block"] + 1)
        )

    def forward(self, time: Tensor, tokens: Tensor, cond: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Residuals of ``n`` timesteps of one picture, or of n pictures at one timestep each.

        Args:
            time: sinusoidal features [n, C0].
            tokens: TPB output [1 or n, 256, D].
            cond: scaled latent of the input picture [1 or n, 4, h, w].

        Returns:
            residual_0 [1 or n, C0, h, w] (no timestep enters it), residual_1 and residual_2 [n, C0, h, w].
        """
        count = time.shape[0]
        x = self.controlnet_cond_embedding(cond)
        first = self.controlnet_down_blocks[0](x)
        x, tokens = x.expand(count, -1, -1, -1), tokens.expand(count, -1, -1)
        _, made = self.down_blocks[0](x, self.time_embedding(time), tokens)
        return first, self.controlnet_down_blocks[1](made[0]), self.controlnet_down_blocks[2](made[1])


class SelectorHeads(nn.Module):
    """Plugin-Selector, paper Eq. 4: shared projection heads and a cosine with a learned temperature."""

    def __init__(self, width: int, projected: int) -> None:
        super().__init__()
        self.proj_t = nn.Linear(width, projected)
        self.proj_v = nn.Linear(width, projected)
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def forward(self, text: Tensor, plugin_tokens: Tensor, null_text: Tensor) -> Tensor:
        """Scores [1, p + 1], ``null`` last; a plugin is selected above 0 (Eq. 5 with threshold 0).

        Args:
            text: pooled embedding of the request [1, D].
            plugin_tokens: TPB output of every plugin for this picture [p, 256, D].
            null_text: pooled embedding of " " [1, D].
        """
        rows = torch.cat((plugin_tokens.amax(dim=1), null_text))
        values = F.normalize(self.proj_v(rows), dim=-1)
        query = F.normalize(self.proj_t(text), dim=-1)
        return query @ values.T * self.logit_scale.exp()
