"""Folders of photos on any file system of fsspec: listing, checking for results, restoring one photo."""

from __future__ import annotations

import hashlib
import json
import posixpath
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffplugin.errors import DiffPluginError, MissingDependency, RequestError
from diffplugin.runtime.photos.read import read_photo
from diffplugin.runtime.photos.write import output_suffixes, write_photo

if TYPE_CHECKING:
    from diffplugin.runtime.options import RestoreOptions
    from diffplugin.runtime.restorer import Restorer

RECORDS = ".diffplugin"  # folder of the output that says what was made from what
_READ_ONLY = (".gif", ".jfif", ".jp2", ".jpe", ".ppm")


@dataclass(frozen=True)
class Task:
    """One photo: its path, the paths of its result and record, and the mark of that result.

    ``mark`` changes with the photo (as its file system tells), the request and the recipe.
    """

    source: str
    target: str
    record: str
    mark: str


def filesystem(url: str) -> tuple[Any, str]:
    """(fsspec's file system, path in it) of ``s3://…``, ``gs://…``, ``memory://…`` or a local path.

    Raises:
        MissingDependency: fsspec, or its driver for this kind of URL, is not installed.
    """
    try:
        from fsspec.core import url_to_fs

        found: tuple[Any, str] = url_to_fs(url)
        return found
    except ImportError as error:
        raise MissingDependency(f"{url}: {error}; pip install 'diffplugin[scale]' and fsspec's driver") from None
    except ValueError as error:
        raise RequestError(f"{url}: {error}; expected a folder or a URL that fsspec knows") from None


def find_tasks(source: str, target: str, request: str) -> Iterator[Task]:
    """A task for each photo below ``source``; its result has the same path below ``target``.

    Args:
        request: everything that shapes a result, as text.

    Raises:
        RequestError: ``source`` is not a folder.
    """
    files, root = filesystem(source)
    _, out = filesystem(target)
    if not files.isdir(root):
        raise RequestError(f"{source}: no folder of photos is there")
    for path in sorted(files.find(root)):
        name = posixpath.relpath(path, root)
        stem, suffix = posixpath.splitext(name)
        hidden = any(part.startswith(".") for part in name.split("/"))
        if hidden or suffix.lower() not in (*output_suffixes(), *_READ_ONLY):
            continue
        written = name if suffix.lower() in output_suffixes() else f"{stem}.png"
        mark = hashlib.sha256(f"{files.ukey(path)}\n{request}".encode()).hexdigest()
        yield Task(path, posixpath.join(out, written), posixpath.join(out, RECORDS, f"{name}.json"), mark)


def is_done(task: Task, target: str) -> bool:
    """Whether the result exists and comes from the same photo and the same request."""
    files, _ = filesystem(target)
    try:
        record = json.loads(files.cat_file(task.record))
    except (OSError, ValueError):
        return False
    return bool(record.get("mark") == task.mark and files.exists(task.target))


def restore_task(restorer: Restorer, task: Task, source: str, target: str, options: RestoreOptions) -> dict[str, Any]:
    """Restore one photo. A photo that cannot be restored is reported in the record; no error is raised.

    Args:
        source, target: URLs of the file systems.

    Returns:
        The record: source, target, mark, and plugins and seconds, or the error.
    """
    record: dict[str, Any] = asdict(task)
    try:
        with tempfile.TemporaryDirectory() as folder:
            here = Path(folder) / f"photo{posixpath.splitext(task.target)[1].lower()}"
            filesystem(source)[0].get_file(task.source, str(here))
            made = restorer.restore(read_photo(here), options)
            if not made.untouched or posixpath.splitext(task.source)[1] != posixpath.splitext(task.target)[1]:
                write_photo(here, made.photo)
            _put(target, here.read_bytes(), task.target)
        record |= {"plugins": list(made.selection.chosen), "seconds": round(sum(made.timings.values()), 3)}
        _put(target, json.dumps(record).encode(), task.record)
    except (DiffPluginError, OSError, MemoryError) as error:
        text = str(error) or type(error).__name__
        record["error"] = text.replace(str(here), task.source) if "here" in locals() else text
    return record


def _put(target: str, data: bytes, path: str) -> None:
    """Write a file whole or not at all: beside its destination, then moved. An object store does this itself."""
    files, _ = filesystem(target)
    files.makedirs(posixpath.dirname(path), exist_ok=True)
    if "file" not in (files.protocol if isinstance(files.protocol, tuple) else (files.protocol,)):
        files.pipe_file(path, data)
        return
    from diffplugin.files import write_bytes

    write_bytes(path, data)
