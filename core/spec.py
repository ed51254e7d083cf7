"""The single table of graphs: names, axes and dtypes. Export, engines, buffers and checks derive from it.

Axes: a number is fixed, a name is free at run time. ``h w`` are latent sides, ``H W`` picture sides
(``H = h * factor``), ``n`` steps, ``p`` plugins. Widths are not part of this table: they come from the checkpoint
through :class:`ModelDims`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffplugin.errors import ShapeMismatch

Array = NDArray[Any]
# How far from a picture's edge an autoencoder's zero padding is seen, pixels. Measured on the embedded one, levels off
# with such a border: none 32, 8 pixels 11, 12 pixels 5, 16 pixels 2; more gains nothing.
BORDER = 16
DTYPES: dict[str, np.dtype[Any]] = {"f32": np.dtype(np.float32), "i64": np.dtype(np.int64)}


@dataclass(frozen=True, kw_only=True)
class ModelDims:
    """Widths of one checkpoint, as its config files give them. SD 1.4's values in brackets."""

    factor: int  # picture pixels per latent pixel, each side [8]
    latent_channels: int  # [4]
    residual_channels: int  # SCB and first UNet level [320]
    deep_channels: int  # second UNet level: what enters the outermost up block [640]
    time_features: int  # length of the sinusoidal time embedding [320]
    tokens: int  # vision patches without the class token [256]
    token_width: int  # cross-attention width = pooled text width [768]
    vision_width: int  # CLIP vision hidden size [1024]
    vision_size: int  # CLIP picture side [224]
    context: int  # CLIP text length [77]
    native_latent: int  # latent side the base was trained at [64]

    @property
    def border(self) -> int:
        """Pixels of reflected picture on every side of a photo while it is restored, cropped off afterwards; a multiple
        of the factor: the reach of the autoencoder's zero padding (:data:`BORDER`)."""
        return -(-BORDER // self.factor) * self.factor

    @property
    def native_size(self) -> int:
        """Picture side the base was trained at, in pixels."""
        return self.native_latent * self.factor

    def to_json(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a graph: name, dtype ("f32" or "i64") and axes (int = fixed, str = free)."""

    name: str
    dtype: str
    axes: tuple[int | str, ...]

    def describe(self) -> str:
        return f"{self.name} {self.dtype} {'x'.join(map(str, self.axes))}"


@dataclass(frozen=True)
class GraphSpec:
    """The contract of one graph. ``graph`` is its kind; plugins' graphs share a kind (``tpb``, ``scb``, ``head``).

    ``factor``: picture pixels per latent pixel, if the graph has both kinds of sides (``H = h * factor``).
    """

    graph: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    factor: int = 1

    def free_axes(self) -> tuple[str, ...]:
        """Names of the axes that are free, in order of first use."""
        axes = [axis for tensor in (*self.inputs, *self.outputs) for axis in tensor.axes if isinstance(axis, str)]
        return tuple(dict.fromkeys(axes))


def _tensor(name: str, dtype: str, *axes: int | str) -> TensorSpec:
    return TensorSpec(name, dtype, axes)


RESIDUALS = ("residual_0", "residual_1", "residual_2")
STEP_WEIGHTS = 13  # of a whole step as one graph: runtime.sampling.loop.step_weights
VIEWS, VIEW_SIDE = 9, 128  # what the diagnosis sees of a photo: runtime.request.views
DIAGNOSES = 8  # tasks that it knows; their ids are in the manifest
# Graphs that use the weights beside another graph's file instead of repeating them.
WEIGHTS_OF = {"step": "unet"}


def graph_specs(dims: ModelDims) -> dict[str, GraphSpec]:
    """All graph kinds of a model with these widths.

    ``time`` is the sinusoidal embedding of the timestep, computed by the caller in float32
    (``runtime.sampling.time_features.sinusoidal``): inside a bf16 graph it would cost three times the error. The SCB
    takes ``n`` timesteps at once; its ``residual_0`` depends on none of them. ``cond`` and ``latents`` are scaled (x
    0.18215 in SD). ``unet_shallow`` is the UNet's outermost blocks alone, with the ``deep`` feature that ``unet`` gave
    at a nearby step (step caching, arXiv:2312.00858). With the feature of the same step both give the same result.

    ``diagnosis`` is optional: from views of a photo to each task's logit (how probable it is that the photo needs it)
    and strength (how much of that degradation it has, 0 to 1). So are ``tiny_encoder`` and ``tiny_decoder``, which
    stand for the autoencoder at a fraction of its work.

    ``head`` belongs to a plugin whose card says so: it takes the decoder's place
    (:class:`diffplugin.plugins.networks.head.ChangeHead`).

    ``step`` is a whole step of the sampler's loop around the UNet, so that an engine needs one launch per step. Its
    ``weights`` are, in this order: start (latents, cond, noise), denoise (x, eps), correct (last, x, x0, x0_1, x0_2),
    predict (c, x0, x0_1), and it computes what ``runtime.sampling.loop.sample`` does::

        x = start . (latents, cond, noise)                    eps = unet(x, time, tokens, residuals)
        next_x0 = denoise . (x, eps)                          next_last = correct . (last, x, next_x0, x0_1, x0_2)
        next_latents = predict . (next_last, next_x0, x0_1)

    Every tensor is read, even if its weight is 0, so it must be finite. The graph exists only in a variant of the
    bundle (float16).
    """
    c, r, d = dims.latent_channels, dims.residual_channels, dims.token_width
    ids = _tensor("ids", "i64", 1, dims.context)
    patches = _tensor("patches", "f32", 1, dims.tokens, dims.vision_width)
    tokens = _tensor("tokens", "f32", 1, dims.tokens, d)
    cond = _tensor("cond", "f32", 1, c, "h", "w")
    latents = _tensor("latents", "f32", 1, c, "h", "w")
    image = _tensor("image", "f32", 1, 3, "H", "W")
    step_time = _tensor("time", "f32", 1, dims.time_features)
    residuals = tuple(_tensor(name, "f32", 1, r, "h", "w") for name in RESIDUALS)
    eps = _tensor("eps", "f32", 1, c, "h", "w")
    deep = _tensor("deep", "f32", 1, dims.deep_channels, "h", "w")
    specs = (
        GraphSpec("clip_text", (ids,), (_tensor("pooled", "f32", 1, d),)),
        GraphSpec("clip_vision", (_tensor("pixels", "f32", 1, 3, dims.vision_size, dims.vision_size),), (patches,)),
        GraphSpec("tpb", (patches,), (tokens,)),
        GraphSpec(
            "selector",
            (
                _tensor("text", "f32", 1, d),
                _tensor("plugin_tokens", "f32", "p", dims.tokens, d),
                _tensor("null_text", "f32", 1, d),
            ),
            (_tensor("scores", "f32", 1, "p+1"),),
        ),
        GraphSpec(
            "diagnosis",
            (_tensor("views", "f32", VIEWS, 3, VIEW_SIDE, VIEW_SIDE),),
            (_tensor("logits", "f32", 1, DIAGNOSES), _tensor("strengths", "f32", 1, DIAGNOSES)),
        ),
        GraphSpec("vae_encoder", (image,), (cond,), dims.factor),
        GraphSpec(
            "scb",
            (_tensor("time", "f32", "n", dims.time_features), tokens, cond),
            tuple(_tensor(name, "f32", "n" if i else 1, r, "h", "w") for i, name in enumerate(RESIDUALS)),
        ),
        GraphSpec("unet", (latents, step_time, tokens, *residuals), (eps, deep)),
        GraphSpec("unet_shallow", (latents, step_time, tokens, *residuals, deep), (eps,)),
        GraphSpec(
            "step",
            (
                latents,
                cond,
                *(_tensor(name, "f32", 1, c, "h", "w") for name in ("noise", "last", "x0_1", "x0_2")),
                _tensor("weights", "f32", STEP_WEIGHTS),
                step_time,
                tokens,
                *residuals,
            ),
            tuple(_tensor(name, "f32", 1, c, "h", "w") for name in ("next_latents", "next_last", "next_x0")),
        ),
        GraphSpec("vae_decoder", (latents,), (image,), dims.factor),
        GraphSpec("head", (image, latents, cond), (_tensor("change", "f32", 1, 3, "H", "W"),), dims.factor),
        GraphSpec("tiny_encoder", (image,), (cond,), dims.factor),
        GraphSpec("tiny_decoder", (latents,), (image,), dims.factor),
    )
    return {spec.graph: spec for spec in specs}


def check_inputs(spec: GraphSpec, inputs: Mapping[str, Array]) -> dict[str, int]:
    """Check that every input fits ``spec``; returns the sizes of the free axes.

    Raises:
        ShapeMismatch: naming every missing, unknown or misshapen tensor at once.
    """
    faults = [f"{name} is unknown" for name in inputs if name not in {t.name for t in spec.inputs}]
    bound: dict[str, int] = {}
    for tensor in spec.inputs:
        if tensor.name not in inputs:
            faults.append(f"{tensor.name} is missing")
            continue
        array = inputs[tensor.name]
        faults += _misfit(tensor, array, bound)
    if faults:
        raise ShapeMismatch(f"{spec.graph}: {'; '.join(faults)}")
    return bound


def check_outputs(spec: GraphSpec, outputs: Mapping[str, Array], sizes: Mapping[str, int]) -> None:
    """Refuse a graph's outputs if they break its contract for these inputs.

    Args:
        sizes: of the free input axes, as :func:`check_inputs` gives them.

    Raises:
        ShapeMismatch: naming every missing or misshapen output at once.
    """
    bound = {**sizes, **_derived(spec, sizes)}
    faults = [f"output {t.name} is missing" for t in spec.outputs if t.name not in outputs]
    for tensor in spec.outputs:
        if tensor.name in outputs:
            faults += [f"output {fault}" for fault in _misfit(tensor, outputs[tensor.name], bound)]
    if faults:
        raise ShapeMismatch(f"{spec.graph}: {'; '.join(faults)}; export the bundle again")


def _derived(spec: GraphSpec, sizes: Mapping[str, int]) -> dict[str, int]:
    """Sizes of the axes that exist only in outputs."""
    derived = {f"{axis}+1": size + 1 for axis, size in sizes.items()}
    derived |= {axis.upper(): sizes[axis] * spec.factor for axis in ("h", "w") if axis in sizes}
    return derived | {axis.lower(): sizes[axis] // spec.factor for axis in ("H", "W") if axis in sizes}


def _misfit(tensor: TensorSpec, array: Array, bound: dict[str, int]) -> list[str]:
    """The fault of an array in one line, or None; ``bound`` records the sizes of axes seen for the first time."""
    fits = len(array.shape) == len(tensor.axes) and all(
        size == (bound.setdefault(axis, size) if isinstance(axis, str) else axis)
        for size, axis in zip(array.shape, tensor.axes, strict=True)
    )
    if fits and array.dtype == DTYPES[tensor.dtype]:
        return []
    sizes = "x".join(str(bound.get(axis, axis) if isinstance(axis, str) else axis) for axis in tensor.axes)
    found = f"{array.dtype} {'x'.join(map(str, array.shape))}"
    return [f"{tensor.name} is {found}, expected {DTYPES[tensor.dtype]} {sizes}"]
