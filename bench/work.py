"""What is restored: sizes, and photographs that need no download, with known degradations."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from diffplugin.errors import MissingDependency, RequestError

Pixels = NDArray[np.uint8]
_EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"
_CLEAN = ("moose.jpg", "mountains.jpg")  # of the test split (docs/examples/LICENSES.md)
_SHIPPED = ("astronaut", "coffee", "chelsea", "rocket")  # scikit-image's, inside its wheel


@dataclass(frozen=True)
class Work:
    """``count`` pictures of ``width`` x ``height`` pixels, one after another in one process."""

    width: int
    height: int
    count: int = 1

    def __str__(self) -> str:
        return f"{self.width}x{self.height}" + (f"@{self.count}" if self.count > 1 else "")


def parse_work(text: str) -> Work:
    """``512x512`` (width x height), ``512x512@10`` for a folder of ten.

    Raises:
        RequestError: not of these forms.
    """
    if found := re.fullmatch(r"([1-9]\d{1,4})x([1-9]\d{1,4})(?:@([1-9]\d{0,3}))?", text):
        return Work(int(found[1]), int(found[2]), int(found[3] or 1))
    raise RequestError(f"work {text!r}: expected WxH or WxH@COUNT in pixels, such as 768x512 or 512x512@10")


def clean_photos() -> Iterator[tuple[str, Pixels]]:
    """(name, uint8 [H,W,3]) of photographs that no model here was trained on.

    Raises:
        MissingDependency: scikit-image is not installed.
    """
    try:
        from skimage import data
    except ImportError:
        raise MissingDependency("scikit-image is needed for its photographs; pip install 'diffplugin[bench]'") from None
    for name in _SHIPPED:
        yield name, getattr(data, name)()
    for name in _CLEAN:
        if (_EXAMPLES / name).is_file():  # beside the sources; not in a wheel
            with Image.open(_EXAMPLES / name) as image:
                yield Path(name).stem, np.asarray(image.convert("RGB"))


def fitted(photo: Pixels, width: int, height: int) -> Pixels:
    """The largest central part of that shape, at that size."""
    image = Image.fromarray(photo)
    return np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS))


def degraded(photo: Pixels, plugin: str, seed: int) -> Pixels:
    """``photo`` with the synthetic degradation that the plugin undoes; as it is where there is none of that name."""
    from diffplugin.plugins.train.degradations import DEGRADATIONS, degrade

    return degrade(photo, plugin, seed) if plugin in DEGRADATIONS else photo


def write_inputs(folder: Path, work: Work, plugin: str) -> list[Path]:
    """The pictures of ``work``, degraded for ``plugin``, as PNG files; the same ones every time."""
    folder.mkdir(parents=True, exist_ok=True)
    photos = [photo for _, photo in clean_photos()]
    files = []
    for i in range(work.count):
        files.append(folder / f"input-{i}.png")
        picture = fitted(photos[i % len(photos)], work.width, work.height)
        Image.fromarray(degraded(picture, plugin, 7000 + i)).save(files[-1])
    return files
