"""Writing a file whole or not at all: readers, interrupts and second writers never see half of one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".diffplugin-"  # begins the name of what an interrupted write may have left


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file beside ``path`` to write into; it takes the place of ``path`` on success only.

    On any exception, an interrupt too, it is removed and an older file stays as it was. The last of two writers wins.
    A replaced file keeps its permissions; a link stays a link to the new contents.

    Raises:
        OSError: the folder cannot be written.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f"{TEMPORARY}{secrets.token_hex(6)}.tmp")
    try:
        yield temporary
        if target.is_file():
            temporary.chmod(target.stat().st_mode & 0o7777)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], *parts: bytes | memoryview) -> None:
    """Write ``parts`` one after the other, whole or not at all; folders are made.

    Raises:
        OSError: it cannot be written.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary, temporary.open("wb") as file:
        file.writelines(parts)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text, whole or not at all; folders are made.

    Raises:
        OSError: it cannot be written.
    """
    write_bytes(path, text.encode("utf-8"))
