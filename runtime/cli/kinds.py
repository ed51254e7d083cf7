"""Kinds of files by their names: supported photos, unsupported photos with the reason, and other files."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import PurePath

from diffplugin.runtime.photos.kinds import RAW_SUFFIXES
from diffplugin.runtime.photos.write import output_suffixes

_READ_ONLY = (".jfif", ".jp2", ".j2k", ".jpe", ".pgm", ".pnm", ".ppm")
_HEIF = (".heic", ".heics", ".heif", ".heifs", ".hif")
# kinds that an extra brings: suffixes, what people call them, the package, the extra
_EXTRAS = ((_HEIF, "HEIC", "pillow_heif", "heif"), (RAW_SUFFIXES, "camera RAW", "rawpy", "raw"))
_NEVER = {
    ".ai": "Illustrator", ".cdr": "CorelDRAW", ".dds": "DDS", ".eps": "EPS", ".exr": "OpenEXR", ".hdr": "Radiance HDR",
    ".ico": "icon", ".jxl": "JPEG XL", ".jxr": "JPEG XR", ".pcx": "PCX", ".psb": "Photoshop", ".psd": "Photoshop",
    ".svg": "SVG", ".svgz": "SVG", ".tga": "Targa", ".wdp": "JPEG XR", ".xcf": "GIMP",
}  # fmt: skip
_SIDECARS = (".aae", ".ctg", ".dop", ".lrv", ".pp3", ".thm", ".xmp")
_SYSTEM = ("desktop.ini", "ehthumbs.db", "thumbs.db", "icon\r")
_SYSTEM_FOLDERS = ("__macosx", "@eadir", "$recycle.bin", "system volume information")


def read_suffixes() -> tuple[str, ...]:
    """Suffixes of the photos that this installation reads, lower case, with the dot."""
    extra = [suffix for suffixes, _, package, _ in _EXTRAS if find_spec(package) for suffix in suffixes]
    return (*output_suffixes(), *_READ_ONLY, *extra)


def unread_kinds() -> Mapping[str, tuple[str, str]]:
    """Suffixes of unsupported photos -> (usual name of the kind, remedy)."""
    kinds = {suffix: (name, "convert them to PNG, TIFF or JPEG first") for suffix, name in _NEVER.items()}
    for suffixes, name, package, extra in _EXTRAS:
        if not find_spec(package):
            kinds |= dict.fromkeys(suffixes, (name, f"pip install 'diffplugin[{extra}]' reads them"))
    if ".avif" not in output_suffixes():
        kinds[".avif"] = ("AVIF", "upgrade Pillow: pip install -U pillow")
    return kinds


def is_aside(name: str) -> bool:
    """Whether it is a hidden file, a sidecar of a photo or a system file: not meant when a folder is named."""
    return name.startswith(".") or name.lower() in _SYSTEM or PurePath(name).suffix.lower() in _SIDECARS


def is_aside_folder(name: str) -> bool:
    """Whether it is a hidden folder or a system folder."""
    return name.startswith(".") or name.lower() in _SYSTEM_FOLDERS
