"""What runs on the stand-in, in a process of its own: ``python -m tests.engines.standin.scenes NAME BUNDLE …``.

Prints one JSON object. The product is used as it is: ``onnxruntime`` is the GPU build, ``cuda.bindings`` ours.
"""

from __future__ import annotations

import ctypes
import json
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

import diffplugin
from diffplugin.bench.full_width import DIMS
from diffplugin.bench.gpu_acceptance.operators import operators
from diffplugin.bench.gpu_acceptance.trial import Trial
from diffplugin.bundle import Bundle, open_bundle
from diffplugin.engines.choice import EngineName, Precision, choose, get_builder
from diffplugin.engines.device import DeviceEngine
from diffplugin.engines.onnxruntime_cuda import engine
from diffplugin.errors import DiffPluginError
from diffplugin.manifest import GraphEntry
from diffplugin.runtime.execution.clock import Clock
from diffplugin.runtime.photos.read import photo_from
from diffplugin.spec import DTYPES
from tests.engines.standin.log import Log, Part

ENGINE: EngineName = "onnxruntime-cuda"
STANDIN = ctypes.CDLL("libcudart.so.13")
STANDIN.standin_used.restype = ctypes.c_size_t


def _photo(height: int = 64, width: int = 64) -> np.ndarray[Any, Any]:
    return (np.random.default_rng(0).random((height, width, 3)) * 255).astype(np.uint8)


def _told(part: Part) -> dict[str, Any]:
    return {
        "plain": part.plain,
        "captured": part.captured,
        "launches": part.launches,
        "transposes": part.transposes,
        "devices": sorted(part.devices),
    }


def graphs(bundle: str, precision: str, side: str) -> Any:
    """Each graph three times on addresses: what the third run calls."""
    opened = open_bundle(bundle)
    return _graphs(opened, precision, int(side), tuple(opened.manifest.variants[f"cuda-{precision}"]))


def _graphs(opened: Bundle, precision: str, side: int, keys: tuple[str, ...]) -> dict[str, Any]:
    builder = get_builder(ENGINE)
    assert builder.unavailable_reason() is None, builder.unavailable_reason()
    driver, found = builder.driver(), {}  # type: ignore[attr-defined]
    factor = opened.manifest.dims.factor
    sizes = {"h": side, "w": side, "H": side * factor, "W": side * factor, "n": 1, "p": 1}
    for key in keys:
        engine = builder.load(opened, key, precision=precision, threads=None, cache=None)
        assert isinstance(engine, DeviceEngine)
        spec = engine.spec
        free = {axis for t in spec.inputs for axis in t.axes if isinstance(axis, str)}
        context = engine.context({axis: sizes[axis] for axis in sizes if axis in free})
        stream = driver.open_stream()
        for tensor in (*spec.inputs, *spec.outputs):
            context.bind(tensor.name, driver.malloc(prod(context.shape(tensor.name)) * DTYPES[tensor.dtype].itemsize))
        context.enqueue(stream)
        log = Log()
        parts = []
        for _ in range(2):
            context.enqueue(stream)
            parts.append(_told(log.part()))
        found[key] = parts[1] | {"same": parts[0] == parts[1], "capturable": context.capture_blocker(stream)}
        context.close()
        engine.close()
    return found


def full_width(bundle: str, file: str) -> Any:
    """The step of Stable Diffusion 1.4's widths at 64x64 latents, from a file of its own."""
    opened = open_bundle(bundle)
    entry = GraphEntry(file=Path(file).name, sha256="", weights_bytes=0)
    manifest = replace(opened.manifest, dims=DIMS, variants={"cuda-fp16": {"step": entry}}, files={})
    changed = Bundle(Path(file).parent, manifest)
    return _graphs(changed, "fp16", 64, ("step",))["step"]


def photo(bundle: str, precision: Precision = "fp16", device: str = "auto") -> Any:
    """Four restorations of one size: plain and captured, then replayed; then a larger one."""
    log = Log()
    with diffplugin.load(bundle, engine=ENGINE, precision=precision, device=device) as made:
        parts = {"loaded": log.part()}
        plan, _ = made.plan(_photo(), plugins=["derain"], steps=4)
        for i in range(4):
            made.restore(_photo(), plugins=["derain"], steps=4, seed=i)
            parts[f"request {i}"] = log.part()
        loop = made.device
        assert loop is not None
        stages = [(p.replays, p.plain_reason) for p in loop._stages.values()]
    parts["closed"] = log.part()
    left = [STANDIN.standin_used(i) for i in range(2)]
    return {
        "loop": plan.loop,
        "reason": plan.loop_reason,
        "stages": stages,
        "left": left,
        "parts": {name: _told(part) for name, part in parts.items()},
    }


def settling(bundle: str) -> Any:
    """A size at which the arena fits a second run of the SCB otherwise than the first, and allocates again."""
    with diffplugin.load(bundle, engine=ENGINE, precision="fp16") as made:
        assert made.device is not None
        log, parts = Log(), []
        for i in range(3):
            made.restore(_photo(8, 8), plugins=["derain"], steps=3, seed=i)  # 40 pixels with its border
            parts.append(_told(log.part()))
        stages = [(p.replays, p.plain_reason) for p in made.device._stages.values()]
    return {"stages": stages, "parts": parts}


