"""Uploaded files: kept below ``incoming/`` until they belong to a job, checked only by their headers."""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, TYPE_CHECKING

from diffplugin.errors import UnsupportedImage
from diffplugin.runtime.photos.read import printable, read_header
from diffplugin.runtime.serve.fields import suffix_of
from diffplugin.runtime.serve.problems import Problem

if TYPE_CHECKING:
    from starlette.datastructures import UploadFile

    from diffplugin.runtime.serve.settings import Settings

_BLOCK = 2**20


@dataclass(frozen=True, kw_only=True)
class Received:
    """An upload on disk. ``size``: (width, height) as stored in the file; ``suffix``: of a result in its format."""

    path: Path
    name: str
    digest: str
    size: tuple[int, int]
    suffix: str


def receive(upload: UploadFile, settings: Settings, what: str = "photo", *, durable: bool = False) -> Received:
    """Put an upload into a file and check its header.

    Args:
        durable: the file is on the disk when this returns.

    Raises:
        Problem: too many pixels, or an unsupported kind of file.
        ImageError: empty, damaged or too small.
    """
    path = settings.state / "incoming" / secrets.token_hex(16)
    try:
        digest = _save(upload.file, path, durable)
        return _checked(path, display_name(upload.filename, what), digest, settings.max_pixels)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def display_name(given: str | None, what: str) -> str:
    """The last part of a client's file name, printable and short: for messages and downloads, never used as a path."""
    last = PurePosixPath(PureWindowsPath(given or "").name).name
    clean = "".join(c for c in last if c.isprintable() and c not in '<>:"/\\|?*;').strip(". ")
    return printable(clean[:100] or what)


def _save(source: IO[bytes], path: Path, durable: bool) -> str:
    digest = hashlib.sha256()
    source.seek(0)
    with path.open("xb") as file:
        while block := source.read(_BLOCK):
            digest.update(block)
            file.write(block)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    return digest.hexdigest()


def _checked(path: Path, name: str, digest: str, max_pixels: int) -> Received:
    try:
        format_name, size = read_header(path, name=name)
    except UnsupportedImage as error:
        raise Problem("unsupported", str(error)) from None
    if size[0] * size[1] > max_pixels:
        raise Problem(
            "too-large",
            f"{name}: {size[0]}x{size[1]} is {size[0] * size[1]:,} pixels, expected at most {max_pixels:,}; "
            "make it smaller",
        )
    return Received(path=path, name=name, digest=digest, size=size, suffix=suffix_of(format_name))
