"""Arguments of a command line -> the request, the photos to read, and an account of every other file found."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from diffplugin.errors import RequestError
from diffplugin.runtime.cli.kinds import is_aside, is_aside_folder, read_suffixes, unread_kinds
from diffplugin.runtime.photos.read import printable

STDIN = Path("-")

Reason = Literal["ignored", "folder", "no photo", "unsupported", "result"]


@dataclass(frozen=True, kw_only=True)
class Input:
    """A photo to read. ``root``: the folder on the command line that it was found in; None: the photo was named
    itself.
    """

    path: Path
    root: Path | None = None


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A file that was found and is not read. ``kind``: the usual name of its kind (``HEIC``, ``.txt``)."""

    path: Path
    reason: Reason
    kind: str
    remedy: str = ""


@dataclass
class Inputs:
    """The files that the arguments name. ``faults``: one line for each argument or folder without a photo."""

    photos: list[Input] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def split_request(words: Sequence[str], *, named: bool) -> tuple[list[str], str | None]:
    """(inputs, request) of the positional arguments: the last one is the request if it names no photo.

    Without a request the photo itself says what it needs, unless plugins are ``named`` on the command line.

    Raises:
        RequestError: no input is left, or the last argument could be a request and a folder.
    """
    *inputs, last = words
    is_input = _is_input(last) and not _asks(last)
    if named:
        return (list(words), None) if is_input or not inputs else (inputs, _text(last))
    if not inputs and not is_input:
        raise RequestError(f"no photo given: the only word is {printable(last)!r}; expected INPUT... [PROMPT]")
    if inputs and _exists(_expand(last)) and re.fullmatch(r"[\w ]+", last):
        raise RequestError(
            f"the last word, {printable(last)!r}, is a file or folder here and could be the request: write "
            f"{printable(os.path.join('.', last))} for the file, or rename it"  # noqa: PTH118 - Path drops the dot
        )
    return (list(words), None) if is_input else (inputs, _text(last))


def _text(word: str) -> str:
    """A request as text: bytes that are not UTF-8 are read as Latin-1, the encoding of some terminals and scripts."""
    try:
        word.encode("utf-8")
    except UnicodeEncodeError:
        return os.fsencode(word).decode("latin-1")
    return word


def _is_input(word: str) -> bool:
    path = _expand(word)
    return word == str(STDIN) or _exists(path) or glob.has_magic(word) or Path(path).suffix.lower() in _all_suffixes()


def _asks(word: str) -> bool:
    """Whether a word is a pattern for its question mark alone: "can you fix this?" names no photo."""
    if _exists(_expand(word)) or not glob.has_magic(word):
        return False
    return Path(word).suffix.lower() not in _all_suffixes() and not _matches(_expand(word))


def _exists(word: str) -> bool:
    """Whether an argument names a file or folder: a long request is not a path, and an empty one is not the working
    folder.
    """
    return bool(word) and os.path.lexists(word)


def _expand(word: str) -> str:
    """``~`` expanded, unless a file of exactly that name exists; the name of an unknown user stays unchanged."""
    return os.path.expanduser(word) if word.startswith("~") and not _exists(word) else word  # noqa: PTH111


def _all_suffixes() -> tuple[str, ...]:
    return (*read_suffixes(), *unread_kinds())


def find_photos(words: Sequence[str], *, recursive: bool = False) -> Inputs:
    """Photos of files, folders and glob patterns, each once, in the order given.

    A file that is named itself is read whatever its kind. From a folder or a pattern, only supported kinds are taken;
    all other files are left out and accounted for.

    Args:
        recursive: also enter subfolders. Links to folders are not followed.
    """
    found = Inputs()
    for word in words:
        path = _expand(word)
        count, unread = len(found.photos), _unsupported(found)
        if not word:
            nothing = "an empty name, expected a photo"
        elif word == str(STDIN):
            found.photos.append(Input(path=STDIN))
        elif os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises for names that are too long
            _take_folder(Path(path), Path(path), found, recursive)
            nothing = "no photos in this folder"
        elif not _exists(path) and glob.has_magic(path):
            for match in _matches(path):
                if not match.is_dir():
                    _take(match, None, found)
                elif recursive:
                    _take_folder(match, match, found, recursive)
            nothing = "no photo matches"
        else:
            found.photos.append(Input(path=Path(path)))
        if len(found.photos) == count and _unsupported(found) == unread:
            found.faults.append(f"{printable(word) or repr(word)}: {nothing}")
    own = {photo.path for photo in found.photos if photo.root is None}
    once = {photo.path: photo for photo in reversed(found.photos)}
    order = dict.fromkeys(photo.path for photo in found.photos)
    found.photos = [Input(path=path, root=None if path in own else once[path].root) for path in order]
    found.left_out = list({left.path: left for left in found.left_out}.values())
    return found


def _matches(pattern: str) -> list[Path]:
    """What matches a glob pattern, sorted. ``**`` enters no links to folders, which may be circular, and hidden names
    match only patterns with a dot.
    """
    anchor = Path(Path(pattern).anchor)
    # Path.glob refuses ** beside other characters, where it means no more than *
    parts = [part if part == "**" else re.sub(r"\*+", "*", part) for part in Path(pattern).relative_to(anchor).parts]
    found = anchor.glob("/".join(parts))
    return sorted(path for path in found if _hidden(parts) or not _hidden(path.relative_to(anchor).parts))


def _hidden(parts: Sequence[str]) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in parts)


def _unsupported(found: Inputs) -> int:
    return sum(left.reason == "unsupported" for left in found.left_out)


def _take_folder(folder: Path, root: Path, found: Inputs, recursive: bool) -> None:
    """Files of a folder by name, then its folders."""
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        below: list[Path] = []
        try:
            names = sorted(entry.name for entry in os.scandir(current))
        except OSError as error:
            found.faults.append(f"{printable(current)}: this folder cannot be read ({error.strerror})")
            continue
        for name in names:
            path = current / name
            if not path.is_dir():
                _take(path, root, found)
            elif is_aside_folder(name):
                found.left_out.append(LeftOut(path=path, reason="ignored", kind="hidden folder"))
            elif recursive and not path.is_symlink():
                below.append(path)
            else:
                remedy = "it is a link" if path.is_symlink() and recursive else "--recursive enters it"
                found.left_out.append(LeftOut(path=path, reason="folder", kind="folder", remedy=remedy))
        waiting += reversed(below)


def _take(path: Path, root: Path | None, found: Inputs) -> None:
    """One file of a folder or of a pattern."""
    suffix = path.suffix.lower()
    if is_aside(path.name):
        found.left_out.append(LeftOut(path=path, reason="ignored", kind="hidden file or sidecar"))
    elif not path.is_file():
        found.left_out.append(LeftOut(path=path, reason="ignored", kind="no regular file"))
    elif suffix in read_suffixes():
        found.photos.append(Input(path=path, root=root))
    elif suffix in (kinds := unread_kinds()):
        kind, remedy = kinds[suffix]
        found.left_out.append(LeftOut(path=path, reason="unsupported", kind=kind, remedy=remedy))
    else:
        found.left_out.append(LeftOut(path=path, reason="no photo", kind=suffix or "without suffix"))


def by_kind(left_out: Sequence[LeftOut], reason: Reason) -> Iterator[tuple[str, list[LeftOut]]]:
    """Files that were left out for one reason, by kind, in the order found."""
    kinds: dict[str, list[LeftOut]] = {}
    for left in left_out:
        if left.reason == reason:
            kinds.setdefault(left.kind, []).append(left)
    yield from kinds.items()
