"""Checkpoint -> bundle: trace every graph, validate it, prepare engines, and only then put the bundle in place."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

import diffplugin
from diffplugin.bundle import Bundle, graph_files, list_files, write_manifest
from diffplugin.engines.base import BuildOptions
from diffplugin.engines.choice import get_builder
from diffplugin.engines.ncnn import VARIANT as NCNN
from diffplugin.engines.ncnn import NcnnBuilder
from diffplugin.engines.onnxruntime_cuda.variants import VARIANTS
from diffplugin.errors import CheckpointError, MissingDependency, NotFinite
from diffplugin.export.checkpoints import Checkpoint, check_checkpoint
from diffplugin.export.checkpoints.checkpoint import WORDS_FILE
from diffplugin.export.cuda import EmulatedCuda, export_cuda
from diffplugin.export.fp16.emulate import EmulatedFp16
from diffplugin.export.fp16.variant import export_fp16
from diffplugin.export.gate import compare_engines
from diffplugin.export.graphs import graph_keys, module_for
from diffplugin.export.ncnn import export_ncnn, pnnx_missing, proof_size
from diffplugin.export.onnx import export_graph
from diffplugin.export.parity import PHOTO_BUDGET, check, compare_graphs, compare_photo, tensor_budget
from diffplugin.export.prebuild import Log, Sizes, build_engines, checked_sizes, choose_builder
from diffplugin.export.purpose import Kept, compare_purposes
from diffplugin.export.quantize import (
    SIDE,
    calibration_inputs,
    default_photos,
    quantize_bundle,
    unavailable_reason,
)
from diffplugin.export.reference import ReferenceBuilder
from diffplugin.export.tiny import compare_tiny
from diffplugin.export.tokenizer import write_tokenizer
from diffplugin.export.writing import writing
from diffplugin.integrity import sha256
from diffplugin.manifest import GraphEntry, Manifest
from diffplugin.plugins.cards import PluginCard, card_to_toml, registry
from diffplugin.plugins.compounds import FILE as COMPOUNDS
from diffplugin.plugins.compounds import compound_table
from diffplugin.runtime.photos.read import read_photo
from diffplugin.runtime.request.spelling import read_speller
from diffplugin.runtime.sampling.noise_schedule import NoiseSchedule
from diffplugin.runtime.sampling.time_features import time_settings
from diffplugin.spec import Array, graph_specs

if TYPE_CHECKING:
    from diffplugin.engines.base import EngineBuilder


def _sources(checkpoint: Checkpoint) -> dict[str, dict[str, str]]:
    """The sources of the bundle: file name and SHA-256 per part, without the machine's folders."""
    parts = {part: checkpoint.source(part) for part in checkpoint.parts()}
    hashes = {files: sha256(*files.files) for files in set(parts.values())}  # a single file holds three parts
    return {part: {"name": files.main.name, "sha256": hashes[files]} for part, files in parts.items()}


def _cards(checkpoint: Checkpoint, folder: Path | None) -> dict[str, PluginCard]:
    """Cards of the checkpoint's plugins, in registry order: of ``folder``, else beside the weights, else shipped."""
    beside = dict.fromkeys(place.parent for place in checkpoint.plugins.values())
    known = registry(*beside, *(() if folder is None else (folder,)))
    lacking = [plugin for plugin in checkpoint.plugins if plugin not in known]
    if lacking:
        raise CheckpointError(
            f"no card for {', '.join(lacking)}; write <id>.toml into a folder and name it with --cards "
            f"(shipped: {', '.join(registry())})"
        )
    return {plugin: card for plugin, card in known.items() if plugin in checkpoint.plugins}


def _checked(checkpoint: Checkpoint, cards: Path | None, log: Log) -> dict[str, PluginCard]:
    """The cards, after a check for everything that can be wrong with files; all faults are reported at once."""
    faults: list[str] = []
    chosen: dict[str, PluginCard] = {}
    try:
        chosen = _cards(checkpoint, cards)
        parts = checkpoint.plugin_parts()
        faults += [
            f'{place}: its card says output = "head", but {place / "head/config.json"} is missing'
            for plugin, place in checkpoint.plugins.items()
            if chosen[plugin].output == "head" and f"head/{plugin}" not in parts
        ]
        if cards is not None:
            compound_table(cards)
    except CheckpointError as error:
        faults.append(str(error))
    try:
        notes = check_checkpoint(checkpoint)
    except CheckpointError as error:
        faults.append(str(error))
    if faults:
        raise CheckpointError("; ".join(faults))
    for note in notes:
        log(f"note: {note}")
    return chosen


