"""Pictures as arrays: working sizes, pixels <-> tensors, CLIP's preprocessing, side-by-side pictures.

Pictures are uint8 [H, W, 3] (RGB; uint16 if they have 16 bits), tensors float32 [1, 3, H, W], sizes (width, height) as
in Pillow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffplugin.errors import ImageError, NotFinite, RequestError, ShapeMismatch
from diffplugin.runtime.photos.deep import grey_of, to_8_bits
from diffplugin.runtime.photos.photo import MIN_SIDE, Deep, Photo, Pixels
from diffplugin.runtime.photos.read import pixel_limit
from diffplugin.runtime.photos.resample import bicubic_window

Tensor = NDArray[np.float32]
Size = Literal["native", "released"] | int | tuple[int, int]
_Any = TypeVar("_Any", bound=np.generic)

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's CLIP, arXiv:2103.00020
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_LANCZOS = Image.Resampling.LANCZOS
_RELEASED_SHORT_SIDE = 512
_MULTIPLE = 8
_LONG_VIEW = 8  # longest side of the resized picture that CLIP's view is cut from, in sides of the view


def check_size(size: object) -> None:
    """Raises:
    RequestError: not "native", "released", N or (width, height) with sides of at least ``MIN_SIDE``.
    """
    sides = size if isinstance(size, tuple) and len(size) == 2 else (size,)
    numbers = all(isinstance(side, int) and not isinstance(side, bool) and side >= MIN_SIDE for side in sides)
    if size not in ("native", "released") and not numbers:
        raise RequestError(
            f"size {size!r} is not understood; expected native, released, N or WxH with sides of at least {MIN_SIDE}"
        )


def working_size(width: int, height: int, size: Size) -> tuple[int, int]:
    """(width, height) in which a picture of ``width x height`` is restored.

    Args:
        size: ``"native"``: unchanged. ``"released"``: the rule of the released single-plugin script: a short side under
            512 becomes 512, as with an int N; then both sides are rounded down to multiples of 8. An int N: the
            released demo's rule: the short side becomes N and the other ``int((N / short) * long)`` in floating point,
            as written there; then both are rounded down to multiples of 8. ``(w, h)``: exactly that.

    Raises:
        RequestError: ``size`` is none of these or has a side under ``MIN_SIDE``.
        ImageError: the result has more pixels than :func:`pixel_limit` (a very long picture that would be enlarged).
    """
    check_size(size)
    if size == "native":
        return width, height
    if size == "released":
        result = _floored(_enlarged(width, height))
    elif isinstance(size, int):
        result = _floored(_with_short_side(width, height, size))
    else:
        result = size
    if result[0] * result[1] > pixel_limit():
        raise ImageError(
            f"{width}x{height} pixels become {result[0]}x{result[1]} at size {size}, more than {pixel_limit():,} "
            "pixels; use size native or a smaller one"
        )
    return result[0], result[1]


def _floored(size: tuple[int, int]) -> tuple[int, int]:
    return size[0] // _MULTIPLE * _MULTIPLE, size[1] // _MULTIPLE * _MULTIPLE


def _with_short_side(width: int, height: int, short: int) -> tuple[int, int]:
    """The released scripts' first step, float by float: 49x98 at 512 is 512x1023, and 49x49 is 511x512."""
    if width < height:
        return short, int((short / width) * height)
    return int((short / height) * width), short


def _enlarged(width: int, height: int) -> tuple[int, int]:
    if min(width, height) >= _RELEASED_SHORT_SIDE:
        return width, height
    return _with_short_side(width, height, _RELEASED_SHORT_SIDE)


def as_released(size: Size) -> bool:
    """Whether :func:`working_size` follows a rule of the released scripts: then the picture runs as it does there, and
    nothing is added around it."""
    return size == "released" or isinstance(size, int)


