"""The kind of a file, from its first bytes: its reader, or the name of an unsupported kind."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import IO, Literal

Reader = Literal["pillow", "heif", "raw"]

_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
RAW_SUFFIXES = (
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mos", ".mrw", ".nef"),
    *(".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
)
_RAW_HEADS = (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FOVb", b"\0MRM")
_OTHERS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\x0a", "a JPEG XL picture"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (0, b"8BPS", "a Photoshop document"),
    (0, b"gimp xcf", "a GIMP document"),
    (0, b"%PDF", "a PDF document"),
    (0, b"%!PS", "a PostScript document"),
    (0, b"\xc5\xd0\xd3\xc6", "a PostScript document"),
    (0, b"<svg", "an SVG drawing"),
    (0, b"\x76\x2f\x31\x01", "an OpenEXR picture"),
    (0, b"#?RADIANCE", "a Radiance HDR picture"),
    (0, b"PF\n", "a floating-point PFM picture"),
    (0, b"DDS ", "a DirectDraw texture"),
    (0, b"\0\0\x01\0", "a Windows icon"),
    (0, b"icns", "a macOS icon"),
    (0, b"qoif", "a QOI picture"),
    (0, b"SIMPLE  =", "a FITS image"),
    (8, b"AVI ", "a film (AVI)"),
    (8, b"WAVE", "a sound (WAV)"),
    (0, b"\x1a\x45\xdf\xa3", "a film (Matroska or WebM)"),
    (4, b"ftypqt", "a film (QuickTime)"),
    (4, b"ftypisom", "a film (MP4)"),
    (4, b"ftypmp4", "a film (MP4)"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
)
_SIGNATURES = (
    b"\x89PNG",
    b"\xff\xd8",
    b"GIF8",
    b"II*\0",
    b"MM\0*",
    b"II+\0",
    b"MM\0+",
    b"RIFF",
    b"BM",
    b"\0\0\0\x0cjP",
)
_TIFF_TYPES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_DNG_VERSION, _NEW_SUBFILE, _SUB_IFDS = 0xC612, 0x00FE, 0x014A
_SAMPLES = {1: "unsigned", 2: "signed", 3: "floating-point", 4: "undefined", 5: "complex", 6: "complex floating-point"}


def reader_of(file: IO[bytes], suffix: str) -> Reader:
    """The reader for a file, from its content; the suffix only distinguishes camera RAW files from other TIFF files."""
    head = _head(file)
    if head[4:8] == b"ftyp":
        brands = [head[8:12], *(head[i : i + 4] for i in range(16, min(len(head), _box_length(head)), 4))]
        if b"crx " in brands[:1]:
            return "raw"
        if not {b"avif", b"avis"} & set(brands) and (brands[0] in _HEIF):
            return "heif"
    renamed = head.startswith((b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF"))
    if head.startswith(_RAW_HEADS) or (suffix.lower() in RAW_SUFFIXES and not renamed):
        return "raw"
    return "raw" if head[8:10] == b"CR" or _is_raw_tiff(tiff_numbers(file)) else "pillow"


def unread_kind(file: IO[bytes]) -> str | None:
    """The name of an unsupported kind of file ("a JPEG XL picture"), or None: it may be a damaged picture."""
    head = _head(file)
    for place, mark, name in _OTHERS:
        if head[place:].startswith(mark):
            return name
    if head.lstrip()[:5] in (b"<?xml", b"<html", b"<!DOC"):
        return "a text document (XML or HTML)"
    layout = tiff_numbers(file)
    return _tiff_kind(layout) if layout else None


def looks_like_a_photo(file: IO[bytes]) -> bool:
    """Whether a file begins like a supported picture."""
    head = _head(file)
    return head[4:8] == b"ftyp" or head.startswith(_SIGNATURES)


def first_words(file: IO[bytes]) -> str:
    """The beginning of a file as text, for messages; empty if it is not text."""
    text = " ".join(_head(file)[:24].decode("latin-1").split())
    return text if text.isprintable() else ""


def tiff_numbers(file: IO[bytes]) -> Mapping[int, tuple[int, ...]]:
    """The whole numbers of a TIFF file's first directory by tag (a few of each); empty if it is not a TIFF file."""
    file.seek(0)
    head = file.read(8)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(head[:4])
    if order is None or len(head) < 8:
        return {}
    found: dict[int, tuple[int, ...]] = {}
    file.seek(struct.unpack(order + "I", head[4:])[0])
    (count,) = struct.unpack(order + "H", file.read(2).ljust(2, b"\0"))
    table = file.read(12 * count)
    for i in range(0, len(table) - 11, 12):
        tag, kind, length = struct.unpack_from(order + "HHI", table, i)
        letter = {1: "B", 3: "H", 4: "I", 13: "I"}.get(kind)
        if letter is None:
            continue
        data = table[i + 8 : i + 12]
        if length * _TIFF_TYPES[kind] > 4:
            file.seek(struct.unpack(order + "I", data)[0])
            data = file.read(min(length, 8) * _TIFF_TYPES[kind])
        number = min(length, len(data) // _TIFF_TYPES[kind], 8)
        found[tag] = struct.unpack_from(f"{order}{number}{letter}", data)
    return found


def _is_raw_tiff(layout: Mapping[int, tuple[int, ...]]) -> bool:
    """Whether it is a DNG, or a file whose first picture is a thumbnail with the others as its sub-directories, as in
    NEF and ARW.
    """
    small_copy = layout.get(_NEW_SUBFILE, (0,))[:1] == (1,) and _SUB_IFDS in layout
    return _DNG_VERSION in layout or small_copy


def _tiff_kind(layout: Mapping[int, tuple[int, ...]]) -> str | None:
    """The layout of a TIFF file in words; None for supported ones."""
    bits = max(layout.get(258) or (1,))
    sample, count, plane = ((layout.get(tag) or (1,))[0] for tag in (339, 277, 284))
    if sample == 1 and plane == 1 and (bits in (1, 2, 4, 8) or (bits == 16 and count in (1, 3, 4))) and count <= 5:
        return None
    apart = ", each in a plane of its own" if plane == 2 else ""
    return f"a TIFF picture of {count} channel{'s' * (count != 1)} of {bits} {_SAMPLES.get(sample, '')} bits{apart}"


def _box_length(head: bytes) -> int:
    return int.from_bytes(head[:4], "big")


def _head(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read(64)
