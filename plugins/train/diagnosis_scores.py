"""How well a bundle sees what a photo needs, through its exported engine, on photographs that no training saw."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from diffplugin.plugins.train.common import Pixels
from diffplugin.plugins.train.degradations import FAMILIES, degrade
from diffplugin.plugins.train.diagnosis_samples import ARISES, TASKS

if TYPE_CHECKING:
    from diffplugin.runtime.restorer import Restorer

SEED = 7000  # degradation of photo i: SEED + i, as for dp-eval restore
CLEAN = "clean"
_EITHER = {"deblur", "face"}  # of these a photo is restored by one
PAIRS = tuple(pair for pair in combinations(TASKS, 2) if set(pair) != _EITHER)


@dataclass
class Row:
    """The answers for photos of one kind.

    Attributes:
        family, kind: the degradations ("" if none) and the task, "clean", or "two tasks".
        photos: how many.
        right: those for which exactly the tasks of the kind were found.
        found: how often each task was found.
    """

    family: str
    kind: str
    photos: int = 0
    right: int = 0
    found: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TASKS, 0))

    def add(self, seen: set[str], wanted: set[str]) -> None:
        self.photos += 1
        self.right += seen == wanted
        for task in seen:
            self.found[task] += 1

    def line(self) -> str:
        """As a line of :data:`HEAD`."""
        share = self.right / max(self.photos, 1)
        found = " | ".join(str(self.found[task] or "") for task in TASKS)
        return f"| {self.kind} | {self.family or '–'} | {self.photos} | **{share:.3f}** | {found} |"


HEAD = f"| photos | degraded by | number | right set | {' | '.join(TASKS)} |\n|{'---|' * (4 + len(TASKS))}"


def measure(restorer: Restorer, photos: Iterable[Pixels]) -> list[Row]:
    """Diagnose every photo [H, W, 3] as it is, degraded for every task by every family, and for one pair of tasks."""
    clean = Row("", CLEAN)
    single = {(family, task): Row(family, task) for family in FAMILIES for task in TASKS}
    double = {family: Row(family, "two tasks") for family in FAMILIES}
    for i, photo in enumerate(photos):
        clean.add(_seen(restorer, photo), set())
        for k, (family, double_row) in enumerate(double.items()):
            for task in TASKS:
                single[family, task].add(_seen(restorer, degrade(photo, task, SEED + i, family=family)), {task})
            pair = PAIRS[(i * len(FAMILIES) + k) * 7 % len(PAIRS)]
            made = photo
            for task in sorted(pair, key=ARISES.index):
                made = degrade(made, task, SEED + i, family=family)
            double_row.add(_seen(restorer, made), set(pair))
    return [clean, *single.values(), *double.values()]


def table(rows: Iterable[Row]) -> str:
    """Rows as Markdown; the columns of tasks say how often each was found."""
    return "\n".join([HEAD, *(row.line() for row in rows)])


def summary(rows: Iterable[Row]) -> dict[str, float]:
    """Shares of right sets: of clean photos, of those with one degradation, with two."""
    kinds: dict[str, list[float]] = {}
    for row in rows:
        if row.photos:
            kind = row.kind if row.kind in (CLEAN, "two tasks") else "one task"
            kinds.setdefault(kind, []).append(row.right / row.photos)
    return {kind: float(np.mean(shares)) for kind, shares in kinds.items()}


def _seen(restorer: Restorer, photo: Pixels) -> set[str]:
    return {one.task for one in restorer.diagnose(photo) if one.needed}
