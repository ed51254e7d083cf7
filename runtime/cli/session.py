"""One call of ``dp-infer``: photos one after another or several at once, and the outcome of each."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from threading import Event, RLock
from typing import Any

from diffplugin import load
from diffplugin.bundle import cache_folder, default_bundle
from diffplugin.command import print_error, say
from diffplugin.default_bundle import choose_bundle
from diffplugin.errors import Cancelled, ImageError, NotFinite, RequestError
from diffplugin.integrity import sha256
from diffplugin.manifest import MANIFEST
from diffplugin.runtime.cli.account import Account
from diffplugin.runtime.cli.inputs import STDIN, Inputs, LeftOut, find_photos, split_request
from diffplugin.runtime.cli.messages import (
    ProgressBar,
    done_line,
    loaded_line,
    memory_warning,
    plan_lines,
    refusal_lines,
    selection_line,
)
from diffplugin.runtime.cli.pipes import check_pipes, read_stdin
from diffplugin.runtime.cli.record import NO_RECORD, Record, fingerprint
from diffplugin.runtime.cli.results import Results, make_folders
from diffplugin.runtime.cli.targets import STDOUT, Naming, PhotoPaths, output_folder, plan_targets
from diffplugin.runtime.options import RestoreOptions
from diffplugin.runtime.photos.mask import Mask, check_no_pages, read_mask, region_mask
from diffplugin.runtime.photos.read import Photo, printable, read_photo
from diffplugin.runtime.planning.plan import Plan
from diffplugin.runtime.request.selection import Selection, select_named
from diffplugin.runtime.restoration import Restoration
from diffplugin.runtime.restorer import Restorer
from diffplugin.signals import stop_requested
from diffplugin.streams import stdout_for_data

_FIELDS = ("seed", "steps", "sampler", "size", "tile", "work_size", "output_size", "strength")


class Session:
    """One call of ``dp-infer``: its options, its loaded bundle, the outcome of each photo."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        words, prompt = split_request(args.words, named=bool(args.plugin))
        fields = {name: getattr(args, name) for name in _FIELDS}
        self.options = RestoreOptions(prompt=prompt, plugins=args.plugin or None, **fields)
        self.record = Record(_cache())
        if args.skip_existing and not self.record.writable:
            print_error("dp-infer", f"--skip-existing: {NO_RECORD}")
        found = find_photos(words, recursive=args.recursive)
        self._leave_out_results(found)
        self.naming = Naming(
            output=args.output,
            mask=args.mask,
            compare=args.compare,
            suffix=None if args.format is None else f".{args.format}",
            overwrite=args.overwrite,
        )
        self.photos = plan_targets(found.photos, self.naming, self.record)
        self.account = Account(found, self.photos)
        self._stopped, self._lock = Event(), RLock()
        self.bar = ProgressBar(sys.stderr, hidden=args.quiet)
        self._packaged: Restorer | None = None
        self.reads_stdin = any(paths.source == STDIN for paths in self.photos)
        self.writes_stdout = any(paths.target == STDOUT for paths in self.photos)
        check_pipes(reads=self.reads_stdin, writes=self.writes_stdout and not args.dry_run)
        for fault in found.faults:
            print_error("dp-infer", fault)

    def run(self) -> int:
        """Restore all; returns the exit code."""
        args = self.args
        if args.mask is not None and args.region is not None:
            raise RequestError("--mask and --region were given, expected one of them")
        if args.threads is not None and args.threads < 1:
            raise RequestError(f"threads is {args.threads}, expected at least 1")
        with ExitStack() as stack:
            stdout = stack.enter_context(stdout_for_data()) if self.writes_stdout else None
            restorer = self._load(stack)
            suffix = f".{args.format}" if args.format else None
            request = fingerprint(self._asked(restorer))
            self.results = Results(self.record, request, stdout, suffix, png_level=args.png_level)
            self._make_folders()
            at_once = 1 if args.dry_run else max(1, min(restorer.concurrency, len(self.photos)))
            self._alone = at_once == 1
            if at_once > 1:
                self._together(restorer, at_once)
            else:
                for paths in self.photos:
                    self._attempt(restorer, paths)
            return self.account.finish(restorer, args)

    def _load(self, stack: ExitStack) -> Restorer:
        """The restorer; the embedded model's if the last export lacks a plugin that was named."""
        self._stack, self._bundle = stack, choose_bundle(self.args.bundle)
        restorer = self._open(self._bundle.path)
        if self._bundle.fallback and self.options.automatic and not restorer.bundle.manifest.diagnosis:
            return self._embedded(f"{restorer.bundle.path} has no diagnosis; export it again")
        if self._bundle.fallback and self.options.plugins:
            try:
                select_named(self.options.plugins, restorer.cards)
            except RequestError:
                return self._embedded(f"{restorer.bundle.path} lacks {', '.join(self.options.plugins)}")
        self._say(loaded_line(restorer, self._bundle.note))
        return restorer

    def _open(self, path: Path) -> Restorer:
        args = self.args
        return self._stack.enter_context(
            load(
                path,
                engine=args.engine,
                precision=args.precision,
                threads=args.threads,
                quality=args.quality,
                concurrency=args.concurrency if len(self.photos) > 1 else 1,
                device=args.device,
            )
        )

    def _embedded(self, reason: str) -> Restorer:
        """The embedded model, loaded when it first replaces the last export."""
        with self._lock:
            if self._packaged is None:
                self._packaged = self._open(default_bundle())
                self._say(loaded_line(self._packaged, f"the model in the package: {reason}"))
            return self._packaged

    def _asked(self, restorer: Restorer) -> dict[str, Any]:
        """Everything that determines a result."""
        args = self.args
        asked = {name: str(getattr(self.options, name)) for name in ("prompt", "plugins", *_FIELDS)}
        manifest = restorer.bundle.path / MANIFEST
        bundle = sha256(manifest) if manifest.is_file() else restorer.bundle.manifest.name
        own = {name: str(getattr(args, name)) for name in ("quality", "precision", "first_frame", "region", "feather")}
        mask = None if args.mask is None else self.record.hash(args.mask) if args.mask.is_file() else str(args.mask)
        return asked | own | {"mask": mask, "bundle": bundle}

    def _leave_out_results(self, found: Inputs) -> None:
        """Leave out results of earlier runs if their source photos or folder are inputs of this run."""
        for root in dict.fromkeys(photo.root for photo in found.photos):
            paths = [photo.path for photo in found.photos if photo.root == root and photo.path != STDIN]
            results = self.record.results_among(paths, root)
            found.photos = [p for p in found.photos if p.root != root or p.path not in results]
            found.left_out += [LeftOut(path=path, reason="result", kind="result") for path in paths if path in results]

    def _together(self, restorer: Restorer, at_once: int) -> None:
        """Restore several photos at once; the first error that does not belong to a single photo ends all of them."""
        from concurrent.futures import ThreadPoolExecutor, as_completed

        with ThreadPoolExecutor(at_once) as pool:
            running = [pool.submit(self._attempt, restorer, paths) for paths in self.photos]
            try:
                for done, future in enumerate(as_completed(running), 1):
                    future.result()
                    with self._lock:
                        self.bar(done, len(running), "photos")
            except BaseException:
                self._stopped.set()
                pool.shutdown(cancel_futures=True)
                raise

    def _make_folders(self) -> None:
        """Create the output folder and its tree, if the output is a folder."""
        if self.photos and not self.args.dry_run:
            folder = output_folder(self.naming, len(self.photos))
            if folder is not None:
                make_folders(folder, [paths.target for paths in self.photos])

    def _attempt(self, restorer: Restorer, paths: PhotoPaths) -> None:
        """Restore one photo. A bad photo does not stop the others; a bad request or bundle does."""
        try:
            self._one(restorer, paths)
        except (ImageError, NotFinite) as error:
            self._failed(paths, str(error))
        except MemoryError:
            self._failed(paths, f"{_name(paths)}: does not fit into memory; try --tile or a smaller --size")
        except BaseException:  # Ctrl-C too: the message gets a line of its own
            self.bar.clear()
            raise

    def _one(self, restorer: Restorer, paths: PhotoPaths) -> None:
        if self._is_cancelled():
            raise Cancelled("stopped")
        if self.args.skip_existing and self.results.is_up_to_date(paths):
            self._say(f"{_name(paths)}: skipped, {printable(paths.target)} is up to date")
            self.account.skipped(paths)
            return
        content = read_stdin() if paths.source == STDIN else None
        source = paths.source if content is None else content
        photo = read_photo(source, first_frame=self.args.first_frame, name=None if content is None else "stdin")
        for note in photo.notes:
            self._say(f"{_name(paths)}: {note}")
        if self.args.dry_run:
            self._plan(restorer, paths, photo)
        else:
            self._restore(restorer, paths, photo, content)

    def _plan(self, restorer: Restorer, paths: PhotoPaths, photo: Photo) -> None:
        """Report the plan of a photo."""
        mask = self._mask(paths, photo)
        plan, selection = restorer.plan(photo, self.options, mask=mask)
        if not plan.chain and (other := self._instead_of(restorer)):
            restorer = other
            plan, selection = restorer.plan(photo, self.options, mask=mask)
        self._say(self._understood(restorer, paths, selection), *(f"  {line}" for line in plan_lines(plan)))
        if not plan.chain:
            self._say(*refusal_lines(selection, restorer.cards))
        strength = self.options.strength
        if strength != 1:
            self._say(f"  strength: {strength}" + (" (chosen from the result)" if strength == "auto" else ""))
        self._say(f"  output:  {_target_name(paths)} (dry run: not written)")
        self.account.planned(paths, plan, selection, strength, bundle=restorer.bundle.manifest.name)

    def _restore(self, restorer: Restorer, paths: PhotoPaths, photo: Photo, content: bytes | None) -> None:
        began = time.perf_counter()
        self.results.check(paths, photo)
        made = self._run(restorer, paths, photo)
        if made.untouched and (other := self._instead_of(restorer)):
            restorer = other
            made = self._run(restorer, paths, photo)
        copies = made.untouched and self.args.keep_untouched == "copies"
        notes: tuple[str, ...] = ()
        if copies:
            self.results.copy(paths, photo, content)
        elif not made.untouched:
            notes = self.results.write(paths, photo, made.photo)
            for note in notes:
                self._say(f"{_target_name(paths)}: {note}")
        seconds = time.perf_counter() - began
        if made.untouched:
            self._say(*refusal_lines(made.selection, restorer.cards, copies=copies))
        else:
            self._say(done_line(made, _target_name(paths), seconds))
        self.account.made(paths, made, seconds, copied=copies, bundle=restorer.bundle.manifest.name, notes=notes)

    def _run(self, restorer: Restorer, paths: PhotoPaths, photo: Photo) -> Restoration:
        return restorer.restore(
            photo,
            self.options,
            mask=self._mask(paths, photo),
            on_plan=lambda plan, selection: self._announce(restorer, paths, plan, selection),
            progress=self.bar if self._alone else None,
            cancelled=self._is_cancelled,
        )

    def _mask(self, paths: PhotoPaths, photo: Photo) -> Mask | None:
        """The mask of this photo; None: all of it is restored."""
        args = self.args
        if args.mask is not None or args.region is not None:
            check_no_pages(photo, _name(paths))
        if args.mask is not None:
            return read_mask(args.mask, photo.size, feather=args.feather)
        return None if args.region is None else region_mask(args.region, photo.size, feather=args.feather)

    def _instead_of(self, restorer: Restorer) -> Restorer | None:
        """The embedded model, if the last export has no plugin for a request."""
        if not self._bundle.fallback or restorer is self._packaged:
            return None
        return self._embedded(f"{restorer.bundle.path} has nothing for this request")

    def _understood(self, restorer: Restorer, paths: PhotoPaths, selection: Selection) -> str:
        return f"{_name(paths)}: {selection_line(selection, restorer.cards, scores=self.args.scores)}"

    def _announce(self, restorer: Restorer, paths: PhotoPaths, plan: Plan, selection: Selection) -> None:
        self._say(self._understood(restorer, paths, selection))
        if plan.chain and (warning := memory_warning(plan)):
            with self._lock:
                self.bar.clear()
                print_error("dp-infer", warning)

    def _is_cancelled(self) -> bool:
        return self._stopped.is_set() or stop_requested()

    def _failed(self, paths: PhotoPaths, error: str) -> None:
        with self._lock:
            self.bar.clear()
            print_error("dp-infer", error)
            self.account.failed(paths, error)

    def _say(self, *lines: str) -> None:
        if not self.args.json and not self.args.quiet:
            with self._lock:
                self.bar.clear()
                say(*lines)


def _name(paths: PhotoPaths) -> str:
    return "stdin" if paths.source == STDIN else printable(paths.source)


def _target_name(paths: PhotoPaths) -> str:
    return "stdout" if paths.target == STDOUT else printable(paths.target)


def _cache() -> Path | None:
    """The cache folder; None: this user has none."""
    try:
        return cache_folder()
    except (OSError, RuntimeError):
        return None
