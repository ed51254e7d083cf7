"""``dp-infer``: restore photos from a shell."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from diffplugin.command import Parser, add_common_options, execute, path, size
from diffplugin.default_bundle import EMBEDDED
from diffplugin.engines.choice import ENGINES
from diffplugin.engines.pages import keep_freed_memory
from diffplugin.errors import RequestError
from diffplugin.runtime.cli.session import Session
from diffplugin.runtime.cli.targets import Overwrite
from diffplugin.runtime.options import Tiling, WorkSize
from diffplugin.runtime.photos.encode import PNG_LEVEL
from diffplugin.runtime.photos.mask import Region, read_region
from diffplugin.runtime.photos.pixels import Size
from diffplugin.runtime.photos.strength import CLIPPED_SHARE, Strength, read_strength
from diffplugin.runtime.photos.write import output_suffixes
from diffplugin.runtime.planning.quality import QUALITIES
from diffplugin.runtime.sampling.samplers import SAMPLERS


def _size(text: str) -> Size:
    if text in ("native", "released"):
        return text  # type: ignore[return-value]
    try:
        return size(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; expected native, released, N or WxH") from None


def _work_size(text: str) -> WorkSize:
    if text in ("auto", "full"):
        return text  # type: ignore[return-value]
    if not text.isascii() or not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no work size; expected auto, full or N")
    return int(text)


def _bundle(text: str) -> str | Path:
    """A folder, or the word ``embedded`` for the embedded model (./embedded is a folder)."""
    return text if text == EMBEDDED else path(text)


def _output(text: str) -> str:
    """A path that keeps its final slash, which means a folder; or ``-``."""
    expanded = str(path(text))
    return f"{expanded}/" if text.endswith("/") and not expanded.endswith("/") else expanded


def _tile(text: str) -> Tiling:
    if text in ("auto", "off"):
        return text  # type: ignore[return-value]
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no tile; expected auto, off or a number of pixels")


def _region(text: str) -> Region:
    try:
        return read_region(text)
    except RequestError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _strength(text: str) -> Strength:
    try:
        return read_strength(text)
    except RequestError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _concurrency(text: str) -> int | None:
    if text == "auto":
        return None
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no number of photos; expected auto, or 1 or more")


def build_parser() -> argparse.ArgumentParser:
    """The options of ``dp-infer``."""
    parser = Parser(
        prog="dp-infer",
        usage="dp-infer [options] INPUT... [PROMPT]",
        description='Restore photos: dp-infer photo.jpg "remove the blur". Without a request, or with "auto", the '
        "photo itself says what it needs.",
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="INPUT... PROMPT",
        help="photos, folders, quoted patterns, or - for stdin; the last word is the request, if it is no photo",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=_output,
        metavar="FILE|FOLDER|-",
        help="default: <name>-restored beside each input; -: the standard output",
    )
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="ID", help="run this plugin (repeatable, in order); no request"
    )
    parser.add_argument(
        "--bundle",
        type=_bundle,
        metavar="FOLDER|hf:USER/NAME",
        help="default: the last export into the cache folder, else the small model in the package; embedded: that one",
    )
    run = parser.add_argument_group("how it runs")
    run.add_argument("--steps", type=int, metavar="N", help="steps of the first plugin (default: its card's, 20)")
    run.add_argument("--seed", type=int, default=42, metavar="N", help="of the start noise (default: 42)")
    run.add_argument(
        "--strength",
        type=_strength,
        default=1.0,
        metavar="0..1|auto",
        help="how much of the change is kept (default: 1); auto: the most that newly clips at most "
        f"{CLIPPED_SHARE:.0%}% of the pixels",
    )
    run.add_argument("--sampler", default="unipc", choices=tuple(SAMPLERS), help="default: unipc, as released")
    run.add_argument("--engine", default="auto", metavar="NAME", help=f"auto or one of {', '.join(ENGINES)}")
    run.add_argument(
        "--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N (NVIDIA), gpu or gpu:N (Intel), npu"
    )
    run.add_argument("--precision", default="auto", metavar="NAME", help="auto, fp32, bf16, fp16 or int8")
    run.add_argument(
        "--quality",
        default="exact",
        choices=tuple(QUALITIES),
        help="; ".join(f"{quality.name}: {quality.description}" for quality in QUALITIES.values())
        + " (default: exact)",
    )
    run.add_argument("--threads", type=int, metavar="N", help="default: all cores this process may use")
    run.add_argument(
        "--concurrency",
        type=_concurrency,
        metavar="N|auto",
        help="pictures at once, each on its part of cores and memory (default: auto, as many as fit where the engine "
        "gains by it)",
    )
    sizes = parser.add_argument_group("sizes")
    sizes.add_argument(
        "--size",
        type=_size,
        default="native",
        metavar="native|released|N|WxH",
        help="working size: as it is (default); short side at least 512 and multiples of 8; short side N; exactly WxH",
    )
    sizes.add_argument(
        "--tile",
        type=_tile,
        default="auto",
        metavar="auto|off|N",
        help="overlapping pieces of N pixels (default: auto)",
    )
    sizes.add_argument(
        "--work-size",
        type=_work_size,
        default="auto",
        metavar="auto|full|N",
        help="restore a copy with a short side of N pixels and carry the change to the photo, which keeps its detail; "
        "full: the photo itself (default: auto, by quality and plugin)",
    )
    sizes.add_argument("--output-size", default="input", choices=("input", "working"), help="default: input")
    many = parser.add_argument_group("folders and files")
    many.add_argument("-r", "--recursive", action="store_true", help="folders below folders, too; -o keeps the tree")
    many.add_argument(
        "--skip-existing", action="store_true", help="leave photos alone whose result of this very request is there"
    )
    many.add_argument(
        "--overwrite",
        default="made",
        choices=get_args(Overwrite),
        help="made: replace results of the same photo, number the others (default); always: replace files "
        "of others, too; never: no file; made and always replace a FILE that -o names",
    )
    many.add_argument(
        "--keep-untouched",
        default="nothing",
        choices=("nothing", "copies"),
        help="where nothing is selected: write nothing and exit with 3 (default), or copy the photo and exit with 0",
    )
    many.add_argument(
        "--format",
        choices=[suffix[1:] for suffix in output_suffixes()],
        help="of the results (default: the input's; png for -o - and for kinds that are only read)",
    )
    many.add_argument(
        "--png-level",
        type=int,
        choices=range(10),
        default=PNG_LEVEL,
        metavar="0-9",
        help=f"compression of PNG results: 0 none, 9 smallest and slowest (default: {PNG_LEVEL})",
    )
    part = parser.add_argument_group("only a part")
    part.add_argument(
        "--mask",
        type=path,
        metavar="FILE",
        help="restore where it is white; of any size; the pixels elsewhere stay (a lossy format compresses them again)",
    )
    part.add_argument("--region", type=_region, metavar="X,Y,W,H", help="restore this rectangle (pixels) alone")
    part.add_argument("--feather", type=int, metavar="N", help="soft edge in pixels, inwards (default: up to 16)")
    show = parser.add_argument_group("output")
    show.add_argument(
        "--first-frame", action="store_true", help="of several frames or pages the first alone (default: all of them)"
    )
    show.add_argument("--compare", action="store_true", help="also write <result>-compare: before beside after")
    show.add_argument("--scores", action="store_true", help="also print the selector's scores")
    show.add_argument("--json", action="store_true", help="print plan, scores and timings as one JSON object")
    show.add_argument("--dry-run", action="store_true", help="print the plan and write nothing")
    add_common_options(parser)
    return parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse options and positional arguments in any order; everything after ``--`` is positional."""
    given = list(sys.argv[1:] if argv is None else argv)
    end = given.index("--") if "--" in given else len(given)
    parser = build_parser()
    args = parser.parse_intermixed_args(given[:end])
    args.words += given[end + 1 :]
    if not args.words:
        parser.error('the words are missing: expected INPUT... [PROMPT], for example photo.jpg "remove the blur"')
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``dp-infer``; returns its exit code (``diffplugin.command``)."""
    keep_freed_memory()
    return execute("dp-infer", parse, lambda args: Session(args).run(), argv)
