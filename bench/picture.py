"""One photo from file to file in a process of its own: ``python -m diffplugin.bench.picture TRIAL``, start included.

The last line on stdout is the result as JSON (:func:`diffplugin.bench.worker.answer`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffplugin.bench.worker import Result, Trial, answer
from diffplugin.engines.base import Engine
from diffplugin.spec import Array

if TYPE_CHECKING:
    from diffplugin.bundle import Bundle
    from diffplugin.engines.base import EngineBuilder


class _Watched(Engine):
    """An engine that notes its runs: sizes -> [runs, processor seconds of the process meanwhile]."""

    def __init__(self, engine: Engine, noted: dict[tuple[tuple[str, int], ...], list[float]]) -> None:
        super().__init__(engine.spec, engine.precision)
        self._engine, self._noted = engine, noted
        self.name = engine.name

    def _run(self, inputs: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
        before = time.process_time()
        outputs = self._engine.run(inputs)
        entry = self._noted.setdefault(tuple(sorted(sizes.items())), [0, 0.0])
        entry[0] += 1
        entry[1] += time.process_time() - before
        return outputs

    def _release(self) -> None:
        self._engine.close()


class Watcher:
    """A builder whose engines note their runs; everything else is the builder's.

    Attributes:
        noted: by graph key.
    """

    def __init__(self, builder: EngineBuilder) -> None:
        self.builder, self.name = builder, builder.name
        self.noted: dict[str, dict[tuple[tuple[str, int], ...], list[float]]] = {}

    def load(self, bundle: Bundle, key: str, **options: Any) -> Engine:
        return _Watched(self.builder.load(bundle, key, **options), self.noted.setdefault(key, {}))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.builder, name)

    def runs(self) -> list[dict[str, Any]]:
        return [
            {"key": key, "sizes": dict(sizes), "runs": int(entry[0]), "cpu_s": entry[1]}
            for key, by_size in self.noted.items()
            for sizes, entry in by_size.items()
        ]


def restore(trial: Trial) -> Result:
    """Trial: contender, model, threads; source, target: files; plugin. The card's own steps."""
    from diffplugin.bench.contenders import get_contender, open_restorer
    from diffplugin.bench.models import parse_model

    contender = get_contender(trial["contender"])
    with open_restorer(contender, parse_model(trial["model"]), trial.get("threads")) as restorer:
        watcher = restorer._pool.builder = Watcher(restorer._pool.builder)
        made = restorer.restore(trial["source"], plugins=[trial["plugin"]], steps=contender.steps)
        made.image.save(trial["target"], compress_level=1)
        return _spent(trial) | {"runs": watcher.runs(), "engine": watcher.name.split()[0]}


def classic(trial: Trial) -> Result:
    """Trial: filter; source, target: files."""
    import numpy as np
    from PIL import Image

    from diffplugin.bench.classic import apply

    Image.MAX_IMAGE_PIXELS = None  # the coordinator's own file
    with Image.open(trial["source"]) as image:
        pixels = np.asarray(image.convert("RGB"))
    Image.fromarray(apply(trial["filter"], pixels)).save(trial["target"], compress_level=1)
    return _spent(trial) | {"runs": [], "engine": ""}


def measured(trial: Trial) -> Result:
    """A trial, and who else computed meanwhile."""
    from diffplugin.bench.watch import Sample

    with Sample() as sample:
        result = (classic if "filter" in trial else restore)(trial)
    return result | {"contention": sample.contention}


def _spent(trial: Trial) -> Result:
    """Of this process so far."""
    from diffplugin.bench.watch import memory

    return {
        "wall_s": time.monotonic() - trial["began"],
        "cpu_s": time.process_time(),
        "peak_bytes": memory()["peak"],
    }


if __name__ == "__main__":
    sys.exit(answer(sys.argv, measured))
