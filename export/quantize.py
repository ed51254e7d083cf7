"""int8: post-training quantisation of a bundle's graphs with NNCF, calibrated on the tensors of real restorations.

Convolutions and linear layers run in int8 (activations per tensor, weights per channel); attention, norms, the first
and last convolution and the VAE's encoder stay in floating point. The vision encoder, 1 % of the work and a fifth of
the weights, has int8 weights only. The result is OpenVINO IR beside the ONNX graphs. A graph whose error is over
:data:`GRAPH_BUDGET` stays in floating point: the exporter reports it.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffplugin.bundle import graph_files
from diffplugin.engines.base import Engine
from diffplugin.errors import MissingDependency
from diffplugin.export.graphs import kind_of
from diffplugin.export.measures import relative_error, synthetic_photo
from diffplugin.integrity import sha256
from diffplugin.manifest import GraphEntry
from diffplugin.runtime.restorer import Restorer
from diffplugin.spec import Array

if TYPE_CHECKING:
    from diffplugin.bundle import Bundle
    from diffplugin.engines.base import EngineBuilder

Inputs = dict[str, Array]

FOLDER = "int8"
WEIGHTS_ONLY = ("clip_vision",)
# Not the VAE's encoder: 2 % of the work, and its error enters everything (on the embedded model 3.5 dB to float32).
KINDS = ("clip_vision", "scb", "unet", "unet_shallow", "vae_decoder")
PHOTOS = 4  # that stand in for calibration photographs where none are given
STEPS = 20  # a restoration's; all its timesteps are seen
SAMPLES = 12  # calibration inputs per graph, spread over plugins, pictures and timesteps
MEASURED = 3  # of them, on which the error is measured
SIDE = 256  # of a calibration picture, px: four times quicker than 512, and of the same statistics
# Largest relative error of a quantised graph on calibration inputs. The embedded model's graphs stay below 0.06, those
# of Stable Diffusion's widths with random weights below 0.09.
GRAPH_BUDGET = 0.1


def unavailable_reason() -> str | None:
    """None if NNCF and OpenVINO are installed, else the remedy."""
    for package in ("openvino", "nncf"):
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return f"int8 needs the package {package}: pip install 'diffplugin[quantize]'"
    return None


@dataclass
class Recorder:
    """A builder that passes everything on to another one and records the inputs of the graphs.

    Attributes:
        seen: inputs per graph key, in the order of the calls.
    """

    builder: EngineBuilder
    seen: dict[str, list[Inputs]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.name = self.builder.name

    def load(self, bundle: Bundle, key: str, **options: Any) -> _Recording:
        keep = self._keep if kind_of(key) in KINDS else None
        return _Recording(self.builder.load(bundle, key, **options), keep, key)

    def _keep(self, key: str, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        item = {name: np.array(array) for name, array in inputs.items()}
        self.seen.setdefault(key, []).append(item)
        if key == "unet":  # an exact run needs no shallow graph: it would get the same and the deep feature
            self.seen.setdefault("unet_shallow", []).append(item | {"deep": outputs["deep"]})

    def __getattr__(self, name: str) -> Any:
        return getattr(self.builder, name)


class _Recording(Engine):
    def __init__(self, engine: Engine, keep: Callable[..., None] | None, key: str) -> None:
        super().__init__(engine.spec, engine.precision)
        self._engine, self._keep, self._key = engine, keep, key
        self.name = engine.name

    def _run(self, inputs: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
        outputs = self._engine.run(inputs)
        if self._keep is not None:
            self._keep(self._key, inputs, outputs)
        return outputs

    def _release(self) -> None:
        self._engine.close()


def calibration_inputs(
    bundle: Bundle, builder: EngineBuilder, pictures: Sequence[Array], *, precision: str = "fp32", steps: int = STEPS
) -> dict[str, list[Inputs]]:
    """The inputs of each graph while every plugin restores every picture: at most :data:`SAMPLES` per graph.

    Args:
        pictures: uint8 [H, W, 3], best degraded as the plugins expect; sides a multiple of the autoencoder's factor.
    """
    recorder = Recorder(builder)
    chosen: dict[str, list[Inputs]] = {}
    random = np.random.default_rng(0)
    plugins = bundle.manifest.plugins
    with Restorer(bundle, recorder, precision) as restorer:
        for plugin in plugins:
            for i, picture in enumerate(pictures):
                restorer.restore(picture, plugins=[plugin], steps=steps, seed=i)
                for key, seen in recorder.seen.items():
                    # of one picture, a few timesteps: all of them would be gigabytes
                    chosen.setdefault(key, []).extend(_sample(seen, SAMPLES, random))
                    seen.clear()
    return {key: _sample(found, SAMPLES, random) for key, found in chosen.items() if found}


def _sample(items: Sequence[Inputs], count: int, random: np.random.Generator) -> list[Inputs]:
    """``count`` items at random, in their order: an even stride would hit the same timesteps in every picture."""
    if len(items) <= count:
        return list(items)
    return [items[i] for i in sorted(random.choice(len(items), count, replace=False))]


def default_photos(count: int = PHOTOS, side: int = SIDE) -> list[Array]:
    """Synthetic pictures for calibration without photographs, from dark to light."""
    gains = np.linspace(0.35, 1.0, count)
    return [(synthetic_photo(side, side, seed=i) * gain).astype(np.uint8) for i, gain in enumerate(gains)]


def quantize_graph(path: Path, inputs: Sequence[Inputs], out: Path, *, weights_only: bool = False) -> None:
    """Write the int8 form of an ONNX graph as OpenVINO IR, ``out`` (.xml) and its weights beside it (.bin).

    Args:
        inputs: calibration inputs of the graph; not read for ``weights_only``.
        weights_only: activations stay in floating point.

    Raises:
        MissingDependency: NNCF or OpenVINO is not installed.
    """
    if reason := unavailable_reason():
        raise MissingDependency(reason)
    with _quiet():
        import nncf
        import openvino

        model = openvino.Core().read_model(path)
        if weights_only:
            model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
        else:
            model = nncf.quantize(
                model,
                nncf.Dataset(list(inputs)),
                subset_size=len(inputs),
                preset=nncf.QuantizationPreset.MIXED,
                model_type=nncf.ModelType.TRANSFORMER,
                fast_bias_correction=True,
                ignored_scope=nncf.IgnoredScope(
                    types=["ScaledDotProductAttention"], names=_first_and_last_convolution(model), validate=False
                ),
            )
        out.parent.mkdir(parents=True, exist_ok=True)
        openvino.save_model(model, out, compress_to_fp16=False)


def _first_and_last_convolution(model: Any) -> list[str]:
    """The convolutions that read and write a picture or latents: few channels, so little work, but a direct effect on
    the picture.
    """
    names = [op.get_friendly_name() for op in model.get_ordered_ops() if op.get_type_name() == "Convolution"]
    return list(dict.fromkeys(names[:1] + names[-1:]))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence NNCF, which prints a line per layer and progress bars."""
    logging.getLogger("nncf").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def quantize_bundle(
    bundle: Bundle,
    builder: EngineBuilder,
    inputs: Mapping[str, Sequence[Inputs]],
    *,
    budget: float = GRAPH_BUDGET,
    log: Callable[[str], None] = lambda line: None,
) -> dict[str, GraphEntry]:
    """Write the int8 form of every graph of :data:`KINDS` under ``int8/`` of a bundle, and return their entries.

    Args:
        builder: an engine that runs int8; it measures each graph's error against its own fp32.
        inputs: calibration inputs by graph key (:func:`calibration_inputs`); a graph without any is not changed.
        budget: largest relative error of a graph that is kept.

    Raises:
        MissingDependency: NNCF or OpenVINO is not installed.
    """
    entries = {}
    for key, items in inputs.items():
        path = bundle.path / FOLDER / f"{key}.xml"
        quantize_graph(bundle.graph_file(key), items, path, weights_only=kind_of(key) in WEIGHTS_ONLY)
        files = graph_files(path)
        weights = sum(file.stat().st_size for file in files[1:])
        entry = GraphEntry(file=path.relative_to(bundle.path).as_posix(), sha256=sha256(*files), weights_bytes=weights)
        trial = replace(bundle, manifest=replace(bundle.manifest, variants={FOLDER: {key: entry}}))
        error = _error(trial, builder, key, items[:: -(-len(items) // MEASURED)])
        within = error <= budget
        verdict = "" if within else f" over {budget:g}: stays in floating point"
        log(f"int8 {key:<18} error {error:.1e}{verdict}")
        if within:
            entries[key] = entry
        else:
            for file in files:
                file.unlink()
    return entries


def _error(bundle: Bundle, builder: EngineBuilder, key: str, inputs: Sequence[Inputs]) -> float:
    """Largest relative error of an output in int8 against fp32, one engine in memory at a time."""
    outputs: dict[str, list[dict[str, Array]]] = {}
    for precision in ("fp32", "int8"):
        engine = builder.load(bundle, key, precision=precision, threads=None, cache=None)
        outputs[precision] = [engine.run(item) for item in inputs]
        engine.close()
    pairs = zip(outputs["int8"], outputs["fp32"], strict=True)
    return max(relative_error(found[name], value) for found, exact in pairs for name, value in exact.items())
