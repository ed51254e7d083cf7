"""Untrusted files: read only if they are regular files of a reasonable size, and hashed once per change."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from contextlib import suppress
from pathlib import Path

from diffplugin.files import write_text

_FILE = "hashes.json"
_MAX_ENTRIES = 4096
_SETTLED = 2.0  # seconds after which a further change of a file is certain to change its time stamps
Key = list[int]
_known: dict[str, tuple[Key, str]] = {}
_stores: dict[Path, tuple[Key, dict[str, object]]] = {}


class NotRegular(OSError):
    """The path is a folder, device, FIFO or socket instead of a file, or the file is too large for its purpose."""


def read_text(path: Path, *, limit: int) -> str:
    """UTF-8 text of a regular file of at most ``limit`` bytes. It never waits for the other end of a FIFO.

    Raises:
        NotRegular: it is not a regular file, or it is larger.
        OSError: it cannot be read. UnicodeDecodeError: it is not UTF-8.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb") as file:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise NotRegular("is no regular file")
        if about.st_size > limit:
            raise NotRegular(f"has {about.st_size} bytes, at most {limit} are read")
        return file.read(limit).decode("utf-8")


def sha256(*paths: Path) -> str:
    """Hash of the files' contents one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def identity(path: Path) -> Key:
    """Values that change with a file's contents: device, inode, size, times of last change.

    Raises:
        NotRegular: it is not a regular file. OSError: it does not exist.
    """
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise NotRegular("is no regular file")
    return [about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns]


def cached_sha256(path: Path, cache: Path) -> str:
    """:func:`sha256` of one file, computed again only if its identity has changed since.

    Args:
        cache: the folder that keeps the hash between processes; it need not be writable.

    Raises:
        OSError: the file cannot be read, or is not a regular file.
    """
    name, key = str(path.resolve()), identity(path)
    if (known := _known.get(name)) is not None and known[0] == key:
        return known[1]
    store = cache / _FILE
    kept = _kept(store)
    entry = kept.get(name)
    if isinstance(entry, list) and len(entry) == 2 and entry[0] == key and isinstance(entry[1], str):
        digest = entry[1]
    else:
        digest = sha256(path)
        if identity(path) != key or time.time() - max(key[3:]) / 1e9 < _SETTLED:
            return digest  # it may change once more within the resolution of its times
        kept.pop(name, None)
        _keep(store, kept | {name: [key, digest]})
    _known[name] = (key, digest)
    return digest


def _kept(store: Path) -> dict[str, object]:
    """The hashes of ``store``, read again only after it has changed."""
    try:
        key = identity(store)
    except OSError:
        return {}
    if (read := _stores.get(store)) is None or read[0] != key:
        read = _stores[store] = (key, _read(store))
    return dict(read[1])


def _read(store: Path) -> dict[str, object]:
    try:
        found = json.loads(read_text(store, limit=2**24))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _keep(store: Path, entries: dict[str, object]) -> None:
    """Store the hash; if the cache cannot be written, only time is lost at the next start."""
    newest = list(entries.items())[-_MAX_ENTRIES:]
    with suppress(OSError):
        write_text(store, json.dumps(dict(newest)))
