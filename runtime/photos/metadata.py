"""ICC profiles, EXIF, XMP and other metadata that may be copied to another file."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Mapping
from typing import IO, Any

from PIL import Image

from diffplugin.runtime.photos.deep import png_chunks
from diffplugin.runtime.photos.photo import FileDetails

_SPACES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}
_EXIF_IFD, _GPS_IFD = 0x8769, 0x8825
# document name, description, make, model, resolution x/y/unit, page name and number, software, date, artist, computer,
# rating, copyright, and Windows' title, comment, author, keywords, subject
_KEPT = (
    *(0x010D, 0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x011D, 0x0128, 0x0129, 0x0131, 0x0132, 0x013B, 0x013C),
    *(0x4746, 0x4749, 0x8298, 0x9C9B, 0x9C9C, 0x9C9D, 0x9C9E, 0x9C9F),
)
_MAKER_NOTE = 0x927C
# maker note (its internal offsets do not survive a move), pixel sizes, pointer to the interoperability block
_DROPPED_FROM_EXIF = (_MAKER_NOTE, 0xA002, 0xA003, 0xA005)


def colour_space(icc: bytes) -> str | None:
    """Pillow mode that an ICC profile describes ("RGB", "L", "CMYK"), from its header (ICC.1:2022, 7.2.8), or None."""
    return _SPACES.get(icc[16:20])


def to_srgb(image: Image.Image, icc: bytes) -> Image.Image | None:
    """``image`` in sRGB (mode RGB) through its profile; None if the profile is unusable or is for another mode."""
    if colour_space(icc) != image.mode:
        return None
    try:
        from PIL import ImageCms  # not in every build of Pillow
    except ImportError:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        srgb = ImageCms.createProfile("sRGB")
        intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
        # black point compensation, and fine tables: with the default ones a linear profile errs by 7 of 255 in dark
        # greys; a number, because ImageCms.Flags came with Pillow 10.3
        flags: Any = 0x2000 | 0x0400
        return ImageCms.profileToProfile(image, source, srgb, intent, outputMode="RGB", flags=flags)
    except (OSError, ValueError, TypeError, ImageCms.PyCMSError):
        return None


def portable_exif(exif: Image.Exif) -> bytes | None:
    """The part of an EXIF block that is still valid for an upright picture of another size, in another format.

    Kept: camera, exposure, place, time, author, copyright, resolution. Left out: orientation (it was applied),
    thumbnail (it shows the old picture), sizes, maker note, and the layout tags of TIFF files.

    Returns:
        A block that starts with ``Exif\\0\\0``, or None if there is nothing to keep or it cannot be read.
    """
    try:
        kept = Image.Exif()
        for tag in _KEPT:
            if tag in exif:
                kept[tag] = exif[tag]
        for block in (_EXIF_IFD, _GPS_IFD):
            found = exif.get(block)
            entries = found if isinstance(found, dict) else exif.get_ifd(block)  # a dict if it was never in a file
            details = {tag: value for tag, value in entries.items() if tag not in _DROPPED_FROM_EXIF}
            if details:
                kept[block] = details
        return kept.tobytes() if len(kept) else None
    except Exception:  # Pillow's parser raises errors of any type; a broken block is no reason to refuse the picture
        return None


def has_maker_note(exif: Image.Exif) -> bool:
    """Whether the camera's own block is in an EXIF block (it is not kept)."""
    try:
        return _MAKER_NOTE in exif.get_ifd(_EXIF_IFD)
    except Exception:  # as above
        return False


_XMP_ORIENTATION = (
    re.compile(rb"(tiff:Orientation\s*=\s*[\"'])\d"),
    re.compile(rb"(<tiff:Orientation>\s*)\d"),
)
_XMP_HEAD = b"http://ns.adobe.com/xap/1.0/\0"
_PNG_COLOUR = (b"cHRM", b"cICP", b"gAMA", b"sRGB")
_NOT_TEXT = ("XML:com.adobe.xmp", "Raw profile type exif", "Raw profile type APP1", "Raw profile type icc", "exif")
_IPTC_RESOURCE, _IPTC_TAG = 0x0404, 33723
_MAX_TEXT = 1 << 20  # characters of a file's text chunks together


def upright_xmp(xmp: bytes) -> bytes:
    """An XMP packet whose orientation, if it has one, is reset to upright: it has been applied."""
    for pattern in _XMP_ORIENTATION:
        xmp = pattern.sub(rb"\g<1>1", xmp)
    return xmp


