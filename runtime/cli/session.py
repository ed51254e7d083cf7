"""One call of ``dp-infer``: pictures one after another or several at once, and what is said of each."""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Event, RLock
from typing import Any

from diffplugin import __version__, load
from diffplugin.command import DONE, FAILED, print_error
from diffplugin.errors import ImageError, NotFinite, RequestError
from diffplugin.runtime.cli.files import PhotoPaths, copy_file, find_photos, plan_outputs, split_request
from diffplugin.runtime.cli.messages import (
    ProgressBar,
    done_line,
    example_lines,
    loaded_line,
    memory_warning,
    plan_lines,
    selection_line,
)
from diffplugin.runtime.photos.pixels import side_by_side
from diffplugin.runtime.photos.read import Photo, printable, read_photo
from diffplugin.runtime.photos.write import check_writable, write_photo
from diffplugin.runtime.planning.plan import Plan
from diffplugin.runtime.request.selection import Selection
from diffplugin.runtime.restorer import Restorer


class Session:
    """One call of ``dp-infer``: its options, its loaded bundle, what came of each picture."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        words, self.prompt = split_request(args.words, named=bool(args.plugin))
        files, faults = find_photos(words)
        self.photos = plan_outputs(files, args.output, compare=args.compare)
        self.results: list[dict[str, Any]] = []
        self._stopped, self._lock = Event(), RLock()
        self.bar = ProgressBar(sys.stderr)
        for fault in faults:
            self._failed(None, fault)

    def run(self) -> int:
        args = self.args
        if args.threads is not None and args.threads < 1:
            raise RequestError(f"threads is {args.threads}, expected at least 1")
        restorer = load(
            args.bundle,
            engine=args.engine,
            precision=args.precision,
            threads=args.threads,
            quality=args.quality,
            concurrency=args.concurrency if len(self.photos) > 1 else 1,
            device=args.device,
        )
        with restorer:
            self._say(loaded_line(restorer))
            self._make_folder()
            at_once = 1 if args.dry_run else min(restorer.concurrency, len(self.photos))
            self._alone = at_once == 1
            if at_once > 1:
                self._together(restorer, at_once)
            else:
                for paths in self.photos:
                    self._attempt(restorer, paths)
            return self._finish(restorer)

    def _together(self, restorer: Restorer, at_once: int) -> None:
        """Several pictures at once; the first error that is not a picture's own ends them all."""
        with ThreadPoolExecutor(at_once) as pool:
            running = [pool.submit(self._attempt, restorer, paths) for paths in self.photos]
            try:
                for done, future in enumerate(as_completed(running), 1):
                    future.result()
                    with self._lock:
                        self.bar(done, len(running), "pictures")
            except BaseException:
                self._stopped.set()
                pool.shutdown(cancel_futures=True)
                raise

    def _make_folder(self) -> None:
        """The output folder, made if a folder was asked for."""
        folders = {paths.target.parent for paths in self.photos}
        given = self.args.output
        if given is None or self.args.dry_run or folders != {Path(given)}:
            return
        try:
            Path(given).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ImageError(f"{printable(given)}: this folder cannot be made ({error.strerror})") from None

    def _attempt(self, restorer: Restorer, paths: PhotoPaths) -> None:
        """One picture; a bad one does not stop the others, a bad request or bundle does."""
        try:
            self._one(restorer, paths)
        except (ImageError, NotFinite) as error:
            self._failed(paths, str(error))
        except MemoryError:
            self._failed(paths, f"{printable(paths.source)}: does not fit into memory; try --tile or a smaller --size")
        except BaseException:  # Ctrl-C too: the message gets a line of its own
            self.bar.clear()
            raise

    def _one(self, restorer: Restorer, paths: PhotoPaths) -> None:
        args, began = self.args, time.perf_counter()
        photo = read_photo(paths.source)
        for note in photo.notes:
            self._say(f"{printable(paths.source)}: {note}")
        options = {name: getattr(args, name) for name in ("seed", "steps", "sampler", "size", "tile", "output_size")}
        plugins = args.plugin or None
        if args.dry_run:
            plan, selection = restorer.plan(photo, self.prompt, plugins=plugins, **options)
            self._say(
                f"{printable(paths.source)}: {selection_line(selection)}", *(f"  {line}" for line in plan_lines(plan))
            )
            self._say(f"  output:  {printable(paths.target)} (dry run: not written)")
            self._record(paths, plan=plan.to_json(), selection=selection.to_json())
            return
        for path in filter(None, (paths.target, paths.compare)):
            check_writable(path)

        def on_plan(plan: Plan, selection: Selection) -> None:
            self._say(f"{printable(paths.source)}: {selection_line(selection)}")
            if plan.chain and (warning := memory_warning(plan)):
                with self._lock:
                    self.bar.clear()
                    print_error("dp-infer", warning)

        made = restorer.restore(
            photo,
            self.prompt,
            plugins=plugins,
            on_plan=on_plan,
            progress=self.bar if self._alone else None,
            cancelled=self._stopped.is_set,
            **options,
        )
        if made.untouched:
            self._say(*example_lines(restorer.cards.values()))
            _keep(paths, photo)
        else:
            write_photo(paths.target, made.photo)
        if paths.compare:
            write_photo(paths.compare, side_by_side(photo.rgb, made.photo.rgb))
        seconds = time.perf_counter() - began
        if not made.untouched:
            self._say(done_line(made, printable(paths.target), seconds))
        self._record(paths, seconds=round(seconds, 3), **made.to_json())

    def _record(self, paths: PhotoPaths, **facts: Any) -> None:
        compare = {"compare": str(paths.compare)} if paths.compare else {}
        self.results.append({"input": str(paths.source), "output": str(paths.target), **compare, **facts})

    def _failed(self, paths: PhotoPaths | None, error: str) -> None:
        with self._lock:
            self.bar.clear()
            print_error("dp-infer", error)
            self.results.append({"input": str(paths.source) if paths else None, "error": error})

    def _say(self, *lines: str) -> None:
        if not self.args.json and not self.args.quiet:
            with self._lock:
                self.bar.clear()
                print(*lines, sep="\n", flush=True)

    def _finish(self, restorer: Restorer) -> int:
        place = {str(paths.source): i for i, paths in enumerate(self.photos)}
        self.results.sort(key=lambda result: place.get(result["input"], -1))  # done in any order, told in theirs
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
                "concurrency": restorer.concurrency,
                "done": done,
                "failed": failed,
                "files": self.results,
            }
            print(json.dumps(facts, indent=2))
        elif len(self.results) > 1:
            self._say(f"{done} of {len(self.results)} done, {failed} failed")
        return FAILED if failed else DONE


def _keep(paths: PhotoPaths, photo: Photo) -> None:
    """The picture as it came: the very bytes where the format stays."""
    if paths.source.suffix.lower() == paths.target.suffix.lower():
        copy_file(paths.source, paths.target)
    else:
        write_photo(paths.target, photo)
