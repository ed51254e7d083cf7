"""``dp-eval restore``: bundles side by side on test photos, on pairs and on photos without ground truth."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

import diffplugin
from diffplugin.errors import RequestError
from diffplugin.plugins.train import clean_photos, evaluate, features, layout, paper, perceptual, plots
from diffplugin.plugins.train.common import Pixels
from diffplugin.plugins.train.degradations import DEGRADATIONS, degrade
from diffplugin.plugins.train.sources import check_sizes, open_source
from diffplugin.runtime.cli.inputs import find_photos
from diffplugin.runtime.photos.read import read_photo

if TYPE_CHECKING:
    from diffplugin.plugins.train.evaluate import Row
    from diffplugin.runtime.restorer import Restorer

CLEAN = "clean"  # the set, and kind of :class:`Photos`, that is not degraded
COLUMNS = 6  # of a contact sheet
TEST_SIDE = 256
SHEET_SIDE = 256


@dataclass(frozen=True)
class Photos:
    """What one task is measured on.

    ``credits``: whom to name where one is shown; empty texts: not to be shown. ``family``: of the degradation.
    """

    kind: str
    read: Any  # () -> Iterator[(input, ground truth or None)]
    count: int
    credits: Sequence[str] = ()
    family: str = ""


def run(args: argparse.Namespace) -> None:
    """Measure, and write ``restore.md``, ``restore.json``, ``restore.svg``, ``table1.md`` and contact sheets; of clean
    photos ``clean.md`` and ``clean.json``.

    Raises:
        RequestError: no bundle has a task, or there is nothing to measure on.
        ImageError: a pair or a photo cannot be used.
    """
    bundles: list[Path | None] = args.bundle or [None]
    extract = features.open_extractor(args.features) if args.features else None
    measures = {m.title: m for m in map(perceptual.open_measure, args.measures)}
    reference = _files(args.reference) if args.reference else None
    rows: list[Row] = []
    clean: list[clean_photos.CleanRow] = []
    names = _names(bundles)
    _check_tasks(args, bundles)
    for bundle, name in zip(bundles, names, strict=True):
        with diffplugin.load(bundle, args.engine, args.engine_precision, args.threads) as restorer:
            for task in args.tasks or list(restorer.cards):
                if task not in restorer.cards:
                    continue
                for chosen, steps in itertools.product(_sets(args, task), (None, *(args.steps or ()))):
                    if chosen.kind == CLEAN:
                        photos = [given for given, _ in chosen.read()]
                        clean.append(clean_photos.measure_clean(restorer, task, photos, steps=steps, bundle=name))
                        _say(clean, clean_photos.HEAD)
                    else:
                        rows.append(_measured(args, restorer, task, chosen, steps, name, extract, reference, measures))
                        _say(rows, evaluate.HEAD)
    if clean:
        table = "\n".join([clean_photos.HEAD, *(row.line() for row in clean)])
        plots.write_table(args.out, "clean", table, {"rows": clean_photos.as_json(clean)})
    if rows:
        _write(args.out, rows)


def _say(rows: Sequence[Row] | Sequence[clean_photos.CleanRow], head: str) -> None:
    """The last row, as soon as it is there."""
    print(rows[-1].line() if len(rows) > 1 else f"{head}\n{rows[-1].line()}", flush=True)


def _write(out: Path, rows: Sequence[Row]) -> None:
    table = "\n".join([evaluate.HEAD, *(row.line() for row in rows)])
    plots.write_table(out, "restore", table, {"rows": evaluate.as_json(rows)})
    layout.write_lines(out / "table1.md", table_1([row for row in rows if row.family != "harder"] or rows) + "\n")
    if scored := [row for row in rows if row.given and row.made and row.baseline]:
        _plot(out / "restore.svg", scored)


def _names(bundles: Sequence[Path | None]) -> list[str]:
    """A name of its own for every bundle."""
    plain = [bundle.resolve().name if bundle else "embedded" for bundle in bundles]
    return [name if plain.count(name) == 1 else str(bundle) for name, bundle in zip(plain, bundles, strict=True)]


def _check_tasks(args: argparse.Namespace, bundles: Sequence[Path | None]) -> None:
    from diffplugin.bundle import default_bundle, open_bundle

    there = [task for b in bundles for task in open_bundle(default_bundle() if b is None else b).manifest.plugins]
    if unknown := [task for task in args.tasks or () if task not in there]:
        raise RequestError(f"{', '.join(unknown)}: not in the bundle (there: {', '.join(dict.fromkeys(there))})")


def _sets(args: argparse.Namespace, task: str) -> Sequence[Photos]:
    """The task's own pairs or photos, else those for all, else the test photos in each of the ``--sets``."""
    if own := _own(args, task):
        return (own,)
    if args.work is None:
        raise RequestError(f"{task}: nothing to measure on: give --pairs, --photos, or --work with test photos")
    return [_test_photos(args, task, name) for name in args.sets]


