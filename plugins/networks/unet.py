"""The denoiser: Stable Diffusion 1.x's UNet with the three residual inputs of Diff-Plugin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffplugin.errors import CheckpointError
from diffplugin.plugins.networks.attention import SpatialTransformer
from diffplugin.plugins.networks.blocks import Downsample, GroupNorm, ResnetBlock, TimeEmbedding, Upsample

Config = Mapping[str, Any]
# What SD 1.x fixes. Another value would be another network: refuse it rather than compute something else.
_FIXED: dict[str, Any] = {
    "act_fn": "silu",
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "dual_cross_attention": False,
    "class_embed_type": None,
    "num_class_embeds": None,
    "resnet_time_scale_shift": "default",
    "addition_embed_type": None,
    "encoder_hid_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "resnet_skip_time_act": False,
    "time_embedding_type": "positional",
    "center_input_sample": False,
}


def per_block(value: Any, count: int) -> list[Any]:
    """A config value that may be given once for all blocks or once per block."""
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value] * count


def check_config(config: Config, what: str, down: set[str], up: set[str] | None = None) -> None:
    """Refuse every setting that this network does not have, all at once."""
    faults = [
        f"{key}={config[key]!r} (expected {want!r})" for key, want in _FIXED.items() if config.get(key, want) != want
    ]
    faults += [f"unknown block {name}" for name in config["down_block_types"] if name not in down]
    faults += [f"unknown block {name}" for name in config.get("up_block_types", ()) if up and name not in up]
    if faults:
        raise CheckpointError(f"{what} config is not a Stable Diffusion 1.x one: {'; '.join(faults)}")


class DownBlock(nn.Module):
    """``layers`` x (resnet, transformer), then a stride-2 convolution; returns every intermediate for the skips."""

    def __init__(
        self, inputs: int, outputs: int, config: Config, *, heads: int, cross: bool, only_cross: bool, last: bool
    ) -> None:
        super().__init__()
        groups, time_width = config["norm_num_groups"], 4 * config["block_out_channels"][0]
        layers = config["layers_per_block"]
        self.resnets = nn.ModuleList(
            ResnetBlock(
                inputs if i == 0 else outputs, outputs, time_width=time_width, groups=groups, eps=config["norm_eps"]
            )
            for i in range(layers)
        )
        if cross:
            self.attentions = nn.ModuleList(
                transformer(outputs, config, heads=heads, only_cross=only_cross) for _ in range(layers)
            )
        self.downsamplers = None if last else nn.ModuleList([Downsample(outputs, asymmetric=False)])

    def layers(self, x: Tensor, time: Tensor, tokens: Tensor) -> list[Tensor]:
        """Output of every layer, the block's own resolution: all but the stride-2 convolution."""
        made = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, time)
            if hasattr(self, "attentions"):
                x = self.attentions[i](x, tokens)
            made.append(x)
        return made

    def forward(self, x: Tensor, time: Tensor, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
        skips = self.layers(x, time, tokens)
        x = skips[-1]
        if self.downsamplers is not None:
            x = self.downsamplers[0](x)
            skips.append(x)
        return x, skips


def transformer(width: int, config: Config, *, heads: int, only_cross: bool = False) -> SpatialTransformer:
    """SD 1.x's quirk: ``attention_head_dim`` in the config is the *number* of heads."""
    return SpatialTransformer(
        width,
        config["cross_attention_dim"],
        heads=heads,
        groups=config["norm_num_groups"],
        linear_projection=config.get("use_linear_projection", False),
        only_cross=only_cross,
    )


class _MidBlock(nn.Module):
    def __init__(self, width: int, config: Config, *, heads: int) -> None:
        super().__init__()
        groups, time_width = config["norm_num_groups"], 4 * config["block_out_channels"][0]
        self.resnets = nn.ModuleList(
            ResnetBlock(width, width, time_width=time_width, groups=groups, eps=config["norm_eps"]) for _ in range(2)
        )
        self.attentions = nn.ModuleList([transformer(width, config, heads=heads)])

    def forward(self, x: Tensor, time: Tensor, tokens: Tensor) -> Tensor:
        x = self.attentions[0](self.resnets[0](x, time), tokens)
        return self.resnets[1](x, time)  # type: ignore[no-any-return]


class _UpBlock(nn.Module):
    def __init__(
        self,
        inputs: int,
        skips: list[int],
        outputs: int,
        config: Config,
        *,
        heads: int,
        cross: bool,
        only_cross: bool,
        last: bool,
    ) -> None:
        super().__init__()
        groups, time_width = config["norm_num_groups"], 4 * config["block_out_channels"][0]
        self.resnets = nn.ModuleList(
            ResnetBlock(
                (inputs if i == 0 else outputs) + skip,
                outputs,
                time_width=time_width,
                groups=groups,
                eps=config["norm_eps"],
            )
            for i, skip in enumerate(skips)
        )
        if cross:
            self.attentions = nn.ModuleList(
                transformer(outputs, config, heads=heads, only_cross=only_cross) for _ in skips
            )
        self.upsamplers = None if last else nn.ModuleList([Upsample(outputs)])

    def forward(self, x: Tensor, skips: list[Tensor], time: Tensor, tokens: Tensor) -> Tensor:
        for i, resnet in enumerate(self.resnets):
            x = resnet(torch.cat((x, skips.pop()), dim=1), time)
            if hasattr(self, "attentions"):
                x = self.attentions[i](x, tokens)
        if self.upsamplers is not None:
            x = self.upsamplers[0](x, like=skips[-1])
        return x


class UNet(nn.Module):
    """Noise (or v) estimate of Stable Diffusion 1.x, arXiv:2112.10752, with Diff-Plugin's residuals.

    Args:
        config: ``unet/config.json`` of a diffusers folder.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        check_config(config, "UNet", {"CrossAttnDownBlock2D", "DownBlock2D"}, {"CrossAttnUpBlock2D", "UpBlock2D"})
        widths = list(config["block_out_channels"])
        count, layers = len(widths), config["layers_per_block"]
        heads = per_block(config["attention_head_dim"], count)
        only_cross = per_block(config.get("only_cross_attention", False), count)
        self.levels = count
        self.conv_in = nn.Conv2d(config["in_channels"], widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(widths[0], 4 * widths[0])
        self.down_blocks = nn.ModuleList()
        skips = [widths[0]]
        for i, kind in enumerate(config["down_block_types"]):
            last = i == count - 1
            self.down_blocks.append(
                DownBlock(
                    widths[max(i - 1, 0)],
                    widths[i],
                    config,
                    heads=heads[i],
                    cross=kind.startswith("CrossAttn"),
                    only_cross=only_cross[i],
                    last=last,
                )
            )
            skips += [widths[i]] * (layers if last else layers + 1)
        self.mid_block = _MidBlock(widths[-1], config, heads=heads[-1])
        self.up_blocks = nn.ModuleList()
        for i, kind in enumerate(config["up_block_types"]):
            level = count - 1 - i
            taken = [skips.pop() for _ in range(layers + 1)]
            self.up_blocks.append(
                _UpBlock(
                    widths[min(level + 1, count - 1)],
                    taken,
                    widths[level],
                    config,
                    heads=heads[level],
                    cross=kind.startswith("CrossAttn"),
                    only_cross=only_cross[level],
                    last=level == 0,
                )
            )
        self.conv_norm_out = GroupNorm(config["norm_num_groups"], widths[0], eps=config["norm_eps"])
        self.conv_out = nn.Conv2d(widths[0], config["out_channels"], 3, padding=1)

    def forward(self, latents: Tensor, time: Tensor, tokens: Tensor, residuals: Sequence[Tensor] = ()) -> Tensor:
        """Estimate of one denoising step.

        Args:
            latents: noisy latents [n, 4, h, w]; any sides.
            time: sinusoidal features [n or 1, C0] (:func:`..attention.sinusoidal`).
            tokens: prompt tokens [n or 1, 256, D].
            residuals: three SCB outputs [n, C0, h, w], added to the first three skips *after* the down path has
                run (ControlNet's place; a T2I-Adapter would add them on the way down). Empty: no plugin.

        Returns:
            eps or v, as the base was trained, [n, 4, h, w].
        """
        embedding = self.time_embedding(time)
        x, skips = self._inner(latents, embedding, tokens, residuals)
        return self._outer(x, skips, embedding, tokens)

    def whole(
        self, latents: Tensor, time: Tensor, tokens: Tensor, residuals: Sequence[Tensor] = ()
    ) -> tuple[Tensor, Tensor]:
        """:meth:`forward`, and what :meth:`shallow` needs of it.

        Returns:
            (eps, deep): ``deep`` [n, C1, h, w] is what enters the outermost up block, C1 the second level's width.

        Raises:
            CheckpointError: the network has one level, so nothing lies below the outermost blocks.
        """
        self._check_levels()
        embedding = self.time_embedding(time)
        deep, skips = self._inner(latents, embedding, tokens, residuals)
        return self._outer(deep, skips, embedding, tokens), deep

    def shallow(
        self, latents: Tensor, time: Tensor, tokens: Tensor, residuals: Sequence[Tensor], deep: Tensor
    ) -> Tensor:
        """The step with the deep feature of another one: DeepCache, arXiv:2312.00858 section 3.2.

        Only the outermost down and up block run, and there the residuals enter: a cached step still sees them. (The
        paper may cut a block in two; here all its layers run.) With the step's own ``deep`` it is :meth:`forward`.

        Args:
            latents, time, tokens, residuals: as :meth:`forward` takes them.
            deep: from :meth:`whole` at a step nearby, [n, C1, h, w].

        Raises:
            CheckpointError: as :meth:`whole`.
        """
        self._check_levels()
        embedding = self.time_embedding(time)
        x = self.conv_in(latents)
        outermost: DownBlock = self.down_blocks[0]  # type: ignore[assignment]
        skips = [x, *outermost.layers(x, embedding, tokens)]
        # residuals beyond the block's own skips are in ``deep``
        for i, residual in enumerate(residuals[: len(skips)]):
            skips[i] = skips[i] + residual
        return self._outer(deep, skips, embedding, tokens)

    def _inner(
        self, latents: Tensor, embedding: Tensor, tokens: Tensor, residuals: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """All but the outermost up block: (what enters it, its skips)."""
        x = self.conv_in(latents)
        skips = [x]
        for block in self.down_blocks:
            x, made = block(x, embedding, tokens)
            skips += made
        for i, residual in enumerate(residuals):
            skips[i] = skips[i] + residual
        x = self.mid_block(x, embedding, tokens)
        for block in self.up_blocks[:-1]:
            x = block(x, skips, embedding, tokens)
        return x, skips

    def _outer(self, x: Tensor, skips: list[Tensor], embedding: Tensor, tokens: Tensor) -> Tensor:
        x = self.up_blocks[-1](x, skips, embedding, tokens)
        return self.conv_out(self.conv_norm_out.silu(x))  # type: ignore[no-any-return]

    def _check_levels(self) -> None:
        if self.levels < 2:
            raise CheckpointError("UNet config has 1 level, expected at least 2: nothing lies below its outermost one")
