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
from diffplugin.errors import ImageError, NotFinite, RequestError
from diffplugin.runtime.image import read_photo, side_by_side, writable, write_photo
from diffplugin.runtime.inputs import Job, copy_through, find_pictures, make_jobs, split_request
from diffplugin.runtime.photo import Photo, shown
from diffplugin.runtime.plan import Plan
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
from diffplugin.runtime.select import Selection

DONE, FAILED = 0, 1


def complain(message: str) -> None:
    print(f"dp-infer: {message}", file=sys.stderr, flush=True)


class Session:
    """One call of ``dp-infer``: its options, its loaded bundle, what came of each picture."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        words, self.prompt = split_request(args.words, named=bool(args.plugin))
        files, faults = find_pictures(words)
        self.jobs = make_jobs(files, args.output, compare=args.compare)
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
            jobs=args.jobs if len(self.jobs) > 1 else 1,
        )
        with restorer:
            self._say(loaded_line(restorer))
            self._make_folder()
            at_once = 1 if args.dry_run else min(restorer.jobs, len(self.jobs))
            self._alone = at_once == 1
            if at_once > 1:
                self._together(restorer, at_once)
            else:
                for job in self.jobs:
                    self._attempt(restorer, job)
            return self._finish(restorer)

    def _together(self, restorer: Restorer, at_once: int) -> None:
        """Several pictures at once; the first error that is not a picture's own ends them all."""
        with ThreadPoolExecutor(at_once) as pool:
            running = [pool.submit(self._attempt, restorer, job) for job in self.jobs]
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
                with self._lock:
                    self.bar.clear()
                    complain(warning)

        made = restorer.restore(
            photo,
            self.prompt,
            plugins=plugins,
            decided=decided,
            progress=self.bar if self._alone else None,
            cancelled=self._stopped.is_set,
            **options,
        )
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
        with self._lock:
            self.bar.clear()
            complain(error)
            self.results.append({"input": str(job.source) if job else None, "error": error})

    def _say(self, *lines: str) -> None:
        if not self.args.json:
            with self._lock:
                self.bar.clear()
                print(*lines, sep="\n", flush=True)

    def _finish(self, restorer: Restorer) -> int:
        place = {str(job.source): i for i, job in enumerate(self.jobs)}
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
                "jobs": restorer.jobs,
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
