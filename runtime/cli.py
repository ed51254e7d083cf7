"""``dp-infer``: restore photos from a shell."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from diffplugin import __version__, load
from diffplugin.errors import DiffPluginError, ImageError, NotFinite, RequestError
from diffplugin.runtime.image import Size, read_photo, side_by_side, writable, write_photo
from diffplugin.runtime.inputs import Job, copy_through, find_pictures, make_jobs, split_request
from diffplugin.runtime.photo import Photo, shown
from diffplugin.runtime.plan import Plan, Tiling
from diffplugin.runtime.quality import QUALITIES
from diffplugin.runtime.report import (
    ProgressBar,
    done_line,
    loaded_line,
    memory_warning,
    plan_lines,
    selection_line,
    understood_lines,
)
from diffplugin.runtime.restorer import Restorer
from diffplugin.runtime.schedule import SAMPLERS
from diffplugin.runtime.select import Selection

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, like every other complaint."""
        self.exit(USAGE, f"{self.prog}: {message}; see {self.prog} --help\n")


def _size(text: str) -> Size:
    if text in ("native", "released"):
        return text  # type: ignore[return-value]
    parts = text.lower().split("x")
    if len(parts) in (1, 2) and all(part.isdecimal() for part in parts):
        numbers = tuple(map(int, parts))
        return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])
    raise argparse.ArgumentTypeError(f"{text!r} is no size; expected native, released, N or WxH")


def _tile(text: str) -> Tiling:
    if text in ("auto", "off"):
        return text  # type: ignore[return-value]
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no tile; expected auto, off or a number of pixels")


