"""``dp-infer``: restore photos from a shell."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from diffplugin.command import Parser, add_common_options, execute, path
from diffplugin.engines.choice import ENGINES
from diffplugin.runtime.cli.session import Session
from diffplugin.runtime.options import Tiling
from diffplugin.runtime.photos.pixels import Size
from diffplugin.runtime.planning.quality import QUALITIES
from diffplugin.runtime.sampling.samplers import SAMPLERS


def _size(text: str) -> Size:
    if text in ("native", "released"):
        return text  # type: ignore[return-value]
    parts = text.lower().split("x")
    if len(parts) in (1, 2) and all(part.isdecimal() for part in parts):
        numbers = tuple(map(int, parts))
        return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])
    raise argparse.ArgumentTypeError(f"{text!r} is no size; expected native, released, N or WxH")


def _output(text: str) -> str:
    """A path, which keeps the slash at its end: that means a folder."""
    expanded = str(path(text))
    return f"{expanded}/" if text.endswith("/") and not expanded.endswith("/") else expanded


def _tile(text: str) -> Tiling:
    if text in ("auto", "off"):
        return text  # type: ignore[return-value]
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no tile; expected auto, off or a number of pixels")


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
        usage="dp-infer [options] INPUT... PROMPT",
        description='Restore photos: dp-infer photo.jpg "remove the blur"',
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="INPUT... PROMPT",
        help="pictures, folders or quoted patterns; the last word is the request",
    )
    parser.add_argument(
        "-o", "--output", type=_output, metavar="FILE|FOLDER", help="default: <name>-restored beside each input"
    )
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="ID", help="run this plugin (repeatable, in order); no request"
    )
    parser.add_argument("--bundle", type=path, metavar="FOLDER", help="default: the small model in the package")
    run = parser.add_argument_group("how it runs")
    run.add_argument("--steps", type=int, metavar="N", help="steps of the first plugin (default: its card's, 20)")
    run.add_argument("--seed", type=int, default=42, metavar="N", help="of the start noise (default: 42)")
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
    sizes.add_argument("--output-size", default="input", choices=("input", "working"), help="default: input")
    show = parser.add_argument_group("output")
    show.add_argument("--compare", action="store_true", help="also write <result>-compare: before beside after")
    show.add_argument("--json", action="store_true", help="print plan, scores and timings as one JSON object")
    show.add_argument("--dry-run", action="store_true", help="print the plan and write nothing")
    add_common_options(parser)
    return parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Options and words in any order; what follows ``--`` is words, whatever it begins with."""
    given = list(sys.argv[1:] if argv is None else argv)
    end = given.index("--") if "--" in given else len(given)
    parser = build_parser()
    args = parser.parse_intermixed_args(given[:end])
    args.words += given[end + 1 :]
    if not args.words:
        parser.error('the words are missing: expected INPUT... PROMPT, for example photo.jpg "remove the blur"')
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``dp-infer``; returns its exit code (``diffplugin.command``)."""
    return execute("dp-infer", parse, lambda args: Session(args).run(), argv)
