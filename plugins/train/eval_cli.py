"""``dp-eval``: tables, contact sheets and plots of a bundle on held-out photos and held-out wording."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffplugin.errors import DiffPluginError, RequestError

if TYPE_CHECKING:
    from diffplugin.runtime.restorer import Restorer

COLUMNS = 6  # of a contact sheet


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dp-eval", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--work", type=Path, required=True, metavar="DIR", help="folder of dp-train with the photos")
    common.add_argument("--bundle", type=Path, metavar="DIR", help="from dp-export (default: the embedded model)")
    common.add_argument("--engine", default="auto", metavar="NAME", help="default: auto")
    common.add_argument("--engine-precision", default="fp32", metavar="NAME", help="default: fp32")
    common.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all)")
    common.add_argument("--out", type=Path, required=True, metavar="DIR", help="tables, sheets and plots go here")
    restore = commands.add_parser("restore", parents=[common], help="PSNR, SSIM, GMSD, FID and KID of each plugin")
    restore.add_argument("--tasks", nargs="+", metavar="TASK", help="default: all of the bundle")
    restore.add_argument("--steps", type=int, nargs="+", metavar="N", help="beside each card's default, for example 20")
    restore.add_argument("--size", type=int, default=256, metavar="N", help="side of the test crops (default: 256)")
    restore.add_argument("--photos", type=int, metavar="N", help="at most so many (default: all)")
    restore.add_argument("--features", type=Path, metavar="FILE", help="Inception as TorchScript, for FID and KID")
    selector = commands.add_parser("selector", parents=[common], help="ZTA, CP, OP, OR, CF1, OF1 and mAP")
    selector.add_argument("--requests", type=int, metavar="N", help="of each kind, at most (default: all)")
    return parser


def _restore(args: argparse.Namespace, restorer: Restorer) -> None:
    import numpy as np
    from PIL import Image

    from diffplugin.plugins.train import evaluate, layout, metrics

    tasks = args.tasks or list(restorer.cards)
    if unknown := [task for task in tasks if task not in restorer.cards]:
        raise RequestError(f"{', '.join(unknown)}: not in the bundle (there: {', '.join(restorer.cards)})")
    clean = evaluate.test_photos(args.work, args.size, args.photos)
    if not clean:
        raise RequestError(f"{args.work}: no test photos of {args.size} pixels; run dp-train photos first")
    named = evaluate.credits(args.work, args.size, args.photos)
    shown = [i for i, credit in enumerate(named) if credit] or list(range(len(clean)))
    shown = shown[:: max(len(shown) // COLUMNS, 1)][:COLUMNS]
    layout.write_lines(args.out / "sheets.md", "".join(f"- {named[i] or 'not to be shown'}\n" for i in shown))
    rows, lines, sets = [], [evaluate.HEAD], []
    for task in tasks:
        for steps in (None, *(args.steps or ())):
            sheet: list[Any] = []
            made: list[Any] = []
            rows.append(evaluate.restoration(restorer, task, clean, steps=steps, sheet=sheet, made=made))
            lines.append(rows[-1].line())
            print(lines[-1], flush=True)
            picture = Image.fromarray(np.concatenate([sheet[i] for i in shown], axis=1))
            picture.save(args.out / f"{task}-{rows[-1].steps}-{args.size}.jpg", quality=85)
            if args.features:
                found = metrics.fid_kid(clean, made, args.features)
                sets.append({"task": task, "steps": rows[-1].steps} | found)
                print(f"{task}: FID {found['fid']:.2f}, KID x 100 {found['kid']:.3f}", flush=True)
    _write(args.out, "restore", "\n".join(lines), {"rows": evaluate.as_json(rows), "sets": sets})
    _plot_restore(args.out / "restore.svg", rows)


def _selector(args: argparse.Namespace, restorer: Restorer) -> None:
    from diffplugin.plugins.train import evaluate

    if args.requests is not None and args.requests < 1:
        raise RequestError(f"--requests is {args.requests}, expected 1 or more")
    found = evaluate.selections(restorer, evaluate.test_photos(args.work, 224), count=args.requests)
    table = evaluate.selection_table(found)
    print(table)
    _write(args.out, "selector", table, found)
    _plot_selector(args.out / "selector.svg", found, evaluate.PAPER)


def _write(out: Path, name: str, table: str, values: Any) -> None:
    from diffplugin.plugins.train import layout

    layout.write_lines(out / f"{name}.md", table + "\n")
    layout.write_lines(out / f"{name}.json", json.dumps(values, indent=1) + "\n")


def _plot_restore(path: Path, rows: Sequence[Any]) -> None:
    names = [f"{row.task}, {row.steps}" for row in rows]
    bars = {"input": [r.given.psnr for r in rows], "baseline": [r.baseline.psnr for r in rows]}
    _bars(path, names, bars | {"restored": [r.made.psnr for r in rows]}, "PSNR, dB")


def _plot_selector(path: Path, found: dict[str, dict[str, float]], paper: dict[str, dict[str, float]]) -> None:
    kinds = list(found)
    theirs = [paper.get(kind, {}).get("ZTA", 0.0) for kind in kinds]
    _bars(path, kinds, {"this model": [found[kind]["ZTA"] for kind in kinds], "paper": theirs}, "ZTA")


def _bars(path: Path, names: Sequence[str], series: dict[str, list[float]], label: str) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(max(6, 0.9 * len(names)), 4), layout="constrained")
    width = 0.8 / len(series)
    for k, (name, values) in enumerate(series.items()):
        axes.bar([i + (k - len(series) / 2 + 0.5) * width for i in range(len(names))], values, width, label=name)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_ylabel(label)
    axes.legend()
    figure.savefig(path)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``dp-eval``; 0, or 1 after one line that says what was wrong."""
    args = _parser().parse_args(argv)
    try:
        import diffplugin

        args.out.mkdir(parents=True, exist_ok=True)
        with diffplugin.load(args.bundle, args.engine, args.engine_precision, args.threads) as restorer:
            (_restore if args.command == "restore" else _selector)(args, restorer)
    except DiffPluginError as error:
        print(f"dp-eval: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
