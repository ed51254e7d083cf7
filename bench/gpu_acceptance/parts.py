"""The parts that run this project's engines: a :class:`Trial` in, JSON out; ``checks`` are pass or fail."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from diffplugin.bench.gpu_acceptance.bars import photo_budget
from diffplugin.bench.gpu_acceptance.trial import (
    EMBEDDED,
    EXPECTED,
    GOLDEN,
    ORACLE,
    SEED,
    Trial,
    open_restorer,
    photograph,
)

if TYPE_CHECKING:
    from diffplugin.export.checkpoints import Checkpoint

Result = dict[str, Any]
GOLDEN_SIZE = (512, 688)  # height and width that the released rule makes of its photo
# Most that a value in [-1, 1] may differ between two runs where the library sums in no fixed order. Not yet seen on a
# GPU.
UNORDERED = {"onnxruntime-cuda": {"fp16": 2e-2, "fp32": 1e-3}}
STEPS_OF_FULL = 4  # of the comparison with float32 on the processor, which takes seconds a step


def check(name: str, ok: bool, found: str) -> Result:
    """``found``: what was measured, and what was wanted."""
    return {"name": name, "ok": bool(ok), "found": found}


def build(trial: Trial) -> Result:
    """Export the model and build its engines for this GPU; what the builder reported of each."""
    from diffplugin.engines.base import BuildOptions
    from diffplugin.export.exporter import export_bundle
    from diffplugin.export.prebuild import parse_size

    checkpoint, cards = _checkpoint(trial)
    size = parse_size("{}x{}".format(*(GOLDEN_SIZE if trial.kind == ORACLE else (trial.height, trial.width))))
    lines: list[str] = []
    began = time.monotonic()
    export_bundle(
        checkpoint, trial.bundle, name=trial.kind, cards=cards, engine=trial.engine, precision=trial.precision,
        sizes=[size], validate=False, options=BuildOptions(log=lines.append), log=lines.append,
    )  # fmt: skip
    result: Result = {"seconds": time.monotonic() - began, "log": lines[-40:]}
    from diffplugin.bundle import open_bundle

    manifest = open_bundle(trial.bundle).manifest
    result["engines"] = [
        {
            "graph": entry.graph,
            "shapes": entry.shapes,
            "devices": list(entry.devices),
            "mib": round(sum(manifest.files[file].bytes for file in entry.files) / 2**20, 1),
            "report": {name: value for name, value in entry.report.items() if name not in ("tensors", "operators")},
        }
        for entry in manifest.engines
    ]
    return result


def draw(trial: Trial) -> Result:
    """A copy of the prepared full-width bundle, with weights."""
    from diffplugin.bench.gpu_acceptance import full_width

    began = time.monotonic()
    shutil.rmtree(trial.bundle, ignore_errors=True)
    source = Path(trial.prepared) / trial.kind
    for file in (file for file in source.rglob("*") if file.is_file()):
        copy = trial.bundle / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)  # without the modes of what may not be written to
    return {"bytes": full_width.draw(trial.bundle), "seconds": time.monotonic() - began}


def start(trial: Trial) -> Result:
    """From the start of a process to its first picture; the first time after the build, whatever is cached later."""
    with open_restorer(trial) as restorer:
        plugin = next(iter(restorer.cards))
        load_s = trial.since()
        restorer.restore(photograph(trial, plugin), plugins=[plugin], seed=SEED, steps=trial.steps)
        return {"load_s": load_s, "first_picture_s": trial.since()}


def _checkpoint(trial: Trial) -> tuple[Checkpoint, Path | None]:
    """(checkpoint, folder of its cards)."""
    from diffplugin.bench.goldens import unpack
    from diffplugin.export.checkpoints import find

    if trial.kind == ORACLE:
        root = trial.oracle / "checkpoint"
        if not root.is_dir():
            unpack(trial.oracle)
        return find(root / "stable-diffusion", root / "clip", root / "pre-trained"), None
    if trial.kind == EMBEDDED:
        from diffplugin.export.checkpoints import embedded_checkpoint

        checkpoint, cards, _ = embedded_checkpoint([])
        return checkpoint, cards
    root = Path(trial.model.partition(":")[2])
    return find(root / "base", root / "clip", root / "pre-trained"), root / "pre-trained"


def goldens(trial: Trial) -> Result:
    """What the released scripts computed: every tensor from the host's loop, the picture from the device's too."""
    from diffplugin.bench.goldens import distance
    from diffplugin.export.parity import TENSOR_BUDGET

    tensor_budget, budget = TENSOR_BUDGET[trial.precision], photo_budget(trial.kind, trial.precision)
    with open_restorer(trial) as restorer:
        seen = distance(restorer, trial.oracle, GOLDEN)
        whole = distance(restorer, trial.oracle, GOLDEN, tensors=False)
        loop = "device" if restorer.device is not None else "host"
    worst = max(seen.errors, key=lambda name: seen.errors[name])
    checks = [
        check("tensors", seen.errors[worst] <= tensor_budget, f"{worst} {seen.errors[worst]:.1e} <= {tensor_budget:g}")
    ]
    for name, db in (("picture, graph by graph", seen.picture_db), (f"picture, {loop} loop", whole.picture_db)):
        checks.append(check(name, db is not None and db >= budget, f"{db} >= {budget:g} dB"))
    return {"errors": dict(seen.errors), "picture_db": whole.picture_db, "checks": checks}


def replay(trial: Trial) -> Result:
    """Launches of captured graphs against plain enqueues of the same requests, bit for bit."""
    with open_restorer(trial) as restorer:
        plugins = list(restorer.cards)
        if restorer.device is None:
            return {"skipped": f"engine {trial.engine} runs graph by graph from the host: there is nothing to capture"}
        restorer.device.compared = []
        for turn in range(2):  # the first request of a shape runs plainly
            for i, plugin in enumerate(plugins):
                for sampler in ("unipc", "ddim"):
                    photo = photograph(trial, plugin, i + turn)
                    restorer.restore(photo, plugins=[plugin], seed=turn, sampler=sampler, steps=trial.steps)
        compared = restorer.device.compared
    different = [one for one in compared if one.different]
    largest = max((one.largest for one in different), default=0.0)
    bound = UNORDERED.get(trial.engine, {}).get(trial.precision)
    told = f"{len(different)} of {len(compared)} differ, by {largest:g} at most"
    like = (
        check("replay is plain, bit for bit", not different, told)
        if bound is None
        else check("replay is plain, but for the order of sums", largest <= bound, f"{told}, bound {bound:g}")
    )
    return {
        "replays": len(compared),
        "different": len(different),
        "largest": largest,
        "checks": [check("something was replayed", bool(compared), f"{len(compared)} replays"), like],
    }


def fidelity(trial: Trial) -> Result:
    """The picture against the one that ONNX Runtime makes of the same bundle on the processor in float32."""
    import diffplugin
    from diffplugin.export.measures import psnr

    steps = trial.steps if trial.kind == EMBEDDED else min(trial.steps, STEPS_OF_FULL)
    found = {}
    with open_restorer(trial) as restorer, contextlib.ExitStack() as stack:
        exact = None
        if not trial.prepared:
            exact = stack.enter_context(diffplugin.load(trial.bundle, engine="onnxruntime", precision="fp32"))
        for i, plugin in enumerate(restorer.cards):
            photo = photograph(trial, plugin, i if trial.prepared else 0)
            made = restorer.restore(photo, plugins=[plugin], steps=steps).array
            if exact is not None:
                expected = exact.restore(photo, plugins=[plugin], steps=steps).array
            else:
                with Image.open(Path(trial.prepared) / EXPECTED / f"{plugin}.png") as image:
                    expected = np.asarray(image.convert("RGB"))
            found[plugin] = psnr(made, expected)
    budget = photo_budget(trial.kind, trial.precision)
    told = ", ".join(f"{plugin} {db:.1f}" for plugin, db in found.items())
    return {"psnr_db": found, "checks": [check("picture", min(found.values()) >= budget, f"{told} >= {budget:g} dB")]}
