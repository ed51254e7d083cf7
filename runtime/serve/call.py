"""Turns a job into a call of the restorer, and its result into a file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffplugin.runtime.options import RestoreOptions
from diffplugin.runtime.photos.mask import Mask, check_no_pages, read_mask, region_mask
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
    fields: Any = {
        name: getattr(request, name) for name in ("prompt", "seed", "steps", "sampler", "size", "tile", "strength")
    }
    return RestoreOptions(**fields, plugins=request.plugins or None)


def mask_of(request: JobRequest, photo: Photo, mask_file: Path | None, name: str) -> Mask | None:
    """The mask of the photo; None: all of it is restored.

    Raises:
        ImageError, RequestError: the mask cannot be read, no part of it is in the photo, or the photo has pages.
    """
    if mask_file is not None or request.region is not None:
        check_no_pages(photo, name)
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
) -> tuple[Restoration, str | None]:
    """Restore a job's photo and write the result below ``results``; it is on the disk when this returns. A photo that
    was asked to show what it needs, and needs nothing, is its own result.

    Args:
        files: "inputs" and, with a mask, "masks".
        restored: called when only the result is still to be written.

    Returns:
        (the restoration, name of the result's file; None: the words selected no plugin).
    """
    photo = read_photo(files["inputs"], max_pixels=max_pixels, name=job.name)
    made = restorer.restore(
        photo,
        restore_options(job.request),
        mask=mask_of(job.request, photo, files.get("masks"), job.name),
        on_plan=on_plan,
        progress=progress,
        cancelled=cancelled,
    )
    restored()
    if made.untouched and not made.selection.findings:
        return made, None
    result = results / f"{job.id}{job.request.suffix}"
    if made.untouched and not job.request.fit and suffix_of(read_header(files["inputs"])[0]) == result.suffix:
        shutil.copyfile(files["inputs"], result)  # the very bytes
    else:
        write_photo(result, fitted(made.photo, job.request.fit))
    _to_disk(result)
    return made, result.name


def fitted(photo: Photo, fit: tuple[int, int] | None) -> Photo:
    """The photo, with its frames, resized to the largest (width, height) of its ratio that fits into ``fit``."""
    if fit is None:
        return photo
    width, height = photo.size
    scale = min(fit[0] / width, fit[1] / height)
    target = max(1, round(width * scale)), max(1, round(height * scale))
    return replace(
        with_rgb(photo, resize(photo.levels, target)), frames=tuple(fitted(frame, fit) for frame in photo.frames)
    )


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
