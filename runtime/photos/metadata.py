"""ICC profiles and EXIF blocks: what may follow a picture into another file."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

_SPACES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}
_EXIF_IFD, _GPS_IFD = 0x8769, 0x8825
# description, make, model, resolution x/y/unit, software, date, artist, copyright
_KEPT = (0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x8298)
# maker note (its internal offsets do not survive a move), pixel sizes, pointer to the interoperability block
_DROPPED_FROM_EXIF = (0x927C, 0xA002, 0xA003, 0xA005)


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
    """What of an EXIF block still holds for an upright picture of another size, in another format.

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
