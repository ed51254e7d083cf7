"""``POST /v1/images/edits`` as OpenAI's clients send it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import secrets
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.responses import JSONResponse, Response
from PIL import Image
from starlette.concurrency import run_in_threadpool

from diffplugin.errors import RequestError
from diffplugin.runtime.photos.read import read_photo
from diffplugin.runtime.photos.strength import read_strength
from diffplugin.runtime.serve.answers import result_response
from diffplugin.runtime.serve.fields import read_format, read_size
from diffplugin.runtime.serve.job import JobRequest
from diffplugin.runtime.serve.jobs_api import owner_of, service_of, wait_for
from diffplugin.runtime.serve.problems import Problem, respond
from diffplugin.runtime.serve.submission import Submission, submit
from diffplugin.runtime.serve.uploads import receive

if TYPE_CHECKING:
    from diffplugin.runtime.serve.service import Service

router = APIRouter(prefix="/v1")
MAX_COUNT = 10
_SAME_MODEL = ("", "diffplugin", "default")


@router.post(
    "/images/edits",
    summary="Restore a photo, as OpenAI's clients ask for an edit",
    description="`mask` is OpenAI's: its transparent pixels are restored. `size` WxH: the result fits into it, its "
    "ratio kept. `n` results have the seeds `seed`, `seed`+1, …. `model` is the name of a bundle, or diffplugin.",
)
async def edits(
    request: Request,
    prompt: Annotated[str, Form(examples=["remove the rain"])],
    image: Annotated[UploadFile | None, File()] = None,
    images: Annotated[list[UploadFile] | None, File(alias="image[]")] = None,
    mask: Annotated[UploadFile | None, File()] = None,
    model: Annotated[str, Form()] = "",
    n: Annotated[int, Form(ge=1, le=MAX_COUNT)] = 1,
    size: Annotated[str, Form()] = "auto",
    response_format: Annotated[Literal["b64_json", "url"], Form()] = "b64_json",
    output_format: Annotated[str, Form()] = "png",
    seed: Annotated[int, Form(ge=0)] = 42,
    strength: Annotated[str, Form(description="Not OpenAI's: how much of the change is kept, 0 to 1 or auto.")] = "1",
    stream: Annotated[bool, Form()] = False,
) -> Response:
    photos = [*([image] if image else []), *(images or ())]
    if len(photos) != 1:
        raise RequestError(f"{len(photos)} photos came in the field image, expected one")
    if stream:
        raise RequestError("stream is true, but the results come whole; leave it out")
    fit = None if size == "auto" else read_size(size)
    if fit is not None and not isinstance(fit, tuple):
        raise RequestError(f"size {size!r} is not understood; expected auto or WxH")
    wanted = JobRequest(
        bundle="" if model in _SAME_MODEL else model,
        prompt=prompt,
        fit=fit,
        strength=read_strength(strength),
        suffix=read_format(output_format),
    )
    service, owner = service_of(request), owner_of(request)
    white = await run_in_threadpool(_converted, service, mask) if mask is not None else None
    jobs = []
    for i in range(n):
        sent = Submission(image=photos[0], mask=white, request=replace(wanted, seed=seed + i))
        job, _ = await run_in_threadpool(submit, service, sent, owner=owner, key=None, attached=True)
        jobs.append(job)
    done = await wait_for(request, jobs)
    for job in done:
        if job.state != "done":
            return respond(job.problem or {}, openai=True)
    files = [service.store.path("results", job.result) for job in done if job.result is not None]
    if response_format == "url":
        base = str(request.base_url).rstrip("/")
        data = [{"url": f"{base}/v1/files/{job.id}/{_signature(service, job.id)}"} for job in done]
    else:
        data = [{"b64_json": await run_in_threadpool(_base64, file)} for file in files]
    return JSONResponse({"created": int(time.time()), "data": data, "output_format": output_format})


@router.get("/files/{job_id}/{signature}", summary="A result by its signed address", response_class=Response)
async def file(request: Request, job_id: str, signature: str) -> Response:
    service = service_of(request)
    job = service.store.get(job_id)
    genuine = hmac.compare_digest(_signature(service, job_id).encode(), signature.encode("utf-8", "replace"))
    if not genuine or job is None or job.result is None:
        raise Problem("not-found", "no such file; results are kept for a while only")
    return await run_in_threadpool(result_response, job, service)


def _converted(service: Service, mask: UploadFile) -> UploadFile:
    """OpenAI's mask (transparent where to edit) as ours (white where to restore). One without transparency is ours."""
    received = receive(mask, service.settings, "mask")
    try:
        data = _grey(received.path, received.name, service.settings.max_pixels)
    finally:
        received.path.unlink(missing_ok=True)
    return UploadFile(io.BytesIO(data), filename="mask.png")


def _grey(path: Path, name: str, max_pixels: int) -> bytes:
    photo = read_photo(path, max_pixels=max_pixels, name=name)
    grey: Any = np.asarray(Image.fromarray(photo.rgb).convert("L")) if photo.alpha is None else 255 - photo.alpha
    written = io.BytesIO()
    Image.fromarray(grey).save(written, "PNG", compress_level=1)
    return written.getvalue()


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _signature(service: Service, job_id: str) -> str:
    return hmac.new(_secret(service.settings.state / "secret"), job_id.encode(), hashlib.sha256).hexdigest()


def _secret(path: Path) -> bytes:
    """The state folder's own secret, created once."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        from diffplugin.files import write_bytes

        write_bytes(path, secrets.token_bytes(32))
        path.chmod(0o600)
        return path.read_bytes()
