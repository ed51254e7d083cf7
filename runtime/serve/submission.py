"""A received form -> a job in the queue."""

from __future__ import annotations

import hashlib
import secrets
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fastapi import File, Form, UploadFile

from diffplugin.errors import RequestError
from diffplugin.runtime.photos.mask import read_region
from diffplugin.runtime.photos.strength import read_strength
from diffplugin.runtime.serve.budget import GIB
from diffplugin.runtime.serve.fields import (
    read_format,
    read_plugins,
    read_size,
    read_tile,
)
from diffplugin.runtime.serve.job import Job, JobRequest
from diffplugin.runtime.serve.models import needed_bytes
from diffplugin.runtime.serve.problems import Problem
from diffplugin.runtime.serve.uploads import Received, receive

if TYPE_CHECKING:
    from collections.abc import Iterator

    from diffplugin.runtime.serve.service import Service

MAX_KEY = 200
Image = Annotated[UploadFile, File(description="The photo: JPEG, PNG, WebP, TIFF, AVIF, BMP, GIF, PPM or JPEG 2000.")]


@dataclass(frozen=True, kw_only=True)
class Submission:
    """The fields of a form."""

    image: UploadFile
    mask: UploadFile | None
    request: JobRequest


async def form(
    image: Image,
    mask: Annotated[UploadFile | None, File(description="White where to restore; of any size.")] = None,
    prompt: Annotated[
        str | None,
        Form(
            description="What to do, in words; auto or nothing: what the photo itself needs.",
            examples=["remove the rain"],
        ),
    ] = None,
    plugins: Annotated[
        list[str] | None, Form(description="Plugins instead of words, in order.", examples=[["deblur"]])
    ] = None,
    bundle: Annotated[str | None, Form(description="Name of a bundle; default: the first that is served.")] = None,
    seed: Annotated[int, Form(ge=0, le=2**64 - 1, description="Of the start noise.", examples=[42])] = 42,
    steps: Annotated[int | None, Form(description="Of the first plugin; default: its own.", examples=[20])] = None,
    sampler: Annotated[str, Form(description="unipc, ddim, dpmpp_2m or euler.")] = "unipc",
    size: Annotated[str, Form(description="Working size: native, released, N or WxH.")] = "native",
    tile: Annotated[str, Form(description="Pieces of a large photo: auto, off or a side in pixels.")] = "auto",
    strength: Annotated[
        str, Form(description="How much of the change is kept, 0 to 1, or auto.", examples=["0.6"])
    ] = "1",
    region: Annotated[
        str | None, Form(description="Restore this rectangle alone.", examples=["100,80,640,480"])
    ] = None,
    feather: Annotated[int | None, Form(description="Soft edge of mask or region in pixels, inwards.")] = None,
    format: Annotated[str, Form(description="Of the result: input, png, jpeg, webp, tiff or avif.")] = "input",
) -> Submission:
    """The multipart form of ``/v1/restore``, ``/v1/jobs`` and ``/v1/plan``. A coroutine, as FastAPI runs a plain
    function in a thread.

    Raises:
        RequestError: a field cannot be understood.
    """
    if mask is not None and region:
        raise RequestError("mask and region were sent, expected one of them")
    chosen = read_plugins(plugins or ())
    request = JobRequest(
        bundle=bundle or "",
        prompt=prompt,
        plugins=chosen,
        seed=seed,
        steps=steps,
        sampler=sampler,
        size=read_size(size),
        tile=read_tile(tile),
        strength=read_strength(strength),
        region=read_region(region) if region else None,
        feather=feather,
        suffix=read_format(format),
    )
    return Submission(image=image, mask=mask, request=request)


def checked_key(key: str | None) -> str | None:
    """An Idempotency-Key.

    Raises:
        Problem: it is empty or very long.
    """
    if key is not None and not 1 <= len(key.strip()) <= MAX_KEY:
        raise Problem("malformed", f"Idempotency-Key has {len(key)} characters, expected 1 to {MAX_KEY}")
    return key


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A form whose files are below ``incoming/`` and whose request is known to be runnable."""

    photo: Received
    mask: Received | None
    request: JobRequest
    need_bytes: int


@contextmanager
def uploaded(service: Service, sent: Submission, *, durable: bool = False) -> Iterator[Upload]:
    """Keep the uploads of a form as files while the block runs; files that no job took are removed at its end.

    Raises:
        Problem, ImageError, RequestError: the form cannot be served.
    """
    settings, kept = service.settings, []
    try:
        restorer = service.models.get(sent.request.bundle)
        photo = receive(sent.image, settings, durable=durable)
        kept.append(photo.path)
        mask = None
        if sent.mask is not None:
            mask = receive(sent.mask, settings, "mask", durable=durable)
            kept.append(mask.path)
        request = replace(
            sent.request,
            bundle=restorer.bundle.manifest.name,
            suffix=sent.request.suffix or photo.suffix,
        )
        need = needed_bytes(restorer, photo.size, request)
        if not service.budget.fits(need):
            limit = service.budget.limit or 0
            raise Problem(
                "too-large",
                f"{photo.name}: {photo.size[0]}x{photo.size[1]} pixels need about {need / GIB:.1f} GiB of memory here, "
                f"{limit / GIB:.1f} GiB are free; make it smaller, or choose a smaller size",
            )
        yield Upload(photo=photo, mask=mask, request=request, need_bytes=need)
    finally:
        for path in kept:
            path.unlink(missing_ok=True)


def submit(service: Service, sent: Submission, *, owner: str, key: str | None, attached: bool) -> tuple[Job, bool]:
    """Queue a form; returns (the job, whether it is new). One that only a connection waits for (``attached``) ends with
    the server, so that nothing of it is forced to the disk.

    Raises:
        Problem, ImageError, RequestError, KeyReused: it cannot be queued.
    """
    key = checked_key(key)
    with uploaded(service, sent, durable=not attached) as upload:
        if service.stopping.is_set():
            service.check_room()
        parts = (upload.photo.digest, upload.mask.digest if upload.mask else "", upload.request.to_text())
        values = {
            "id": secrets.token_hex(16),
            "owner": owner,
            "key": key,
            "digest": hashlib.sha256("\n".join(parts).encode()).hexdigest(),
            "request": upload.request,
            "name": upload.photo.name,
            "width": upload.photo.size[0],
            "height": upload.photo.size[1],
            "has_mask": upload.mask is not None,
            "need_bytes": upload.need_bytes,
            "attached": attached,
        }
        files: dict[str, Path] = {"inputs": upload.photo.path}
        if upload.mask is not None:
            files["masks"] = upload.mask.path
        return service.accept(values, files)
