"""Held-out results through the exported engines: restoration on photos that no training saw, and selection."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diffplugin.export.measures import gmsd, psnr, ssim
from diffplugin.plugins.train import photos
from diffplugin.plugins.train.baselines import BASELINES
from diffplugin.plugins.train.common import Pixels, centre, load_photos
from diffplugin.plugins.train.corpus import KINDS, held_out, wording_of
from diffplugin.plugins.train.degradations import degrade
from diffplugin.plugins.train.metrics import selection
from diffplugin.plugins.train.wording import WORDS

if TYPE_CHECKING:
    from diffplugin.runtime.restorer import Restorer

SEED = 7000  # degradation of picture i: SEED + i; noise seed of the runtime: its default
# the paper's table 5, beside which ours stands (arXiv:2403.00644)
PAPER: dict[str, dict[str, float]] = {
    "single": {"ZTA": 0.998, "OP": 0.998, "OF1": 0.998, "mAP": 0.998},
    "multi": {"ZTA": 0.979, "CP": 0.988, "OP": 0.988, "OR": 0.927, "CF1": 0.956, "OF1": 0.956, "mAP": 0.933},
    "mixed": {"ZTA": 0.779, "CP": 0.814, "OP": 0.808, "OR": 0.941, "CF1": 0.872, "OF1": 0.870, "mAP": 0.775},
}
SHOWABLE = ("public", "cc0", "cc-by-1", "cc-by-2", "cc-by-3", "cc-by-4")  # no share-alike, nothing unnamed
SKIMAGE = {
    "astronaut": "NASA, public domain",
    "coffee": "Rachel Michetti, CC0",
    "chelsea": "Stefan van der Walt, CC0",
    "rocket": "SpaceX, CC0",
}


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Means over pictures, against the ground truth."""

    psnr: float
    ssim: float
    gmsd: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table. ``better``: pictures whose PSNR rose; ``gate``: beats its input and the baseline."""

    task: str
    start: str
    steps: int
    side: int
    photos: int
    given: Scores
    made: Scores
    baseline: Scores
    baseline_name: str
    better: int

    @property
    def gate(self) -> bool:
        return self.made.psnr > max(self.given.psnr, self.baseline.psnr)

    def line(self) -> str:
        a, b = self.given, self.made
        return (
            f"| {self.task} | {self.start} | {self.steps} | {self.side} | {self.photos} | "
            f"{a.psnr:.2f} → {b.psnr:.2f} | "
            f"{a.ssim:.3f} → {b.ssim:.3f} | {a.gmsd:.3f} → {b.gmsd:.3f} | {self.better}/{self.photos} | "
            f"{self.baseline_name}: {self.baseline.psnr:.2f} dB, {self.baseline.ssim:.3f} | "
            f"{'' if self.gate else 'experimental'} |"
        )


HEAD = (
    "| task | start | steps | side | photos | PSNR, dB | SSIM | GMSD (less is better) | better | baseline | gate |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


def test_photos(work: Path, side: int, count: int | None = None) -> list[Pixels]:
    """Central squares of the held-out photos that are large enough, and of scikit-image's colour photographs (where
    installed)."""
    return [centre(p, side) for p, _ in _test_set(work, side)][:count]


def credits(work: Path, side: int, count: int | None = None) -> list[str]:
    """Whom to name where one of :func:`test_photos` is shown; empty where that would take more than naming."""
    return [credit for _, credit in _test_set(work, side)][:count]


def _test_set(work: Path, side: int) -> list[tuple[Pixels, str]]:
    known = photos.load(work, "test")
    found = [
        (pixels, f"{p.file}: {p.holder}, {p.licence}" if p.licence.lower().startswith(SHOWABLE) else "")
        for p, pixels in zip(known, load_photos(work, "test"), strict=True)
        if min(pixels.shape[:2]) >= 0.75 * side
    ]
    with contextlib.suppress(ImportError):
        from skimage import data

        found += [(getattr(data, name)(), f"scikit-image {name}: {credit}") for name, credit in SKIMAGE.items()]
    return found


def scores(pictures: Sequence[Pixels], truth: Sequence[Pixels]) -> Scores:
    """Means of the metrics with a reference."""
    pairs = list(zip(pictures, truth, strict=True))
    return Scores(**{m.__name__: float(np.mean([m(a, b) for a, b in pairs])) for m in (psnr, ssim, gmsd)})


def restoration(
    restorer: Restorer,
    task: str,
    clean: Sequence[Pixels],
    *,
    steps: int | None = None,
    sheet: list[NDArray[np.uint8]] | None = None,
    made: list[Pixels] | None = None,
) -> Row:
    """Degrade ``clean`` (equal sizes), restore through the engines, compare; ``steps`` None: the card's default.

    ``sheet`` collects columns of input, restored and ground truth; ``made`` the restored pictures.
    """
    card = restorer.cards[task]
    bad = [degrade(p, task, SEED + i) for i, p in enumerate(clean)]
    good = [restorer.restore(p, plugins=[task], steps=steps, tile="off").array for p in bad]
    name, simple = BASELINES.get(task, ("the input", lambda p: p))
    if sheet is not None:
        sheet += [np.concatenate(column, axis=0) for column in zip(bad, good, clean, strict=True)]
    if made is not None:
        made += good
    return Row(
        task=task,
        start=card.start,
        steps=steps or card.steps_first,
        side=clean[0].shape[0],
        photos=len(clean),
        given=scores(bad, clean),
        made=scores(good, clean),
        baseline=scores([simple(p) for p in bad], clean),
        baseline_name=name,
        better=sum(psnr(g, c) > psnr(b, c) for g, b, c in zip(good, bad, clean, strict=True)),
    )


def selections(
    restorer: Restorer, photos: Sequence[Pixels], *, count: int | None = None, seed: int = 1
) -> dict[str, dict[str, float]]:
    """The metrics of selection by kind of request, held-out wording, against degraded pictures; threshold 0.

    A request for a task without a plugin in the bundle counts as right when nothing is selected for it.
    """
    tasks = list(restorer.cards)
    words = {**WORDS, **{task: wording_of(card) for task, card in restorer.cards.items() if task not in WORDS}}
    rng, found = np.random.default_rng(seed), {}
    for kind in KINDS:
        requests = held_out(kind, count, seed, words)
        rows = []
        for request in requests:
            picture = photos[int(rng.integers(len(photos)))]
            seen = degrade(picture, str(rng.choice(tasks)), int(rng.integers(2**31)))
            _, chosen = restorer.plan(seen, request.text)
            rows.append([chosen.scores[task] for task in tasks])
        wanted = np.array([[task in request.tasks for task in tasks] for request in requests])
        found[kind] = selection(np.array(rows, np.float32), wanted) | {"requests": float(len(requests))}
    return found


def selection_table(found: dict[str, dict[str, float]]) -> str:
    """Ours beside the paper's table 5, in Markdown."""
    names = ("ZTA", "CP", "OP", "OR", "CF1", "OF1", "mAP")
    titles = {
        "single": "one task",
        "multi": "two tasks",
        "mixed": "one task and an irrelevant wish",
        "none": "irrelevant",
    }
    lines = [
        "| requests | number | " + " | ".join(f"{n} (paper)" for n in names) + " |",
        "|---" * (len(names) + 2) + "|",
    ]
    for kind, values in found.items():
        cells = [f"{values[n]:.3f} ({PAPER.get(kind, {}).get(n, '–')})" for n in names]
        if kind == "none":  # nothing is wanted: only the zero-tolerance accuracy means anything
            cells[1:] = ["–"] * (len(names) - 1)
        lines.append(f"| {titles[kind]} | {values['requests']:.0f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def as_json(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Rows as plain numbers and texts."""
    return [asdict(row) | {"gate": row.gate} for row in rows]
