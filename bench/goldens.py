"""What the released inference scripts computed from a small random-weight model, and how far a restorer is from it."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from diffplugin.errors import RequestError
from diffplugin.export.measures import psnr, relative_error

if TYPE_CHECKING:
    from diffplugin.runtime.restorer import Restorer

PACKED = Path(__file__).resolve().parents[1] / "tests" / "data" / "oracle.tar.xz"
_RESIDUALS = {"residual0": "residual_0", "residual1": "residual_1", "residual2": "residual_2"}


@dataclass(frozen=True)
class Golden:
    """One run of the single-plugin script."""

    plugin: str
    photo: str
    steps: int
    seed: int


GOLDENS = {
    "derain_small_4": Golden("derain", "small.png", 4, 7),
    "lowlight_portrait_6": Golden("lowlight", "portrait.png", 6, 42),
    "deblur_landscape_20": Golden("deblur", "landscape.png", 20, 42),
}


@dataclass(frozen=True)
class Distance:
    """Relative L2 error of every tensor that a golden file holds, and PSNR of the picture in dB where it is there."""

    errors: Mapping[str, float]
    picture_db: float | None


def unpack(folder: Path) -> Path:
    """The copy in the repository, below ``folder``: ``checkpoint/`` in the released layouts, and ``golden/``.

    Raises:
        RequestError: this is no clone of the repository.
    """
    if not PACKED.is_file():
        raise RequestError(f"{PACKED.name} is not here: the goldens are in a clone of the repository, in tests/data")
    with tarfile.open(PACKED) as archive:
        archive.extractall(folder, filter="data")
    return folder


def distance(restorer: Restorer, oracle: Path, name: str, *, tensors: bool = True) -> Distance:
    """Run a golden. With ``tensors`` the loop runs from the host, which sees them; else as the restorer likes."""
    golden = GOLDENS[name]
    seen: dict[tuple[str, int], Any] = {}
    made = restorer.restore(
        oracle / "golden" / golden.photo, plugins=[golden.plugin], seed=golden.seed, steps=golden.steps,
        size="released", output_size="working",
        observe=(lambda _, tensor, step, value: seen.setdefault((tensor, step), value)) if tensors else None,
    )  # fmt: skip
    picture = oracle / "golden" / f"{name}.png"
    if picture.is_file():  # the copy in the repository has that of derain_small_4 only
        with Image.open(picture) as image:
            found = psnr(made.array, np.asarray(image.convert("RGB")))
    return Distance(_errors(oracle, name, seen) if tensors else {}, found if picture.is_file() else None)


def _errors(oracle: Path, name: str, seen: Mapping[tuple[str, int], Any]) -> dict[str, float]:
    errors = {}
    with np.load(oracle / "golden" / f"{name}.npz") as golden:
        kept = golden["kept_steps"].tolist()
        for tensor in {"tokens", "cond", "z0"} & set(golden):
            errors[tensor] = relative_error(seen[tensor, 0], golden[tensor])
        for tensor in {"latents", "eps"} & set(golden):
            for step, value in zip(kept, golden[tensor], strict=True):
                errors[f"{tensor} {step}"] = relative_error(seen[tensor, step][0], value)
        for tensor in set(_RESIDUALS) & set(golden):
            # first and last step; the copy in the repository keeps the first alone
            for step, value in zip((0, GOLDENS[name].steps - 1), golden[tensor], strict=False):
                errors[f"{tensor} {step}"] = relative_error(seen[_RESIDUALS[tensor], step][0], value)
    if not {"z0", "cond"} <= set(errors):
        raise RequestError(f"{name}: the golden file holds too little ({', '.join(sorted(errors))})")
    return errors
