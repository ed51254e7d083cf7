"""Where a training's pairs come from: a CSV as released, a pair of folders, or a data set of the Hugging Face hub.

A source holds names alone; pictures are read by those who train, pair by pair. So its memory does not grow with the
pictures, and little with their number.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageOps

from diffplugin.errors import ImageError, MissingDependency, RequestError

COLUMNS = ("image", "conditioning_image")  # the release's names: ground truth, input
FOLDERS = (("target", "input"), ("gt", "input"), ("clean", "degraded"), ("high", "low"))  # ground truth, input
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_SHOWN = 3  # faulty pairs that a message names


class Source(Protocol):
    """Pairs of pictures by number."""

    def __len__(self) -> int: ...

    def pair(self, index: int) -> tuple[Image.Image, Image.Image]:
        """(ground truth, input) as RGB.

        Raises:
            ImageError: a picture cannot be read, or the two differ in size.
        """
        ...

    def same(self, index: int) -> bool:
        """The row names one picture as input and ground truth."""
        ...

    def faults(self, index: int) -> str:
        """What :meth:`pair` would complain of, found without decoding; empty: nothing."""
        ...

    def key(self) -> str:
        """Sixteen hexadecimal digits over what the pairs are; other pairs, another key."""
        ...


class Files:
    """Pairs of files. ``rows``: (ground truth, input) below ``root``."""

    def __init__(self, rows: Sequence[tuple[str, str]], root: Path) -> None:
        self.root = root
        # one block of bytes: lists of texts would be copied page by page into every worker as it counts references
        self._names = np.array([[name.encode() for name in row] for row in rows], dtype=np.bytes_)

    def __len__(self) -> int:
        return len(self._names)

    def paths(self, index: int) -> tuple[Path, Path]:
        """(ground truth, input)."""
        truth, given = self._names[index]
        return self.root / truth.decode(), self.root / given.decode()

    def pair(self, index: int) -> tuple[Image.Image, Image.Image]:
        truth, given = self.paths(index)
        return sized(str(truth), _read(truth), str(given), _read(given))

    def same(self, index: int) -> bool:
        truth, given = self._names[index]
        return bool(truth == given)

    def faults(self, index: int) -> str:
        truth, given = self.paths(index)
        try:
            sizes = [_upright_size(path) for path in (truth, given)]
        except (OSError, ValueError) as error:
            return str(error)
        return "" if sizes[0] == sizes[1] else _differ(str(truth), sizes[0], str(given), sizes[1])

    def key(self) -> str:
        digest = hashlib.sha256(str(self.root.resolve()).encode())
        digest.update(repr(self._names.shape).encode() + self._names.tobytes())
        return digest.hexdigest()[:16]

    def part(self, indices: Sequence[int]) -> Files:
        """Some of the pairs."""
        chosen = Files([("", "")], self.root)
        chosen._names = self._names[list(indices)]
        return chosen


class Hub:
    """Pairs of a data set with two columns of pictures (ground truth, input)."""

    def __init__(self, rows: Any, columns: tuple[str, str], name: str) -> None:
        self._rows, self._columns, self._name = rows, columns, name

    def __len__(self) -> int:
        return len(self._rows)

    def pair(self, index: int) -> tuple[Image.Image, Image.Image]:
        try:
            row = self._rows[int(index)]
            truth, given = (_decoded(row[column]) for column in self._columns)
        except (OSError, ValueError, TypeError) as error:
            raise ImageError(f"{self._name} row {index}: not a readable pair of pictures ({error})") from None
        where = f"{self._name} row {index}"
        return sized(f"{where} {self._columns[0]}", truth, self._columns[1], given)

    def same(self, index: int) -> bool:
        return False

    def faults(self, index: int) -> str:
        return ""  # a row has to be decoded for it, which the workers do

    def key(self) -> str:
        text = f"{self._name} {self._columns} {getattr(self._rows, '_fingerprint', len(self._rows))}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def open_source(place: str | Path, root: Path | None = None) -> Files | Hub:
    """The pairs that ``place`` names: a CSV file, a folder with two folders of pictures, or a hub id.

    Args:
        place: ``pairs.csv`` (``image,conditioning_image``, as released); ``folder`` with ``target/`` and ``input/``
            (or gt, clean, high and degraded, low), where names without suffix pair up; ``owner/name`` or
            ``owner/name:split`` of the hub, with columns as in the CSV.
        root: where a CSV's relative paths start (default: its folder).

    Raises:
        RequestError: none of these, no pairs, other columns, or files that are missing (all of them counted).
        MissingDependency: a hub id without the package ``datasets``.
    """
    path = Path(place).expanduser()
    if path.is_dir():
        return _folders(path)
    if path.suffix.lower() in (".csv", ".txt") or path.is_file():
        return _csv(path, root)
    if re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.\[\]%-]+)?", str(place)):
        return _hub(str(place))
    raise RequestError(f"{place}: neither a CSV file, nor a folder, nor a hub id such as owner/name:split")


def _csv(path: Path, root: Path | None) -> Files:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns, rows = tuple(reader.fieldnames or ()), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RequestError(f"{path}: not a readable CSV file ({error})") from None
    if missing := [name for name in COLUMNS if name not in columns]:
        raise RequestError(f"{path}: no column {', '.join(missing)}; expected {','.join(COLUMNS)} in the first line")
    if not rows:
        raise RequestError(f"{path}: no pairs below the first line")
    if short := [i for i, row in enumerate(rows, 2) if not all(row[column] for column in COLUMNS)]:
        raise RequestError(f"{path}: line {short[0]} names no pair of files ({len(short)} such lines)")
    base = path.parent if root is None else root
    found = Files([(row[COLUMNS[0]], row[COLUMNS[1]]) for row in rows], base)
    lost = [str(file) for i in range(len(found)) for file in found.paths(i) if not file.is_file()]
    if lost:
        raise RequestError(f"{path}: {len(lost)} of {2 * len(found)} files are missing, first {lost[0]} (root: {base})")
    return found


def _folders(path: Path) -> Files:
    for names in FOLDERS:
        if all((path / name).is_dir() for name in names):
            break
    else:
        known = "; ".join(" and ".join(pair) for pair in FOLDERS)
        raise RequestError(f"{path}: no two folders of a pair (ground truth and input: {known})")
    truths, inputs = (
        {
            file.relative_to(path / name).with_suffix("").as_posix(): file.relative_to(path).as_posix()
            for file in sorted((path / name).rglob("*"))
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
        }
        for name in names
    )
    alone = sorted(truths.keys() ^ inputs.keys())
    if alone or not truths:
        what = f"{len(alone)} pictures have no partner, first {alone[0]}" if alone else "no pictures"
        raise RequestError(f"{path}: {what} (in {names[0]}/ and {names[1]}/, by name without suffix)")
    return Files([(truths[name], inputs[name]) for name in truths], path)


def _hub(name: str) -> Hub:
    try:
        from datasets import load_dataset
    except ImportError:
        raise MissingDependency(
            f"{name}: hub data sets need the package datasets: pip install 'diffplugin[datasets]'"
        ) from None
    repository, _, split = name.partition(":")
    try:
        rows = load_dataset(repository, split=split or "train")
    except Exception as error:  # the client has a dozen kinds for "not there", "no network" and "no such split"
        raise RequestError(f"{name}: not a data set of the hub ({str(error).splitlines()[0]})") from None
    if missing := [column for column in COLUMNS if column not in rows.column_names]:
        raise RequestError(f"{name}: no column {', '.join(missing)} (there: {', '.join(rows.column_names)})")
    return Hub(rows, COLUMNS, name)


def check_sizes(source: Source, indices: Sequence[int] | None = None, threads: int = 8) -> None:
    """Read the headers of all pairs: what a worker would meet after days is told before the start.

    Raises:
        ImageError: pictures that cannot be read and pairs of two sizes, counted; the first few named.
    """
    wanted = range(len(source)) if indices is None else indices
    with ThreadPoolExecutor(threads) as pool:
        faults = [fault for fault in pool.map(source.faults, wanted, chunksize=64) if fault]
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise ImageError(f"{len(faults)} of {len(wanted)} pairs cannot be used: {'; '.join(faults[:_SHOWN])}{more}")


def split(count: int, every: int = 20) -> tuple[list[int], list[int]]:
    """Numbers of pairs to learn from, and held out: every 20th; the only one is both."""
    held = list(range(0, count, every)) if count >= every else [0]
    kept = [i for i in range(count) if i not in set(held)]
    return kept or held, held


def pictures(source: Source, indices: Sequence[int]) -> Iterator[tuple[Image.Image, Image.Image]]:
    """The pairs of these numbers, in order."""
    return (source.pair(i) for i in indices)


def sized(truth: str, one: Image.Image, given: str, other: Image.Image) -> tuple[Image.Image, Image.Image]:
    """Both pictures, if they are of one size.

    Raises:
        ImageError: naming both and their sizes.
    """
    if one.size != other.size:
        raise ImageError(_differ(truth, one.size, given, other.size))
    return one, other


def _differ(truth: str, one: tuple[int, int], given: str, other: tuple[int, int]) -> str:
    sizes = " and ".join(f"{width}x{height}" for width, height in (one, other))
    return f"{truth}, {given}: {sizes} pixels; a pair must be of one size"


def _decoded(value: Any) -> Image.Image:
    """A cell of a data set: a picture, a file's path, or its bytes as ``{"bytes": ..., "path": ...}``.

    Raises:
        TypeError: none of these.
        OSError: no readable picture.
    """
    if isinstance(value, Image.Image):
        return value.convert("RGB")
    if isinstance(value, dict):
        value = io.BytesIO(value["bytes"]) if value.get("bytes") else value.get("path")
    if isinstance(value, str | io.BytesIO):
        with Image.open(value) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    raise TypeError(f"a cell holds {type(value).__name__}, expected a picture")


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageError(f"{path}: not a readable picture ({error})") from None


def _upright_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as opened:
        width, height = opened.size
        turned = opened.getexif().get(0x0112, 1) >= 5
    return (height, width) if turned else (width, height)