def file_details(image: Image.Image, file: IO[bytes] | None) -> FileDetails:
    """Metadata of a loaded Pillow image other than profile and EXIF. Broken parts are left out.

    Args:
        file: the file that it was opened from; None: it was created in memory.
    """
    info: Mapping[Any, Any] = image.info
    xmp, comment, loop = _packet(image), info.get("comment"), info.get("loop")
    return FileDetails(
        xmp=upright_xmp(xmp) if xmp else None,
        iptc=_iptc(image),
        dpi=_dpi(info.get("dpi")),
        text=_text(image) if image.format == "PNG" else (),
        comment=comment.encode("utf-8", "replace") if isinstance(comment, str) else comment or None,
        compression=str(info["compression"]) if image.format == "TIFF" and "compression" in info else None,
        colour_chunks=_colour_chunks(file) if image.format == "PNG" and file is not None else (),
        duration=_duration(info.get("duration")),
        loop=loop if isinstance(loop, int) else None,
        poster=bool(info.get("default_image")) and image.format == "PNG",
    )


def _packet(image: Image.Image) -> bytes | None:
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")
    for marker, content in getattr(image, "applist", []):  # of a JPEG; Pillow before 11 leaves it there
        if not xmp and marker == "APP1" and content.startswith(_XMP_HEAD):
            xmp = content[len(_XMP_HEAD) :]
    if isinstance(xmp, tuple) and len(xmp) == 1:
        xmp = xmp[0]
    if isinstance(xmp, str):
        xmp = xmp.encode("utf-8", "replace")
    return xmp.rstrip(b"\0") if isinstance(xmp, bytes) else None


def _dpi(dpi: Any) -> tuple[float, float] | None:
    try:
        x, y = (float(value) for value in dpi)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (x, y) if 0 < x < 1e6 and 0 < y < 1e6 else None  # a NaN is neither


def _duration(duration: Any) -> float | None:
    return float(duration) if isinstance(duration, int | float) and 0 <= duration < 1e9 else None


def _text(image: Image.Image) -> tuple[tuple[str, str], ...]:
    try:
        found = dict(getattr(image, "text", {}))
    except Exception:  # a broken chunk is no reason to refuse the picture
        return ()
    kept = tuple((str(k), str(v)) for k, v in found.items() if k not in _NOT_TEXT and 0 < len(k) < 80)
    return kept if sum(len(v) for _, v in kept) <= _MAX_TEXT else ()


def _colour_chunks(file: IO[bytes]) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((kind, data) for kind, data, _ in png_chunks(file, until=b"IDAT") if kind in _PNG_COLOUR)


def _iptc(image: Image.Image) -> bytes | None:
    """IPTC-IIM records, from Photoshop's block of a JPEG or a TIFF's own tag."""
    resources = image.info.get("photoshop")
    if isinstance(resources, dict):
        found = resources.get(_IPTC_RESOURCE)
    else:
        found = getattr(image, "tag_v2", {}).get(_IPTC_TAG)
    if isinstance(found, tuple):
        try:
            found = struct.pack(f"<{len(found)}I", *found) if image.format == "TIFF" else None
        except struct.error:
            return None
    return bytes(found) if isinstance(found, bytes) and found[:1] == b"\x1c" else None


def iptc_segment(iptc: bytes) -> bytes:
    """A JPEG segment (APP13) of IPTC records, in Photoshop's block."""
    resource = b"8BIM" + struct.pack(">HHI", _IPTC_RESOURCE, 0, len(iptc)) + iptc + b"\0" * (len(iptc) % 2)
    body = b"Photoshop 3.0\0" + resource
    return b"\xff\xed" + struct.pack(">H", len(body) + 2) + body


def xmp_segment(xmp: bytes) -> bytes:
    """A JPEG segment (APP1) of an XMP packet."""
    body = _XMP_HEAD + xmp
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def from_srgb(grey: Image.Image, icc: bytes) -> Image.Image | None:
    """sRGB grey (mode L) in the values of a grey profile; None if the profile is unusable for writing."""
    try:
        from PIL import ImageCms

        target = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
        flags: Any = 0x2000 | 0x0400  # as in to_srgb
        rgb = grey.convert("RGB")
        return ImageCms.profileToProfile(
            rgb, ImageCms.createProfile("sRGB"), target, intent, outputMode="L", flags=flags
        )
    except (ImportError, OSError, ValueError, TypeError, ImageCms.PyCMSError):
        return None
