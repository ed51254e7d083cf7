"""``/v1/restore``, ``/v1/jobs`` and ``/v1/plan``."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from typing import TYPE_CHECKING, Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from diffplugin.errors import Cancelled
from diffplugin.runtime.photos.read import read_photo
from diffplugin.runtime.serve.answers import job_document, plan_document, result_response
from diffplugin.runtime.serve.call import mask_of, restore_options
from diffplugin.runtime.serve.events import finished, job_events
from diffplugin.runtime.serve.job import Job
from diffplugin.runtime.serve.problems import KINDS, MEDIA_TYPE, Problem, respond
from diffplugin.runtime.serve.submission import Submission, form, submit, uploaded

if TYPE_CHECKING:
    from diffplugin.runtime.serve.service import Service

router = APIRouter(prefix="/v1")
Sent = Annotated[Submission, Depends(form)]
Key = Annotated[str | None, Header(alias="Idempotency-Key", description="A request sent again under it runs once.")]


def _refusals(*kinds: str) -> dict[int | str, dict[str, Any]]:
    """Problems of a route, for OpenAPI."""
    found: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        status, title = KINDS[kind]
        example = {"type": f"urn:diffplugin:{kind}", "title": title, "status": status, "detail": "…", "kind": kind}
        answer = found.setdefault(status, {"description": "", "content": {MEDIA_TYPE: {"examples": {}}}})
        answer["description"] += f"; {title}" if answer["description"] else title
        answer["content"][MEDIA_TYPE]["examples"][kind] = {"value": example}
    return found


_FORM = ("malformed", "unauthorized", "slow", "too-large", "unsupported", "request", "queue-full", "unavailable")
_SENT = _refusals(*_FORM)
_JOB = {
    "id": "3f0c8d1e5a7b4c2d9e6f1a0b3c5d7e9f",
    "state": "running",
    "name": "photo.jpg",
    "prompt": "remove the rain",
    "step": 7,
    "steps": 20,
    "plugin": "derain",
    "seconds_left": 4.2,
}
_JOB_ANSWER: dict[int | str, dict[str, Any]] = {
    code: {"description": text, "content": {"application/json": {"example": _JOB}}}
    for code, text in ((200, "The job"), (202, "Accepted"))
}


def service_of(request: Request) -> Service:
    """The service behind any route."""
    found: Service = request.app.state.service
    return found


def owner_of(request: Request) -> str:
    """The caller: the name of the token."""
    return request.scope["diffplugin.owner"] or ""


def job_of(request: Request, job_id: str) -> Job:
    """The caller's job of an id.

    Raises:
        Problem: there is none, or it belongs to another caller.
    """
    job = service_of(request).store.get(job_id)
    if job is None or job.owner != owner_of(request):
        raise Problem("not-found", f"no job {job_id[:64]!r}; finished jobs are kept for a while only")
    return job


async def wait_for(request: Request, jobs: list[Job]) -> list[Job]:
    """Wait for jobs and return them finished. If the caller disconnects first, jobs that only this connection waited
    for are cancelled.

    Raises:
        Cancelled: the caller disconnected.
        Problem: the server stops.
    """
    service = service_of(request)
    done: asyncio.Future[Any] = asyncio.gather(*(finished(service, job.id) for job in jobs))
    left: asyncio.Future[Any] = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({done, left}, return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            raise Cancelled("the caller went away")
    finally:  # the server's own end comes here, too
        left.cancel()
        if not done.done():
            done.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await done
            for job in jobs:
                if job.attached and not service.stopping.is_set():
                    await run_in_threadpool(service.cancel, job)
    ended = [job for job in done.result() if job is not None and job.is_finished]
    if len(ended) < len(jobs):
        raise Problem("unavailable", "the server is stopping; send the photo again", retry_after=5)
    return ended


async def _left(request: Request) -> None:
    """Returns when the caller has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


@router.post(
    "/restore",
    summary="Restore a photo and wait for it",
    description="Answers with the photo, plan and timings in headers; with `Accept: application/json`, as JSON with "
    "the photo in base64. Without an Idempotency-Key the work ends with the connection.",
    responses={200: {"description": "The photo", "content": {"image/*": {}}}, **_refusals(*_FORM, "nothing-selected")},
    response_class=Response,
)
async def restore(request: Request, sent: Sent, key: Key = None) -> Response:
    service = service_of(request)
    job, _ = await run_in_threadpool(submit, service, sent, owner=owner_of(request), key=key, attached=key is None)
    (job,) = await wait_for(request, [job])
    if job.state != "done":
        return respond(job.problem or {})
    if "application/json" not in request.headers.get("accept", ""):
        return await run_in_threadpool(result_response, job, service)
    assert job.result is not None
    data = await run_in_threadpool(service.store.path("results", job.result).read_bytes)
    return JSONResponse(job_document(job, service) | {"image": base64.b64encode(data).decode()})