def working_photo(photo: Photo | Pixels, size: Size = "native") -> Pixels | Deep:
    """The picture at its working size (:func:`working_size`), uint8 [H', W', 3]; uint16 if the photo has 16 bits.

    ``"released"`` and N resize with Pillow's default filter (bicubic) and round down to multiples of 8 with Lanczos,
    as the released scripts do; ``(w, h)`` is Lanczos. If the size already fits, the same pixels are returned.

    Raises:
        RequestError, ImageError: as :func:`working_size`.
    """
    rgb: NDArray[Any] = photo.levels if isinstance(photo, Photo) else photo
    height, width = rgb.shape[:2]
    target = working_size(width, height, size)
    if size == "released":
        rgb = resize(rgb, _enlarged(width, height), Image.Resampling.BICUBIC)
    elif isinstance(size, int):
        rgb = resize(rgb, _with_short_side(width, height, size), Image.Resampling.BICUBIC)
    return resize(rgb, target)


def resize(pixels: NDArray[_Any], size: tuple[int, int], resample: Image.Resampling = _LANCZOS) -> NDArray[_Any]:
    """uint8 or uint16, [H, W, 3] or [H, W], at ``size`` = (width, height); the same array if it has that size already.

    8 bits are resized by Pillow's 8-bit arithmetic; 16 channel by channel as floating-point numbers, rounded.
    """
    if (pixels.shape[1], pixels.shape[0]) == tuple(size):
        return pixels
    if pixels.dtype != np.uint16:
        return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, resample))
    if pixels.ndim == 3:
        return np.stack([resize(pixels[..., i], size, resample) for i in range(pixels.shape[2])], -1)
    made = np.asarray(Image.fromarray(pixels.astype(np.float32)).resize(size, resample))
    rounded: NDArray[_Any] = np.rint(np.clip(made, 0, 65535)).astype(pixels.dtype)
    return rounded


def with_rgb(photo: Photo, rgb: NDArray[Any], *, colour: bool = False) -> Photo:
    """``photo`` with new pixels [H', W', 3], uint8 or (a deep photo's) uint16.

    Alpha is resized too (Lanczos), and metadata stay. A grey photo stays grey (luma), whatever the mode of its file,
    unless its restoration has ``colour``: then a grey mode becomes RGB.
    """
    if colour and photo.mode == "L":
        photo = replace(photo, mode="RGB", details=replace(photo.details, grey_icc=None))
    elif not colour and photo.is_grey:
        rgb = np.repeat(grey_of(rgb)[..., None], 3, axis=2)
    size = rgb.shape[1], rgb.shape[0]
    alpha = None if photo.alpha is None else resize(photo.alpha, size)
    if rgb.dtype == np.uint8:
        return replace(photo, rgb=np.asarray(rgb, np.uint8), alpha=alpha, deep=None, deep_alpha=None)
    deep = np.asarray(rgb, np.uint16)
    deep_alpha = None if photo.deep_alpha is None else resize(photo.deep_alpha, size)
    return replace(photo, rgb=to_8_bits(deep), alpha=alpha, deep=deep, deep_alpha=deep_alpha)


def to_tensor(rgb: Pixels | Deep) -> Tensor:
    """uint8 [H, W, 3] -> contiguous float32 [1, 3, H, W] in [-1, 1]: 2 (x / 255) - 1; uint16: 2 (x / 65535) - 1."""
    if rgb.dtype not in (np.uint8, np.uint16) or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ShapeMismatch(f"picture is {rgb.dtype} {'x'.join(map(str, rgb.shape))}, expected uint8 HxWx3")
    tensor = np.array(rgb.transpose(2, 0, 1)[None], dtype=np.float32, order="C")
    tensor /= np.iinfo(rgb.dtype).max  # in place: a tensor is four times its picture
    tensor *= 2
    tensor -= 1
    return tensor


