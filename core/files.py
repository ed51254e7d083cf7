"""Write a file whole or not at all: after an interrupt or a second writer, no reader sees a partial file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY = ".diffplugin-"  # begins the name of what an interrupted write may have left

_unfinished: set[Path] = set()


@contextmanager
def unfinished(path: Path) -> Iterator[None]:
    """Mark ``path``, a file or a folder, as unfinished until the block ends. If it still exists then, it is removed;
    :func:`discard_unfinished` also removes it."""
    _unfinished.add(path)
    try:
        yield
    finally:
        _remove(path)
        _unfinished.discard(path)


def discard_unfinished() -> None:
    """Remove all unfinished files from a thread other than the writer's, because the process is about to end."""
    for path in tuple(_unfinished):
        _remove(path)


def _remove(path: Path) -> None:
    with suppress(OSError):  # gone with its folder, or in a folder that became read-only
        path.unlink(missing_ok=True)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)


def temporary_beside(target: Path) -> Path:
    """An unused file name in the same folder. ``tempfile`` is not used: it makes files private whatever the umask
    is."""
    return target.with_name(f"{TEMPORARY}{os.urandom(6).hex()}.tmp")


@contextmanager
def written_whole(path: str | os.PathLike[str], *, like: Path | None = None) -> Iterator[Path]:
    """Give a temporary file beside ``path`` to write into; it replaces ``path`` only on success.

    On any exception, including an interrupt, it is removed and an older file stays unchanged. The last of two writers
    wins. A replaced file keeps its permissions; a link stays a link to the new contents.

    Args:
        like: a file that a new one is made from. Who may not read that one may not read the new one either.

    Raises:
        OSError: the folder cannot be written.
    """
    target = Path(os.path.realpath(path))
    temporary = temporary_beside(target)
    with unfinished(temporary):
        if like is not None:  # before the first byte, so that it is never open to others
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, _mode_like(like)))
        yield temporary
        if target.is_file():
            temporary.chmod(target.stat().st_mode & 0o7777)
        temporary.replace(target)


def _mode_like(path: Path) -> int:
    """Permissions of a new file made from ``path``: read and write where ``path`` gives them; the owner's always."""
    try:
        return path.stat().st_mode & 0o666 | 0o600
    except OSError:  # gone meanwhile: the umask alone decides
        return 0o666


def write_bytes(path: str | os.PathLike[str], *parts: bytes | memoryview) -> None:
    """Write ``parts`` one after the other, whole or not at all; missing folders are created.

    Raises:
        OSError: it cannot be written.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary, temporary.open("wb") as file:
        file.writelines(parts)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text, whole or not at all; missing folders are created.

    Raises:
        OSError: it cannot be written.
    """
    write_bytes(path, text.encode("utf-8"))


def copy_file(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Copy a file byte by byte, whole or not at all; a new file is open to nobody to whom the old one is closed.

    Raises:
        OSError: it cannot be read or written.
    """
    with written_whole(target, like=Path(source)) as temporary:
        shutil.copyfile(source, temporary)
