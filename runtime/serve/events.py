"""Server-sent events: a job's changes while they happen."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool

from diffplugin.runtime.serve.answers import job_document

if TYPE_CHECKING:
    from diffplugin.runtime.serve.job import Job
    from diffplugin.runtime.serve.service import Service

HEARTBEAT_SECONDS = 15.0  # so that proxies keep the connection
_LEAST_SECONDS = 0.1  # between two events of one job


async def job_events(service: Service, job_id: str) -> AsyncIterator[str]:
    """Events ``state`` (queued, running), ``progress`` and, at last, ``done``, ``failed`` or ``cancelled``; each with
    the job's document. Begins with how it stands."""
    yield "retry: 2000\n\n"
    last, number = "", 0
    with service.listening(job_id) as changed:
        while True:
            changed.clear()
            job = service.store.get(job_id)
            if job is None:
                yield "event: gone\ndata: {}\n\n"
                return
            document = await run_in_threadpool(job_document, job, service)
            text = json.dumps(document)
            if text != last:
                number, last = number + 1, text
                name = job.state if job.is_finished else "progress" if document.get("steps") else "state"
                yield f"id: {number}\nevent: {name}\ndata: {text}\n\n"
            if job.is_finished:
                return
            if service.stopping.is_set():
                yield "event: stopping\ndata: {}\n\n"
                return
            await asyncio.sleep(_LEAST_SECONDS)
            try:
                # a place in the queue changes without a word to those behind: they look again now and then
                await asyncio.wait_for(changed.wait(), 1.0 if job.state == "queued" else HEARTBEAT_SECONDS)
            except TimeoutError:
                yield ": still here\n\n"


async def finished(service: Service, job_id: str) -> Job | None:
    """The job once it has finished, or will not begin because the server stops; None: it was removed."""
    with service.listening(job_id, to_its_end=True) as changed:
        while True:
            changed.clear()
            job = service.store.get(job_id)
            if job is None or job.is_finished or (service.stopping.is_set() and job.state == "queued"):
                return job
            try:
                await asyncio.wait_for(changed.wait(), 5.0)
            except TimeoutError:
                continue