def build_parser() -> argparse.ArgumentParser:
    """The options of ``dp-infer``."""
    parser = _Parser(
        prog="dp-infer",
        description='Restore photos: dp-infer photo.jpg "remove the blur"',
        epilog="Exit status: 0 all done, 1 a picture or the bundle failed, 2 the request cannot be understood, "
        "130 interrupted.",
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="INPUT... PROMPT",
        help="pictures, folders or quoted patterns; the last word is the request",
    )
    parser.add_argument("-o", "--output", metavar="FILE|FOLDER", help="default: <name>-restored beside each input")
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="ID", help="run this plugin (repeatable, in order); no request"
    )
    parser.add_argument("--bundle", metavar="FOLDER", help="default: the small model in the package")
    run = parser.add_argument_group("how it runs")
    run.add_argument("--steps", type=int, metavar="N", help="steps of the first plugin (default: its card's, 20)")
    run.add_argument("--seed", type=int, default=42, metavar="N", help="of the start noise (default: 42)")
    run.add_argument("--sampler", default="unipc", choices=tuple(SAMPLERS), help="default: unipc, as released")
    run.add_argument("--engine", default="auto", metavar="NAME", help="auto, onnxruntime or openvino")
    run.add_argument("--precision", default="auto", metavar="NAME", help="auto, fp32, bf16, fp16 or int8")
    run.add_argument(
        "--quality",
        default="exact",
        choices=tuple(QUALITIES),
        help="; ".join(f"{quality.name}: {quality.description}" for quality in QUALITIES.values())
        + " (default: exact)",
    )
    run.add_argument("--threads", type=int, metavar="N", help="default: all cores this process may use")
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
    parser.add_argument("--version", action="version", version=f"diffplugin {__version__}")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``dp-infer``; returns its exit status. Errors are one line on stderr, never a traceback."""
    args = build_parser().parse_intermixed_args(argv)
    try:
        return _Session(args).run()
    except DiffPluginError as error:
        _complain(str(error))
        return USAGE if isinstance(error, RequestError) else FAILED
    except KeyboardInterrupt:
        _complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # who read our output went away; Python would complain again when it flushes at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _complain(message: str) -> None:
    print(f"dp-infer: {message}", file=sys.stderr, flush=True)


class _Session:
    """One call of ``dp-infer``: its options, its loaded bundle, what came of each picture."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        words, self.prompt = split_request(args.words, named=bool(args.plugin))
        files, faults = find_pictures(words)
        self.jobs = make_jobs(files, args.output, compare=args.compare)
        self.results: list[dict[str, Any]] = []
        for fault in faults:
            self._failed(None, fault)
        self.bar = ProgressBar(sys.stderr)

    def run(self) -> int:
        args = self.args
        if args.threads is not None and args.threads < 1:
            raise RequestError(f"threads is {args.threads}, expected at least 1")
        restorer = load(
            args.bundle, engine=args.engine, precision=args.precision, threads=args.threads, quality=args.quality
        )
        with restorer:
            self._say(loaded_line(restorer))
            self._make_folder()
            for job in self.jobs:
                self._attempt(restorer, job)
            return self._finish(restorer)

    def _make_folder(self) -> None:
        """The output folder, made if a folder was asked for."""
        folders = {job.target.parent for job in self.jobs}
        given = self.args.output
        if given is None or self.args.dry_run or folders != {Path(given)}:
            return
        try:
            Path(given).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ImageError(f"{shown(given)}: this folder cannot be made ({error.strerror})") from None

    def _attempt(self, restorer: Restorer, job: Job) -> None:
        """One picture; a bad one does not stop the others, a bad request or bundle does."""
        try:
            self._one(restorer, job)
        except (ImageError, NotFinite) as error:
            self._failed(job, str(error))
        except MemoryError:
            self._failed(job, f"{shown(job.source)}: does not fit into memory; try --tile or a smaller --size")
        except BaseException:  # Ctrl-C too: the message gets a line of its own
            self.bar.clear()
            raise

    def _one(self, restorer: Restorer, job: Job) -> None:
        args, began = self.args, time.perf_counter()
        photo = read_photo(job.source)
        for note in photo.notes:
            self._say(f"{shown(job.source)}: {note}")
        options = {name: getattr(args, name) for name in ("seed", "steps", "sampler", "size", "tile", "output_size")}
        plugins = args.plugin or None
        if args.dry_run:
            plan, selection = restorer.plan(photo, self.prompt, plugins=plugins, **options)
            self._say(f"{shown(job.source)}: {selection_line(selection)}", *(f"  {line}" for line in plan_lines(plan)))
            self._say(f"  output:  {shown(job.target)} (dry run: not written)")
            self._record(job, plan=plan.to_json(), selection=selection.to_json())
            return
        for path in filter(None, (job.target, job.compare)):
            writable(path)

        def decided(plan: Plan, selection: Selection) -> None:
            self._say(f"{shown(job.source)}: {selection_line(selection)}")
            if plan.chain and (warning := memory_warning(plan)):
                _complain(warning)

        made = restorer.restore(photo, self.prompt, plugins=plugins, decided=decided, progress=self.bar, **options)
        self.bar.clear()
        if made.untouched:
            self._say(*understood_lines(restorer.cards.values()))
            _keep(job, photo)
        else:
            write_photo(job.target, made.photo)
        if job.compare:
            write_photo(job.compare, side_by_side(photo.rgb, made.photo.rgb))
        seconds = time.perf_counter() - began
        if not made.untouched:
            self._say(done_line(made, shown(job.target), seconds))
        self._record(job, seconds=round(seconds, 3), **made.to_json())

    def _record(self, job: Job, **facts: Any) -> None:
        compare = {"compare": str(job.compare)} if job.compare else {}
        self.results.append({"input": str(job.source), "output": str(job.target), **compare, **facts})

    def _failed(self, job: Job | None, error: str) -> None:
        if job is not None:
            self.bar.clear()
        _complain(error)
        self.results.append({"input": str(job.source) if job else None, "error": error})

    def _say(self, *lines: str) -> None:
        if not self.args.json:
            print(*lines, sep="\n", flush=True)

    def _finish(self, restorer: Restorer) -> int:
        failed = sum("error" in result for result in self.results)
        done = len(self.results) - failed
        if self.args.json:
            facts = {
                "version": __version__,
                "bundle": restorer.bundle.manifest.name,
                "engine": restorer.engine,
                "precision": restorer.precision,
                "reason": restorer.reason,
                "quality": restorer.quality.name,
                "done": done,
                "failed": failed,
                "files": self.results,
            }
            print(json.dumps(facts, indent=2))
        elif len(self.results) > 1:
            self._say(f"{done} of {len(self.results)} done, {failed} failed")
        return FAILED if failed else DONE


def _keep(job: Job, photo: Photo) -> None:
    """The picture as it came: the very bytes where the format stays."""
    if job.source.suffix.lower() == job.target.suffix.lower():
        copy_through(job.source, job.target)
    else:
        write_photo(job.target, photo)


if __name__ == "__main__":
    sys.exit(main())
