"""The released model in plain PyTorch, behind the engines' protocol: our own implementation of the oracle.

The loop that runs it is the runtime's own; only the networks are PyTorch's. So a golden test of this engine tests
networks and loop, and a comparison of another engine with it tests that engine alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from diffplugin.engines.base import Engine, OnnxBuilder
from diffplugin.export.checkpoints import Checkpoint
from diffplugin.export.graphs import module_for
from diffplugin.spec import Array, GraphSpec

if TYPE_CHECKING:
    from diffplugin.bundle import Bundle


class TorchEngine(Engine):
    """One graph of the reference, float32 on the CPU."""

    name = "pytorch"

    def __init__(self, spec: GraphSpec, module: torch.nn.Module) -> None:
        super().__init__(spec)
        self._module = module

    def _run(self, inputs: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
        # channels-last memory costs GroupNorm three digits on a CPU: a transposed picture arrives in that layout
        tensors = [torch.from_numpy(inputs[t.name].copy(order="C")) for t in self.spec.inputs]
        with torch.inference_mode():
            outputs = self._module(*tensors)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return {t.name: out.numpy() for t, out in zip(self.spec.outputs, outputs, strict=True)}

    def _release(self) -> None:
        self._module = torch.nn.Identity()


class ReferenceBuilder(OnnxBuilder):
    """Engines of the reference. They read ``checkpoint``; they take only the specs from a bundle."""

    name = "pytorch"
    concurrent = False

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def version(self) -> str:
        return torch.__version__

    def device(self) -> str:
        return "cpu"

    def precisions(self) -> tuple[str, ...]:
        return ("fp32",)

    def load(self, bundle: Bundle, key: str, *, precision: str, threads: int | None, cache: Path | None) -> TorchEngine:
        return TorchEngine(bundle.spec(key), module_for(self._checkpoint, key))
