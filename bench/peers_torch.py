"""Peers that PyTorch runs, eager and compiled; and the released networks as plain modules, for plain exports."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from diffplugin.bench.peers import PeerBuilder, TimeTable, plain_inputs, plain_spec
from diffplugin.engines.base import Engine
from diffplugin.engines.threads import thread_count
from diffplugin.export.graphs import module_for
from diffplugin.export.onnx import example_inputs
from diffplugin.plugins.networks.attention import sinusoidal
from diffplugin.spec import Array, GraphSpec

if TYPE_CHECKING:
    from diffplugin.bundle import Bundle
    from diffplugin.export.checkpoints import Checkpoint

# Free axes while tracing: unequal sides, so that nothing specialises on them.
_TRACED = {"h": 16, "w": 24, "n": 1, "p": 3}


class _Unet(nn.Module):
    """diffusers' order of arguments: sample, timestep, prompt tokens, then the residuals."""

    def __init__(self, unet: nn.Module, features: int, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.unet, self.features, self.settings = unet, features, dict(settings)

    def forward(self, latents: Tensor, t: Tensor, tokens: Tensor, r0: Tensor, r1: Tensor, r2: Tensor) -> Tensor:
        time = sinusoidal(t, self.features, **self.settings).to(latents.dtype)
        return self.unet(latents, time, tokens, (r0, r1, r2))  # type: ignore[no-any-return]


class _Scb(nn.Module):
    def __init__(self, scb: nn.Module, features: int, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.scb, self.features, self.settings = scb, features, dict(settings)

    def forward(self, t: Tensor, tokens: Tensor, cond: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        time = sinusoidal(t, self.features, **self.settings).to(cond.dtype)
        return self.scb(time, tokens, cond)  # type: ignore[no-any-return]


def plain_module(checkpoint: Checkpoint, key: str, times: TimeTable) -> nn.Module:
    """A graph's network as released, float32; in place of ``time`` it takes timesteps ``t`` [n], float32."""
    kind, _, plugin = key.partition("/")
    features = checkpoint.dims.time_features
    if kind == "unet":
        return _Unet(checkpoint.unet(), features, times.settings).eval()
    if kind == "scb":
        return _Scb(checkpoint.scb(plugin), features, times.settings).eval()
    return module_for(checkpoint, key)


def traced_inputs(spec: GraphSpec, factor: int) -> tuple[Tensor, ...]:
    """Inputs of :func:`plain_module` to trace it with. ``factor``: picture pixels per latent pixel."""
    inputs = example_inputs(spec, _TRACED | {"H": _TRACED["h"] * factor, "W": _TRACED["w"] * factor}, ids_below=8)
    if "time" in inputs:
        inputs["time"] = np.full(len(inputs["time"]), 500, np.float32)
    return tuple(torch.from_numpy(inputs[tensor.name]) for tensor in spec.inputs)


class TorchPeer(Engine):
    """One network in PyTorch. bf16: weights and activations, in channels-last memory, as its users are told to."""

    name = "pytorch"

    def __init__(self, spec: GraphSpec, module: nn.Module, times: TimeTable, precision: str, *, compiled: bool) -> None:
        super().__init__(plain_spec(spec), precision)
        self._times = times
        self._half = precision == "bf16"
        if self._half:
            module = module.to(torch.bfloat16, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._module: Any = torch.compile(module, dynamic=False) if compiled else module

    def _enter(self, array: Array) -> Tensor:
        # eager float32 stays channels-first: PyTorch's GroupNorm loses three digits in the other layout
        tensor = torch.from_numpy(array)
        if not self._half or tensor.dtype != torch.float32 or tensor.ndim == 1:
            return tensor  # timesteps stay float32, as in diffusers
        tensor = tensor.to(torch.bfloat16)
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor

    def _run(self, inputs: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
        tensors = [self._enter(array) for array in plain_inputs(self.spec, inputs, self._times)]
        with torch.no_grad():  # freezing does not take inference mode
            made = self._module(*tensors)
        made = made if isinstance(made, tuple) else (made,)
        names = [t.name for t in self.spec.outputs]
        return {name: out.float().contiguous().numpy() for name, out in zip(names, made, strict=True)}

    def _release(self) -> None:
        self._module = None


class EagerBuilder(PeerBuilder):
    """PyTorch as it is."""

    name = "pytorch eager"
    compiled = False

    def version(self) -> str:
        return torch.__version__

    def load(self, bundle: Bundle, key: str, *, precision: str, threads: int | None, cache: Path | None) -> TorchPeer:
        torch.set_num_threads(thread_count(threads))
        times = TimeTable(bundle.manifest)
        module = plain_module(self.model.checkpoint(), key, times)
        return TorchPeer(bundle.spec(key), module, times, precision, compiled=self.compiled)


class CompiledBuilder(EagerBuilder):
    """torch.compile with weights frozen into the compiled graphs, which stay in a cache folder."""

    name = "torch.compile"
    compiled = True

    def load(self, bundle: Bundle, key: str, *, precision: str, threads: int | None, cache: Path | None) -> TorchPeer:
        import torch._inductor.config as inductor

        if cache is not None:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str((cache / "inductor").resolve())
        inductor.freezing = True
        inductor.fx_graph_cache = True
        return super().load(bundle, key, precision=precision, threads=threads, cache=cache)
