"""Reads untrusted files: only regular files, of a bounded size, and one line for every fault."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from diffplugin.errors import CheckpointError

MAX_CONFIG_BYTES = 16 * 2**20  # the largest published config is 6 KB, the largest weight index about 200 KB
MAX_TOKENIZER_BYTES = 64 * 2**20  # CLIP's tokenizer.json has 3.6 MB


def check_file(path: Path, *, max_bytes: int | None = None) -> None:
    """Check that ``path`` is a regular file, or a link to one, and not larger than ``max_bytes``. It is not opened,
    because a pipe or a device would hang.

    Raises:
        CheckpointError: it is missing, a folder, a broken link, a device, or too large.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        kind = "a link to nothing" if path.is_symlink() else "missing; is this the right checkpoint folder?"
        raise CheckpointError(f"{path}: {kind}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if stat.S_ISDIR(found.st_mode):
        raise CheckpointError(f"{path}: is a folder, expected a file")
    if not stat.S_ISREG(found.st_mode):
        raise CheckpointError(f"{path}: is not a regular file")
    if max_bytes is not None and found.st_size > max_bytes:
        raise CheckpointError(f"{path}: has {found.st_size} bytes, expected at most {max_bytes}")


def exists(path: Path) -> bool:
    """Whether anything exists at ``path``; :func:`check_file` then reports its faults."""
    try:
        return path.is_symlink() or path.exists()
    except (OSError, ValueError):
        return False


def is_file(path: Path) -> bool:
    """Whether something other than a folder exists at ``path``."""
    return exists(path) and not is_folder(path)


def is_folder(path: Path) -> bool:
    """Whether ``path`` is a folder or a link to one; False if that cannot be determined."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def names_in(folder: Path) -> list[str]:
    """Names in a folder, sorted.

    Raises:
        CheckpointError: it is missing, not a folder, or unreadable.
    """
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except FileNotFoundError:
        kind = "a link to nothing" if folder.is_symlink() else "missing"
        raise CheckpointError(f"{folder}: {kind}") from None
    except NotADirectoryError:
        raise CheckpointError(f"{folder}: is not a folder") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def read_json(path: Path, *, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """A JSON object in UTF-8, with or without a byte order mark.

    Raises:
        CheckpointError: there is no such file, or it holds something else.
    """
    check_file(path, max_bytes=max_bytes)
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a JSON file ({error})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds {type(value).__name__}, expected an object")
    return value
