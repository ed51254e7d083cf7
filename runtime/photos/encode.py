"""A photo -> the bytes of a file, and the properties that its format cannot hold."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from diffplugin.runtime.photos.deep import grey_of, to_8_bits, write_deep_png
from diffplugin.runtime.photos.metadata import from_srgb, iptc_segment, xmp_segment
from diffplugin.runtime.photos.palette import with_palette
from diffplugin.runtime.photos.photo import Mode, Photo, Pixels
from diffplugin.runtime.photos.tiff import DEFAULT, Page, is_written, write_tiff

_SEGMENT = 65533  # bytes of one JPEG marker segment, its length field included
_XMP_SEGMENT = 65502  # of XMP in one (XMP specification part 3, 1.1.3)
PNG_LEVEL = 1  # of zlib: four times faster than 6, and 4 % longer


@dataclass(frozen=True, kw_only=True)
class Format:
    """One output format: Pillow's name, what it holds, its longest side, its options."""

    name: str
    modes: tuple[Mode, ...] = ("RGB",)
    alpha: bool = True
    icc: bool = True
    exif: bool = True
    xmp: bool = True
    dpi: bool = False
    text: bool = False
    comment: bool = False
    iptc: bool = False
    deep: bool = False
    frames: str = ""
    longest: int = 2**31 - 1
    options: Mapping[str, Any] = field(default_factory=dict)


PNG = Format(name="PNG", modes=("RGB", "L", "P"), dpi=True, text=True, comment=True, deep=True, frames="animation")
JPEG = Format(
    name="JPEG",
    modes=("RGB", "L"),
    alpha=False,
    dpi=True,
    comment=True,
    iptc=True,
    longest=65500,
    options={"quality": 95, "subsampling": 0},
)
TIFF = Format(name="TIFF", modes=("RGB", "L", "P"), dpi=True, iptc=True, deep=True, frames="pages")
WEBP = Format(name="WEBP", longest=16383, frames="animation", options={"quality": 95})
AVIF = Format(name="AVIF", longest=65536, frames="animation", options={"quality": 90})
HEIF = Format(name="HEIF", modes=("RGB", "L"), longest=65535, frames="pages", options={"quality": 95})
BMP = Format(name="BMP", modes=("RGB", "L", "P"), alpha=False, icc=False, exif=False, xmp=False, dpi=True)
GIF = Format(
    name="GIF", modes=("P",), icc=False, exif=False, xmp=False, comment=True, longest=65535, frames="animation"
)


def not_kept(photo: Photo, form: Format) -> tuple[str, ...]:
    """Properties of a photo that a file of this format cannot hold, one phrase each."""
    details = photo.details
    deep = form.deep and not (form is PNG and photo.frames)  # an animated PNG is written by Pillow, at 8
    lost = {
        "alpha: the picture stands over white": photo.alpha is not None and not form.alpha,
        "16 bits a channel: 8 are written": photo.deep is not None and not deep,
        "grey as a mode of its own": photo.mode == "L" and "L" not in form.modes and form is not GIF,
        "the palette: all colours are written": photo.mode == "P" and "P" not in form.modes,
        "all colours: a GIF holds 256": photo.mode != "P" and form is GIF,
        "ICC profile": (photo.icc or details.grey_icc) is not None and not _icc_fits(photo, form),
        "EXIF": photo.exif is not None and not _exif_fits(photo.exif, form),
        "XMP": details.xmp is not None and not _xmp_fits(details.xmp, form),
        "IPTC": details.iptc is not None and not _iptc_fits(details.iptc, form),
        "resolution (DPI)": details.dpi is not None and not form.dpi,
        "PNG text": bool(details.text) and not form.text,
        "comment": bool(details.comment) and not form.comment,
        f"TIFF compression {details.compression}": form is TIFF and not is_written(details.compression or DEFAULT),
    }
    found = [what for what, is_lost in lost.items() if is_lost]
    return (f"{form.name} does not keep: {', '.join(found)}",) if found else ()


