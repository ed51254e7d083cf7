"""The diagnosis: from views of a photo to the degradations that it has."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

STATISTICS = 18  # channels of local_statistics


class Block(nn.Module):
    """A bottleneck with a residual (arXiv:1512.03385, section 4.1), without norm; at first the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(width, width // 2, 1)
        self.expand = nn.Conv2d(width // 2, width, 3, padding=1)
        nn.init.zeros_(self.expand.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.expand(functional.relu(self.reduce(x)))  # type: ignore[no-any-return]


class Diagnosis(nn.Module):
    """Views [9, 3, 128, 128] of a photo (``runtime.request.views``) -> logits [1, tasks], strengths [1, tasks] in 0..1.

    One encoder sees all views, and beside its own filters :func:`local_statistics`. The features of the whole, and the
    largest and the mean of the pieces of each size, go through two linear layers. Several photos at once:
    [b x 9, ...] -> [b, tasks]; fewer pieces of each size: pooled alike. The answer is the mean of those for the views
    and for their mirror images: of equal right, and the two err in different places.

    Args:
        config: ``widths`` of stem and levels, ``blocks`` of each level, ``statistics``: width between the local
            statistics and the second level (0: without them), ``hidden`` width, ``tasks``.
        norm: batch normalisation after every reduction (arXiv:1502.03167), for training; :meth:`folded` removes it.
    """

    def __init__(self, config: dict[str, Any], *, norm: bool = False) -> None:
        super().__init__()
        widths, tasks = config["widths"], len(config["tasks"])
        self.features = 2 * widths[-1]
        self.stem = _reduction(3, widths[0], 5, norm)
        _blind_to_brightness(self.stem, 3 * widths[0] // 4)
        self.downs = nn.ModuleList(_reduction(a, b, 3, norm) for a, b in pairwise(widths))
        self.blocks = nn.ModuleList(
            nn.Sequential(*(Block(w) for _ in range(n))) for w, n in zip(widths[1:], config["blocks"], strict=True)
        )
        self.statistics = _statistics(config["statistics"], widths[2]) if config["statistics"] else None
        self.hidden = nn.Linear(5 * self.features, config["hidden"])
        self.logits = nn.Linear(config["hidden"], tasks)
        self.strengths = nn.Linear(config["hidden"], tasks)

    def encode(self, views: Tensor) -> Tensor:
        """Views -> [n, features]: mean and largest over the view."""
        x = functional.relu(self.stem(views))
        for level, (down, blocks) in enumerate(zip(self.downs, self.blocks, strict=True)):
            x = blocks(functional.relu(down(x)))
            if level == 1 and self.statistics is not None:  # squares of 8 pixels
                x = x + self.statistics(local_statistics(views))
        return torch.cat((x.mean(dim=(2, 3)), x.amax(dim=(2, 3))), dim=1)

    def forward(self, views: Tensor, pieces: int = 4) -> tuple[Tensor, Tensor]:
        logits, strengths = self.decide(self.encode(torch.cat((views, views.flip(3)))), pieces)
        return _mean_of_halves(logits), _mean_of_halves(strengths)

    def decide(self, features: Tensor, pieces: int) -> tuple[Tensor, Tensor]:
        """Features of all views -> logits and strengths."""
        found = features.reshape(-1, 1 + 2 * pieces, self.features)
        middle, own = found[:, 1 : 1 + pieces], found[:, 1 + pieces :]
        pooled = (found[:, 0], middle.amax(1), middle.mean(1), own.amax(1), own.mean(1))
        hidden = functional.relu(self.hidden(torch.cat(pooled, dim=1)))
        return self.logits(hidden), torch.sigmoid(self.strengths(hidden))

    @torch.no_grad()
    def folded(self) -> dict[str, Tensor]:
        """The weights of the same network without norm."""
        plain = dict(self.state_dict())
        for name, module in self.named_modules():
            if isinstance(module, _Normed):
                plain = {key: value for key, value in plain.items() if not key.startswith(f"{name}.")}
                conv, norm = module.conv, module.norm
                assert conv.bias is not None and norm.running_mean is not None and norm.running_var is not None
                scale = norm.weight / (norm.running_var + norm.eps).sqrt()
                plain[f"{name}.weight"] = conv.weight * scale[:, None, None, None]
                plain[f"{name}.bias"] = (conv.bias - norm.running_mean) * scale + norm.bias
        return plain


def _mean_of_halves(rows: Tensor) -> Tensor:
    half = len(rows) // 2
    return (rows[:half] + rows[half:]) / 2


def local_statistics(views: Tensor) -> Tensor:
    """Views [n, 3, 128, 128] -> [n, 18, 16, 16]: of every square of 8 pixels, what tells blur and glare.

    The logarithm of the mean absolute difference of neighbours, in four directions at three scales: blur takes from
    the finest, motion from one direction. Then the mean of each colour, and how far it is clipped.
    """
    found, grey = [], views.mean(dim=1, keepdim=True).contiguous()
    for side in (8, 4, 2):
        a, b, c, d = grey[..., :-1, :-1], grey[..., :-1, 1:], grey[..., 1:, :-1], grey[..., 1:, 1:]
        steps = [functional.avg_pool2d((x - y).abs(), side - 1, side) for x, y in ((a, b), (a, c), (a, d), (b, c))]
        found.append((torch.cat(steps, dim=1) + 1e-3).log() / 1.5 + 2.7)  # about 0, with a deviation of about 1
        grey = functional.avg_pool2d(grey, 2)
    found += [functional.avg_pool2d(views, 8), functional.avg_pool2d(10 * functional.relu(views - 0.9), 8)]
    return torch.cat(found, dim=1)


def _statistics(width: int, after: int) -> nn.Module:
    """From the channels of :func:`local_statistics` to those of a level; at first nothing is added."""
    last = nn.Conv2d(width, after, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)  # type: ignore[arg-type]
    return nn.Sequential(nn.Conv2d(STATISTICS, width, 1), nn.ReLU(), last)


class _Normed(nn.Module):
    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv, self.norm = conv, nn.BatchNorm2d(conv.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))  # type: ignore[no-any-return]


@torch.no_grad()
def _blind_to_brightness(stem: nn.Module, count: int) -> None:
    """The first ``count`` filters begin without a response to flat areas: faint detail would drown in brightness."""
    weight = next(stem.parameters())
    weight[:count] -= weight[:count].mean(dim=(2, 3), keepdim=True)


def _reduction(before: int, after: int, side: int, norm: bool) -> nn.Module:
    """A convolution of half the size."""
    conv = nn.Conv2d(before, after, side, stride=2, padding=side // 2)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return _Normed(conv) if norm else conv
