"""Restoration through the exported engines, measured: photos that no training saw, the user's pairs and photos."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diffplugin.errors import RequestError
from diffplugin.export.measures import gmsd, psnr, ssim
from diffplugin.plugins.train import photos
from diffplugin.plugins.train.baselines import BASELINES
from diffplugin.plugins.train.common import Pixels, centre, load_photos
from diffplugin.plugins.train.metrics import fid_kid

if TYPE_CHECKING:
    from diffplugin.plugins.train.features import Extractor
    from diffplugin.plugins.train.perceptual import Measure
    from diffplugin.runtime.restorer import Restorer

SEED = 7000  # degradation of picture i: SEED + i; noise seed of the runtime: its default
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
    """One line of the table.

    Attributes:
        bundle: name of the bundle.
        family: of the degradation, where the test photos were degraded ("standard", "harder").
        side: of the pictures, where all are squares of one side; 0: of many sizes.
        given, made, baseline: scores of inputs, restored pictures and a trivial filter's; None: there is no truth.
        better: pictures whose PSNR rose.
        sets: FID and KID x 100 of the restored pictures against the reference; empty: no features were given.
        more: further measures, name -> (inputs, restored); None: it needs a ground truth.
    """

    task: str
    start: str
    steps: int
    side: int
    photos: int
    given: Scores | None
    made: Scores | None
    baseline: Scores | None
    baseline_name: str
    better: int
    bundle: str = ""
    family: str = ""
    sets: Mapping[str, float] = field(default_factory=dict)
    more: Mapping[str, tuple[float, float] | None] = field(default_factory=dict)

    @property
    def gate(self) -> bool | None:
        """Beats its input and the baseline; None: there is no truth to tell."""
        if self.made is None or self.given is None or self.baseline is None:
            return None
        return self.made.psnr > max(self.given.psnr, self.baseline.psnr)

    def line(self) -> str:
        """As a line of :data:`HEAD`."""
        a, b, c = self.given, self.made, self.baseline
        known = a is not None and b is not None and c is not None
        truth = (
            f"{a.psnr:.2f} → {b.psnr:.2f} | {a.ssim:.3f} → {b.ssim:.3f} | {a.gmsd:.3f} → {b.gmsd:.3f} | "
            f"{self.better}/{self.photos} | {self.baseline_name}: {c.psnr:.2f} dB, {c.ssim:.3f} | "
            f"{'' if self.gate else 'experimental'}"
            if known and a and b and c
            else "– | – | – | – | – | "
        )
        more = "; ".join(
            f"{name} {found[0]:.3f} → {found[1]:.3f}" if found else f"{name} needs a ground truth"
            for name, found in self.more.items()
        )
        sets = f"{self.sets['fid']:.2f} / {self.sets['kid']:.3f}" if self.sets else "–"
        side = self.side or "as they are"
        return (
            f"| {self.bundle} | {self.task} | {self.family or '–'} | {self.start} | {self.steps} | {side} | "
            f"{self.photos} | {truth} | {sets} | {more or '–'} |"
        )


HEAD = (
    "| bundle | task | set | start | steps | side | photos | PSNR, dB | SSIM | GMSD (less is better) | better | "
    "baseline | gate | FID / KID x 100 | more |\n|" + "---|" * 15
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


@dataclass
class _Collected:
    """What is kept of pictures that come one by one: numbers, not the pictures."""

    values: dict[str, list[Scores]] = field(default_factory=dict)
    more: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    features: dict[str, list[NDArray[np.float64]]] = field(default_factory=dict)
    sides: set[tuple[int, ...]] = field(default_factory=set)
    count: int = 0

    def mean(self, name: str) -> Scores | None:
        found = self.values.get(name)
        return Scores(**{k: float(np.mean([asdict(s)[k] for s in found])) for k in asdict(found[0])}) if found else None


def measure(
    restorer: Restorer,
    task: str,
    pairs: Iterable[tuple[Pixels, Pixels | None]],
    *,
    steps: int | None = None,
    bundle: str = "",
    family: str = "",
    extract: Extractor | None = None,
    reference: Iterable[Pixels] | None = None,
    measures: Mapping[str, Measure] | None = None,
    sheet: list[NDArray[np.uint8]] | None = None,
    sheet_of: Container[int] | None = None,
    made: list[Pixels] | None = None,
    tile: str = "auto",
) -> Row:
    """Restore inputs through the engines and compare, picture by picture.

    Args:
        pairs: (input, ground truth or None) [H, W, 3]; the truths, where there are any, are what FID and KID compare
            with.
        steps: None: the card's default.
        extract: what gives feature vectors; None: no FID and KID.
        reference: pictures that FID and KID compare with, where there is no truth.
        measures: further ones, by name.
        sheet: collects columns of input, restored and ground truth; ``sheet_of``: of these photos alone.
        made: collects the restored pictures.

    Raises:
        RequestError: no pictures.
    """
    card = restorer.cards[task]
    name, simple = BASELINES.get(task, ("the input", lambda p: p))
    kept = _Collected()
    for bad, clean in pairs:
        good = restorer.restore(bad, plugins=[task], steps=steps, tile=tile).array  # type: ignore[arg-type]
        kept.count += 1
        kept.sides.add(bad.shape[:2])
        if clean is not None:
            for kind, pixels in (("given", bad), ("made", good), ("baseline", simple(bad))):
                kept.values.setdefault(kind, []).append(scores([pixels], [clean]))
        for key, value in (measures or {}).items():
            if clean is not None or not value.needs_truth:
                kept.more.setdefault(key, []).append((value(bad, clean), value(good, clean)))
        if extract is not None:
            kept.features.setdefault("made", []).append(extract(good))
            if clean is not None and reference is None:
                kept.features.setdefault("real", []).append(extract(clean))
        if sheet is not None and (sheet_of is None or kept.count - 1 in sheet_of):
            sheet.append(np.concatenate([p for p in (bad, good, clean) if p is not None], axis=0))
        if made is not None:
            made.append(good)
    if not kept.count:
        raise RequestError(f"{task}: no pictures to measure on")
    if extract is not None and reference is not None:
        kept.features["real"] = [extract(p) for p in reference]
    side = next(iter(kept.sides))
    return Row(
        bundle=bundle,
        family=family,
        task=task,
        start=card.start,
        steps=steps or card.steps_first,
        side=side[0] if len(kept.sides) == 1 and side[0] == side[1] else 0,
        photos=kept.count,
        given=kept.mean("given"),
        made=kept.mean("made"),
        baseline=kept.mean("baseline"),
        baseline_name=name,
        better=sum(m.psnr > g.psnr for m, g in zip(*(kept.values.get(k, ()) for k in ("made", "given")), strict=True)),
        sets=_sets(kept.features),
        more={key: _mean_pair(kept.more.get(key)) for key in measures or {}},
    )


def _mean_pair(values: list[tuple[float, float]] | None) -> tuple[float, float] | None:
    return (float(np.mean([v[0] for v in values])), float(np.mean([v[1] for v in values]))) if values else None


def _sets(features: Mapping[str, list[NDArray[np.float64]]]) -> dict[str, float]:
    if not {"real", "made"} <= features.keys():
        return {}
    return fid_kid(np.stack(features["real"]), np.stack(features["made"]))


def as_json(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Rows as plain numbers and texts."""
    return [asdict(row) | {"gate": row.gate} for row in rows]
