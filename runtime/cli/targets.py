"""The path of each result: never that of an input or, unless it is named, of another file; the same at each run."""

from __future__ import annotations

import os
import re
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diffplugin.errors import ImageError, RequestError
from diffplugin.runtime.cli.inputs import STDIN, Input
from diffplugin.runtime.cli.kinds import read_suffixes
from diffplugin.runtime.cli.record import Record
from diffplugin.runtime.photos.read import printable
from diffplugin.runtime.photos.write import output_suffixes

STDOUT = Path("-")
RESTORED, COMPARE = "-restored", "-compare"  # ends of the names made here

Overwrite = Literal["made", "always", "never"]


@dataclass(frozen=True, kw_only=True)
class PhotoPaths:
    """One photo: the file to read, the file to write, and the side-by-side picture, if one is wanted."""

    source: Path
    target: Path
    compare: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Naming:
    """The options of a command line that name results.

    Attributes:
        output: a file, a folder, ``-`` for the standard output, or None: beside each input.
        mask: a file that is read besides the photos, and so is never replaced.
        suffix: of every result, with the dot; None: the input's own, or .png if that kind can only be read.
        overwrite: "made": replace results of the same photo; "always": also other files, but neither inputs nor results
            of other photos; "never". The first two replace ``output`` if it is a file.
    """

    output: str | None = None
    mask: Path | None = None
    compare: bool = False
    suffix: str | None = None
    overwrite: Overwrite = "made"


def plan_targets(photos: Sequence[Input], naming: Naming, record: Record) -> list[PhotoPaths]:
    """The path of each photo's result.

    Without an output: beside the input, as ``<name>-restored``. With a folder (it exists, ends in a slash, has no
    suffix, or several photos come): under the photo's own name there, in the tree of the folder it was found in. Else:
    that file. If a name is taken by an input, by another photo's result or by a file that is not a result of this
    photo, the result is numbered; it keeps that number at the next run.

    Raises:
        RequestError: several photos cannot go to one file, or to the standard output; no name is given for stdin's.
        ImageError: the output is a file that must not be replaced.
    """
    if naming.output == str(STDOUT):
        return _to_stdout(photos, naming)
    if naming.output is None and any(photo.path == STDIN for photo in photos):
        raise RequestError("say where the photo from stdin goes: -o FILE, or -o - for the standard output")
    folder = output_folder(naming, len(photos))
    names = _Names(photos, naming, folder, record)
    kept = {photo.path for photo in photos if names.suffix(photo.path) == photo.path.suffix}
    # those that keep their suffix first: a.png is a.png, whatever becomes of a.gif
    made = {photo.path: names.take(photo) for photo in sorted(photos, key=lambda photo: photo.path not in kept)}
    return [made[photo.path] for photo in photos]


def _to_stdout(photos: Sequence[Input], naming: Naming) -> list[PhotoPaths]:
    if len(photos) > 1:
        raise RequestError(f"-o - takes one photo, {len(photos)} were given; name a folder")
    if naming.compare:
        raise RequestError("-o - writes one picture: leave --compare out, or name a file")
    return [PhotoPaths(source=photo.path, target=STDOUT) for photo in photos]


def output_folder(naming: Naming, count: int) -> Path | None:
    """The output folder for ``count`` photos; None: a file, the standard output, or beside each input.

    Raises:
        RequestError: it is a file, and must be a folder.
    """
    output = naming.output
    if output is None or output == str(STDOUT):
        return None
    path, is_folder = Path(output), os.path.isdir(output)  # noqa: PTH112 - Path.is_dir raises for too long names
    if not (is_folder or output.endswith(("/", os.sep)) or not path.suffix or count > 1):
        if naming.suffix and path.suffix.lower() != naming.suffix:
            raise RequestError(f"-o {printable(output)} and --format {naming.suffix[1:]} differ; leave one out")
        return None
    if not is_folder and (path.suffix.lower() in output_suffixes() or os.path.isfile(output)):  # noqa: PTH113
        photos = "photos" if count != 1 else "photo"
        raise RequestError(f"output {printable(output)} is a file, expected a folder for {count} {photos}")
    return path


