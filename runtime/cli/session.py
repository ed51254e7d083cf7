"""One call of ``dp-infer``: photos one after another or several at once, and what becomes of each."""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path
from threading import Event, RLock
from typing import Any, BinaryIO

from diffplugin import load
from diffplugin.bundle import cache_folder, default_bundle
from diffplugin.command import print_error, say
from diffplugin.default_bundle import choose_bundle
from diffplugin.errors import Cancelled, ImageError, NotFinite, RequestError
from diffplugin.files import copy_file
from diffplugin.integrity import sha256
from diffplugin.manifest import MANIFEST
from diffplugin.runtime.cli.account import Account
from diffplugin.runtime.cli.inputs import STDIN, Inputs, LeftOut, find_photos, split_request
from diffplugin.runtime.cli.messages import (
    ProgressBar,
    done_line,
    example_lines,
    loaded_line,
    memory_warning,
    plan_lines,
    selection_line,
)
from diffplugin.runtime.cli.pipes import check_pipes, photo_bytes, read_stdin, write_all
from diffplugin.runtime.cli.record import Record, fingerprint
from diffplugin.runtime.cli.targets import STDOUT, Naming, PhotoPaths, plan_targets
from diffplugin.runtime.options import RestoreOptions
from diffplugin.runtime.photos.mask import Mask, read_mask, region_mask
from diffplugin.runtime.photos.pixels import side_by_side
from diffplugin.runtime.photos.read import Photo, printable, read_photo
from diffplugin.runtime.photos.write import check_writable, not_kept, write_photo
from diffplugin.runtime.planning.plan import Plan
from diffplugin.runtime.request.selection import Selection, select_named
from diffplugin.runtime.restoration import Restoration
from diffplugin.runtime.restorer import Restorer
from diffplugin.signals import stop_requested
from diffplugin.streams import stdout_for_data

_FIELDS = ("seed", "steps", "sampler", "size", "tile", "output_size")