@router.post("/jobs", status_code=202, summary="Queue a photo", responses={**_SENT, 202: _JOB_ANSWER[202]})
async def queue(request: Request, sent: Sent, key: Key = None) -> Response:
    service = service_of(request)
    job, new = await run_in_threadpool(submit, service, sent, owner=owner_of(request), key=key, attached=False)
    headers = {"Location": f"/v1/jobs/{job.id}"} | ({} if new else {"Idempotent-Replayed": "true"})
    document = await run_in_threadpool(job_document, job, service)
    return JSONResponse(document, status_code=202 if new else 200, headers=headers)


@router.get("/jobs", summary="The caller's jobs, newest first")
async def jobs(
    request: Request,
    state: Annotated[str | None, Query(pattern="^(queued|running|done|failed|cancelled)$")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    before: Annotated[int | None, Query(ge=1, description="`next` of the page before.")] = None,
) -> Response:
    service = service_of(request)

    def collect() -> dict[str, Any]:
        found = service.store.of_owner(owner_of(request), state=state, limit=limit, before=before)
        documents = [job_document(job, service) for job in found]
        return {"jobs": documents, "next": found[-1].number if len(found) == limit else None}

    return JSONResponse(await run_in_threadpool(collect))


@router.get("/jobs/{job_id}", summary="How a job stands", responses={200: _JOB_ANSWER[200], **_refusals("not-found")})
async def job(request: Request, job_id: str) -> Response:
    found = job_of(request, job_id)
    return JSONResponse(await run_in_threadpool(job_document, found, service_of(request)))


@router.get("/jobs/{job_id}/events", summary="A job's changes as server-sent events", responses=_refusals("not-found"))
async def events(request: Request, job_id: str) -> Response:
    found = job_of(request, job_id)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(job_events(service_of(request), found.id), media_type="text/event-stream", headers=headers)


@router.get(
    "/jobs/{job_id}/result",
    summary="The restored photo",
    responses={200: {"description": "The photo", "content": {"image/*": {}}}, **_refusals("not-found", "not-finished")},
    response_class=Response,
)
async def result(request: Request, job_id: str, download: bool = False) -> Response:
    found = job_of(request, job_id)
    if not found.is_finished:
        raise Problem("not-finished", f"the job is {found.state}; ask again, or follow its events", retry_after=1)
    if found.problem is not None:
        return respond(found.problem)
    return await run_in_threadpool(result_response, found, service_of(request), download=download)


@router.delete(
    "/jobs/{job_id}",
    summary="Cancel a job, or forget a finished one",
    description="A job that waits is cancelled at once, a running one before its next step (202). A finished one is "
    "removed with its result (204).",
    responses=_refusals("not-found"),
)
async def cancel(request: Request, job_id: str) -> Response:
    service, found = service_of(request), job_of(request, job_id)
    if found.is_finished:
        await run_in_threadpool(service.store.forget, found)
        return Response(status_code=204)
    await run_in_threadpool(service.cancel, found)
    found = job_of(request, job_id)
    document = await run_in_threadpool(job_document, found, service)
    return JSONResponse(document, status_code=200 if found.is_finished else 202)


@router.post("/plan", summary="What would run: plugins, memory, seconds", responses=_SENT)
async def plan(request: Request, sent: Sent) -> Response:
    service = service_of(request)

    def decide() -> dict[str, Any]:
        with uploaded(service, sent) as upload:
            restorer = service.models.get(upload.request.bundle)
            with service.budget.hold(upload.need_bytes, service.stopping.is_set):
                photo = read_photo(upload.photo.path, max_pixels=service.settings.max_pixels, name=upload.photo.name)
                mask = mask_of(upload.request, photo, upload.mask.path if upload.mask else None, upload.photo.name)
                made, selection = restorer.plan(photo, restore_options(upload.request), mask=mask)
            seconds = service.models.seconds(upload.request.bundle, made)
            return plan_document(made, selection, seconds, upload.need_bytes)

    return JSONResponse(await run_sync(decide, limiter=request.app.state.planners))