class _Names:
    """Assigns names, one photo after another."""

    def __init__(self, photos: Sequence[Input], naming: Naming, folder: Path | None, record: Record) -> None:
        self._naming, self._output, self._record = naming, folder, record
        self._sources = {_key(photo.path) for photo in photos}
        self._taken: set[str] = set() if naming.mask is None else {_key(naming.mask)}

    def suffix(self, path: Path) -> str:
        """Of the result of a photo."""
        if self._naming.suffix:
            return self._naming.suffix
        return path.suffix if path.suffix.lower() in output_suffixes() else ".png"

    def take(self, photo: Input) -> PhotoPaths:
        explicit = self._naming.output is not None and self._output is None
        target = self._explicit(photo) if explicit else self._named(photo, self._natural(photo))
        self._taken.add(_key(target))
        compare = None
        if self._naming.compare:
            compare = self._named(photo, target.with_name(f"{target.stem}{COMPARE}{target.suffix}"))
            self._taken.add(_key(compare))
        return PhotoPaths(source=photo.path, target=target, compare=compare)

    def _explicit(self, photo: Input) -> Path:
        target = Path(self._naming.output or "")
        if _key(target) in self._sources:
            return self._named(photo, target.with_name(f"{target.stem}{RESTORED}{target.suffix}"))
        if _key(target) in self._taken:
            raise ImageError(f"{printable(target)}: is the mask, which is never replaced; name another file")
        if self._naming.overwrite == "never" and os.path.lexists(target):
            raise ImageError(f"{printable(target)}: exists, and --overwrite never keeps it; choose another name")
        return target

    def _natural(self, photo: Input) -> Path:
        """The name of the result if it is free."""
        path = photo.path
        suffix, stem = self.suffix(path), "stdin" if path == STDIN else path.stem
        if suffix != path.suffix and path != STDIN and self._has_sibling(path, suffix):
            stem = f"{stem}-{path.suffix[1:].lower() or 'photo'}"
        if self._output is None:
            return path.with_name(f"{stem}{RESTORED}{suffix}")
        below = path.parent.relative_to(photo.root) if photo.root else Path()
        target = self._output / below / f"{stem}{suffix}"
        return target.with_name(f"{stem}{RESTORED}{suffix}") if _key(target) in self._sources else target

    def _has_sibling(self, path: Path, suffix: str) -> bool:
        """Whether another photo in the folder differs only in its suffix, so that both results would have the same
        name.
        """
        others = (path.with_suffix(other) for other in read_suffixes() if other != path.suffix.lower())
        return any(self.suffix(other) == suffix and os.path.lexists(other) for other in others)

    def _named(self, photo: Input, natural: Path) -> Path:
        """``natural``, or a numbered form of it; if this photo already has a result, the name of that one."""
        numbered = re.compile(re.escape(natural.stem) + r"(-\d+)?" + re.escape(natural.suffix))
        parent = _key(natural.parent)
        for made in self._record.targets_of(photo.path) if self._naming.overwrite == "made" else ():
            if _key(made.parent) == parent and numbered.fullmatch(made.name) and os.path.lexists(made):
                before = natural.with_name(made.name)
                if self._is_free(photo, before):
                    return before
        number, target = 1, natural
        while not self._is_free(photo, target):
            number += 1
            target = natural.with_name(f"{natural.stem}-{number}{natural.suffix}")
        return target

    def _is_free(self, photo: Input, target: Path) -> bool:
        if _key(target) in self._taken | self._sources:
            return False
        if not os.path.lexists(target):
            return True
        if self._naming.overwrite == "never":
            return False
        made = self._record.made(target)
        if made is None:
            return self._naming.overwrite == "always"
        return made.source == os.path.realpath(photo.path)


def _key(path: Path) -> str:
    """A path as the file system sees it: links resolved; lower case if the file system ignores case."""
    try:
        real = os.path.realpath(path)
    except OSError:  # the working folder was deleted
        real = str(path)
    if sys.platform in ("darwin", "win32"):
        return unicodedata.normalize("NFC", real).casefold()
    return real