def encode(photo: Photo, form: Format, file: IO[bytes], *, png_level: int = PNG_LEVEL) -> None:
    """Write a photo with its frames. May raise whatever encoders raise. ``png_level``: of zlib, 0 to 9."""
    if form is TIFF:
        write_tiff(file, [_page(one) for one in (photo, *photo.frames)])
    elif form is PNG and photo.deep is not None and not photo.frames:
        _deep_png(photo, file, png_level)
    elif form is HEIF:
        _heif(photo, file)
    else:
        options = dict(form.options) | _metadata(photo, form)
        if form is PNG:
            options["compress_level"] = png_level
        first, *others = [_image(one, form) for one in (photo, *photo.frames)]
        if others:
            options |= _animation(photo, form) | {"save_all": True, "append_images": others}
        first.save(file, form.name, **options)


def _metadata(photo: Photo, form: Format) -> dict[str, Any]:
    """Pillow's options for the metadata of the photo's file."""
    details = photo.details
    options: dict[str, Any] = {}
    if form.icc and _icc_fits(photo, form):
        options["icc_profile"] = details.grey_icc if photo.mode == "L" and details.grey_icc else photo.icc
    if photo.exif and _exif_fits(photo.exif, form):
        options["exif"] = photo.exif
    if details.dpi and form.dpi:
        options["dpi"] = details.dpi
    if form is PNG:
        options["pnginfo"] = _png_chunks(photo)
    elif form is JPEG:
        options["extra"] = b"".join(_jpeg_segments(photo))
    elif details.xmp and form.xmp:
        options["xmp"] = details.xmp
    if details.comment and form.comment and form is not PNG:
        options["comment"] = details.comment
    return options


def _png_chunks(photo: Photo) -> PngImagePlugin.PngInfo:
    details, chunks = photo.details, PngImagePlugin.PngInfo()
    for kind, data in details.colour_chunks:
        chunks.add(kind, data)
    if details.xmp:
        chunks.add_itxt("XML:com.adobe.xmp", details.xmp.decode("utf-8", "replace"))
    text = list(details.text)
    if details.comment and not any(keyword == "Comment" for keyword, _ in text):
        text.append(("Comment", details.comment.decode("utf-8", "replace")))
    for keyword, value in text:
        chunks.add_text(keyword, value, zip=len(value) > 2000)
    return chunks


def _jpeg_segments(photo: Photo) -> Iterator[bytes]:
    if photo.details.xmp and _xmp_fits(photo.details.xmp, JPEG):
        yield xmp_segment(photo.details.xmp)
    if photo.details.iptc and _iptc_fits(photo.details.iptc, JPEG):
        yield iptc_segment(photo.details.iptc)


def _animation(photo: Photo, form: Format) -> dict[str, Any]:
    frames, details = (photo, *photo.frames), photo.details
    durations = [round(frame.details.duration or 0) for frame in frames]
    options: dict[str, Any] = {"duration": durations}
    if details.loop is not None:
        options["loop"] = details.loop
    elif form is PNG or form is WEBP:
        options["loop"] = 1  # their default is for ever; a file that says nothing is shown once
    if form is PNG and details.poster:
        options |= {"default_image": True, "duration": durations[1:]}
    if form is GIF:
        options["disposal"] = 2
    return options


def _icc_fits(photo: Photo, form: Format) -> bool:
    if photo.mode == "L" and photo.details.grey_icc:
        return form.icc and "L" in form.modes
    return form.icc and photo.icc is not None and photo.mode != "L"


def _exif_fits(exif: bytes, form: Format) -> bool:
    return form.exif and (form is not JPEG or len(exif) <= _SEGMENT)


def _xmp_fits(xmp: bytes, form: Format) -> bool:
    return form.xmp and (form is not JPEG or len(xmp) <= _XMP_SEGMENT)


def _iptc_fits(iptc: bytes, form: Format) -> bool:
    return form.iptc and (form is not JPEG or len(iptc) < 65000)


