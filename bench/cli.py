"""``dp-bench``: measure this project beside its peers."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from diffplugin.bench import classic, compare, fidelity, measure, megapixels, megapixels_report, plots, report
from diffplugin.bench.contenders import BASELINE, CONTENDERS, get_contender
from diffplugin.bench.models import EMBEDDED, parse_model
from diffplugin.bench.work import parse_work
from diffplugin.command import DONE, FAILED, Parser, add_common_options, execute, path, say
from diffplugin.errors import MissingDependency, RequestError
from diffplugin.files import write_text


def build_parser() -> argparse.ArgumentParser:
    """The commands of ``dp-bench``."""
    parser = Parser(
        prog="dp-bench",
        description="Measure this project beside its peers: speed, start, memory and fidelity in one run.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    commands.add_parser("list", help="the contenders")
    for name, text in (("run", "measure"), ("prepare", "fill every contender's caches, measure nothing")):
        add = commands.add_parser(name, help=text)
        _common(add)
        add.add_argument("--work", default="512x512", metavar="WxH[@N]", help="picture size, and how many in a row")
        add.add_argument("--plugin", default="", metavar="ID", help="default: the bundle's first")
        if name == "prepare":
            continue
        add.add_argument("--rounds", type=int, default=3, metavar="N", help="samples of each contender (default: 3)")
        add.add_argument(
            "--baseline", metavar="NAME", help=f"ratios are against it (default: {BASELINE}, or the first)"
        )
        add.add_argument("--out", type=path, required=True, metavar="DIR", help="folder for the results")
        add.add_argument("--resume", action="store_true", help="go on with an interrupted run in --out")
        add.add_argument("--prepared", action="store_true", help="skip the preparation: dp-bench prepare has run")
        add.add_argument(
            "--fidelity", type=path, metavar="FILE", help="of dp-bench fidelity, to put into the same rows"
        )
        add.add_argument(
            "--first-picture",
            action=argparse.BooleanOptionalAction,
            help="run the whole first picture cold, not its first step alone (default: for the embedded model)",
        )
    _add_megapixels(commands.add_parser("megapixels", help="restore whole photos of any size, beside classic filters"))
    add = commands.add_parser("fidelity", help="restore degraded photographs: how true the results stay")
    _common(add)
    add.add_argument("--side", type=int, default=256, metavar="N", help="of the square pictures, px (default: 256)")
    add.add_argument("--photos", type=int, metavar="N", help="use the first N photographs only")
    add.add_argument("--out", type=path, required=True, metavar="DIR", help="folder for the results")
    add = commands.add_parser("report", help="write the report of a result again")
    add.add_argument("out", type=path, metavar="DIR")
    add.add_argument("--fidelity", type=path, metavar="FILE", help="of dp-bench fidelity, to put into the same rows")
    add = commands.add_parser("compare", help="what changed between two results beyond noise")
    add.add_argument("before", type=path, metavar="BEFORE")
    add.add_argument("after", type=path, metavar="AFTER")
    add_common_options(parser)
    return parser


def _add_megapixels(add: argparse.ArgumentParser) -> None:
    add.add_argument("--model", default=EMBEDDED, metavar="embedded[:BUNDLE]|full:DIR", help="default: embedded")
    add.add_argument(
        "--size",
        action="append",
        default=[],
        metavar="MP|WxH",
        help="of a photo: megapixels at 4:3, or pixels; repeatable (default: 512x512 and 1)",
    )
    add.add_argument("--photo", type=path, metavar="FILE", help="this photo as it is, without truth")
    add.add_argument("--plugin", default="", metavar="ID", help="default: the bundle's first")
    add.add_argument(
        "--contender",
        action="append",
        default=[],
        metavar="NAME",
        help=f"of dp-bench list; repeatable (default: {', '.join(megapixels.DEFAULTS)})",
    )
    add.add_argument("--rounds", type=int, default=1, metavar="N", help="samples of each contender (default: 1)")
    add.add_argument("--threads", type=int, metavar="N", help="default: all usable cores")
    add.add_argument("--timeout", type=float, default=3600, metavar="S", help="of one sample (default: 3600)")
    add.add_argument("--out", type=path, required=True, metavar="DIR", help="folder for the results")
    add.add_argument("--resume", action="store_true", help="go on with an interrupted run in --out")


def _common(add: argparse.ArgumentParser) -> None:
    add.add_argument("--model", default=EMBEDDED, metavar="embedded[:BUNDLE]|full:DIR", help="default: embedded")
    add.add_argument("--contender", action="append", default=[], metavar="NAME", help="repeatable (default: all)")
    add.add_argument("--steps", type=int, default=20, metavar="N", help="at exact quality (default: 20)")
    add.add_argument("--threads", type=int, metavar="N", help="default: all usable cores")
    add.add_argument("--timeout", type=float, default=3600, metavar="S", help="of one sample (default: 3600)")


def _check_packages(args: argparse.Namespace) -> None:
    """Before hours of work.

    Raises:
        MissingDependency: what draws the plots, or brings the photographs, is not installed.
    """
    needed = {
        "run": ("matplotlib",),
        "report": ("matplotlib",),
        "fidelity": ("skimage",),
        "megapixels": ("skimage",),
    }.get(args.command, ())
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise MissingDependency(f"dp-bench needs the package {missing[0]}: pip install 'diffplugin[bench]'")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``dp-bench``; returns its exit code (``diffplugin.command``)."""

    def run(args: argparse.Namespace) -> int:
        _check_packages(args)
        return COMMANDS[args.command](args)

    return execute("dp-bench", build_parser().parse_args, run, argv)


