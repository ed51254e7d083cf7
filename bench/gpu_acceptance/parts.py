"""The parts that run this project's engines: a :class:`Trial` in, JSON out; ``checks`` are pass or fail."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from diffplugin.bench.gpu_acceptance.trial import (
    EMBEDDED,
    EXPECTED,
    GOLDEN,
    ORACLE,
    SEED,
    DevicePeak,
    Trial,
    free_memory,
    interleaved,
    open_restorer,
    photograph,
)

if TYPE_CHECKING:
    from diffplugin.export.checkpoints import Checkpoint
    from diffplugin.runtime.execution.captured_stage import CaptureKey, StageInputs
    from diffplugin.runtime.restoration import Restoration
    from diffplugin.runtime.restorer import Restorer

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
    from diffplugin.export.parity import PHOTO_BUDGET, TENSOR_BUDGET

    tensor_budget, photo_budget = TENSOR_BUDGET[trial.precision], PHOTO_BUDGET[trial.precision]
    with open_restorer(trial) as restorer:
        seen = distance(restorer, trial.oracle, GOLDEN)
        whole = distance(restorer, trial.oracle, GOLDEN, tensors=False)
        loop = "device" if restorer.device is not None else "host"
    worst = max(seen.errors, key=lambda name: seen.errors[name])
    checks = [
        check("tensors", seen.errors[worst] <= tensor_budget, f"{worst} {seen.errors[worst]:.1e} <= {tensor_budget:g}")
    ]
    for name, db in (("picture, graph by graph", seen.picture_db), (f"picture, {loop} loop", whole.picture_db)):
        checks.append(check(name, db is not None and db >= photo_budget, f"{db} >= {photo_budget:g} dB"))
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
    from diffplugin.export.parity import PHOTO_BUDGET

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
    budget = PHOTO_BUDGET[trial.precision]
    told = ", ".join(f"{plugin} {db:.1f}" for plugin, db in found.items())
    return {"psnr_db": found, "checks": [check("picture", min(found.values()) >= budget, f"{told} >= {budget:g} dB")]}


def measure(trial: Trial) -> Result:
    """Cold start, then the loop's ways in turn, then every graph alone; the picture is left for the peers."""
    from diffplugin.bench.watch import memory

    peak = DevicePeak(free_memory(trial))
    with peak, open_restorer(trial) as restorer:
        plugin = next(iter(restorer.cards))
        photo = photograph(trial, plugin)

        def once() -> float:
            began = time.perf_counter()
            made[:] = [restorer.restore(photo, plugins=[plugin], seed=SEED, steps=trial.steps)]
            return time.perf_counter() - began

        made: list[Restoration] = []
        load_s, first = trial.since(), once()
        first_picture_s, second = trial.since(), once()
        Image.fromarray(made[0].array).save(trial.picture)
        ways = _ways(restorer, once)
        taken = interleaved(ways, trial.rounds)
        result: Result = {
            "load_s": load_s,
            "first_picture_s": first_picture_s,
            "first_restore_s": first,
            "second_restore_s": second,
            "picture_s": taken,
            "steps": trial.steps,
        }
        result |= _stages(trial, restorer, photo, plugin)
        if restorer.device is not None:
            result |= _loop_seconds(trial, restorer, photo, plugin)
    return result | {"device_bytes": peak.bytes, "host_bytes": memory()["peak"]}


def _loop_seconds(trial: Trial, restorer: Restorer, photo: Any, plugin: str) -> Result:
    """Seconds of the captured loop alone, from upload to download, and of a step in it: what more steps add."""
    found: dict[int, list[float]] = {}
    half = max(1, trial.steps // 2)
    for steps in {trial.steps, half}:
        for turn in range(trial.rounds + 2):  # the first runs plainly, the second is the first launch
            made = restorer.restore(photo, plugins=[plugin], seed=SEED, steps=steps)
            if turn >= 2 and "device" in made.timings:
                found.setdefault(steps, []).append(made.timings["device"])
    medians = {steps: float(np.median(seconds)) for steps, seconds in found.items()}
    told: Result = {"loop_s": found.get(trial.steps, [])}
    if len(medians) == 2:
        told["step_in_loop_s"] = (medians[trial.steps] - medians[half]) / (trial.steps - half)
    return told


def _ways(restorer: Restorer, once: Callable[[], float]) -> dict[str, Callable[[], float]]:
    """How one picture can run: as a captured graph, as plain enqueues, graph by graph from the host."""
    device = restorer.device
    if device is None:
        return {"host": once}

    def way(loop: Any, replaying: bool) -> float:
        restorer.device, device.replay = loop, replaying
        try:
            return once()
        finally:
            restorer.device, device.replay = device, True

    return {
        "graph": partial(way, device, True),
        "enqueues": partial(way, device, False),
        "host": partial(way, None, True),
    }


def _stages(trial: Trial, restorer: Restorer, photo: Any, plugin: str) -> Result:
    """Seconds of every graph's runs within one picture, each waited for."""
    device = restorer.device
    if device is None:
        made = restorer.restore(photo, plugins=[plugin], seed=SEED, steps=trial.steps)
        return {"stages_s": dict(made.timings)}
    key, request = _request(restorer, photo, plugin, trial.steps)
    rounds = [device.seconds(key, request) for _ in range(trial.rounds + 1)][1:]  # the first one warms up
    runs = {graph: np.median([one[graph] for one in rounds], axis=0).tolist() for graph in rounds[0]}
    return {"stages_s": {graph: sum(seconds) for graph, seconds in runs.items()}, "runs_s": runs}


def _request(restorer: Restorer, photo: Any, plugin: str, steps: int) -> tuple[CaptureKey, StageInputs]:
    """What the device's loop would be asked for this photo."""
    from diffplugin.runtime.execution.captured_stage import CaptureKey, StageInputs
    from diffplugin.runtime.execution.clock import Clock
    from diffplugin.runtime.photos.pixels import to_tensor
    from diffplugin.runtime.photos.read import photo_from
    from diffplugin.runtime.sampling.loop import step_weights
    from diffplugin.runtime.sampling.samplers import step_table
    from diffplugin.runtime.sampling.start_noise import normal
    from diffplugin.runtime.sampling.time_features import time_features

    plan, _ = restorer.plan(photo, plugins=[plugin], steps=steps)
    stage, (width, height) = plan.chain[0], plan.latent_size
    table = step_table(plan.sampler, restorer._schedule, steps, stage.first_t)
    weights = [step_weights(table, i, stage.start, stage.renoise_from_t) for i in range(steps)]
    tokens = restorer._encoders.tokens(photo_from(photo), [plugin], Clock())[plugin]
    request = StageInputs(
        image=to_tensor(photo),
        noise=normal(SEED, (1, restorer.dims.latent_channels, height, width)),
        tokens=tokens,
        time=time_features(table.t, restorer.bundle.manifest),
        weights=np.stack(weights),
    )
    return CaptureKey(plugin=plugin, steps=steps, h=height, w=width, batch=stage.scb_batch), request
