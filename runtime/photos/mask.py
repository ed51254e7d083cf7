"""Masks: the part of a photo that is restored. Outside the mask the output is the input, bit for bit.

A mask is grey, white where to restore; it may have any size and is resized to the photo's. Its edge is feathered
*inwards*, so that black areas stay untouched.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffplugin.errors import ImageError, RequestError
from diffplugin.runtime.photos.read import Photo, Pixels, photo_from, read_photo

MAX_FEATHER = 512
_AUTO_RADII = (8, 4, 2, 1)  # of the feather, pixels: the first one that leaves most of the mask
_SOFT = 0.01  # share of grey in a mask whose edge needs no feather

Region = tuple[int, int, int, int]
_Level = TypeVar("_Level", np.uint8, np.uint16)
MaskSource = str | os.PathLike[str] | Image.Image | Photo | NDArray[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Mask:
    """How much of the change each pixel keeps: uint8 [H, W] of the upright photo; 0: stays as it is; 255: all."""

    alpha: Pixels

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.alpha.shape[1], self.alpha.shape[0]

    def touched(self, width: int, height: int) -> NDArray[np.bool_]:
        """The mask on a grid of ``width x height`` cells, bool [height, width]: cells with a pixel above 0, and their
        neighbours."""
        rows, columns = (
            np.arange(n) * length // n for n, length in zip((height, width), self.alpha.shape, strict=True)
        )
        inside: NDArray[np.bool_] = np.logical_or.reduceat(self.alpha > 0, rows, axis=0)
        inside = np.logical_or.reduceat(inside, columns, axis=1)
        padded = np.pad(inside, 1)
        for axis in (0, 1):
            padded = padded | np.roll(padded, 1, axis) | np.roll(padded, -1, axis)
        return padded[1:-1, 1:-1]


def read_mask(
    source: MaskSource,
    size: tuple[int, int],
    *,
    feather: int | None = None,
    name: str | None = None,
) -> Mask:
    """The mask in a file, image or array, for a photo of ``size`` (width, height).

    Args:
        source: a path; a Pillow image; a uint8 array [H, W], [H, W, 3] or [H, W, 4], white where to restore, or a bool
            array [H, W]. Transparent pixels count as black.
        feather: width of the soft edge in pixels, inwards; 0: none; None: up to 16, as far as the width of the mask
            allows, and none if it has a soft edge already.
        name: of a file in messages; None: its path.

    Raises:
        ImageError: it cannot be read, or is black everywhere.
        RequestError: ``feather`` is not 0 to ``MAX_FEATHER``.
    """
    if isinstance(source, np.ndarray) and source.dtype == np.bool_:
        source = source.astype(np.uint8) * 255
    photo = read_photo(source, name=name) if isinstance(source, str | os.PathLike) else photo_from(source)
    grey = np.asarray(Image.fromarray(photo.rgb).convert("L"))
    if photo.alpha is not None:
        grey = (grey.astype(np.uint16) * photo.alpha // 255).astype(np.uint8)
    if (grey.shape[1], grey.shape[0]) != size:
        grey = np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BILINEAR))
    if not grey.any():
        raise ImageError(f"{name or photo.path or 'mask'}: black everywhere, expected white where to restore")
    return Mask(alpha=feathered(grey, feather))


def as_mask(mask: Mask | MaskSource | None, photo: Photo) -> Mask | None:
    """A caller's mask as a Mask, for a photo; the frames of an animation share it.

    Raises:
        ImageError, RequestError: as :func:`read_mask`, a Mask for a photo of another size, or the photo has pages.
    """
    if mask is None:
        return None
    check_no_pages(photo, "photo")
    if isinstance(mask, Mask):
        if mask.size != photo.size:
            sides = "{}x{} pixels, this one has {}x{}".format(*mask.size, *photo.size)
            raise RequestError(f"the mask is for a photo of {sides}")
        return mask
    return read_mask(mask, photo.size)


def check_no_pages(photo: Photo, name: str) -> None:
    """Raises:
    ImageError: the photo, which the message calls ``name``, has pages, and a mask is for one picture.
    """
    if photo.has_pages:
        raise ImageError(
            f"{name}: {1 + len(photo.frames)} pages, but a mask or region is for one picture; save that page as a file "
            "of its own, or leave the others out (--first-frame)"
        )


def read_region(text: str) -> Region:
    """``x,y,width,height``.

    Raises:
        RequestError: not four whole numbers, or no area.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 4 or not all(part.isascii() and part.isdecimal() and len(part) < 7 for part in parts):
        raise RequestError(f"region {text!r} is not understood; expected x,y,width,height in pixels")
    x, y, width, height = map(int, parts)
    if not width or not height:
        raise RequestError(f"region {text!r} has no area; expected x,y,width,height in pixels")
    return x, y, width, height


