"""How much memory of a device a plugin's training takes, estimated before it starts.

One sample's step is run on tensors without storage (PyTorch's FakeTensorMode): what autograd keeps of it grows with the
batch; the weights, their gradients and the optimiser's moments do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffplugin.plugins.networks.attention import SpatialTransformer
from diffplugin.plugins.networks.blocks import ResnetBlock
from diffplugin.plugins.networks.vae import Autoencoder
from diffplugin.plugins.train import eq3
from diffplugin.plugins.train.plugin import Denoiser

GIB = 2**30
CONTEXT = 0.6 * GIB  # CUDA's context and its libraries' workspaces: assumed, no GPU was at hand
TYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Estimate:
    """Bytes: ``fixed_bytes`` whatever the batch, ``photo_bytes`` for every picture of a micro step."""

    fixed_bytes: float
    photo_bytes: float

    def total(self, batch: int) -> float:
        """Of one process, with CUDA's own share."""
        return self.fixed_bytes + CONTEXT + batch * self.photo_bytes

    def largest_batch(self, free_bytes: float) -> int:
        """Pictures of a micro step that fit; 0: not even one."""
        return max(int((free_bytes - self.total(0)) / self.photo_bytes), 0)

    def __str__(self) -> str:
        return f"{self.photo_bytes / GIB:.2f} GiB a picture + {(self.fixed_bytes + CONTEXT) / GIB:.2f} GiB"


def estimate(
    configs: Mapping[str, dict[str, Any]], side: int, precision: str, *, checkpointing: bool = False, ema: bool = False
) -> Estimate:
    """Of the published objective (:class:`diffplugin.plugins.train.eq3.Published`).

    Args:
        configs: of unet, vae, vision, scheduler and scb.
        side: of the training pictures in pixels.
        precision: "no", "bf16" or "fp16".
        checkpointing: the base's blocks are computed again on the way back.
        ema: averaged weights are kept.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    mixed = precision != "no"
    with FakeTensorMode():
        objective = published(configs, TYPES[precision])
        trace = _Trace({p.untyped_storage()._cdata for p in objective.parameters()})
        latents, draws = fake_inputs(objective, configs, side, 1)
        hooks = [hook for block in base_blocks(objective.model) for hook in trace.watch(block)]
        with torch.autograd.graph.saved_tensors_hooks(trace.note, lambda tensor: tensor), autocast(precision):
            eq3.eq3_loss(objective.model, latents, draws)
        for hook in hooks:
            hook.remove()
        trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
        frozen = sum(p.numel() * p.element_size() for p in objective.parameters() if not p.requires_grad)
        picture = trace.checkpointed() if checkpointing else trace.kept()
    # the autoencoder's first level, about five maps at a time, is over before the base begins
    picture = max(picture, 5 * configs["vae"]["block_out_channels"][0] * side**2 * TYPES[precision].itemsize)
    # weights, gradients and two moments in float32; autocast's copies
    return Estimate(frozen + trained * (4 * (4 + ema) + 2 * mixed), picture)


def published(configs: Mapping[str, dict[str, Any]], dtype: torch.dtype) -> eq3.Published:
    """The objective with networks of these configs; the frozen ones are made in ``dtype`` (a fake tensor's type cannot
    be changed in place)."""
    learning = Denoiser(dict(configs))
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        model, vae = Denoiser(dict(configs)), Autoencoder(configs["vae"])
    finally:
        torch.set_default_dtype(before)
    model.tpb, model.scb = learning.tpb, learning.scb
    model.alpha_bar, model.metric = learning.alpha_bar, learning.metric
    return eq3.Published(model, vae, dtype)


def autocast(precision: str) -> torch.autocast:
    """As accelerate computes the learning branches."""
    return torch.autocast("cpu", TYPES[precision] if precision != "no" else torch.bfloat16, enabled=precision != "no")


def fake_inputs(
    objective: eq3.Published, configs: Mapping[str, dict[str, Any]], side: int, count: int
) -> tuple[eq3.Latents, eq3.Draws]:
    """Latents and draws of ``count`` pictures, as the encoders would make them."""
    vae, vision = configs["vae"], configs["vision"]
    small = side // 2 ** (len(vae["block_out_channels"]) - 1)
    shape = (count, vae["latent_channels"], small, small)
    patches = torch.empty(count, (vision["image_size"] // vision["patch_size"]) ** 2, vision["hidden_size"])
    latents = eq3.Latents(patches, *(torch.empty(shape) for _ in range(3)))
    return latents, eq3.Draws(torch.zeros(count, dtype=torch.int64), torch.empty(shape), torch.empty(shape))


@dataclass
class _Trace:
    """What autograd keeps: bytes of storages that are no weights, by the block that was running."""

    weights: set[int]
    saved: dict[int, tuple[int, int]] = field(default_factory=dict)  # storage -> (bytes, block)
    inputs: dict[int, tuple[int, Tensor]] = field(default_factory=dict)
    block: int = -1
    blocks: int = 0

    def note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.weights:
            self.saved.setdefault(storage._cdata, (storage.nbytes(), self.block))
        return tensor

    def watch(self, module: nn.Module) -> list[Any]:
        number, self.blocks = self.blocks, self.blocks + 1

        def enter(_: nn.Module, given: tuple[Any, ...]) -> None:
            self.block = number
            storage = given[0].untyped_storage()
            self.inputs[storage._cdata] = storage.nbytes(), given[0]

        def leave(*_: Any) -> None:
            self.block = -1

        return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]

    def kept(self) -> int:
        return sum(size for size, _ in self.saved.values())

    def checkpointed(self) -> int:
        """Blocks keep their inputs; one of them at a time is computed again."""
        inside = [0] * self.blocks
        for size, block in self.saved.values():
            if block >= 0:
                inside[block] += size
        outside = sum(size for size, block in self.saved.values() if block < 0)
        return outside + sum(size for size, _ in self.inputs.values()) + max(inside, default=0)


def base_blocks(model: Denoiser) -> list[nn.Module]:
    """The frozen base's parts that gradient checkpointing computes again."""
    return [module for module in model.unet.modules() if isinstance(module, ResnetBlock | SpatialTransformer)]


def checkpoint_blocks(model: Denoiser) -> None:
    """Gradient checkpointing (arXiv:1604.06174): the base's blocks keep their inputs alone."""
    for block in base_blocks(model):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
