"""What every peer shares: the released semantics behind the engines' protocol, and the way back to timesteps.

A peer's networks are those of the release as a user would run them: the timestep goes in as a number and its sinusoids
are made inside the network, attention is PyTorch's, normalisation is PyTorch's. The loop is the runtime's own, so what
differs between two rows of a report is the engine alone. PyTorch is imported by those peers only that run on it, and
to make plain exports.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from diffplugin.engines.base import OnnxBuilder
from diffplugin.errors import EngineError
from diffplugin.runtime.sampling.time_features import sinusoidal, time_settings
from diffplugin.spec import Array, GraphSpec, check_inputs

if TYPE_CHECKING:
    from diffplugin.bench.models import Model
    from diffplugin.bundle import Bundle
    from diffplugin.engines.base import Engine
    from diffplugin.manifest import Manifest


class TimeTable:
    """Sinusoidal features back to the training timestep that they were made of."""

    def __init__(self, manifest: Manifest) -> None:
        self.settings = time_settings(manifest.time_embedding)
        count = int(manifest.scheduler["num_train_timesteps"])
        self._rows = sinusoidal(np.arange(count), manifest.dims.time_features, **self.settings)

    def __call__(self, features: Array) -> Array:
        """[n, F] -> timesteps [n], float32.

        Raises:
            EngineError: no training timestep has these features.
        """
        found = []
        for row in features:
            distance = np.abs(self._rows - row).max(axis=1)
            found.append(int(distance.argmin()))
            if distance[found[-1]] > 1e-4:
                raise EngineError("a peer takes training timesteps only; these time features belong to none")
        return np.array(found, np.float32)


def plain_inputs(spec: GraphSpec, inputs: Mapping[str, Array], times: TimeTable) -> list[Array]:
    """Inputs of :func:`~diffplugin.bench.peers_torch.plain_module` from those of the contract, in its order."""
    check_inputs(spec, inputs)
    return [times(inputs["time"]) if t.name == "time" else np.ascontiguousarray(inputs[t.name]) for t in spec.inputs]


def plain_spec(spec: GraphSpec) -> GraphSpec:
    """The contract of :func:`~diffplugin.bench.peers_torch.plain_module`: the released UNet has one output."""
    return replace(spec, outputs=spec.outputs[:1]) if spec.graph == "unet" else spec


def plain_axes(name: str, axes: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Axes of an input of :func:`~diffplugin.bench.peers_torch.plain_module`: timesteps in place of features."""
    return axes[:1] if name == "time" else axes


class PeerBuilder(OnnxBuilder, ABC):
    """What all peers' builders share: they read the model's checkpoint; the bundle gives specs and settings only."""

    name = "peer"
    concurrent = False

    def __init__(self, model: Model) -> None:
        self.model = model

    def unavailable_reason(self) -> str | None:
        return None

    def version(self) -> str:
        return ""

    def device(self) -> str:
        return "cpu"

    def precisions(self) -> tuple[str, ...]:
        return ("bf16", "fp32")

    @abstractmethod
    def load(self, bundle: Bundle, key: str, *, precision: str, threads: int | None, cache: Path | None) -> Engine:
        """As :class:`diffplugin.engines.base.EngineBuilder`."""

    def export(self, bundle: Bundle, key: str) -> None:
        """Make the plain export of one graph, once; nothing to do where the peer runs the network itself."""

    def exported(self, file: Path, key: str) -> Path:
        """Raises:
        EngineError: the plain export of this graph is not there yet.
        """
        if not file.is_file():
            raise EngineError(f"{self.name}: {key} is not exported yet; run dp-bench prepare")
        return file


def require(package: str) -> str | None:
    """None, or why a package cannot be used and what installs it."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        return f"the package {package} cannot be imported ({error}); pip install 'diffplugin[bench]'"
    return None
