"""``dp-eval``: tables, contact sheets and plots of bundles on held-out photos, on your own, and on held-out wording."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict

from diffplugin.command import DONE, Parser, add_common_options, execute, path, positive
from diffplugin.errors import RequestError
from diffplugin.plugins.train.shared_options import add_photo_folders

SETS = ("standard", "harder", "clean")


def _parser() -> Parser:
    parser = Parser(prog="dp-eval", description=__doc__)
    add_common_options(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = Parser(add_help=False)
    common.add_argument("--work", type=path, metavar="DIR", help="folder of dp-train with its test photos")
    common.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: all)")
    common.add_argument("--out", type=path, required=True, metavar="DIR", help="tables, sheets and plots go here")
    engine = Parser(add_help=False)
    engine.add_argument("--engine", default="auto", metavar="NAME", help="default: auto")
    engine.add_argument("--engine-precision", default="fp32", metavar="NAME", help="default: fp32")
    _add_restore(commands, [common, engine])
    selector = commands.add_parser("selector", parents=[common, engine], help="ZTA, CP, OP, OR, CF1, OF1 and mAP")
    selector.add_argument("--bundle", type=path, metavar="DIR", help="from dp-export (default: the embedded model)")
    selector.add_argument("--requests", type=positive, metavar="N", help="of each kind, at most (default: all)")
    selector.add_argument(
        "--combinations",
        type=int,
        default=0,
        metavar="N",
        help="also N combinations of requests for several tasks; the paper's Multi-task* has 120000",
    )
    diagnosis = commands.add_parser("diagnosis", parents=[common, engine], help="what photos need, seen without words")
    diagnosis.add_argument("--bundle", type=path, metavar="DIR", help="from dp-export (default: the embedded model)")
    add_photo_folders(diagnosis, "photographs with an index.csv, whose test split is taken too, at its own size")
    diagnosis.add_argument("--count", type=positive, metavar="N", help="photos at most (default: all)")
    _add_ablation(commands, common)
    return parser


def _add_restore(commands: argparse._SubParsersAction[Parser], parents: list[Parser]) -> None:
    restore = commands.add_parser(
        "restore", parents=parents, help="PSNR, SSIM, GMSD, FID, KID and more; the paper's table 1"
    )
    restore.add_argument(
        "--bundle",
        type=path,
        action="append",
        default=[],
        metavar="DIR",
        help="repeatable: several side by side (default: the embedded model)",
    )
    restore.add_argument("--tasks", nargs="+", metavar="TASK", help="default: all of the bundles")
    restore.add_argument(
        "--steps", type=positive, nargs="+", metavar="N", help="beside each card's default, such as 20"
    )
    restore.add_argument(
        "--sets",
        nargs="+",
        choices=SETS,
        default=["standard"],
        help="what is done to the test photos: degraded by the standard or the harder family, or left clean, and then "
        "how much they change is measured (default: standard)",
    )
    restore.add_argument(
        "--pairs",
        action="append",
        default=[],
        metavar="[TASK=]CSV|DIR|HUB-ID",
        help="pairs with ground truth, for all tasks or for one; repeatable",
    )
    restore.add_argument("--root", type=path, metavar="DIR", help="where a CSV's relative paths start")
    restore.add_argument(
        "--photos", action="append", default=[], metavar="[TASK=]DIR", help="photos without ground truth; repeatable"
    )
    restore.add_argument(
        "--reference", type=path, metavar="DIR", help="clean photos that FID and KID of --photos compare with"
    )
    restore.add_argument(
        "--size",
        type=positive,
        metavar="N",
        help="side of squares (default: 256 for the test photos, else as they are; the paper: 512)",
    )
    restore.add_argument("--count", type=positive, metavar="N", help="at most so many photos of a task (default: all)")
    restore.add_argument(
        "--features",
        type=path,
        metavar="FILE|DIR",
        help="for FID and KID: inception-2015-12-05.pt, or a CLIP folder (the released evaluation: ViT-B/32)",
    )
    restore.add_argument(
        "--measures",
        nargs="+",
        default=[],
        metavar="NAME[=WEIGHTS]",
        help="of pyiqa: lpips, dists with ground truth; niqe, musiq, clipiqa without",
    )


def _add_ablation(commands: argparse._SubParsersAction[Parser], common: Parser) -> None:
    from diffplugin.plugins.train.ablation_tables import TABLES

    parser = commands.add_parser("ablation", parents=[common], help="the paper's tables 3, 4 and 6, and more")
    parser.add_argument("table", choices=tuple(TABLES), help="; ".join(f"{k}: {v}" for k, v in TABLES.items()))
    parser.add_argument("--base", type=path, metavar="DIR", help="diffusers folder (default: the embedded checkpoint)")
    parser.add_argument("--clip", type=path, metavar="DIR", help="CLIP folder (default: the embedded checkpoint)")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="default: desnow (and dehaze in design)")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="some rows of the table (default: all)")
    parser.add_argument("--train-steps", type=positive, metavar="N", help="steps of each training")
    parser.add_argument("--batch", type=positive, metavar="N", help="pictures of a step (default: the recipe's)")
    parser.add_argument("--seeds", type=positive, default=1, metavar="N", help="trainings of each row (default: 1)")
    parser.add_argument(
        "--crop", type=positive, metavar="N", help="side of the window to train on (embedded base: 128)"
    )
    parser.add_argument("--steps", type=positive, metavar="N", help="of the sampler (default: each card's)")
    parser.add_argument("--count", type=positive, default=16, metavar="N", help="test photos (default: 16)")
    parser.add_argument("--features", type=path, metavar="FILE|DIR", help="for FID and KID, as for restore")
    parser.add_argument("--sizes", type=positive, nargs="+", metavar="N", help="photos to learn from (dataset-size)")
    parser.add_argument(
        "--plugins", type=path, metavar="DIR", help="plugins that the selector is trained for (selector)"
    )


def _run(args: argparse.Namespace) -> int:
    # what is missing is named before a folder is made
    from diffplugin.plugins.train import ablation, eval_restore

    args.out.mkdir(parents=True, exist_ok=True)
    commands = {"restore": eval_restore.run, "ablation": ablation.run, "selector": _selector, "diagnosis": _diagnosis}
    commands[args.command](args)
    return DONE


def _selector(args: argparse.Namespace) -> None:
    import diffplugin
    from diffplugin.plugins.train import evaluate, plots, selection_scores
    from diffplugin.plugins.train.paper import TABLE_5

    if args.combinations < 0:
        raise RequestError(f"--combinations is {args.combinations}, expected 0 or more")
    if args.work is None:
        raise RequestError("dp-eval selector needs --work with the test photos of dp-train photos")
    photos = evaluate.test_photos(args.work, 224)
    with diffplugin.load(args.bundle, args.engine, args.engine_precision, args.threads) as restorer:
        found = selection_scores.selections(restorer, photos, count=args.requests, combinations=args.combinations)
    table = selection_scores.selection_table(found)
    print(table)
    plots.write_table(args.out, "selector", table, found)
    plots.selection(args.out / "selector.svg", found, TABLE_5)


def _diagnosis(args: argparse.Namespace) -> None:
    import diffplugin
    from diffplugin.plugins.train import common, diagnosis_scores, photos, plots

    if args.work is None and not args.add:
        raise RequestError("dp-eval diagnosis needs test photos: --work of dp-train photos, or --add")
    files = [] if args.work is None else [args.work / "photos" / p.file for p in photos.load(args.work, "test")]
    for folder in args.add:
        files += [folder / row["file"] for row in photos.read_index(folder) if row["split"] == "test"]
    with diffplugin.load(args.bundle, args.engine, args.engine_precision, args.threads) as restorer:
        rows = diagnosis_scores.measure(restorer, map(common.read_pixels, files[: args.count]))
    table = diagnosis_scores.table(rows)
    found = diagnosis_scores.summary(rows)
    print(table)
    print(", ".join(f"{kind} {share:.3f}" for kind, share in found.items()))
    plots.write_table(args.out, "diagnosis", table, {"summary": found, "rows": [asdict(row) for row in rows]})


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``dp-eval``; returns the exit code (:mod:`diffplugin.command`)."""
    return execute("dp-eval", _parser().parse_args, _run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