def from_tensor(image: NDArray[np.floating[Any]]) -> Pixels:
    """float [1, 3, H, W], nominally in [-1, 1] -> uint8 [H, W, 3]: clamp(x / 2 + 0.5) x 255, rounded half to even.

    Raises:
        ShapeMismatch: not of that shape. NotFinite: it contains a NaN or an infinity.
    """
    return _levels(image, np.uint8)


def from_tensor_deep(image: NDArray[np.floating[Any]]) -> Deep:
    """As :func:`from_tensor`, uint16 of 65535 levels."""
    return _levels(image, np.uint16)


def _levels(image: NDArray[np.floating[Any]], dtype: type[_Any]) -> NDArray[_Any]:
    if image.ndim != 4 or image.shape[:2] != (1, 3):
        raise ShapeMismatch(f"image is {'x'.join(map(str, image.shape))}, expected 1x3xHxW")
    if not (np.isfinite(image.min()) and np.isfinite(image.max())):  # a NaN is both
        bad = image.size - np.count_nonzero(np.isfinite(image))
        raise NotFinite(f"image has {bad} values of {image.size} that are NaN or infinite, expected finite ones")
    levels = np.empty((*image.shape[2:], 3), dtype)
    for i, plane in enumerate(image[0]):  # plane by plane: a copy of a third of the picture
        values = np.array(plane, dtype=np.float32)
        values *= 0.5
        values += 0.5
        np.clip(values, 0, 1, out=values)
        values *= 255 if dtype is np.uint8 else 65535
        np.rint(values, out=values)
        levels[..., i] = values
    return levels


def reflected(pixels: NDArray[_Any], top: int, left: int, height: int, width: int) -> NDArray[_Any]:
    """A window [height, width, C] of [H, W, C]: beyond the picture's edges it shows the picture reflected (a side of 1
    is repeated). A view where nothing is beyond.

    Args:
        top, left: of the window; negative: above the picture, or left of it.
    """
    inside = pixels[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)]
    spans = ((top, height, pixels.shape[0]), (left, width, pixels.shape[1]))
    for axis, (start, length, side) in enumerate(spans):
        beyond = (max(-start, 0), max(start + length - side, 0))
        if any(beyond):
            pads = [(0, 0)] * pixels.ndim
            pads[axis] = beyond
            inside = np.pad(inside, pads, mode="reflect" if inside.shape[axis] > 1 else "edge")
    return inside


def clip_pixels(
    rgb: Pixels, size: int = 224, mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD
) -> Tensor:
    """CLIP's preprocessing of the original picture: uint8 [H, W, 3] -> float32 [1, 3, size, size].

    Short side to ``size`` (bicubic, Pillow; the other side rounded down), centre crop (rounded up and left), then
    (x / 255 - mean) / std per channel; what transformers' CLIPImageProcessor calls resize, center_crop, normalize.
    """
    height, width = rgb.shape[:2]
    short = min(height, width)
    small = int(size * width / short), int(size * height / short)
    left, top = (small[0] - size) // 2, (small[1] - size) // 2
    if short < size and max(small) > _LONG_VIEW * size:  # a strip, enlarged: nearly all of it would be cut off
        square = bicubic_window(rgb, small, (left, top, left + size, top + size))
    else:
        square = resize(rgb, small, Image.Resampling.BICUBIC)[top : top + size, left : left + size]
    view = square.transpose(2, 0, 1)[None].astype(np.float32)
    offset, scale = (np.asarray(v, np.float32).reshape(1, 3, 1, 1) for v in (mean, std))
    return np.ascontiguousarray((view / np.float32(255) - offset) / scale)


def side_by_side(before: Pixels, after: Pixels) -> Pixels:
    """Before on the left, after on the right, a thin white line between: uint8 [H, 2 W + line, 3], sizes of ``after``.

    ``before`` is resized (Lanczos) if it has another size. The line is 1/200 of the width, at least 2 pixels.
    """
    height, width = after.shape[:2]
    line = np.full((height, max(2, width // 200), 3), 255, np.uint8)
    return np.concatenate((resize(before, (width, height)), line, after), axis=1)
