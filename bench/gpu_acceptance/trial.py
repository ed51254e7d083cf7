"""What one part is told, and what all parts share: bundle, picture, restorer, memory of the device."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
from PIL import Image

from diffplugin.bench.models import Model
from diffplugin.errors import RequestError

if TYPE_CHECKING:
    from diffplugin.runtime.photos.read import Pixels
    from diffplugin.runtime.restorer import Restorer

EMBEDDED, ORACLE, FULL = "embedded", "oracle", "full"
CARD = "card"  # parts that need no model
GOLDEN = "derain_small_4"
# What lies in a prepared folder beside the bundles (:mod:`.prepare`).
PREPARED, GOLDENS, PHOTOS, EXPECTED, NATIVE = "prepared.json", "goldens", "photos", "expected", "native"
OPERATORS = "operators"
SCRATCH = "scratch"
SEED = 42


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One part.

    Attributes:
        part: its name.
        model: "embedded", "oracle" or "full:DIR".
        engine, precision: as ``diffplugin.load`` takes them.
        out: folder of all results.
        width, height: of the picture, px.
        steps, rounds: of a restoration; how often each way is timed.
        began: ``time.monotonic()`` when the part's process was started.
        prepared: folder that :mod:`.prepare` wrote; empty: everything is made here.
    """

    part: str
    model: str
    engine: str
    precision: str
    out: str
    width: int
    height: int
    steps: int
    rounds: int
    began: float = 0.0
    prepared: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def kind(self) -> str:
        """The model without its folder."""
        return self.model.partition(":")[0]

    @property
    def scratch(self) -> Path:
        """Folder for what is needed while it runs."""
        return Path(self.out) / SCRATCH

    @property
    def bundle(self) -> Path:
        """The prepared bundle, or where the parts ``build`` and ``draw`` put theirs."""
        if self.prepared and self.kind != FULL:
            return Path(self.prepared) / self.kind
        return self.scratch / f"{self.kind}-{self.engine}"

    @property
    def picture(self) -> Path:
        """The picture that the measured engines made."""
        return self.scratch / f"{self.kind}-{self.engine}.png"

    @property
    def oracle(self) -> Path:
        """Folder with the oracle's goldens."""
        return Path(self.prepared) / GOLDENS if self.prepared else self.scratch / "oracle"

    def measured(self) -> Model:
        """The model with this trial's bundle; "oracle" is not measured."""
        root = Path(self.model.partition(":")[2]) if self.kind == FULL else None
        return Model(spec=self.model, bundle=self.bundle, artefacts=self.scratch / "peers", root=root)

    def since(self) -> float:
        """Seconds since the part's process was started."""
        return time.monotonic() - self.began


def photograph(trial: Trial, plugin: str, number: int = 0) -> Pixels:
    """A photograph degraded for ``plugin``, uint8 [H,W,3]; the same one every time.

    Raises:
        MissingDependency: scikit-image is not installed.
    """
    if trial.prepared:
        with Image.open(Path(trial.prepared) / PHOTOS / f"{plugin}-{number}.png") as image:
            return np.asarray(image.convert("RGB"))
    from diffplugin.bench.work import clean_photos, degraded, fitted

    photos = [photo for _, photo in clean_photos()]
    return degraded(fitted(photos[number % len(photos)], trial.width, trial.height), plugin, 7000 + number)


def open_restorer(trial: Trial) -> Restorer:
    """The trial's bundle on its engine."""
    import diffplugin

    return diffplugin.load(trial.bundle, engine=cast(Any, trial.engine), precision=cast(Any, trial.precision))


def free_memory(trial: Trial) -> Callable[[], int] | None:
    """Bytes of device memory that are free; None where the engine runs on the processor."""
    from diffplugin.engines.choice import get_builder
    from diffplugin.engines.device import DeviceBuilder

    builder = get_builder(trial.engine)
    if not isinstance(builder, DeviceBuilder):
        return None
    driver = builder.driver()
    return lambda: driver.memory()[0]


class DevicePeak:
    """Context: most device memory that was taken since it began, looked at 100 times a second; of all processes, so
    nothing else should use the device.

    Args:
        free: bytes that are free; None: there is no device, and ``bytes`` is None.
    """

    def __init__(self, free: Callable[[], int] | None) -> None:
        self._free, self._stop = free, threading.Event()
        self.bytes: int | None = None

    def __enter__(self) -> Self:
        if self._free is not None:
            self._start, self.bytes = self._free(), 0
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._free is not None:
            self._stop.set()
            self._thread.join()

    def _watch(self) -> None:
        assert self._free is not None and self.bytes is not None
        while True:
            self.bytes = max(self.bytes, self._start - self._free())
            if self._stop.wait(0.01):
                return


def interleaved(ways: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way, in turn: what the machine does slowly over time touches all of them.

    Raises:
        RequestError: no rounds.
    """
    if rounds < 1:
        raise RequestError(f"rounds is {rounds}, expected at least 1")
    names = list(ways)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for i in range(len(names)):
            name = names[(i + turn) % len(names)]
            taken[name].append(ways[name]())
    return taken
