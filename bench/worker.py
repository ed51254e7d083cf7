"""One contender in a process of its own: ``python -m diffplugin.bench.worker TRIAL`` with a trial as JSON.

The last line on stdout is the result as JSON; ``{"error": ...}`` where the contender cannot run. A process per sample
gives every contender the whole memory, and honest cold numbers.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffplugin.bench.contenders import Contender
    from diffplugin.bench.models import Model
    from diffplugin.runtime.restoration import Restoration
    from diffplugin.runtime.restorer import Restorer

Trial = Mapping[str, Any]
Result = dict[str, Any]


def _opened(trial: Trial) -> Restorer:
    from diffplugin.bench.contenders import open_restorer

    return open_restorer(*_named(trial), trial.get("threads"))


def _named(trial: Trial) -> tuple[Contender, Model]:
    from diffplugin.bench.contenders import get_contender
    from diffplugin.bench.models import parse_model

    return get_contender(trial["contender"]), parse_model(trial["model"])


def _steps(restorer: Restorer, trial: Trial) -> int:
    """Steps of this contender where exact quality takes the trial's: less work may mean fewer of them."""
    steps: int = trial["steps"]
    return _named(trial)[0].steps or min(steps, restorer.quality.steps or steps)


def measure(trial: Trial) -> Result:
    """Cold start, then the pictures of the trial, timed after a warm-up.

    Trial:
        contender, model, steps, threads: who, and what.
        pictures: [{source, plugin, target}]; restored in this order, timed together.
        size: (width, height) of the pictures, for the warm-up.
        began: ``time.monotonic()`` when this process was started.
        first: run the whole first picture cold; else it ends after its first step.
        probe, probes: file for inputs and outputs of the UNet, and whether this contender writes or reads it.
    """
    from diffplugin.bench.watch import AnonymousPeak, Sample, memory
    from diffplugin.errors import Cancelled

    anonymous = AnonymousPeak()
    restorer = _opened(trial)
    result: Result = {"load_s": time.monotonic() - trial["began"]}
    first_step: list[float] = []

    def progress(done: int, total: int, plugin: str) -> None:
        if done and not first_step:
            first_step.append(time.monotonic() - trial["began"])

    def stop() -> bool:
        return bool(first_step) and not trial.get("first")

    with restorer:
        steps = _steps(restorer, trial)
        first = trial["pictures"][0]
        try:
            restorer.restore(first["source"], plugins=[first["plugin"]], steps=steps, progress=progress, cancelled=stop)
            if trial.get("first"):
                result["first_picture_s"] = time.monotonic() - trial["began"]
        except Cancelled:
            pass
        result["first_step_s"] = first_step[0]
        width, height = trial["size"]
        restorer.prepare((width, height), plugins=[first["plugin"]])
        probe = _Probe(restorer, steps, first["plugin"]) if trial.get("probes") == "write" else None
        stages: dict[str, float] = {}

        def timed(picture: Mapping[str, Any]) -> tuple[Restoration, float]:
            began = time.perf_counter()
            result = restorer.restore(picture["source"], plugins=[picture["plugin"]], steps=steps, observe=probe)
            return result, time.perf_counter() - began

        with Sample() as sample, ThreadPoolExecutor(restorer.concurrency) as pool:
            done = list(pool.map(timed, trial["pictures"]))
        made, walls = [result for result, _ in done], [seconds for _, seconds in done]
        for one in made:
            for stage, seconds in one.timings.items():
                stages[stage] = stages.get(stage, 0.0) + seconds
        for picture, one in zip(trial["pictures"], made, strict=True):
            if picture.get("target"):
                one.image.save(picture["target"])
        result |= {
            "steps": made[0].plan.chain[0].steps,
            "unet_runs": made[0].plan.unet_runs,
            "wall_s": sample.wall,
            "walls_s": walls,
            "cpu_s": sample.cpu,
            "contention": sample.contention,
            "stages_s": stages,
            "peak_bytes": memory()["peak"],
            "anonymous_bytes": anonymous.bytes(),
        }
        if probe is not None:
            probe.write(Path(trial["probe"]))
        elif trial.get("probes") == "read" and Path(trial["probe"]).is_file():
            result["unet_error"] = _unet_errors(restorer, Path(trial["probe"]))
    return result


