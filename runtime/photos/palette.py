"""Pictures with a palette of at most 256 colours."""

from __future__ import annotations

import numpy as np
from PIL import Image

from diffplugin.runtime.photos.photo import Pixels

_COLOURS = 256


def with_palette(rgb: Pixels, alpha: Pixels | None) -> tuple[Image.Image, bool]:
    """(image of mode P, whether every colour is exact) of uint8 [H, W, 3] and [H, W].

    The picture's own colours if there are at most 256 of them; else the 256 that Pillow's median cut finds, with error
    diffusion. Transparency is exact if every pixel is fully opaque or fully transparent, and then takes one entry.
    """
    exact = _exact(rgb, alpha)
    if exact is not None:
        return exact, True
    image = Image.fromarray(rgb)
    if alpha is not None and np.isin(alpha, (0, 255)).all():
        made = _spread(image, _COLOURS - 1)
        indices = np.where(alpha == 0, _COLOURS - 1, np.asarray(made)).astype(np.uint8)
        entries = _palette_of(made)
        entries = np.concatenate((entries, np.zeros((_COLOURS - len(entries), 3), np.uint8)))
        return _image(indices, entries, transparency=_COLOURS - 1), False
    if alpha is not None:
        image.putalpha(Image.fromarray(alpha))
        return image.quantize(_COLOURS, method=Image.Quantize.FASTOCTREE), False
    return _spread(image, _COLOURS), False


def _exact(rgb: Pixels, alpha: Pixels | None) -> Image.Image | None:
    packed = rgb.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    if alpha is not None:
        packed |= alpha.astype(np.uint32) << 24
    if len(np.unique(packed[:: max(1, len(packed) // 64)])) > _COLOURS:  # a few rows tell most pictures
        return None
    colours, indices = np.unique(packed, return_inverse=True)
    if len(colours) > _COLOURS:
        return None
    entries = np.stack([colours >> shift & 255 for shift in (16, 8, 0)], -1).astype(np.uint8)
    opacity = None if alpha is None else bytes((colours >> 24).astype(np.uint8))
    clear = [i for i, value in enumerate(opacity or b"") if value == 0]
    transparency: int | bytes | None = opacity
    if opacity is not None and set(opacity) <= {0, 255} and len(clear) <= 1:  # what a GIF can say
        transparency = clear[0] if clear else None
    return _image(indices.reshape(packed.shape).astype(np.uint8), entries, transparency)


def _spread(image: Image.Image, colours: int) -> Image.Image:
    palette = image.quantize(colours, method=Image.Quantize.MEDIANCUT)
    return image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)


def _palette_of(image: Image.Image) -> Pixels:
    return np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)


def _image(indices: Pixels, entries: Pixels, transparency: int | bytes | None = None) -> Image.Image:
    image = Image.fromarray(indices)
    image.putpalette(entries.tobytes())
    if transparency is not None:
        image.info["transparency"] = transparency
    return image
