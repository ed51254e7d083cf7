"""A Pillow image -> upright photos: colours, alpha, depth, frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffplugin.errors import ImageError, UnsupportedImage
from diffplugin.runtime.photos.deep import (
    Layout,
    as_rgba_png,
    deep_layout,
    deep_pixels,
    grey_levels,
    is_misread,
    to_8_bits,
)
from diffplugin.runtime.photos.metadata import (
    colour_space,
    file_details,
    has_maker_note,
    portable_exif,
    to_srgb,
)
from diffplugin.runtime.photos.photo import MIN_SIDE, Deep, Mode, Photo, Pixels

FIRST_ONLY = "only the first of {count} frames or pages is used"
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_Planes = tuple[Image.Image, Image.Image | None]  # colours in mode RGB; alpha in mode L or None


@dataclass(frozen=True, kw_only=True)
class Source:
    """The origin of an image, as the decoder needs it.

    Attributes:
        name: for messages.
        limit: most pixels of all frames together; None: no limit, for images in memory.
        file: the file it was opened from; None: it was created in memory.
        reopen: opens another file of the same format: (file) -> image, not loaded.
        first_frame: leave further frames and pages out.
    """

    name: str
    limit: int | None
    file: IO[bytes] | None = None
    reopen: Callable[[IO[bytes]], Image.Image] | None = None
    first_frame: bool = False


def check_size(size: tuple[int, int], name: str, limit: int | None) -> None:
    """Refuse an image that is too small for one latent pixel or has more than ``limit`` pixels.

    Raises:
        ImageError: it is.
    """
    width, height = size
    if min(size) < MIN_SIDE:
        raise ImageError(f"{name}: {width}x{height} pixels, expected at least {MIN_SIDE}x{MIN_SIDE}")
    if limit is not None and width * height > limit:
        raise ImageError(
            f"{name}: {width}x{height} is {width * height:,} pixels, expected at most {limit:,}; "
            "make it smaller, or set DIFFPLUGIN_MAX_PIXELS if the file is trusted and memory allows"
        )


def decode(image: Image.Image, source: Source) -> Photo:
    """Decode an opened image with all its frames. May raise whatever Pillow's decoders raise.

    Raises:
        ImageError: a side under ``MIN_SIDE``, more pixels than the limit, or an unsupported colour mode.
    """
    check_size(image.size, source.name, source.limit)
    # the further pictures of an MPO file (a phone's JPEG) are previews and depth maps
    count = 1 if image.format in ("JPEG", "MPO") else getattr(image, "n_frames", 1)
    first = _frame(image, source, 0)
    if image.format == "MPO" and getattr(image, "n_frames", 1) > 1:
        first = replace(first, notes=(*first.notes, "previews and depth maps beside the main picture are not kept"))
    if count == 1:
        return replace(first, details=replace(first.details, duration=None, loop=None))
    if source.first_frame:
        note = FIRST_ONLY.format(count=count)
        return replace(
            first, details=replace(first.details, duration=None, loop=None, poster=False), notes=(*first.notes, note)
        )
    frames = tuple(_further(image, source, count, first))
    notes = dict.fromkeys(note for frame in (first, *frames) for note in frame.notes)
    return replace(first, frames=frames, notes=tuple(notes))


def _further(image: Image.Image, source: Source, count: int, first: Photo) -> Iterator[Photo]:
    """The frames after the first; their pixels count together."""
    pixels = first.size[0] * first.size[1]
    for i in range(1, count):
        image.seek(i)
        check_size(image.size, f"{source.name}: frame {i + 1}", source.limit)
        pixels += image.size[0] * image.size[1]
        if source.limit is not None and pixels > source.limit:
            raise ImageError(
                f"{source.name}: {count} frames or pages; the first {i + 1} have {pixels:,} pixels together, expected "
                f"at most {source.limit:,}; use --first-frame, or set DIFFPLUGIN_MAX_PIXELS if memory allows"
            )
        frame = _frame(image, source, i)
        yield replace(frame, mode=first.mode) if first.mode == "P" else frame


def _frame(image: Image.Image, source: Source, index: int) -> Photo:
    """The current frame: decoded, upright, RGB."""
    if is_misread(image):
        raise UnsupportedImage(
            f"{source.name}: a TIFF picture of 16 bits with each channel in a plane of its own, which is not read here "
            "uncompressed; save it with all channels in one plane"
        )
    layout = deep_layout(image)
    mode, opened_as = _mode(image, layout), image.mode  # some formats change it as they load
    image.load()
    exif = image.getexif()  # after load(): TIFF turns itself upright there, PNG may carry it behind the pixels
    turn = _UPRIGHT.get(exif.get(0x0112, 1))
    icc = image.info.get("icc_profile") or None
    notes = list(_lost(image, exif, opened_as, icc))
    if layout is None and image.format == "TIFF" and max(getattr(image, "tag_v2", {}).get(258, (8,))) > 8:
        notes.append("16 bits a channel became 8: they stand in an arrangement of which only 8 are read")
    deep, deep_alpha = None, None
    grey_icc = icc if icc and mode == "L" and colour_space(icc) == "L" else None
    if layout is not None and grey_icc is None:
        deep, deep_alpha = _deep_planes(image, layout, source, index)
    elif layout is not None and grey_icc is not None:
        notes.append("16 bits of grey became 8: there is a grey profile, which is applied at 8")
    rgb, alpha = _rgb_and_alpha(image, icc, source.name)
    details = file_details(image, source.file)
    if deep_alpha is None and alpha is not None and deep is not None:
        deep_alpha = np.asarray(alpha).astype(np.uint16) * 257
    return Photo(
        rgb=_frozen(_turned(np.asarray(rgb), turn)),
        alpha=None if alpha is None else _frozen(_turned(np.asarray(alpha), turn)),
        deep=None if deep is None else _frozen(_turned(deep, turn)),
        deep_alpha=None if deep_alpha is None else _frozen(_turned(deep_alpha, turn)),
        mode=mode,
        icc=icc if icc and colour_space(icc) == "RGB" and image.mode != "CMYK" else None,
        exif=portable_exif(exif),
        details=replace(details, grey_icc=grey_icc),
        notes=tuple(notes),
    )


def _mode(image: Image.Image, layout: Layout | None) -> Mode:
    if image.format == "GIF" or image.mode in ("P", "PA"):
        return "P"
    grey = image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I") or layout == "grey and alpha"
    return "L" if grey else "RGB"


def _lost(image: Image.Image, exif: Image.Exif, mode: str, icc: bytes | None) -> Iterator[str]:
    """Properties that cannot be kept, one phrase each."""
    if mode == "1":
        yield "black and white became grey"
    elif mode not in ("L", "LA", "La", "RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "I", "F") and "I;16" not in mode:
        yield f"colour mode {mode} became sRGB" if icc else f"colour mode {mode} became RGB"
    if has_maker_note(exif):
        yield "the camera's maker note is not kept"
    bits = image.info.get("bit_depth")
    if isinstance(bits, int) and bits > 8:
        yield f"{bits} bits a channel became 8"


def _rgb_and_alpha(image: Image.Image, icc: bytes | None, name: str) -> _Planes:
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep_grey(image, icc, name)
    alpha = None
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA") if image.mode not in ("L", "LA", "La", "1") else image.convert("LA")
        alpha = image.getchannel("A")
        image = image.convert("RGB" if image.mode == "RGBA" else "L")
    converted = to_srgb(image, icc) if icc and image.mode in ("CMYK", "L") else None
    try:
        return converted or image.convert("RGB"), alpha
    except ValueError:
        raise UnsupportedImage(f"{name}: colour mode {image.mode} is not supported; convert it to RGB first") from None


def _from_deep_grey(image: Image.Image, icc: bytes | None, name: str) -> _Planes:
    """Grey of more than 8 bits: modes I;16*, and I, as which Pillow opens 16-bit PPM (and 16-bit PNG once did)."""
    values = grey_levels(image)
    # in a TIFF, I and F are 32-bit measurements of unknown scale: a guess would be a black picture
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format != "TIFF")
    if not sixteen or values.min() < 0 or values.max() > 65535:
        raise UnsupportedImage(
            f"{name}: {values.dtype} pixels from {values.min():g} to {values.max():g}, "
            "expected 8 or 16 unsigned bits a channel; convert it first"
        )
    grey = Image.fromarray(to_8_bits(values.astype(np.uint16)))
    clear = image.info.get("transparency")
    alpha = Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)) if isinstance(clear, int) else None
    return (to_srgb(grey, icc) if icc else None) or grey.convert("RGB"), alpha


def _deep_planes(image: Image.Image, layout: Layout, source: Source, index: int) -> tuple[Deep | None, Deep | None]:
    """(colours [H, W, 3], alpha [H, W] or None) at 16 bits, as they stand in the file."""
    file, reopen = source.file, source.reopen
    if layout == "grey":
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            return None, None
    elif file is None or reopen is None:  # an image that the caller opened: Pillow has kept 8 bits of it
        return None, None

    def again() -> Image.Image:
        assert file is not None and reopen is not None  # grey is not opened again
        other = reopen(as_rgba_png(file) if layout == "grey and alpha" else file)
        if index:
            other.seek(index)
        return other

    levels = deep_pixels(image, layout, again)
    channels = levels.shape[2]
    colours = levels[..., :3] if channels >= 3 else np.repeat(levels[..., :1], 3, axis=2)
    clear = image.info.get("transparency")
    if channels in (2, 4):
        return colours, levels[..., -1]
    if isinstance(clear, tuple) and len(clear) == 3:
        return colours, np.where((colours == np.array(clear)).all(-1), 0, 65535).astype(np.uint16)
    return colours, None


def _turned(array: NDArray[Any], turn: Image.Transpose | None) -> NDArray[Any]:
    """[H, W, ...] as ``Image.transpose`` turns it."""
    if turn is None:
        return array
    swapped = turn in (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270) or "TRANS" in turn.name
    array = array.swapaxes(0, 1) if swapped else array
    upside_down, mirrored = _FLIPS[turn]
    array = array[::-1] if upside_down else array
    return array[:, ::-1] if mirrored else array


_FLIPS = {
    Image.Transpose.FLIP_LEFT_RIGHT: (False, True),
    Image.Transpose.FLIP_TOP_BOTTOM: (True, False),
    Image.Transpose.ROTATE_180: (True, True),
    Image.Transpose.TRANSPOSE: (False, False),
    Image.Transpose.ROTATE_90: (True, False),
    Image.Transpose.ROTATE_270: (False, True),
    Image.Transpose.TRANSVERSE: (True, True),
}


def _frozen(array: NDArray[Any]) -> Any:
    """A read-only contiguous copy, so that later changes to the source do not reach the photo."""
    copy = np.array(array, order="C")
    copy.setflags(write=False)
    return copy


def photo_from_array(array: Pixels | Deep, name: str, limit: int | None) -> Photo:
    """uint8 or uint16 [H, W] or [H, W, C], copied: 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha) channels.

    Raises:
        ImageError: another shape or type, or too small or too large.
    """
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype not in (np.uint8, np.uint16) or array.ndim not in (2, 3) or not 1 <= channels <= 4:
        shape = "x".join(map(str, array.shape))
        raise ImageError(
            f"{name} is {array.dtype} {shape}, expected uint8 HxW or HxWxC with 1 to 4 channels, 0 to 255 (or uint16)"
        )
    check_size((array.shape[1], array.shape[0]), name, limit)
    planes = array.reshape(*array.shape[:2], channels)
    colours = planes[..., :3] if channels >= 3 else np.repeat(planes[..., :1], 3, axis=2)
    alpha = planes[..., -1] if channels in (2, 4) else None
    mode: Mode = "RGB" if channels >= 3 else "L"
    if array.dtype == np.uint8:
        return Photo(rgb=_frozen(colours), alpha=None if alpha is None else _frozen(alpha), mode=mode)
    return Photo(
        rgb=_frozen(to_8_bits(colours.astype(np.uint16))),
        alpha=None if alpha is None else _frozen(to_8_bits(alpha.astype(np.uint16))),
        deep=_frozen(colours),
        deep_alpha=None if alpha is None else _frozen(alpha),
        mode=mode,
    )
