"""Information about the server: plugins, bundles, health, metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool

from diffplugin import __version__
from diffplugin.runtime.serve.jobs_api import service_of
from diffplugin.runtime.serve.problems import Problem, details, respond

router = APIRouter()


@router.get("/v1/plugins", summary="Plugins of a bundle, with requests that select them")
async def plugins(request: Request, bundle: str | None = None) -> dict[str, Any]:
    cards = service_of(request).models.get(bundle).cards.values()
    names = ("id", "title", "aliases", "examples", "steps_first", "steps_chained", "start", "licence")
    return {"plugins": [{name: getattr(card, name) for name in names} for card in cards]}


@router.get("/v1/bundles", summary="Bundles that are served; the first is the default")
async def bundles(request: Request) -> dict[str, Any]:
    models = service_of(request).models
    return {
        "bundles": [
            {
                "name": name,
                "engine": restorer.engine,
                "precision": restorer.precision,
                "reason": restorer.reason,
                "quality": restorer.quality.name,
                "plugins": list(restorer.cards),
                "understands_words": restorer.bundle.manifest.selector,
                "understands_photos": bool(restorer.bundle.manifest.diagnosis),
            }
            for name, restorer in models.restorers.items()
        ]
    }


@router.get("/v1/models", summary="The bundles, as OpenAI's clients list models")
async def models(request: Request) -> dict[str, Any]:
    names = service_of(request).models.restorers
    return {
        "object": "list",
        "data": [{"id": name, "object": "model", "created": 0, "owned_by": "diffplugin"} for name in names],
    }


@router.get("/healthz", summary="The server answers")
async def healthz() -> dict[str, str]:
    return {"status": "ok", "version": __version__}


@router.get("/readyz", summary="The engines are prepared and jobs are accepted")
async def readyz(request: Request) -> Response:
    service = service_of(request)
    reason = "the server is stopping" if service.stopping.is_set() else service.models.unready
    if reason is None:
        return JSONResponse({"status": "ready"})
    return respond(details(Problem("unavailable", reason, retry_after=1)))


@router.get("/metrics", summary="Numbers for Prometheus", response_class=Response)
async def metrics(request: Request) -> Response:
    service = service_of(request)

    def collect() -> bytes:
        found, budget = service.metrics, service.budget
        found.queued.set(service.store.count("queued"))
        found.running.set(service.store.count("running"))
        found.max_queue.set(service.settings.max_queue)
        found.workers.set(service.models.workers)
        found.reserved.set(budget.reserved)
        found.limit.set(budget.limit or 0)
        found.ready.set(service.models.unready is None and not service.stopping.is_set())
        return found.text()

    return Response(await run_in_threadpool(collect), media_type=CONTENT_TYPE_LATEST)