def around(bundle: str) -> Any:
    """What a request calls outside the captured graph: the plugin's tokens, once they have been made before."""
    with diffplugin.load(bundle, engine=ENGINE, precision="fp16") as made:
        read = photo_from(_photo())
        made._encoders.tokens(read, ["derain"], Clock())
        log = Log()
        made._encoders.tokens(read, ["derain"], Clock())
        return log.part().plain


def eviction(bundle: str) -> Any:
    """Two captured sizes where one is kept: memory stays bounded, and the first size works again."""
    used = []
    with diffplugin.load(bundle, engine=ENGINE, precision="fp16") as made:
        assert made.device is not None
        made.device.kept = 1
        log = Log()
        for side in (32, 64, 32, 64, 32):
            made.restore(_photo(side, side), plugins=["derain"], steps=2)
            made.restore(_photo(side, side), plugins=["derain"], steps=2)
            used.append(STANDIN.standin_used(0))
        kept = len(made.device._stages)
        part = log.part()
    return {"used": used, "kept": kept, "left": STANDIN.standin_used(0), "part": _told(part)}


def threads(bundle: str) -> Any:
    """Two threads with sizes of their own, several requests each."""
    faults: list[str] = []
    with diffplugin.load(bundle, engine=ENGINE, precision="fp16") as made:
        log = Log()

        def work(side: int) -> None:
            try:
                for i in range(4):
                    made.restore(_photo(side, side), plugins=["derain"], steps=3, seed=i)
            except Exception as error:
                faults.append(f"{side}: {type(error).__name__}: {error}")

        running = [threading.Thread(target=work, args=(side,)) for side in (64, 80)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        assert made.device is not None
        stages = [(p.replays, p.plain_reason) for p in made.device._stages.values()]
        part = log.part()
    return {"faults": faults, "stages": stages, "part": _told(part)}


def memory(bundle: str) -> Any:
    """The device is full in the middle: an idle picture goes, then the host's loop runs, then an error names it."""
    said: dict[str, Any] = {}
    limit = STANDIN.standin_limit
    limit.argtypes = [ctypes.c_size_t]
    with diffplugin.load(bundle, engine=ENGINE, precision="fp16") as made:
        assert made.device is not None
        made.restore(_photo(32, 32), plugins=["derain"], steps=2)
        one = STANDIN.standin_used(0)
        made.restore(_photo(64, 64), plugins=["derain"], steps=2)
        two = STANDIN.standin_used(0)
        limit(two + (two - one) // 2)
        made.restore(_photo(48, 48), plugins=["derain"], steps=2)
        said["evicted"] = sorted(key.h for key in made.device._stages)
        limit(1)
        try:
            made.restore(_photo(80, 80), plugins=["derain"], steps=2)
            said["full"] = None
        except DiffPluginError as error:
            said["full"] = f"{type(error).__name__}: {error}"
        limit(0)
        made.restore(_photo(32, 32), plugins=["derain"], steps=2)
        made.restore(_photo(32, 32), plugins=["derain"], steps=2)
        said["after"] = [(p.replays, p.plain_reason) for k, p in made.device._stages.items() if k.h == 16]
    said["left"] = STANDIN.standin_used(0)
    return said


def refused(bundle: str, device: str = "") -> Any:
    """Why it is not usable, what an explicit choice says, what auto takes instead, and what was allocated for it."""
    log = Log()
    opened = open_bundle(bundle)
    try:
        choose(ENGINE, "auto", bundle=opened, **({"device": device} if device else {}))
        error = None
    except DiffPluginError as fault:
        error = str(fault)
    said: dict[str, Any] = {"error": error, "part": _told(log.part())}
    if not device:
        builder, precision, reason = choose("auto", "auto", bundle=opened)
        said["auto"] = [builder.name, precision, reason]
    return said


def products(folder: str, tf32: str) -> Any:
    """Every operator by itself, with or without TF32: how many ran, and how often TF32 was asked for."""
    engine.SETTINGS["use_tf32"] = tf32
    log = Log()
    trial = Trial(
        part="operators", model="oracle", engine=ENGINE, precision="fp16", out="", width=64, height=64, steps=1,
        rounds=1, prepared=folder,
    )  # fmt: skip
    with np.errstate(invalid="ignore"):  # nothing is computed here
        made = operators(trial)
    return {
        "ran": len(made["checks"]),
        "passed": sum(c["ok"] for c in made["checks"]),
        "tf32": log.part().plain["TF32"],
    }


_SCENES: dict[str, Callable[..., Any]] = {
    scene.__name__: scene
    for scene in (graphs, full_width, photo, settling, around, eviction, threads, memory, refused, products)
}

if __name__ == "__main__":
    print(json.dumps(_SCENES[sys.argv[1]](*sys.argv[2:])))
