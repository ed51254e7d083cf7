"""The graphs of a bundle that ONNX Runtime runs on a GPU: in its own form, or else the portable ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffplugin.bundle import Bundle

NAME = "onnxruntime-cuda"
VARIANTS = {"fp16": "cuda-fp16", "fp32": "cuda-fp32"}  # precision -> the bundle's graphs in this engine's form


def missing_cuda_variant(bundle: Bundle, precision: str) -> str | None:
    """None if the bundle has graphs in this engine's form, else what it lacks, and the remedy."""
    if bundle.manifest.variants.get(VARIANTS[precision]):
        return None
    return (
        f"{bundle.path}: has no {precision} graphs for {NAME}; "
        f"export it with dp-export --engine {NAME} --precision {precision}"
    )


def variant_of(bundle: Bundle, precision: str) -> str:
    """The variant that runs at this precision: in this engine's form, or else the bundle's portable one."""
    return VARIANTS[precision] if bundle.manifest.variants.get(VARIANTS[precision]) else precision


def weights_bytes(bundle: Bundle, precision: str) -> int:
    """The least bytes of weights that a photo needs on the GPU, with the largest plugin."""
    variant = variant_of(bundle, precision)
    sizes = {key: bundle.graph(key, variant).weights_bytes for key in bundle.keys(variant)}
    needed = ["clip_vision", "vae_encoder", "step" if "step" in sizes else "unet", "vae_decoder"]
    plugins = (sizes.get(f"tpb/{p}", 0) + sizes.get(f"scb/{p}", 0) for p in bundle.manifest.plugins)
    return sum(sizes.get(key, 0) for key in needed) + max(plugins, default=0)
