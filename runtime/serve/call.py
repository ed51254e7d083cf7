"""Turns a job into a call of the restorer, and its result into a file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffplugin.runtime.options import RestoreOptions
from diffplugin.runtime.photos.mask import Mask, blend, read_mask, region_mask
from diffplugin.runtime.photos.pixels import resize, with_rgb
from diffplugin.runtime.photos.read import Photo, read_header, read_photo
from diffplugin.runtime.photos.write import write_photo
from diffplugin.runtime.serve.fields import suffix_of

if TYPE_CHECKING:
    from diffplugin.runtime.planning.plan import Plan
    from diffplugin.runtime.request.selection import Selection
    from diffplugin.runtime.restoration import Restoration
    from diffplugin.runtime.restorer import Restorer
    from diffplugin.runtime.serve.job import Job, JobRequest


def restore_options(request: JobRequest) -> RestoreOptions:
    """The restorer's options for a job.

    Raises:
        RequestError: every fault of the request that can be found without a bundle and a photo.
    """
    fields: Any = {name: getattr(request, name) for name in ("prompt", "seed", "steps", "sampler", "size", "tile")}
    return RestoreOptions(**fields, plugins=request.plugins or None)


def mask_of(request: JobRequest, photo: Photo, mask_file: Path | None) -> Mask | None:
    """The mask of the photo; None: all of it is restored.

    Raises:
        ImageError, RequestError: the mask cannot be read, or no part of it is in the photo.
    """
    if mask_file is not None:
        return read_mask(mask_file, photo.size, feather=request.feather, name="mask")
    if request.region is not None:
        return region_mask(request.region, photo.size, feather=request.feather)
    return None


def restore_job(
    restorer: Restorer,
    job: Job,
    files: Mapping[str, Path],
    results: Path,
    *,
    max_pixels: int,
    on_plan: Callable[[Plan, Selection], None],
    progress: Callable[[int, int, str], None],
    restored: Callable[[], None],
    cancelled: Callable[[], bool],
) -> tuple[Restoration, str]:
    """Restore a job's photo and write the result below ``results``; it is on the disk when this returns.

    Args:
        files: "inputs" and, with a mask, "masks".
        restored: called when only the result is still to be written.

    Returns:
        (the restoration, name of the result's file).
    """
    photo = read_photo(files["inputs"], max_pixels=max_pixels, name=job.name)
    made = restorer.restore(
        photo,
        restore_options(job.request),
        mask=mask_of(job.request, photo, files.get("masks")),
        on_plan=on_plan,
        progress=progress,
        cancelled=cancelled,
    )
    restored()
    result = results / f"{job.id}{job.request.suffix}"
    target = fitting(made.photo.size, job.request.fit)
    same_format = suffix_of(read_header(files["inputs"])[0]) == result.suffix
    if made.untouched and target == photo.size and same_format:
        shutil.copyfile(files["inputs"], result)  # the very bytes
    elif job.request.strength == 1 and target == made.photo.size:
        write_photo(result, made.photo)
    else:
        write_photo(result, with_rgb(made.photo, resize(blended(photo, made.photo, job.request.strength), target)))
    _to_disk(result)
    return made, result.name


def blended(before: Photo, after: Photo, strength: float) -> Any:
    """Pixels [H, W, 3], 16 bits if the photo has them: before + strength x (after - before)."""
    was, now = (before.rgb, after.rgb) if after.deep is None or before.deep is None else (before.deep, after.deep)
    return now if strength == 1 else blend(resize(was, after.size), now, strength)


def fitting(size: tuple[int, int], fit: tuple[int, int] | None) -> tuple[int, int]:
    """The largest (width, height) of the ratio of ``size`` that fits into ``fit``."""
    if fit is None:
        return size
    scale = min(fit[0] / size[0], fit[1] / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