def _copy_compounds(cards: Path, out: Path) -> None:
    """The user's own table of compound tasks, checked; the shipped one needs no copy."""
    compound_table(cards)
    for place in (cards / COMPOUNDS, cards / "cards" / COMPOUNDS):
        if place.is_file():
            shutil.copyfile(place, out / COMPOUNDS)


def _export_graphs(checkpoint: Checkpoint, folder: Path, log: Log) -> dict[str, GraphEntry]:
    """Trace every graph into ``folder``, one network in memory at a time."""
    specs = graph_specs(checkpoint.dims)
    keys = graph_keys(checkpoint)
    entries = {}
    for i, key in enumerate(keys, 1):
        kind, _, plugin = key.partition("/")
        name = f"plugins/{plugin}/{kind}.onnx" if plugin else f"onnx/{kind}.onnx"
        log(f"[{i}/{len(keys)}] tracing {key}")
        module = module_for(checkpoint, key)
        export_graph(module, specs[kind], folder / name, factor=checkpoint.dims.factor)
        weights = sum(p.numel() * 4 for p in module.parameters())
        entries[key] = GraphEntry(file=name, sha256=sha256(*graph_files(folder / name)), weights_bytes=weights)
    return entries


def _manifest(
    checkpoint: Checkpoint, name: str, cards: Mapping[str, PluginCard], graphs: Mapping[str, GraphEntry]
) -> Manifest:
    unet, clip = checkpoint.config("unet"), checkpoint.preprocessor()
    scheduler = NoiseSchedule.from_config(checkpoint.config("scheduler")).to_config()
    return Manifest(
        created_with=diffplugin.__version__,
        name=name,
        source=_sources(checkpoint),
        dims=checkpoint.dims,
        scheduler=scheduler,
        time_embedding=dict(time_settings(unet)),
        clip={"mean": tuple(clip["image_mean"]), "std": tuple(clip["image_std"])},
        graphs=graphs,
        plugins=tuple(cards),
        selector="selector" in graphs,
        selector_threshold=checkpoint.selector_threshold(),
        words=WORDS_FILE if checkpoint.words() else "",
        diagnosis=checkpoint.diagnosed(),
        licences={plugin: card.licence for plugin, card in cards.items() if card.licence},
    )


def _central(picture: Array) -> Array:
    """The central square of a picture uint8 [H, W, 3], at the size of calibration."""
    return np.asarray(ImageOps.fit(Image.fromarray(picture), (SIDE, SIDE), Image.Resampling.LANCZOS))


def _quantize(bundle: Bundle, builder: EngineBuilder, calibration: Sequence[Path], log: Log) -> dict[str, GraphEntry]:
    """int8 forms of the graphs, calibrated on restorations of these pictures."""
    pictures = [_central(read_photo(path).rgb) for path in calibration] or default_photos()
    log(f"calibrating int8 on {len(pictures)} {'' if calibration else 'synthetic '}pictures")
    # ONNX Runtime maps the weights from their file; a second copy of them would not fit beside the quantiser
    inputs = calibration_inputs(bundle, get_builder("onnxruntime"), pictures)
    return quantize_bundle(bundle, builder, inputs, log=log)


def _validate(
    bundle: Bundle, checkpoint: Checkpoint, builder: EngineBuilder, precision: str, log: Log
) -> dict[str, Any]:
    """Compare with the reference; returns the report for the manifest. Raises ParityError after printing all
    comparisons.
    """
    reference = ReferenceBuilder(checkpoint)
    vocabulary = checkpoint.config("text_encoder")["vocab_size"]
    comparisons = []
    for comparison in compare_graphs(bundle, reference, builder, precision=precision, vocabulary=vocabulary):
        log(comparison.describe())
        comparisons.append(comparison)
    try:
        picture = compare_photo(bundle, reference, builder, precision=precision)
    except NotFinite as error:  # the graphs above say where
        log(f"whole picture      {error}")
        picture = (float("nan"), PHOTO_BUDGET[precision])
    log(f"whole picture      {picture[0]:.1f} dB against the reference (at least {picture[1]:g})")
    check(comparisons, picture)
    purposes = _purposes(bundle, builder, precision, log)
    tiny = compare_tiny(bundle, builder, precision) if checkpoint.tiny_vae is not None else {}
    if tiny:
        log(
            f"tiny autoencoder   {tiny['tiny_db']:.1f} dB (the base's: {tiny['vae_db']:.1f}); a change, as a residual: "
            f"{tiny['tiny_change_db']:.1f} dB ({tiny['vae_change_db']:.1f})"
        )
    return {
        "engine": builder.name,
        "precision": precision,
        "relative_error_budget": tensor_budget(builder.name, precision),
        # rounded up to one digit: the last digits change with the processor, and a bundle should not
        "relative_error": {
            c.key: {name: float(f"{error:.0e}") for name, error in c.errors.items()} for c in comparisons
        },
        "picture_psnr_budget_db": picture[1],
        "picture_psnr_db": round(picture[0]),
        "kept_db": {kept.plugin: [round(kept.clean_db), round(kept.degraded_db)] for kept in purposes},
        **({"tiny_autoencoder": tiny} if tiny else {}),
    }