def _own(args: argparse.Namespace, task: str) -> Photos | None:
    """Pairs or photos that the user named for this task or for all."""
    pairs, photos = _for_task(args.pairs, task), _for_task(args.photos, task)
    if pairs is not None:
        source = open_source(pairs, args.root)
        count = min(len(source), args.count or len(source))
        check_sizes(source, range(count))

        def from_pairs() -> Iterator[tuple[Pixels, Pixels | None]]:
            for i in range(count):
                truth, given = (_square(np.asarray(p), args.size) for p in source.pair(i))
                if source.same(i):
                    given = degrade(truth, _known(task, pairs), evaluate.SEED + i)
                yield given, truth

        return Photos("pairs", from_pairs, count)
    if photos is not None:
        files = _files(Path(photos).expanduser())[: args.count]
        return Photos("photos", lambda: ((_square(read_photo(f).rgb, args.size), None) for f in files), len(files))
    return None


def _test_photos(args: argparse.Namespace, task: str, name: str) -> Photos:
    """The test photos of the work folder, clean or degraded by a family."""
    side = args.size or TEST_SIDE
    clean = evaluate.test_photos(args.work, side, args.count)
    if not clean:
        raise RequestError(f"{args.work}: no test photos of {side} pixels; run dp-train photos first")
    if name == CLEAN:
        return Photos(CLEAN, lambda: ((p, None) for p in clean), len(clean))
    _known(task, str(args.work))

    def degraded() -> Iterator[tuple[Pixels, Pixels | None]]:
        return ((degrade(p, task, evaluate.SEED + i, family=name), p) for i, p in enumerate(clean))

    return Photos("test photos", degraded, len(clean), evaluate.credits(args.work, side, args.count), name)


def _for_task(given: Sequence[str], task: str) -> str | None:
    """The place of ``TASK=PLACE`` of this task, else of a plain ``PLACE``."""
    plain = None
    for text in given:
        name, equals, place = text.partition("=")
        if equals and name == task:
            return place
        if not equals:
            plain = text
    return plain


def _known(task: str, where: str) -> str:
    if task not in DEGRADATIONS:
        raise RequestError(
            f"{where}: there is no degradation {task!r} to apply ({', '.join(DEGRADATIONS)}); give --pairs"
        )
    return task


def _files(folder: Path) -> list[Path]:
    found = find_photos([str(folder)])
    if found.faults or not found.photos:
        raise RequestError(f"{folder}: {found.faults[0] if found.faults else 'no photos'}")
    return [photo.path for photo in found.photos]


def _square(pixels: Pixels, side: int | None) -> Pixels:
    """Resized to a square of ``side``, as the paper does; None: as it is."""
    if side is None:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))


