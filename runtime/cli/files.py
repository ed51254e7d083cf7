"""Words of a command line -> pictures to read, the request, and where each result goes."""

from __future__ import annotations

import glob
import os
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffplugin.errors import ImageError, RequestError
from diffplugin.runtime.photos.read import printable
from diffplugin.runtime.photos.write import output_suffixes

MADE = ("-restored", "-compare")  # ends of the names made here; a folder's pictures of these names are left out
_READ_ONLY = (".gif", ".jfif", ".jp2", ".j2k", ".jpe", ".pgm", ".pnm", ".ppm")


@dataclass(frozen=True, kw_only=True)
class PhotoPaths:
    """One picture: the file to read, the file to write, and the side-by-side picture, if one is wanted."""

    source: Path
    target: Path
    compare: Path | None = None


def split_request(words: Sequence[str], *, named: bool) -> tuple[list[str], str | None]:
    """(inputs, request) of the positional words: the last one is the request.

    With plugins ``named`` on the command line no request is needed: the last word is one only if it names no file.

    Raises:
        RequestError: no input is left, or the last word is a file and not a request.
    """
    *inputs, last = words
    if named:
        return (list(words), None) if _is_input(last) or not inputs else (inputs, last)
    if not inputs and _is_input(last):
        raise RequestError(f'say what to do with {printable(last)}, for example "remove the blur", or name a --plugin')
    if not inputs:
        raise RequestError(f"no picture given: the only word is {printable(last)!r}; expected INPUT... PROMPT")
    if _exists(last):
        raise RequestError(f"the last word, {printable(last)}, is a file; it must be the request, or name a --plugin")
    return inputs, last


def _is_input(word: str) -> bool:
    return _exists(word) or glob.has_magic(word) or Path(word).suffix.lower() in _suffixes()


def _exists(word: str) -> bool:
    """Whether a word names something: a long request is no path, an empty one not the working folder."""
    return bool(word) and os.path.exists(word)  # noqa: PTH110 - Path.exists raises for names that are too long


def _suffixes() -> tuple[str, ...]:
    return (*output_suffixes(), *_READ_ONLY)


def find_photos(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """(files, faults) of inputs: files, folders (their pictures, not those of folders below) and glob patterns.

    A file that does not exist is among the files: reading it says so. Each file comes once, in the order given.
    """
    files: list[Path] = []
    faults = []
    for word in words:
        path = Path(word)
        if os.path.isdir(word):  # noqa: PTH112 - Path.is_dir raises for names that are too long
            found = sorted(p for p in path.iterdir() if _is_picture(p))
            faults += [] if found else [f"{printable(word)}: no pictures in this folder"]
        elif not _exists(word) and glob.has_magic(word):
            names = glob.glob(word, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
            found = sorted(Path(name) for name in names if Path(name).is_file())
            faults += [] if found else [f"{printable(word)}: no file matches"]
        else:
            found = [path]
        files += found
    return list(dict.fromkeys(files)), faults


def _is_picture(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in _suffixes() and not path.stem.endswith(MADE)


def plan_outputs(files: Sequence[Path], output: str | None, *, compare: bool) -> list[PhotoPaths]:
    """Where each picture goes.

    Without ``output``: beside the input, as ``<name>-restored``. With a folder (it exists, ends in a slash, has no
    suffix, or several pictures come): under their own names there. Else: the file ``output``. Never over an input;
    equal names are numbered.

    Raises:
        RequestError: several pictures cannot go to one file.
    """
    folder = None
    if output is not None and _means_folder(output, len(files)):
        folder = Path(output)
        if not folder.is_dir() and (folder.suffix.lower() in output_suffixes() or folder.is_file()):
            count = "pictures" if len(files) != 1 else "picture"
            raise RequestError(f"output {printable(output)} is a file, expected a folder for {len(files)} {count}")
    sources = {os.path.realpath(file) for file in files}
    taken: set[str] = set()
    planned = []
    for file in files:
        suffix = file.suffix if file.suffix.lower() in output_suffixes() else ".png"
        if output is None:
            target = file.with_name(f"{file.stem}{MADE[0]}{suffix}")
        else:
            target = folder / f"{file.stem}{suffix}" if folder else Path(output)
        target = _free(target, sources, taken)
        taken.add(os.path.realpath(target))
        side = target.with_name(f"{target.stem}{MADE[1]}{target.suffix}") if compare else None
        planned.append(PhotoPaths(source=file, target=target, compare=side))
    return planned


def _means_folder(output: str, pictures: int) -> bool:
    path = Path(output)
    return path.is_dir() or output.endswith(("/", os.sep)) or not path.suffix or pictures > 1


def _free(target: Path, sources: set[str], taken: set[str]) -> Path:
    """``target``, or the like of it that is no input and not given to another picture."""
    if os.path.realpath(target) in sources:
        target = target.with_name(f"{target.stem}{MADE[0]}{target.suffix}")
    number = 1
    made = target
    while os.path.realpath(made) in taken | sources:
        number += 1
        made = target.with_name(f"{target.stem}-{number}{target.suffix}")
    return made


def copy_file(source: Path, target: Path) -> None:
    """Copy a file byte by byte, whole or not at all.

    Raises:
        ImageError: it cannot be written.
    """
    temporary = target.with_name(f".diffplugin-{secrets.token_hex(6)}.tmp")
    try:
        shutil.copyfile(source, temporary)
        temporary.replace(target)
    except OSError as error:
        raise ImageError(f"{printable(target)}: cannot be written ({error.strerror or error})") from None
    finally:
        temporary.unlink(missing_ok=True)
