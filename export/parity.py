"""Proof at export: every graph against the reference on the same inputs, then one whole picture.

A graph's inputs are the reference's own tensors, computed in the order of a restoration, so that activations are
realistic. The error of a tensor is ||engine - reference|| / ||reference||.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from diffplugin.errors import ParityError
from diffplugin.export.fp16.emulate import EmulatedFp16
from diffplugin.export.fp16.first_layer import first_beyond
from diffplugin.export.graphs import kind_of
from diffplugin.export.measures import psnr, relative_error, synthetic_photo
from diffplugin.export.onnx import example_inputs
from diffplugin.runtime.sampling.loop import step_weights
from diffplugin.runtime.sampling.noise_schedule import NoiseSchedule
from diffplugin.runtime.sampling.samplers import step_table
from diffplugin.runtime.sampling.time_features import time_features
from diffplugin.spec import Array, GraphSpec

if TYPE_CHECKING:
    from diffplugin.bundle import Bundle
    from diffplugin.engines.base import EngineBuilder
    from diffplugin.manifest import Manifest

# Largest relative error of one tensor, and smallest PSNR of the whole picture in dB, per precision.
# fp32: the goldens' bound. Half precisions: measured at full SD 1.4 widths (UNet 0.011 to 0.035 in bf16), with room.
# int8 is judged by the picture: its graphs were held to a budget on calibration inputs (export.quantize), and the
# latents drawn here are harsher.
TENSOR_BUDGET = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 6e-2, "int8": 0.35}
# ncnn sums a norm's squares in one float32 a lane: 8e-5 after the embedded encoder at 512x512, and more beyond.
_OWN_BUDGET = {("ncnn", "fp32"): 5e-4}
PHOTO_BUDGET = {"fp32": 70.0, "fp16": 40.0, "bf16": 35.0, "int8": 30.0}
TIMESTEPS = (501, 101)  # of the SCB's comparison; the UNet's is the first
LATENT_SIDE = 24  # of the picture that is used; not a multiple of 16, and quick at full width


def tensor_budget(engine: str, precision: str) -> float:
    """Largest relative error of one tensor: the engine's own, else the precision's."""
    return _OWN_BUDGET.get((engine, precision), TENSOR_BUDGET[precision])


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Errors of one graph, per output tensor, their budget, and the first place that exceeds it."""

    key: str
    errors: Mapping[str, float]
    budget: float
    detail: str = ""

    @property
    def within(self) -> bool:
        return all(np.isfinite(error) and error <= self.budget for error in self.errors.values())

    def describe(self) -> str:
        errors = "  ".join(f"{name} {error:.1e}" for name, error in self.errors.items())
        return f"{self.key:<18} {errors}  (budget {self.budget:g})" + (f"; {self.detail}" if self.detail else "")


class Chain:
    """Tensors of a restoration computed so far; missing ones are drawn at random.

    Args:
        vocabulary: of the text encoder.
        h, w: latent sides.
    """

    def __init__(self, manifest: Manifest, vocabulary: int, h: int = LATENT_SIDE, w: int = LATENT_SIDE) -> None:
        factor, plugins = manifest.dims.factor, len(manifest.plugins)
        self._sizes = {"h": h, "w": w, "H": h * factor, "W": w * factor, "n": 2, "p": plugins}
        self._vocabulary = vocabulary
        self._known: dict[str, Array] = {}
        picture = synthetic_photo(h * factor, w * factor).astype(np.float32).transpose(2, 0, 1)[None]
        self._known["image"] = np.ascontiguousarray(picture / 127.5 - 1)
        table = step_table("unipc", NoiseSchedule.from_config(manifest.scheduler), 20)
        self._weights = step_weights(table, 10, "noise", 0)  # at t = 500, with all of the history
        self._time = time_features(np.array(TIMESTEPS), manifest)

    def inputs(self, spec: GraphSpec) -> dict[str, Array]:
        known = dict(self._known) | {"time": self._time if spec.graph == "scb" else self._time[:1]}
        known["weights"] = self._weights
        if "tokens" in known:
            known["plugin_tokens"] = np.concatenate([known["tokens"]] * self._sizes["p"])
        if "pooled" in known:
            known["text"] = known["null_text"] = known["pooled"]
        drawn = example_inputs(spec, self._sizes, ids_below=self._vocabulary)
        shapes = {name: array.shape for name, array in drawn.items()}
        return {n: known[n] if n in known and known[n].shape == shapes[n] else a for n, a in drawn.items()}

    def learn(self, outputs: Mapping[str, Array]) -> None:
        for name, array in outputs.items():
            # residuals of two timesteps were made at once; the UNet takes those of one
            self._known[name] = array[:1] if name.startswith("residual") else array