class Session:
    """One call of ``dp-infer``: its options, its loaded bundle, what came of each photo."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        words, prompt = split_request(args.words, named=bool(args.plugin))
        fields = {name: getattr(args, name) for name in _FIELDS}
        self.options = RestoreOptions(prompt=prompt, plugins=args.plugin or None, **fields)
        self.record = Record(_cache())
        found = find_photos(words, recursive=args.recursive)
        self._leave_out_results(found)
        naming = Naming(
            output=args.output,
            compare=args.compare,
            suffix=None if args.format is None else f".{args.format}",
            overwrite=args.overwrite,
        )
        self.photos = plan_targets(found.photos, naming, self.record)
        self.account = Account(found, self.photos)
        self._stopped, self._lock = Event(), RLock()
        self.bar = ProgressBar(sys.stderr, hidden=args.quiet)
        self._stdout: BinaryIO | None = None
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
            if self.writes_stdout:
                self._stdout = stack.enter_context(stdout_for_data())
            restorer = self._load(stack)
            self._request = fingerprint(self._asked(restorer))
            self._make_folder()
            at_once = 1 if args.dry_run else max(1, min(restorer.concurrency, len(self.photos)))
            self._alone = at_once == 1
            if at_once > 1:
                self._together(restorer, at_once)
            else:
                for paths in self.photos:
                    self._attempt(restorer, paths)
            return self.account.finish(restorer, args)

    def _load(self, stack: ExitStack) -> Restorer:
        """The restorer; the package's model where the last export lacks a plugin that was named."""
        self._stack, self._bundle = stack, choose_bundle(self.args.bundle)
        restorer = self._open(self._bundle.path)
        if self._bundle.fallback and self.options.plugins:
            try:
                select_named(self.options.plugins, restorer.cards)
            except RequestError:
                return self._embedded(f"{restorer.bundle.path} lacks {', '.join(self.options.plugins)}")
        self._say(loaded_line(restorer, self._bundle.reason if self._bundle.fallback else ""))
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
        """The package's model, loaded when it first stands in for the last export."""
        with self._lock:
            if self._packaged is None:
                self._packaged = self._open(default_bundle())
                self._say(loaded_line(self._packaged, f"the model in the package: {reason}"))
            return self._packaged

    def _asked(self, restorer: Restorer) -> dict[str, Any]:
        """Everything that decides what a result looks like."""
        args = self.args
        asked = {name: str(getattr(self.options, name)) for name in ("prompt", "plugins", *_FIELDS)}
        manifest = restorer.bundle.path / MANIFEST
        bundle = sha256(manifest) if manifest.is_file() else restorer.bundle.manifest.name
        return asked | {"quality": args.quality, "precision": args.precision, "bundle": bundle}

    def _leave_out_results(self, found: Inputs) -> None:
        """Results of earlier runs are no inputs of a run over the folder that they were made from."""
        for root in {photo.root for photo in found.photos if photo.root is not None}:
            below = [photo.path for photo in found.photos if photo.root == root]
            results = self.record.results_among(below, root)
            found.photos = [p for p in found.photos if p.root != root or p.path not in results]
            found.left_out += [LeftOut(path=path, reason="result", kind="result") for path in below if path in results]

    def _together(self, restorer: Restorer, at_once: int) -> None:
        """Several photos at once; the first error that is not a photo's own ends them all."""
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

    def _make_folder(self) -> None:
        """The output folder, made if a folder was asked for."""
        given = self.args.output
        if given is None or self.writes_stdout or self.args.dry_run:
            return
        if self.photos and all(Path(given) != paths.target for paths in self.photos):
            _make(Path(given), *{paths.target.parent for paths in self.photos if _below(paths.target, Path(given))})

    def _attempt(self, restorer: Restorer, paths: PhotoPaths) -> None:
        """One photo; a bad one does not stop the others, a bad request or bundle does."""
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
        args, began = self.args, time.perf_counter()
        if self._is_cancelled():
            raise Cancelled("stopped")
        if args.skip_existing and self._is_up_to_date(paths):
            self._say(f"{_name(paths)}: skipped, {printable(paths.target)} is up to date")
            self.account.skipped(paths)
            return
        content = read_stdin() if paths.source == STDIN else None
        source = paths.source if content is None else content
        photo = read_photo(source, first_frame=args.first_frame, name=None if content is None else "stdin")
        for note in photo.notes:
            self._say(f"{_name(paths)}: {note}")
        if args.dry_run:
            plan, selection = restorer.plan(photo, self.options, mask=self._mask(photo))
            self._say(f"{_name(paths)}: {selection_line(selection)}", *(f"  {line}" for line in plan_lines(plan)))
            self._say(f"  output:  {_target_name(paths)} (dry run: not written)")
            self.account.planned(paths, plan, selection)
            return
        if paths.target != STDOUT:
            check_writable(paths.target, photo)
            if paths.compare:
                check_writable(paths.compare)
        made = self._restore(restorer, paths, photo)
        if made.untouched and self._bundle.fallback and restorer is not self._packaged:
            made = self._restore(self._embedded(f"{restorer.bundle.path} has nothing for this request"), paths, photo)
        notes: tuple[str, ...] = ()
        if made.untouched:
            self._leave_untouched(restorer, paths, photo, content)
        else:
            self._write(paths, made, photo)
            notes = not_kept(paths.target, made.photo) if paths.target != STDOUT else ()
            for note in notes:
                self._say(f"{_target_name(paths)}: {note}")
        seconds = time.perf_counter() - began
        if not made.untouched:
            self._say(done_line(made, _target_name(paths), seconds))
        self.account.made(paths, made, seconds, copied=made.untouched and args.keep_untouched == "copies", notes=notes)

    def _mask(self, photo: Photo) -> Mask | None:
        """Where this photo is restored; None: all of it."""
        args = self.args
        if args.mask is not None:
            return read_mask(args.mask, photo.size, feather=args.feather)
        return None if args.region is None else region_mask(args.region, photo.size, feather=args.feather)

    def _restore(self, restorer: Restorer, paths: PhotoPaths, photo: Photo) -> Restoration:
        return restorer.restore(
            photo,
            self.options,
            mask=self._mask(photo),
            on_plan=lambda plan, selection: self._announce(paths, plan, selection),
            progress=self.bar if self._alone else None,
            cancelled=self._is_cancelled,
        )

    def _announce(self, paths: PhotoPaths, plan: Plan, selection: Selection) -> None:
        self._say(f"{_name(paths)}: {selection_line(selection)}")
        if plan.chain and (warning := memory_warning(plan)):
            with self._lock:
                self.bar.clear()
                print_error("dp-infer", warning)

    def _write(self, paths: PhotoPaths, made: Restoration, photo: Photo) -> None:
        if self._stdout is not None:
            write_all(self._stdout, photo_bytes(made.photo, f".{self.args.format or 'png'}"))
            return
        write_photo(paths.target, made.photo)
        self._note(paths, paths.target)
        if paths.compare:
            write_photo(paths.compare, side_by_side(photo.rgb, made.photo.rgb))
            self._note(paths, paths.compare)

    def _leave_untouched(self, restorer: Restorer, paths: PhotoPaths, photo: Photo, content: bytes | None) -> None:
        """Nothing was selected: no file pretends to be restored, unless copies are asked for."""
        copies = self.args.keep_untouched == "copies"
        self._say(*example_lines(restorer.cards.values(), copies=copies))
        if not copies:
            return
        if self._stdout is not None:
            own = content if content is not None else paths.source.read_bytes()
            write_all(self._stdout, own if self.args.format is None else photo_bytes(photo, f".{self.args.format}"))
            return
        if paths.source.suffix.lower() == paths.target.suffix.lower():
            try:
                copy_file(paths.source, paths.target)
            except OSError as error:
                reason = error.strerror or error
                raise ImageError(f"{printable(paths.target)}: cannot be written ({reason})") from None
        else:
            write_photo(paths.target, photo)
        self._note(paths, paths.target)
        if paths.compare:
            write_photo(paths.compare, side_by_side(photo.rgb, photo.rgb))
            self._note(paths, paths.compare)

    def _note(self, paths: PhotoPaths, path: Path) -> None:
        if paths.source != STDIN:
            self.record.add(paths.source, path, self._request)

    def _is_up_to_date(self, paths: PhotoPaths) -> bool:
        if paths.source == STDIN or paths.target == STDOUT:
            return False
        wanted = filter(None, (paths.target, paths.compare))
        return all(self.record.up_to_date(paths.source, path, self._request) for path in wanted)

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


def _below(path: Path, folder: Path) -> bool:
    return path.is_relative_to(folder)


def _make(*folders: Path) -> None:
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ImageError(f"{printable(folder)}: this folder cannot be made ({error.strerror})") from None


def _cache() -> Path | None:
    """The cache folder; None: this user has no place for one."""
    try:
        return cache_folder()
    except (OSError, RuntimeError):
        return None
