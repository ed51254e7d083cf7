"""The result of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffplugin.runtime.photos.deep import grey_of
from diffplugin.runtime.photos.encode import PNG_LEVEL
from diffplugin.runtime.photos.photo import Photo, Pixels
from diffplugin.runtime.photos.write import write_photo
from diffplugin.runtime.planning.plan import Plan
from diffplugin.runtime.request.selection import Selection


@dataclass(frozen=True, kw_only=True, eq=False)
class Restoration:
    """The result of a finished run.

    Attributes:
        photo: the picture with its alpha, frames and metadata, ready for ``write_photo``.
        plan, selection: what ran, and why it was selected.
        timings: seconds per stage ("load", "clip_vision", "unet", "vae_decoder", ...).
        untouched: no plugin was selected; ``photo`` is the input.
        strength: how much of the change it keeps; what "auto" chose (of several pages, for the first).
    """

    photo: Photo
    plan: Plan
    selection: Selection
    timings: Mapping[str, float]
    untouched: bool
    strength: float = 1.0

    @property
    def image(self) -> Image.Image:
        """The picture (of several, the first) as a Pillow image of 8 bits: RGB, or L if the input was grey, and with
        alpha if the input had transparency. Its ``info`` has profile, EXIF and resolution; Pillow's ``save`` writes
        some of it, :meth:`save` all."""
        rgb = np.array(self.photo.rgb)
        image = Image.fromarray(grey_of(rgb) if self.photo.mode == "L" else rgb)
        if self.photo.alpha is not None:
            image.putalpha(Image.fromarray(np.array(self.photo.alpha)))
        told = {"icc_profile": self.photo.icc, "exif": self.photo.exif, "dpi": self.photo.details.dpi}
        image.info |= {name: value for name, value in told.items() if value}
        return image

    @property
    def notes(self) -> tuple[str, ...]:
        """Losses and repairs during reading, one short phrase each (``photos.write.not_kept``: losses during
        writing).
        """
        return self.photo.notes

    def save(self, path: str | os.PathLike[str], *, png_level: int = PNG_LEVEL) -> Path:
        """Write the picture in the format of the suffix, with the properties of its file: profile, EXIF, XMP,
        resolution, text, grey or palette mode, alpha, 16 bits a channel, frames (``photos.write.write_photo``).

        Args:
            png_level: compression of a PNG, 0 (none) to 9 (smallest, slowest).

        Returns:
            The path as given.

        Raises:
            ImageError: it cannot be written to that path, or not in that format.
        """
        return write_photo(path, self.photo, png_level=png_level)

    @property
    def array(self) -> Pixels:
        """The picture as uint8 [H,W,3]."""
        return self.photo.rgb

    def to_json(self) -> dict[str, Any]:
        """Plan, selection, timings and notes as plain numbers and texts."""
        return {
            "plan": self.plan.to_json(),
            "selection": self.selection.to_json(),
            "timings": {stage: round(seconds, 4) for stage, seconds in self.timings.items()},
            "untouched": self.untouched,
            "strength": self.strength,
            "frames": 1 + len(self.photo.frames),
            "notes": list(self.notes),
        }
