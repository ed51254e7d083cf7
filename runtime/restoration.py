"""What a run gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from diffplugin.runtime.photos.read import Photo, Pixels
from diffplugin.runtime.planning.plan import Plan
from diffplugin.runtime.request.selection import Selection


@dataclass(frozen=True, kw_only=True, eq=False)
class Restoration:
    """A finished run.

    Attributes:
        photo: the picture with its alpha and metadata, ready for ``write_photo``.
        plan, selection: what ran, and why.
        timings: seconds per stage ("load", "clip_vision", "unet", "vae_decoder", ...).
        untouched: no plugin was selected; ``photo`` is the input.
    """

    photo: Photo
    plan: Plan
    selection: Selection
    timings: Mapping[str, float]
    untouched: bool

    @property
    def image(self) -> Image.Image:
        """The picture as a Pillow image, RGB, or RGBA where the input had transparency."""
        image = Image.fromarray(np.array(self.photo.rgb))
        if self.photo.alpha is not None:
            image.putalpha(Image.fromarray(np.array(self.photo.alpha)))
        return image

    @property
    def array(self) -> Pixels:
        """The picture as uint8 [H,W,3]."""
        return self.photo.rgb

    def to_json(self) -> dict[str, Any]:
        """Plan, selection and timings as plain numbers and texts."""
        return {
            "plan": self.plan.to_json(),
            "selection": self.selection.to_json(),
            "timings": {stage: round(seconds, 4) for stage, seconds in self.timings.items()},
            "untouched": self.untouched,
        }