def _log(args: argparse.Namespace) -> Callable[[str], None]:
    """Where lines of progress go."""
    return (lambda line: None) if args.quiet else say


def _names(args: argparse.Namespace) -> tuple[str, ...]:
    return tuple(dict.fromkeys(get_contender(name).name for name in args.contender or CONTENDERS))


def _bench(args: argparse.Namespace) -> measure.Bench:
    names = _names(args)
    baseline = getattr(args, "baseline", None) or (BASELINE if BASELINE in names else names[0])
    if baseline not in names:
        raise RequestError(f"baseline {baseline!r} is not among the contenders: {', '.join(names)}")
    rounds = getattr(args, "rounds", 1)
    for what, value in (("rounds", rounds), ("steps", args.steps), ("threads", args.threads or 1)):
        if value < 1:
            raise RequestError(f"{what} is {value}, expected at least 1")
    first = getattr(args, "first_picture", None)
    return measure.Bench(
        model=parse_model(args.model),
        work=parse_work(args.work),
        steps=args.steps,
        rounds=rounds,
        contenders=names,
        baseline=baseline,
        plugin=args.plugin,
        first=args.model.startswith(EMBEDDED) if first is None else first,
        threads=args.threads,
        timeout=args.timeout,
    )


def _list(args: argparse.Namespace) -> int:
    width = max(map(len, CONTENDERS))
    for contender in CONTENDERS.values():
        say(f"{contender.name:<{width}}  {contender.what}")
    for name, what in classic.FILTERS.items():
        say(f"{name:<{width}}  megapixels alone: {what}")
    return DONE


def _megapixels(args: argparse.Namespace) -> int:
    result = megapixels.run(_megapixel_rows(args), args.out, resume=args.resume, log=_log(args))
    write_text(args.out / "results.md", megapixels_report.markdown(result))
    say(f"{args.out / 'results.md'}")
    return DONE if megapixels_report.rows(result) else FAILED


def _megapixel_rows(args: argparse.Namespace) -> megapixels.Megapixels:
    model = parse_model(args.model)
    for name in args.contender:
        if name not in classic.FILTERS:
            get_contender(name)
    if args.photo and args.size:
        raise RequestError("--photo has its own size: leave --size out")
    for what, value in (("rounds", args.rounds), ("threads", args.threads or 1)):
        if value < 1:
            raise RequestError(f"{what} is {value}, expected at least 1")
    sizes = [megapixels.parse_size(text) for text in args.size or ("512x512", "1")]
    return megapixels.Megapixels(
        model=model,
        works=(megapixels.size_of(args.photo),) if args.photo else tuple(sizes),
        plugin=megapixels.checked_plugin(model, args.plugin),
        contenders=tuple(dict.fromkeys(args.contender or megapixels.DEFAULTS)),
        rounds=args.rounds,
        threads=args.threads,
        timeout=args.timeout,
        photo=args.photo,
    )


def _prepare(args: argparse.Namespace) -> int:
    bench = _bench(args)
    made = [measure.prepare(bench, name, _log(args)) for name in bench.contenders]
    return FAILED if all("error" in one for one in made) else DONE


def _run(args: argparse.Namespace) -> int:
    trained = fidelity.read_fidelity(args.fidelity) if args.fidelity else None
    result = measure.run(_bench(args), args.out, resume=args.resume, prepared=args.prepared, log=_log(args))
    if trained:
        _keep_fidelity(trained, args.out)
    return _render(result, args.out)


def _keep_fidelity(trained: dict[str, Any], out: Path) -> None:
    import json

    write_text(out / fidelity.FIDELITY, json.dumps(trained, indent=1) + "\n")


def _render(result: dict[str, Any], out: Path) -> int:
    trained = fidelity.summary(fidelity.read_fidelity(out)) if (out / fidelity.FIDELITY).is_file() else None
    write_text(out / "results.md", report.markdown(result, trained))
    files = plots.draw(result, out, trained)
    say(f"{out / 'results.md'}" + "".join(f", {file.name}" for file in files))
    return DONE if report.rows(result) else FAILED


def _fidelity(args: argparse.Namespace) -> int:
    result = fidelity.measure(
        parse_model(args.model),
        _names(args),
        args.out,
        steps=args.steps,
        side=args.side,
        photos=args.photos,
        threads=args.threads,
        timeout=args.timeout,
        log=_log(args),
    )
    write_text(args.out / "fidelity.md", report.fidelity_markdown(result))
    say(f"{args.out / 'fidelity.md'}")
    return DONE


def _report(args: argparse.Namespace) -> int:
    if args.fidelity:
        _keep_fidelity(fidelity.read_fidelity(args.fidelity), args.out)
    return _render(measure.read_results(args.out), args.out)


def _compare(args: argparse.Namespace) -> int:
    say(compare.comparison(measure.read_results(args.before), measure.read_results(args.after)).rstrip())
    return DONE


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "list": _list,
    "prepare": _prepare,
    "run": _run,
    "megapixels": _megapixels,
    "fidelity": _fidelity,
    "report": _report,
    "compare": _compare,
}

if __name__ == "__main__":
    from diffplugin.entry import bench

    sys.exit(bench())
