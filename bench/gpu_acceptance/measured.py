"""The parts ``measure`` and ``profile``: seconds of a picture in every way, of its graphs, of a step in the captured
loop, and of the kernels behind them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
from PIL import Image

from diffplugin.bench.gpu_acceptance.parts import Result, check
from diffplugin.bench.gpu_acceptance.trial import (
    SEED,
    DevicePeak,
    Trial,
    free_memory,
    interleaved,
    open_restorer,
    photograph,
)

_KERNELS, _NAME = 40, 120  # of a profile: the longest ones, and characters of a name

if TYPE_CHECKING:
    from diffplugin.runtime.execution.captured_stage import CaptureKey, StageInputs
    from diffplugin.runtime.restoration import Restoration
    from diffplugin.runtime.restorer import Restorer


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
            result["checks"] = [_one_launch(restorer, once)]
    return result | {"device_bytes": peak.bytes, "host_bytes": memory()["peak"]}


def _one_launch(restorer: Restorer, once: Callable[[], float]) -> Result:
    """Whether one more picture is one launch of a captured graph."""
    device, launched = restorer.device, 0
    assert device is not None
    driver = device._driver
    launch = driver.launch

    def counted(executable: int, stream: int) -> None:
        nonlocal launched
        launched += 1
        launch(executable, stream)

    with patch.object(driver, "launch", counted):
        once()
    reasons = {stage.plain_reason for stage in device._stages.values() if stage.plain_reason}
    return check("one launch a picture", launched == 1, "; ".join((f"{launched} launches", *sorted(reasons))))


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
    return CaptureKey(
        plugin=plugin, steps=steps, h=height, w=width, batch=stage.scb_batch, head=stage.output == "head"
    ), request


def profile(trial: Trial) -> Result:
    """The kernels of one captured picture by their time on the GPU: what to look at where a requirement of speed is
    missed. PyTorch's profiler sees the whole process."""
    import torch

    if not torch.cuda.is_available():
        return {"skipped": "PyTorch sees no GPU here"}
    with open_restorer(trial) as restorer:
        plugin = next(iter(restorer.cards))
        photo = photograph(trial, plugin)

        def once() -> None:
            restorer.restore(photo, plugins=[plugin], seed=SEED, steps=trial.steps)

        once()  # plainly
        once()  # the first launch
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
            once()
    return {"kernels": kernels(seen.key_averages())}


def kernels(rows: Iterable[Any]) -> list[Result]:
    """Name, calls and milliseconds of what a profile has, longest first."""
    made = sorted((float(row.self_device_time_total), int(row.count), str(row.key)[:_NAME]) for row in rows)
    return [{"name": name, "calls": calls, "ms": us / 1e3} for us, calls, name in made[: -_KERNELS - 1 : -1] if us > 0]