def _purposes(bundle: Bundle, builder: EngineBuilder, precision: str, log: Log) -> list[Kept]:
    """A clean and a degraded photo through every plugin; one that destroys either is named."""
    from diffplugin.runtime.restorer import Restorer

    with Restorer(bundle, builder, precision=precision) as restorer:
        found = compare_purposes(restorer, bundle.manifest.plugins)
    for kept in found:
        log(kept.describe())
    return found


def export_bundle(
    checkpoint: Checkpoint,
    out: Path,
    *,
    name: str,
    cards: Path | None = None,
    engine: str = "auto",
    precision: str = "auto",
    sizes: Sizes = (),
    validate: bool = True,
    calibration: Sequence[Path] = (),
    options: BuildOptions | None = None,
    log: Log = lambda line: None,
) -> Path:
    """Write the bundle ``out`` and return it.

    Args:
        name: the bundle's name, kept in its manifest.
        cards: folder whose ``<id>/card.toml`` or ``cards/<id>.toml`` replace or add to the shipped cards.
        engine, precision: those to prepare and to validate with (``diffplugin.engines.choice.choose``).
        sizes: (width, height) in pixels that engines are built for, one engine per pair and graph; none: 512 x 512.
        options: how engines are built.
        calibration: pictures for int8, best degraded as the plugins expect; none: synthetic ones.
        validate: compare every graph, one picture and every engine that can run on this machine with the reference, and
            put a clean and a degraded photo through every plugin.
        log: called with one line of progress.

    Raises:
        CheckpointError: the checkpoint does not fit.
        ParityError: a graph or an engine exceeds its error budget; nothing is written then.
        BundleError: ``out`` cannot be written.
        EngineUnavailable: the engine cannot run on this machine.
    """
    chosen = _checked(checkpoint, cards, log)
    dims = checkpoint.dims
    sizes, options = checked_sizes(sizes, dims), options or BuildOptions()
    builder, wanted, reason = choose_builder(engine, precision, options)
    if wanted == "int8" and (lacking := unavailable_reason()):
        raise MissingDependency(lacking)
    if isinstance(builder, NcnnBuilder) and (lacking := pnnx_missing()):
        raise MissingDependency(lacking)
    log(f"engine {builder.name} {wanted} ({reason})")
    with writing(out) as folder:
        write_tokenizer(checkpoint.tokenizer, folder / "tokenizer.json", dims.context)
        for plugin, card in chosen.items():
            path = folder / "plugins" / plugin / "card.toml"
            path.parent.mkdir(parents=True)
            path.write_text(card_to_toml(card), encoding="utf-8")
        if cards is not None:
            _copy_compounds(cards, folder / "plugins")
        if (words := checkpoint.words()) is not None:
            read_speller(words)
            shutil.copyfile(words, folder / WORDS_FILE)
        manifest = _manifest(checkpoint, name, chosen, _export_graphs(checkpoint, folder, log))
        if wanted == "int8":
            int8 = _quantize(Bundle(folder, manifest), builder, calibration, log)
            manifest = replace(manifest, variants={"int8": int8})
        elif isinstance(builder, EmulatedCuda):
            manifest = replace(manifest, variants={VARIANTS[wanted]: export_cuda(checkpoint, folder, wanted, log)})
        elif isinstance(builder, NcnnBuilder):
            manifest = replace(manifest, variants={NCNN: export_ncnn(checkpoint, folder, log)})
            sizes = [*sizes, proof_size(dims.factor)]
        elif wanted == "fp16":
            manifest = replace(manifest, variants={"fp16": export_fp16(checkpoint, folder, log)})
        bundle = Bundle(folder, manifest)
        proof = EmulatedFp16() if wanted == "fp16" and not isinstance(builder, EmulatedCuda) else builder
        if validate:
            manifest = replace(manifest, parity=_validate(bundle, checkpoint, proof, wanted, log))
        engines = build_engines(bundle, builder, wanted, sizes, options, log)
        manifest = replace(manifest, engines=engines)
        if validate and (engines or NCNN in manifest.variants):
            gate = compare_engines(Bundle(folder, manifest), checkpoint, builder, wanted, sizes, log)
            manifest = replace(manifest, parity={**manifest.parity, "engines": gate})
        write_manifest(folder, replace(manifest, files=list_files(folder)))
    return out
