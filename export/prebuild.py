"""Builds engines ahead of time: the builder, the sizes, and the folders of a bundle."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from diffplugin.bundle import ENGINES, Bundle
from diffplugin.command import sides
from diffplugin.engines.base import BuildOptions
from diffplugin.engines.choice import choose, get_builder
from diffplugin.engines.onnxruntime_cuda.variants import NAME as ONNXRUNTIME_CUDA
from diffplugin.engines.onnxruntime_cuda.variants import VARIANTS
from diffplugin.errors import EngineUnavailable, RequestError
from diffplugin.export.cuda import EmulatedCuda
from diffplugin.export.fp16.emulate import EmulatedFp16
from diffplugin.manifest import EngineEntry, fingerprint
from diffplugin.runtime.planning.memory import available_memory
from diffplugin.shapes import Range, full_profile, shapes_text
from diffplugin.spec import ModelDims

if TYPE_CHECKING:
    from diffplugin.engines.base import EngineBuilder

Log = Callable[[str], None]
Sizes = Sequence[tuple[Range, Range]]  # (width, height) in pixels


def parse_size(text: str) -> tuple[Range, Range]:
    """(width, height) in pixels of ``N``, ``WxH``, ``MIN:OPT:MAX`` for both sides, or a range for a side of ``WxH``.

    Raises:
        RequestError: not of these forms, or not positive and rising.
    """
    parts = [re.fullmatch(r"([1-9][0-9]{0,4})(?::([1-9][0-9]{0,4}):([1-9][0-9]{0,4}))?", part) for part in sides(text)]
    if len(parts) > 2 or None in parts:
        raise RequestError(
            f"size {text!r}: expected N, WxH (width first) or MIN:OPT:MAX in pixels: 512, 768x512 or 256:512:1024"
        )
    ranges = [Range(int(part[1]), int(part[2] or part[1]), int(part[3] or part[1])) for part in parts if part]
    return ranges[0], ranges[-1]


def checked_sizes(sizes: Sizes, dims: ModelDims) -> Sizes:
    """``sizes``, or 512 x 512 if there are none.

    Raises:
        RequestError: a side is under one latent pixel.
    """
    if too_small := [side for pair in sizes for side in pair if side.least < dims.factor]:
        raise RequestError(f"size {too_small[0]}: a side is under {dims.factor} pixels, one latent pixel")
    return sizes or [parse_size("512")]


def choose_builder(engine: str, precision: str, options: BuildOptions) -> tuple[EngineBuilder, str, str]:
    """(builder, precision, reason) for an export: engines built ahead need not run on this machine.

    Raises:
        EngineUnavailable: the engine can neither be built nor run on this machine, or not at this precision.
        RequestError: ``options`` are not possible with it.
    """
    if engine == "auto" and precision == "fp16":
        builder: EngineBuilder = EmulatedFp16()
        chosen = builder, "fp16", "graphs for GPUs; --engine tensorrt-rtx or tensorrt builds engines of them"
    elif engine == ONNXRUNTIME_CUDA:
        if precision not in ("auto", *VARIANTS):
            raise EngineUnavailable(f"engine {engine}: has {', '.join(VARIANTS)} alone; use --precision fp16")
        builder = EmulatedCuda()
        chosen = (
            builder,
            "fp16" if precision == "auto" else precision,
            "graphs for the CUDA provider",
        )
    elif engine == "auto" or not get_builder(engine).prebuilt_only:
        chosen = choose(engine, precision)
    else:
        builder = get_builder(engine)
        if reason := builder.build_unavailable_reason():
            raise EngineUnavailable(f"engine {engine}: {reason}")
        here = builder.precisions()
        if precision not in ("auto", *here):
            raise EngineUnavailable(f"engine {engine}: builds {', '.join(here)} alone; use --precision {here[0]}")
        chosen = builder, here[0], "as asked"
    chosen[0].check_options(options)
    return chosen


def build_engines(
    bundle: Bundle, builder: EngineBuilder, precision: str, sizes: Sizes, options: BuildOptions, log: Log
) -> tuple[EngineEntry, ...]:
    """Engines built ahead of time for every graph and size; none if the engine loads ONNX."""
    entries: dict[str, EngineEntry] = {}
    options = replace(options, log=log)
    dims, plugins = bundle.manifest.dims, len(bundle.manifest.plugins)
    devices = options.gpus or (builder.device(),)
    for key in bundle.keys(precision):
        graph_sha256 = bundle.graph(key, precision).sha256
        for pair in sizes:
            width, height = (side.over(dims.factor) for side in pair)
            profile = full_profile(height, width, dims, batch=builder.batch, plugins=plugins)
            shapes = shapes_text(bundle.spec(key), profile)
            print_ = fingerprint(graph_sha256, shapes, precision, builder.name, builder.version(), devices)
            if print_ in entries:
                continue  # a graph without free axes is built once
            folder = bundle.path / ENGINES / print_
            options = replace(options, memory=available_memory())
            result = builder.build(bundle, key, precision=precision, profile=profile, out=folder, options=options)
            if result is None:
                continue
            log(f"built {builder.name} {precision} engine of {key} for {shapes or 'its one shape'}")
            entries[print_] = EngineEntry(
                fingerprint=print_,
                engine=builder.name,
                version=builder.version(),
                precision=precision,
                devices=devices,
                shapes=shapes,
                graph=key,
                graph_sha256=graph_sha256,
                files=tuple(file.relative_to(bundle.path).as_posix() for file in result.files),
                report=result.report,
            )
    return tuple(entries.values())