def region_mask(region: Region, size: tuple[int, int], *, feather: int | None = None) -> Mask:
    """The mask of a rectangle (x, y, width, height) in a photo of ``size``; parts beyond the border are left out.

    Raises:
        RequestError: no part of it is in the photo, or ``feather`` is not 0 to ``MAX_FEATHER``.
    """
    x, y, width, height = region
    grey = np.zeros((size[1], size[0]), np.uint8)
    grey[max(0, y) : max(0, y + height), max(0, x) : max(0, x + width)] = 255
    if not grey.any():
        raise RequestError(f"region {x},{y},{width},{height} lies outside of a photo of {size[0]}x{size[1]} pixels")
    return Mask(alpha=feathered(grey, feather))


def feathered(grey: Pixels, feather: int | None) -> Pixels:
    """``grey`` [H, W] with a soft edge inwards (:func:`read_mask`); the photo's own border is no edge."""
    if feather is not None and not 0 <= feather <= MAX_FEATHER:
        raise RequestError(f"feather is {feather}, expected 0 to {MAX_FEATHER} pixels")
    inside = grey > 0
    if feather == 0 or inside.all():
        return grey
    soft = np.count_nonzero(inside & (grey < 255)) > _SOFT * np.count_nonzero(inside)
    if feather is None and soft:
        return grey
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    edges = (rows[0] > 0, rows[-1] + 1 < grey.shape[0], columns[0] > 0, columns[-1] + 1 < grey.shape[1])
    ramp = _ramp(inside[box], _AUTO_RADII if feather is None else (max(1, feather // 2),), edges)
    result = np.array(grey)
    result[box] = np.rint(grey[box] * ramp)
    return result


def _ramp(inside: NDArray[np.bool_], radii: tuple[int, ...], edges: tuple[bool, ...]) -> NDArray[np.float32]:
    """0 at the edge of ``inside`` to 1 within, float32: eroded by a radius, then blurred by it.

    Args:
        radii: the first that leaves half of it is taken, a single one if it leaves anything; else the edge stays hard.
        edges: whether beyond the array's top, bottom, left and right there is black, else more of the photo's border.
    """
    least = np.count_nonzero(inside) / 2 if len(radii) > 1 else 1
    for radius in radii:
        pads = [(radius, radius)] * 2
        padded = np.pad(inside, pads, mode="edge")
        top, bottom, left, right = edges
        padded[:radius] &= not top
        padded[len(padded) - radius :] &= not bottom
        padded[:, :radius] &= not left
        padded[:, padded.shape[1] - radius :] &= not right
        window = (2 * radius + 1) ** 2
        eroded = _box_sum(padded, radius) == window
        if np.count_nonzero(eroded) < least:
            continue
        kept = np.pad(eroded, pads, mode="edge")
        ramp: NDArray[np.float32] = np.clip(_box_sum(kept, radius) / np.float32(window), 0, 1)
        # every pixel that is inside changes by a little at least
        return np.maximum(ramp, np.float32(1 / 255)) * inside
    return np.ones(inside.shape, np.float32)


def _box_sum(padded: NDArray[np.bool_], radius: int) -> NDArray[np.int64]:
    """How many of the (2 radius + 1)^2 neighbours are set, for an array that is padded by ``radius``."""
    side = 2 * radius + 1
    sums = padded.astype(np.int64)
    for axis in (0, 1):
        sums = np.cumsum(sums, axis)
        sums = np.insert(sums, 0, 0, axis)
        high, low = (np.take(sums, range(start, sums.shape[axis] - side + start), axis) for start in (side, 0))
        sums = high - low
    return sums


def blend(before: NDArray[_Level], after: NDArray[_Level], weight: Pixels) -> NDArray[_Level]:
    """before + weight x (after - before), uint8 or uint16 [H, W, 3]; exactly ``before`` at weight 0 and ``after`` at
    weight 255, which stands for 1.

    Args:
        weight: uint8 [H, W].
    """
    alpha = weight[..., None] / np.float32(255)
    mixed = before + alpha * (after.astype(np.float32) - before)
    return np.rint(mixed).astype(before.dtype)


def compose(
    before: NDArray[_Level],
    piece: NDArray[_Level],
    place: tuple[int, int],
    working: NDArray[_Level],
    mask: Mask,
    enlarged: Callable[[NDArray[_Level]], NDArray[_Level]],
) -> NDArray[_Level]:
    """The photo with a restored piece inserted through the mask, uint8 or uint16 [H, W, 3] of the size of ``before``.

    Args:
        before: the photo at the size of the output.
        piece: the restored part, at the working size; its top left corner is at ``place`` (top, left).
        working: the photo at the working size.
        mask: of any size of the same ratio.
        enlarged: makes a picture of the working size one of the size of ``before``.
    """
    top, left = place
    if working.shape == before.shape and mask.size == (before.shape[1], before.shape[0]):
        box = np.s_[top : top + piece.shape[0], left : left + piece.shape[1]]
        result = np.array(before)
        result[box] = blend(before[box], piece, mask.alpha[box])
        return result
    restored = np.array(working)
    restored[top : top + piece.shape[0], left : left + piece.shape[1]] = piece
    size = (before.shape[1], before.shape[0])
    alpha = mask.alpha
    if mask.size != size:
        alpha = np.asarray(Image.fromarray(alpha).resize(size, Image.Resampling.BILINEAR))
    return blend(before, enlarged(restored), alpha)