def _image(photo: Photo, form: Format) -> Image.Image:
    """The picture as a Pillow image in the mode of its file, if the format has that mode."""
    rgb, alpha = np.ascontiguousarray(photo.rgb), photo.alpha
    if alpha is not None and not form.alpha:
        over = Image.new("RGB", photo.size, "white")
        rgb = np.asarray(Image.composite(Image.fromarray(rgb), over, Image.fromarray(np.ascontiguousarray(alpha))))
        alpha = None
    if form is GIF or (photo.mode == "P" and "P" in form.modes):
        if form is GIF and alpha is not None:
            alpha = np.where(alpha < 128, 0, 255).astype(np.uint8)  # one transparent entry, all or nothing
            rgb = np.where(alpha[..., None] == 0, 0, rgb).astype(np.uint8)
        return with_palette(rgb, alpha)[0]
    image = Image.fromarray(_grey(photo, rgb) if photo.mode == "L" and "L" in form.modes else rgb)
    if alpha is not None:
        image.putalpha(Image.fromarray(np.ascontiguousarray(alpha)))
    return image


def _grey(photo: Photo, rgb: Pixels) -> Pixels:
    """Grey values, in the file's own grey profile if it had one."""
    grey: Pixels = grey_of(rgb)
    icc = photo.details.grey_icc
    own = from_srgb(Image.fromarray(grey), icc) if icc else None
    return grey if own is None else np.asarray(own)


def _levels(photo: Photo) -> NDArray[Any]:
    """uint16 or uint8 [H, W, C] in the file's mode, alpha last."""
    colours: NDArray[Any]
    alpha: NDArray[Any] | None
    if photo.deep is None:
        colours = _grey(photo, photo.rgb)[..., None] if photo.mode == "L" else photo.rgb
        alpha = photo.alpha
    else:
        colours = grey_of(photo.deep)[..., None] if photo.mode == "L" else photo.deep
        alpha = photo.deep_alpha if photo.deep_alpha is not None else photo.alpha
        alpha = alpha.astype(np.uint16) * 257 if alpha is not None and alpha.dtype == np.uint8 else alpha
    return colours if alpha is None else np.concatenate((colours, alpha[..., None]), -1)


def _page(photo: Photo) -> Page:
    details = photo.details
    palette = None
    if photo.mode == "P" and photo.alpha is None:
        image, _ = with_palette(np.ascontiguousarray(photo.rgb), None)
        levels: NDArray[Any] = np.asarray(image)[..., None]
        entries = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        palette = np.concatenate((entries, np.zeros((256 - len(entries), 3), np.uint8)))
    else:
        levels = _levels(photo)
    return Page(
        levels=levels,
        palette=palette,
        compression=details.compression or DEFAULT,
        icc=details.grey_icc if photo.mode == "L" else photo.icc,
        exif=photo.exif,
        xmp=details.xmp,
        iptc=details.iptc,
        dpi=details.dpi,
    )


def _deep_png(photo: Photo, file: IO[bytes], level: int) -> None:
    levels = _levels(photo)
    template = io.BytesIO()
    small = Image.fromarray(
        np.squeeze(to_8_bits(levels[:1, :1]), -1) if levels.shape[2] == 1 else to_8_bits(levels[:1, :1])
    )
    small.save(template, "PNG", **_metadata(photo, PNG))
    write_deep_png(file, levels, template.getvalue(), level=level)


def _heif(photo: Photo, file: IO[bytes]) -> None:
    import pillow_heif

    made: Any = pillow_heif.HeifFile()
    for one in (photo, *photo.frames):
        image = _image(one, HEIF)
        if one.icc and one.mode != "L":
            image.info["icc_profile"] = one.icc
        made.add_from_pillow(image)
    options = {"exif": photo.exif, "xmp": photo.details.xmp}
    made.save(file, **HEIF.options, **{name: value for name, value in options.items() if value})