# Order in which a restoration makes its tensors.
_ORDER = (
    *("diagnosis", "clip_vision", "tpb", "clip_text", "selector", "vae_encoder"),
    *("scb", "unet", "unet_shallow", "step", "vae_decoder", "head", "tiny_encoder", "tiny_decoder"),
)


def in_order(keys: Iterable[str]) -> list[str]:
    """Graphs in the order of a restoration."""
    return sorted(keys, key=lambda key: _ORDER.index(kind_of(key)))


def compare_graphs(
    bundle: Bundle,
    reference: EngineBuilder,
    builder: EngineBuilder,
    *,
    precision: str,
    vocabulary: int,
    latent: tuple[int, int] = (LATENT_SIDE, LATENT_SIDE),
) -> Iterator[Comparison]:
    """Each graph of the bundle, one at a time in memory, in the order of a restoration; ``latent``: sides (h, w)."""
    chain = Chain(bundle.manifest, vocabulary, *latent)
    for key in in_order(bundle.keys(precision)):
        inputs = chain.inputs(bundle.spec(key))
        expected = _run_once(reference, bundle, key, "fp32", inputs)
        found = _run_once(builder, bundle, key, precision, inputs)
        chain.learn(expected)
        errors = {name: relative_error(found[name], value) for name, value in expected.items()}
        made = Comparison(key=key, errors=errors, budget=tensor_budget(builder.name, precision))
        if precision == "fp16" and not made.within:
            file = bundle.graph_file(
                key, builder.variant(precision) if isinstance(builder, EmulatedFp16) else precision
            )
            made = replace(made, detail=first_beyond(file, inputs, made.budget))
        yield made


def _run_once(
    builder: EngineBuilder, bundle: Bundle, key: str, precision: str, inputs: Mapping[str, Array]
) -> dict[str, Array]:
    engine = builder.load(bundle, key, precision=precision, threads=None, cache=None)
    try:
        return engine.run(inputs)
    finally:
        engine.close()


def compare_photo(
    bundle: Bundle, reference: EngineBuilder, builder: EngineBuilder, *, precision: str
) -> tuple[float, float]:
    """One whole picture with the first plugin and its own steps: (PSNR against the reference in dB, the budget)."""
    from diffplugin.runtime.restorer import Restorer

    side = LATENT_SIDE * bundle.manifest.dims.factor
    picture = synthetic_photo(side, side)
    plugin = bundle.manifest.plugins[0]
    made: list[Any] = []
    for engines, wanted in ((reference, "fp32"), (builder, precision)):
        with Restorer(bundle, engines, precision=wanted) as restorer:
            made.append(np.asarray(restorer.restore(picture, plugins=[plugin]).image))
    return psnr(made[1], made[0]), PHOTO_BUDGET[precision]


def check_graphs(comparisons: Iterable[Comparison]) -> None:
    """Raises:
    ParityError: naming every graph over its budget.
    """
    if faults := [comparison.describe() for comparison in comparisons if not comparison.within]:
        raise ParityError(f"the export does not match the reference: {'; '.join(faults)}")


def check(comparisons: list[Comparison], picture: tuple[float, float]) -> None:
    """Raises:
    ParityError: naming every graph over its budget, and the picture.
    """
    faults = [comparison.describe() for comparison in comparisons if not comparison.within]
    found, budget = picture
    if not found >= budget:
        faults.append(f"whole picture {found:.1f} dB, expected at least {budget:g} dB")
    if faults:
        raise ParityError(f"the export does not match the reference: {'; '.join(faults)}")
