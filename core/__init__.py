"""Diff-Plugin (arXiv:2403.00644) for production.

import diffplugin

with diffplugin.load() as restorer:
    restorer.restore("photo.jpg", "remove the blur").image.save("sharp.png")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diffplugin.errors import DiffPluginError

if TYPE_CHECKING:
    import os

    from diffplugin.bundle import Bundle
    from diffplugin.engines.choice import EngineName, Precision
    from diffplugin.runtime.options import RestoreOptions
    from diffplugin.runtime.photos.read import Photo
    from diffplugin.runtime.planning.plan import Plan, Stage
    from diffplugin.runtime.planning.quality import QualityName
    from diffplugin.runtime.request.selection import Selection
    from diffplugin.runtime.restoration import Restoration
    from diffplugin.runtime.restorer import Restorer

__version__ = "0.1.0"
__all__ = [
    "DiffPluginError",
    "Photo",
    "Plan",
    "Restoration",
    "RestoreOptions",
    "Restorer",
    "Selection",
    "Stage",
    "__version__",
    "load",
]

_LAZY = {
    "Photo": "diffplugin.runtime.photos.read",
    "Plan": "diffplugin.runtime.planning.plan",
    "Restoration": "diffplugin.runtime.restoration",
    "RestoreOptions": "diffplugin.runtime.options",
    "Restorer": "diffplugin.runtime.restorer",
    "Selection": "diffplugin.runtime.request.selection",
    "Stage": "diffplugin.runtime.planning.plan",
}


def load(
    bundle: str | os.PathLike[str] | Bundle | None = None,
    engine: EngineName = "auto",
    precision: Precision = "auto",
    threads: int | None = None,
    quality: QualityName = "exact",
    concurrency: int | None = 1,
    device: str = "auto",
) -> Restorer:
    """Load a bundle. Only its manifest is read; engines are loaded when first needed, or by ``Restorer.prepare``.

    Args:
        bundle: a bundle's folder; None: the embedded model.
        engine: "auto" (the fastest usable one), "onnxruntime", "onnxruntime-cuda", "openvino", "ncnn",
            "tensorrt" or "tensorrt-rtx".
        precision: "auto" (the quality's preference, else the engine's best on this machine), "fp32", "bf16", "fp16" or
            "int8".
        threads: processor cores to use; None: all that this process may use.
        quality: "exact", or less work: "high", "balanced" or "fast" (described in ``runtime.planning.quality``).
        concurrency: photos that you will restore at the same time, one thread each; cores and memory are divided among
            them. None: as many as the machine has cores and memory for (``Restorer.concurrency`` has the number); 1 if
            the engine runs only one at a time.
        device: "auto" (the engine's own), "cpu", "cuda" or "cuda:1" (NVIDIA), "gpu" or "gpu:1" (Intel), "npu".

    Raises:
        BundleError: the folder is not a bundle, or its format is newer.
        EngineUnavailable: the requested engine or precision cannot run on this machine; the message names the remedy.
        RequestError: no such quality; threads or concurrency is not positive; the engine runs one picture at a time.
    """
    from diffplugin.bundle import Bundle, cache_folder, default_bundle, open_bundle
    from diffplugin.engines.choice import choose, choose_fallback
    from diffplugin.runtime.planning.quality import get_quality
    from diffplugin.runtime.restorer import Restorer

    wanted = get_quality(quality)
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(default_bundle() if bundle is None else bundle)
    builder, chosen, reason = choose(engine, precision, bundle=opened, prefer=wanted.precisions, device=device)
    return Restorer(
        opened,
        builder,
        chosen,
        reason=reason,
        threads=threads,
        cache=cache_folder(),
        quality=wanted,
        concurrency=concurrency,
        fallback=choose_fallback(builder, engine, precision, device),
    )


def __getattr__(name: str) -> Any:
    """Import the classes of ``__all__`` on first use, so that ``import diffplugin`` stays fast."""
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
