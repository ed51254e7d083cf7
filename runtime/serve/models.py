"""The bundles that are served: loaded at once, prepared in the background."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from diffplugin import load
from diffplugin.errors import DiffPluginError, RequestError
from diffplugin.runtime.serve.budget import PIXEL_BYTES
from diffplugin.runtime.serve.call import restore_options
from diffplugin.runtime.serve.problems import Problem

if TYPE_CHECKING:
    from diffplugin.runtime.planning.plan import Plan
    from diffplugin.runtime.restorer import Restorer
    from diffplugin.runtime.serve.job import JobRequest
    from diffplugin.runtime.serve.settings import Settings

_log = logging.getLogger("diffplugin.serve")


class Models:
    """Restorers by the names of their bundles; the first one serves requests that name none.

    Attributes:
        workers: photos restored at the same time.
        unready: why requests must wait; None: everything is prepared.
        failed: why preparing failed, or None.
    """

    def __init__(self, restorers: Sequence[Restorer], workers: int | None = None) -> None:
        self.restorers: dict[str, Restorer] = {}
        for restorer in restorers:
            name = restorer.bundle.manifest.name
            if name in self.restorers:
                raise RequestError(f"two bundles are named {name!r}; export one of them under another name")
            self.restorers[name] = restorer
        self.default = next(iter(self.restorers))
        self.workers = workers or min(restorer.concurrency for restorer in restorers)
        self.unready: str | None = "the engines are being prepared"
        self.failed: str | None = None
        self._paces: dict[str, deque[tuple[float, float]]] = {name: deque(maxlen=32) for name in self.restorers}

    @classmethod
    def load(cls, settings: Settings) -> Models:
        """Open every bundle of the settings; engines are not loaded yet.

        Raises:
            DiffPluginError: as :func:`diffplugin.load`.
        """
        options: Any = {name: getattr(settings, name) for name in ("engine", "precision", "quality", "threads")}
        bundles = settings.bundles or (None,)
        return cls([load(bundle, **options, concurrency=settings.workers) for bundle in bundles])

    def prepare(self, size: tuple[int, int]) -> None:
        """Load all engines and run them once as for a photo of this (width, height)."""
        try:
            for restorer in self.restorers.values():
                restorer.prepare(size)
        except DiffPluginError as error:
            self.failed = self.unready = str(error)
            _log.error("the engines cannot be prepared: %s", error)
        except Exception:
            self.failed = self.unready = "the engines cannot be prepared; the server's log says why"
            _log.exception("the engines cannot be prepared")
        else:
            self.unready = None

    def prepare_in_background(self, size: tuple[int, int]) -> threading.Thread:
        thread = threading.Thread(target=self.prepare, args=(size,), name="prepare", daemon=True)
        thread.start()
        return thread

    def get(self, name: str | None) -> Restorer:
        """The restorer of a bundle; None: the first.

        Raises:
            Problem: no such bundle is served.
        """
        found = self.restorers.get(name or self.default)
        if found is None:
            raise Problem("not-found", f"no bundle {name!r} is served; there are {', '.join(self.restorers)}")
        return found

    def learn(self, bundle: str, plan: Plan, seconds: float) -> None:
        """Record how long a photo took."""
        if plan.chain:
            self._paces[bundle].append((_work(plan), seconds))

    def seconds(self, bundle: str, plan: Plan) -> float | None:
        """Estimated time of a photo, from earlier ones; None: there was none."""
        done = list(self._paces[bundle])
        if not done:
            return None
        return _work(plan) * sum(took for _, took in done) / sum(work for work, _ in done)

    def typical_seconds(self) -> float:
        """Mean time of earlier jobs; 1 before the first one."""
        took = [seconds for pace in self._paces.values() for _, seconds in list(pace)]
        return sum(took) / len(took) if took else 1.0

    def close(self) -> None:
        for restorer in self.restorers.values():
            restorer.close()


def _work(plan: Plan) -> float:
    """The cost of a run, in latent pixels: each step, and one for the autoencoder."""
    tile = plan.tiles[0]
    return float((plan.unet_runs + len(plan.chain) * len(plan.tiles)) * tile.height * tile.width)


def needed_bytes(restorer: Restorer, size: tuple[int, int], request: JobRequest) -> int:
    """The most memory that a photo may take beyond the engines, whatever the selector chooses.

    Raises:
        RequestError, ImageError: the request cannot run.
    """
    plan = restorer.plan_for_size(size, restore_options(request))
    largest = max(w * h for w, h in (plan.input_size, plan.working_size, plan.output_size))
    return plan.estimated_bytes - plan.memory.weights + largest * PIXEL_BYTES
