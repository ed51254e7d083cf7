"""A decoded picture with all metadata of its file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Deep = NDArray[np.uint16]
Mode = Literal["RGB", "L", "P"]

MIN_SIDE = 8  # one latent pixel


@dataclass(frozen=True, kw_only=True)
class FileDetails:
    """Metadata of a file other than its profile and EXIF, ready for another file.

    Attributes:
        xmp: XMP packet, its orientation reset.
        iptc: IPTC-IIM records.
        dpi: resolution (x, y), dots per inch.
        text: PNG text chunks (keyword, text), in order.
        comment: of a JPEG or GIF file.
        compression: of a TIFF file, Pillow's name ("tiff_lzw", "raw", ...).
        colour_chunks: PNG chunks that define the colours (gAMA, cHRM, sRGB, cICP), as (type, data).
        grey_icc: profile of a grey file; the pixels were converted from it to sRGB and are converted back when the
            photo is written.
        duration: of this frame, milliseconds.
        loop: how often an animation repeats (0: for ever).
        poster: the first frame of an animated PNG is its still image and not part of the animation.
    """

    xmp: bytes | None = None
    iptc: bytes | None = None
    dpi: tuple[float, float] | None = None
    text: tuple[tuple[str, str], ...] = ()
    comment: bytes | None = None
    compression: str | None = None
    colour_chunks: tuple[tuple[bytes, bytes], ...] = ()
    grey_icc: bytes | None = None
    duration: float | None = None
    loop: int | None = None
    poster: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Photo:
    """An upright picture with the metadata needed to write it again.

    Attributes:
        rgb: uint8 [H, W, 3], read-only.
        alpha: uint8 [H, W] (0 = transparent), or None if the input had none.
        deep: the same colours, uint16 [H, W, 3], if the file had 16 bits per channel; None otherwise.
        deep_alpha: the same alpha, uint16 [H, W].
        mode: how the file held its colours: "RGB", "L" (grey) or "P" (palette). ``rgb`` is RGB in every case.
        path: the file it came from.
        icc: the RGB profile that ``rgb`` is in, or None for sRGB.
        exif: a block without orientation, thumbnail or sizes.
        details: other metadata of the file.
        frames: the frames or pages that follow this one; each is a photo without frames.
        notes: losses and repairs during reading, one short phrase each.
    """

    rgb: Pixels
    alpha: Pixels | None = None
    deep: Deep | None = None
    deep_alpha: Deep | None = None
    mode: Mode = "RGB"
    path: Path | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    details: FileDetails = field(default_factory=FileDetails)
    frames: tuple[Photo, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.rgb.shape[1], self.rgb.shape[0]

    @property
    def levels(self) -> Pixels | Deep:
        """The colours with all bits of the file: ``deep``, else ``rgb``."""
        return self.rgb if self.deep is None else self.deep

    @property
    def is_grey(self) -> bool:
        """Whether it has no colour: its file is grey, or the three channels are equal in every pixel."""
        if self.mode == "L":
            return True
        red, green, blue = (self.levels[..., i] for i in range(3))
        return bool(np.array_equal(red, green) and np.array_equal(green, blue))

    @property
    def has_pages(self) -> bool:
        """Whether its frames are pages: pictures of their own, unlike those of an animation, which have a duration."""
        return bool(self.frames) and self.details.duration is None and self.details.loop is None
