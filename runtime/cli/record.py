"""The record of results and their sources, in the cache folder.

A result is recognised by its contents and its place, not by its name. So a folder run leaves out exactly the results of
earlier runs over that folder's photos, ``--skip-existing`` skips results that are up to date, and no other file is
replaced. If the record is lost, only this knowledge is lost. It has one line of JSON for each result; the last one
about a file counts. Each line is added in one write, so that several commands may run at the same time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from diffplugin.files import write_text
from diffplugin.integrity import sha256

RECORD = "results.jsonl"
NO_RECORD = (
    f"{RECORD} in the cache folder cannot be written, so later runs will not recognise these results; let "
    "DIFFPLUGIN_CACHE name a folder that can be written"
)
MAX_LINES = 50_000  # half of them stay when there are more

_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # Windows has no such flag, and no named pipes in folders

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One result. Paths are absolute, links resolved; ``request`` is a fingerprint of the whole request."""

    target: str
    target_sha256: str
    target_bytes: int
    target_mtime_ns: int
    source: str
    source_sha256: str
    source_bytes: int
    request: str


class Record:
    """The results of this user's commands. Never raises: a record that cannot be written gives a debug line."""

    def __init__(self, cache: Path | None) -> None:
        self._file = None if cache is None else cache / RECORD
        self._hashes: dict[tuple[str, int, int], str] = {}

    @property
    def writable(self) -> bool:
        """Whether results of this run can be recorded."""
        if self._file is None:
            return False
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            if self._file.exists():
                return self._file.is_file() and os.access(self._file, os.W_OK)
            return os.access(self._file.parent, os.W_OK)
        return False

    @cached_property
    def _entries(self) -> list[Entry]:
        lines = []
        if self._file is not None and self._file.is_file():  # opening a pipe would wait for ever
            with suppress(OSError):
                lines = self._file.read_text(encoding="utf-8", errors="replace").splitlines()
        if len(lines) > MAX_LINES and self._file is not None:
            lines = lines[-MAX_LINES // 2 :]
            with suppress(OSError):
                write_text(self._file, "".join(f"{line}\n" for line in lines))
        entries = []
        for line in lines:
            with suppress(ValueError, TypeError):  # cut by a full disk, or of another version
                entries.append(Entry(**json.loads(line)))
        return entries

    @cached_property
    def _by_target(self) -> dict[str, Entry]:
        return {entry.target: entry for entry in self._entries}

    @cached_property
    def _by_size(self) -> dict[int, list[Entry]]:
        sizes: dict[int, list[Entry]] = {}
        for entry in reversed(self._entries):
            sizes.setdefault(entry.target_bytes, []).append(entry)
        return sizes

    def made(self, path: Path) -> Entry | None:
        """The source of ``path``, if it is an unchanged result, wherever it is now."""
        with suppress(OSError):
            status, real = path.stat(), _real(path)
            here = self._by_target.get(real)
            if here and (here.target_bytes, here.target_mtime_ns) == (status.st_size, status.st_mtime_ns):
                return here
            kin = self._by_size.get(status.st_size)
            if kin:
                found = [entry for entry in kin if entry.target_sha256 == self.hash(path)]
                moved = (entry for entry in found if entry.target_sha256 != entry.source_sha256)
                return here if here in found else next(moved, None)
        return None

    def results_among(self, paths: Iterable[Path], folder: Path | None) -> set[Path]:
        """Those of a run's photos that are results of other photos of the run, and so must not be restored again.

        Results whose originals are elsewhere are photos like any other.

        Args:
            folder: the folder in which all of them were found; a result of a photo that used to be there counts too.
                None: they were named, or match a pattern.
        """
        paths = list(paths)
        root = None if folder is None else os.path.join(_real(folder), "")  # noqa: PTH118
        originals = {_real(path) for path in paths}
        results = set()
        for path in paths:
            entry = self.made(path)
            if entry is None or entry.source == _real(path):
                continue
            if (root and entry.source.startswith(root)) or self._lies_among(entry, originals, paths):
                results.add(path)
        return results

    def _lies_among(self, entry: Entry, originals: set[str], paths: Iterable[Path]) -> bool:
        """Whether the source of a result is one of ``paths``, possibly under another name."""
        if entry.source in originals:
            return True
        with suppress(OSError):
            return any(p.stat().st_size == entry.source_bytes and self.hash(p) == entry.source_sha256 for p in paths)
        return False

    def up_to_date(self, source: Path, target: Path, request: str) -> bool:
        """Whether ``target`` is the result of ``request`` for the present contents of ``source``."""
        entry = self.made(target)
        if entry is None or entry.request != request:
            return False
        with suppress(OSError):
            return source.stat().st_size == entry.source_bytes and self.hash(source) == entry.source_sha256
        return False

    @cached_property
    def _by_source(self) -> dict[str, list[Entry]]:
        sources: dict[str, list[Entry]] = {}
        for entry in self._by_target.values():
            sources.setdefault(entry.source, []).append(entry)
        return sources

    def targets_of(self, source: Path) -> list[Path]:
        """The paths of a photo's results."""
        return [Path(entry.target) for entry in self._by_source.get(_real(source), ())]

    def hash(self, path: Path) -> str:
        """SHA-256 of a file, computed again only if the file changes."""
        status = path.stat()
        key = str(path), status.st_size, status.st_mtime_ns
        if key not in self._hashes:
            self._hashes[key] = sha256(path)
        return self._hashes[key]

    def add(self, source: Path, target: Path, request: str) -> None:
        """Record that ``target`` is a result of ``source``."""
        if self._file is None:
            return
        try:
            made, given = target.stat(), source.stat()
            entry = Entry(
                target=os.path.realpath(target),
                target_sha256=self.hash(target),
                target_bytes=made.st_size,
                target_mtime_ns=made.st_mtime_ns,
                source=os.path.realpath(source),
                source_sha256=self.hash(source),
                source_bytes=given.st_size,
                request=request,
            )
            self._file.parent.mkdir(parents=True, exist_ok=True)
            line = (json.dumps(asdict(entry)) + "\n").encode("ascii")
            handle = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _NO_WAIT, 0o600)
            try:
                os.write(handle, line)
            finally:
                os.close(handle)
        except OSError as error:
            _log.debug("%s: not noted as made from %s (%s)", target, source, error)


def _real(path: Path) -> str:
    """The path with links resolved; unchanged if the working folder was deleted."""
    try:
        return os.path.realpath(path)
    except OSError:
        return str(path)


def fingerprint(facts: object) -> str:
    """A short hash of a request."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]
