"""A decoded picture with everything that its file said about it."""

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
    """What a file holds beside its pixels, profile and EXIF, ready for another file.

    Attributes:
        xmp: XMP packet, its orientation reset.
        iptc: IPTC-IIM records.
        dpi: resolution (x, y), dots per inch.
        text: PNG text chunks (keyword, text), in order.
        comment: of a JPEG or GIF file.
        compression: of a TIFF file, Pillow's name ("tiff_lzw", "raw", ...).
        colour_chunks: PNG chunks that say what the numbers mean (gAMA, cHRM, sRGB, cICP), as (type, data).
        grey_icc: profile of a grey file; the pixels were converted from it to sRGB and go back when it is written.
        duration: of this frame, milliseconds.
        loop: how often an animation repeats (0: for ever).
        poster: the first frame of an animated PNG stands for it and is not part of it.
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
    """An upright picture with what its file needs again when it is written.

    Attributes:
        rgb: uint8 [H, W, 3], read-only.
        alpha: uint8 [H, W] (0 = transparent), or None where the input had none.
        deep: the same colours, uint16 [H, W, 3], where the file had 16 bits a channel; None otherwise.
        deep_alpha: the same alpha, uint16 [H, W].
        mode: how the file held its colours: "RGB", "L" (grey) or "P" (palette). ``rgb`` is RGB all the same.
        path: where it came from.
        icc: the RGB profile that ``rgb`` is in, or None for sRGB.
        exif: a block without orientation, thumbnail or sizes.
        details: what else the file said.
        frames: the frames or pages that follow this one; each is a photo without frames.
        notes: what was lost or mended on the way in, one short phrase each.
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