def _measured(
    args: argparse.Namespace,
    restorer: Restorer,
    task: str,
    chosen: Photos,
    steps: int | None,
    bundle: str,
    extract: features.Extractor | None,
    reference: Sequence[Path] | None,
    measures: Mapping[str, perceptual.Measure],
) -> Row:
    shown = [i for i, credit in enumerate(chosen.credits) if credit] or list(range(chosen.count))
    shown = shown[:: max(len(shown) // COLUMNS, 1)][:COLUMNS]
    sheet: list[Any] = []
    wanted = set(shown)
    pairs = chosen.read()
    compare: Iterable[Pixels] | None = None
    if reference is not None and chosen.kind == "photos":
        compare = (_square(read_photo(f).rgb, args.size) for f in reference)
    row = evaluate.measure(
        restorer,
        task,
        pairs,
        steps=steps,
        bundle=bundle,
        family=chosen.family,
        extract=extract if chosen.kind != "photos" or compare is not None else None,
        reference=compare,
        measures=measures,
        sheet=sheet,
        sheet_of=wanted,
        tile="off" if chosen.kind == "test photos" else "auto",
    )
    name = (
        f"{task}-{row.steps}-{row.side or 'mixed'}"
        + (f"-{row.family}" if row.family == "harder" else "")
        + ("" if len(args.bundle) < 2 else f"-{bundle.replace('/', '_')}")
    )
    _write_sheet(args.out / f"{name}.jpg", sheet)
    named = [chosen.credits[i] or "not to be shown" for i in shown] if chosen.credits else []
    if named:
        layout.write_lines(args.out / "sheets.md", "".join(f"- {credit}\n" for credit in named))
    return row


def _write_sheet(path: Path, columns: Sequence[Pixels]) -> None:
    """Columns of input, restored and ground truth side by side; photos of many sizes are shown at one width."""
    if len({column.shape for column in columns}) > 1:
        columns = [
            np.asarray(Image.fromarray(c).resize((SHEET_SIDE, c.shape[0] * SHEET_SIDE // c.shape[1]))) for c in columns
        ]
        tallest = max(len(column) for column in columns)
        columns = [np.pad(c, ((0, tallest - len(c)), (0, 0), (0, 0))) for c in columns]
    sheet = Image.fromarray(np.concatenate(list(columns), axis=1))
    layout.place(path, lambda part: sheet.save(part, "JPEG", quality=85))


def table_1(rows: Sequence[Row]) -> str:
    """FID and KID x 100 of every bundle in the layout of the paper's table 1, above its rows; Markdown.

    The paper's figures are of other photographs: its test sets, 512 px, CLIP ViT-B/32.
    """
    tasks = [task for task in paper.TASKS if any(row.task == task for row in rows)]
    tasks += [task for task in dict.fromkeys(row.task for row in rows) if task not in tasks]
    lines = [
        "| method | " + " | ".join(f"{task} FID ↓ / KID ↓" for task in tasks) + " |",
        "|---" * (len(tasks) + 1) + "|",
    ]
    for name in dict.fromkeys((row.bundle, row.steps if _several(rows, row) else 0) for row in rows):
        own = {r.task: r for r in rows if (r.bundle, r.steps if _several(rows, r) else 0) == name}
        title = name[0] + (f", {name[1]} steps" if name[1] else "")
        lines.append(f"| {title} | " + " | ".join(_cell(own.get(task)) for task in tasks) + " |")
    for method, figures in paper.TABLE_1.items():
        known = dict(zip(paper.TASKS, figures, strict=True))
        cells = [f"{known[t][0]:.2f} / {known[t][1]:.2f}" if t in known else "–" for t in tasks]
        lines.append(f"| {method} (paper) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _several(rows: Sequence[Row], row: Row) -> bool:
    return sum(r.bundle == row.bundle and r.task == row.task for r in rows) > 1


def _cell(row: Row | None) -> str:
    if row is None:
        return "–"
    if row.sets:
        return f"{row.sets['fid']:.2f} / {row.sets['kid']:.2f}"
    return f"no features; {row.made.psnr:.2f} dB" if row.made else "no features"


def _plot(path: Path, rows: Sequence[Row]) -> None:
    several = len({row.bundle for row in rows}) > 1
    names = [
        f"{row.task}, {row.steps}"
        + (", harder" if row.family == "harder" else "")
        + (f", {row.bundle}" if several else "")
        for row in rows
    ]
    kinds = {"input": "given", "baseline": "baseline", "restored": "made"}
    plots.bars(path, names, {k: [getattr(r, v).psnr for r in rows] for k, v in kinds.items()}, "PSNR, dB")