class _Probe:
    """Observer: what entered and left the UNet at the first, the middle and the last step of one plugin."""

    def __init__(self, restorer: Restorer, steps: int, plugin: str) -> None:
        from diffplugin.runtime.sampling.noise_schedule import NoiseSchedule
        from diffplugin.runtime.sampling.samplers import step_table
        from diffplugin.runtime.sampling.time_features import time_features

        self._wanted = sorted({0, steps // 2, steps - 1})
        first_t = restorer.cards[plugin].first_t
        self._plugin = plugin
        manifest = restorer.bundle.manifest
        table = step_table("unipc", NoiseSchedule.from_config(manifest.scheduler), steps, first_t)
        self._time = time_features(table.t, manifest)
        self._seen: dict[str, Any] = {}

    def __call__(self, plugin: str, name: str, step: int, value: Any) -> None:
        asked = name == "tokens" or (step in self._wanted and name.startswith(("latents", "residual", "eps")))
        if plugin == self._plugin and asked:
            self._seen.setdefault(f"{step if name != 'tokens' else 0} {name}", value)

    def write(self, file: Path) -> None:
        import numpy as np

        for step in self._wanted:
            self._seen[f"{step} time"] = self._time[step : step + 1]
            self._seen[f"{step} tokens"] = self._seen["0 tokens"]
        sides = {array.shape[-2:] for name, array in self._seen.items() if "residual" in name or "latents" in name}
        if len(sides) == 1:  # a picture in pieces shows the UNet's inputs piece by piece
            np.savez(file, **self._seen)


def _unet_errors(restorer: Restorer, file: Path) -> dict[str, float]:
    """Relative L2 error of the UNet's output on the reference's inputs, by step."""
    import numpy as np

    from diffplugin.export.measures import relative_error

    with np.load(file) as found:
        arrays = {name: found[name] for name in found.files}
    engine = restorer._pool.get("unet")
    errors = {}
    for step in sorted({int(name.split()[0]) for name in arrays}):
        inputs = {name.split()[1]: array for name, array in arrays.items() if name.startswith(f"{step} ")}
        expected = inputs.pop("eps")
        errors[str(step)] = relative_error(engine.run(inputs)["eps"], expected)
    return errors


def restore(trial: Trial) -> Result:
    """Pictures only, for fidelity. Trial: as :func:`measure`, without the cold start."""
    walls = []
    with _opened(trial) as restorer:
        steps = _steps(restorer, trial)
        for picture in trial["pictures"]:
            began = time.perf_counter()
            made = restorer.restore(picture["source"], plugins=[picture["plugin"]], steps=steps)
            walls.append(time.perf_counter() - began)
            made.image.save(picture["target"])
    return {"walls_s": walls, "steps": steps}


def export(trial: Trial) -> Result:
    """One graph's plain export, for a peer that needs it. Trial: contender, model, key."""
    from diffplugin.bench.contenders import peer_builder
    from diffplugin.bundle import open_bundle

    contender, model = _named(trial)
    peer_builder(contender, model).export(open_bundle(model.bundle), trial["key"])
    return {}


def prepare(trial: Trial) -> Result:
    """Load every engine and run it once: compiled models go into their caches. Trial: as :func:`measure`."""
    from diffplugin.bench.watch import AnonymousPeak, memory

    anonymous = AnonymousPeak()
    with _opened(trial) as restorer:
        width, height = trial["size"]
        restorer.prepare((width, height), plugins=[trial["plugin"]])
    seconds = time.monotonic() - trial["began"]
    return {"prepare_s": seconds, "peak_bytes": memory()["peak"], "anonymous_bytes": anonymous.bytes()}


KINDS: dict[str, Callable[[Trial], Result]] = {
    "measure": measure,
    "restore": restore,
    "export": export,
    "prepare": prepare,
}


def answer(argv: list[str], run: Callable[[Trial], Result]) -> int:
    """Run the trial of a command line and print its result, or the reason why there is none."""
    try:
        result = run(json.loads(argv[1]))
    except Exception as error:  # a peer's library raises what it likes; the report says what
        from diffplugin.engines.base import one_line
        from diffplugin.errors import DiffPluginError

        known = isinstance(error, DiffPluginError)
        result = {"error": one_line(error) if known else f"{type(error).__name__}: {one_line(error)}"}
    print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(answer(sys.argv, lambda trial: KINDS[trial["kind"]](trial)))
