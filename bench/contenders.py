"""Who takes part: every way to run the model, by name. All run the runtime's own loop; engines and options differ."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from diffplugin.errors import EngineUnavailable, RequestError

if TYPE_CHECKING:
    from diffplugin.bench.models import Model
    from diffplugin.bench.peers import PeerBuilder
    from diffplugin.bundle import Bundle
    from diffplugin.engines.choice import EngineName, Precision
    from diffplugin.runtime.planning.quality import QualityName
    from diffplugin.runtime.restorer import Restorer


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One row of a report.

    Attributes:
        name: of the row.
        what: one line for people.
        precision: "fp32", "bf16", "int8".
        engine: of :func:`diffplugin.load`; "" for a peer.
        quality: of :func:`diffplugin.load`.
        peer: "module:class" of the peer's builder, made with (model, precision); "" for ours.
        concurrency: of :func:`diffplugin.load`; only matters where the work is several pictures.
        steps: of every picture, as a card of a distilled plugin asks for; None: as the quality makes of the run's.
        tiny: with the bundle's tiny autoencoder; else without, even where the quality would take it.
    """

    name: str
    what: str
    precision: Precision
    engine: EngineName | Literal[""] = ""
    quality: QualityName = "exact"
    peer: str = ""
    concurrency: int | None = 1
    steps: int | None = None
    tiny: bool = False


def _ours(
    name: str,
    what: str,
    engine: EngineName,
    precision: Precision,
    quality: QualityName = "exact",
    **more: Any,
) -> Contender:
    return Contender(
        name=f"diffplugin {name}",
        what=what,
        engine=engine,
        precision=precision,
        quality=quality,
        **more,
    )


def _peer(name: str, what: str, builder: str, precision: Precision) -> Contender:
    return Contender(name=name, what=what, precision=precision, peer=f"diffplugin.bench.{builder}")


_ALL = (
    _ours("f32", "this project, OpenVINO, float32", "openvino", "fp32"),
    _ours("ort f32", "this project, ONNX Runtime, float32", "onnxruntime", "fp32"),
    _ours("ort f32 concurrent", "the same, as many pictures at once as cores", "onnxruntime", "fp32", concurrency=None),
    _ours("ort balanced", "ONNX Runtime, float32 and quality=balanced", "onnxruntime", "fp32", "balanced"),
    _ours("ort fast", "ONNX Runtime, float32 and quality=fast", "onnxruntime", "fp32", "fast"),
    _ours("ncnn f32", "this project, ncnn, float32; a bundle of dp-export --engine ncnn", "ncnn", "fp32"),
    _ours("ncnn bf16", "the same, bfloat16", "ncnn", "bf16"),
    _ours("bf16", "this project, OpenVINO, bfloat16, quality=high", "openvino", "bf16", "high"),
    _ours("int8", "this project, OpenVINO, post-training int8, quality=high", "openvino", "int8", "high"),
    _ours("balanced", "int8 and quality=balanced", "openvino", "int8", "balanced"),
    _ours("fast", "int8 and quality=fast", "openvino", "int8", "fast"),
    _ours("fast one step", "the same with a card of one step", "openvino", "int8", "fast", steps=1),
    _ours("fast tiny", "fast with a tiny autoencoder (dp-export --tiny-vae)", "openvino", "int8", "fast", tiny=True),
    _ours("fast tiny one step", "both", "openvino", "int8", "fast", tiny=True, steps=1),
    _ours("balanced f32", "float32 and quality=balanced", "openvino", "fp32", "balanced"),
    _ours("fast f32", "float32 and quality=fast", "openvino", "fp32", "fast"),
    _ours("balanced bf16", "bfloat16 and quality=balanced", "openvino", "bf16", "balanced"),
    _ours("fast bf16", "bfloat16 and quality=fast", "openvino", "bf16", "fast"),
    _peer("pytorch eager f32", "released semantics, PyTorch eager", "peers_torch:EagerBuilder", "fp32"),
    _peer("pytorch eager bf16", "the same, bfloat16, channels last", "peers_torch:EagerBuilder", "bf16"),
    _peer("torch.compile bf16", "the same, inductor with freezing", "peers_torch:CompiledBuilder", "bf16"),
    _peer("openvino plain f32", "converted as optimum-intel does, static", "plain_openvino:PlainBuilder", "fp32"),
    _peer("openvino plain bf16", "the same, bfloat16 hint", "plain_openvino:PlainBuilder", "bf16"),
    _peer("onnxruntime plain f32", "torch.onnx without our operators", "plain_onnx:PlainBuilder", "fp32"),
)
CONTENDERS = {contender.name: contender for contender in _ALL}
# What "fp32" stands for where a row needs a reference, in the order of preference.
REFERENCES = (
    "diffplugin f32",
    "diffplugin ort f32",
    "openvino plain f32",
    "onnxruntime plain f32",
    "pytorch eager f32",
)
BASELINE = "openvino plain bf16"


def get_contender(name: str) -> Contender:
    """Raises:
    RequestError: no contender of this name.
    """
    if name not in CONTENDERS:
        raise RequestError(f"contender {name!r}: unknown; expected one of {', '.join(CONTENDERS)}")
    return CONTENDERS[name]


def open_restorer(contender: Contender, model: Model, threads: int | None = None) -> Restorer:
    """The runtime's loop over the contender's engines. Imports no library that the contender does not use.

    Raises:
        EngineUnavailable: it cannot run on this machine; the message says why.
        BundleError: the model has no bundle for it.
    """
    import diffplugin
    from diffplugin.bundle import open_bundle

    bundle = open_bundle(model.bundle)
    if contender.engine:
        return diffplugin.load(
            _with_autoencoder(bundle, tiny=contender.tiny),
            engine=contender.engine,
            precision=contender.precision,
            threads=threads,
            quality=contender.quality,
            concurrency=contender.concurrency,
        )
    from diffplugin.engines.base import check_precision
    from diffplugin.runtime.restorer import Restorer

    builder = peer_builder(contender, model)
    if reason := builder.unavailable_reason():
        raise EngineUnavailable(reason)
    check_precision(builder, contender.precision)
    return Restorer(bundle, builder, contender.precision, threads=threads, cache=model.artefacts / "compiled")


def _with_autoencoder(bundle: Bundle, *, tiny: bool) -> Bundle:
    """The bundle with its tiny autoencoder, or as if it had none."""
    manifest = bundle.manifest
    if not tiny:
        kept = {key: entry for key, entry in manifest.graphs.items() if not key.startswith("tiny_")}
        return replace(bundle, manifest=replace(manifest, graphs=kept))
    if "tiny_decoder" not in manifest.graphs:
        raise EngineUnavailable("the bundle has no tiny autoencoder; export it with --tiny-vae DIR")
    return bundle


def peer_builder(contender: Contender, model: Model) -> PeerBuilder:
    """The builder of a peer."""
    module, _, name = contender.peer.partition(":")
    made: PeerBuilder = getattr(importlib.import_module(module), name)(model)
    return made
