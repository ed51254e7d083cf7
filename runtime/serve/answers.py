"""Documents and files that the API answers with."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fastapi.responses import FileResponse, Response

from diffplugin.runtime.serve.job import Job
from diffplugin.runtime.serve.problems import Problem

if TYPE_CHECKING:
    from diffplugin.runtime.planning.plan import Plan
    from diffplugin.runtime.request.selection import Selection
    from diffplugin.runtime.serve.service import Service

_WHOLE = 2**20  # bytes: a file is sent in pieces, with a turn of a thread for each
MEDIA_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".webp": "image/webp",
    ".tif": "image/tiff",
    ".avif": "image/avif",
    ".bmp": "image/bmp",
    ".gif": "image/gif",
    ".heic": "image/heic",
}


def job_document(job: Job, service: Service) -> dict[str, Any]:
    """A job for its caller: state, place in the queue or step, time left, and its outcome."""
    found: dict[str, Any] = {
        "id": job.id,
        "state": job.state,
        "name": job.name,
        "prompt": job.request.prompt,
        "plugins": list(job.request.plugins),
        "bundle": job.request.bundle,
        "created_at": _time(job.created),
        "started_at": _time(job.started),
        "finished_at": _time(job.finished),
        "links": {"self": f"/v1/jobs/{job.id}", "events": f"/v1/jobs/{job.id}/events"},
    }
    if job.state == "queued":
        ahead = service.store.ahead(job)
        found["queue_position"] = ahead + 1
        rounds = ahead // service.models.workers + 1
        found["seconds_left"] = round(service.models.typical_seconds() * rounds, 1)
    elif job.state == "running":
        found |= _running(job, service)
    elif job.state == "done":
        found |= job.report or {}
        found["links"]["result"] = f"/v1/jobs/{job.id}/result"
        found["result_type"] = MEDIA_TYPES[Path(job.result or "").suffix]
    elif job.problem is not None:
        found["problem"] = job.problem
    return found


def _running(job: Job, service: Service) -> dict[str, Any]:
    live = service.progress.get(job.id)
    if live is None:
        return {"step": 0, "steps": 0}
    found: dict[str, Any] = {"step": live.step, "steps": live.steps, "plugin": live.plugin}
    found |= {name: value for name in ("plan", "selection") if (value := getattr(live, name)) is not None}
    if live.cancel.is_set():
        found["cancelling"] = True
    if live.step:
        found["seconds_left"] = round((time.monotonic() - live.began) / live.step * (live.steps - live.step), 1)
    return found


def _time(value: float | None) -> str | None:
    return None if value is None else datetime.fromtimestamp(value, UTC).isoformat(timespec="milliseconds")


def plan_document(plan: Plan, selection: Selection, seconds: float | None, need_bytes: int) -> dict[str, Any]:
    """The plan, for ``POST /v1/plan``."""
    from diffplugin.runtime.serve.service import short_plan

    return {
        "plugins": list(selection.chosen),
        "selection": selection.to_json(),
        "plan": short_plan(plan),
        "memory_bytes": need_bytes,
        "seconds": None if seconds is None else float(f"{seconds:.3g}"),
    }


def result_response(job: Job, service: Service, *, download: bool = False) -> Response:
    """The restored photo, with plan and timings in the headers.

    Raises:
        Problem: its file is gone, because the job expired or was removed meanwhile.
    """
    assert job.result is not None
    suffix = Path(job.result).suffix
    name = f"{Path(job.name).stem or 'photo'}-restored{suffix}"
    kind = "attachment" if download else "inline"
    report = job.report or {}
    timings = report.get("timings", {})
    headers = {
        "Diffplugin-Job": job.id,
        "Diffplugin-Plugins": ",".join(report.get("selection", {}).get("chosen", ())),
        "Diffplugin-Strength": f"{report.get('strength', 1):g}",
        "Diffplugin-Plan": json.dumps(report.get("plan", {}), separators=(",", ":")),
        "Server-Timing": ", ".join(f"{stage};dur={seconds * 1000:.1f}" for stage, seconds in timings.items()),
        "Content-Disposition": f"{kind}; filename*=UTF-8''{quote(name, safe='')}",
        "Cache-Control": "private, no-store",
    }
    path = service.store.path("results", job.result)
    try:
        if path.stat().st_size > _WHOLE:
            return FileResponse(path, media_type=MEDIA_TYPES[suffix], headers=headers)
        return Response(path.read_bytes(), media_type=MEDIA_TYPES[suffix], headers=headers)
    except FileNotFoundError:
        raise Problem("not-found", f"the result of job {job.id} is gone; results are kept for a while only") from None
