"""The application: routes, error messages, the page."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from anyio import CapacityLimiter
from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from diffplugin import __version__
from diffplugin.errors import Cancelled, DiffPluginError
from diffplugin.runtime.serve import info_api, jobs_api, openai_api
from diffplugin.runtime.serve.guard import Guard
from diffplugin.runtime.serve.problems import KINDS, Problem, details, problem_of, respond

if TYPE_CHECKING:
    from diffplugin.runtime.serve.service import Service

_log = logging.getLogger("diffplugin.serve")
PAGE = Path(__file__).resolve().parent / "page"
THREADS = 16  # for files and the store
_CLIENT_GONE = 499  # nobody reads it; for the metrics
_OF_STATUS = {status: kind for kind, (status, _) in reversed(KINDS.items())}


def make_app(service: Service) -> FastAPI:
    """The server's ASGI application; its lifespan starts the service. The caller stops it (``Service.stop``)."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # planning waits for memory: it must not take the threads that everything else needs
        app.state.planners = CapacityLimiter(2)
        current_default_thread_limiter().total_tokens = THREADS
        service.start()
        yield

    app = FastAPI(
        title="diffplugin",
        version=__version__,
        summary="Restore photos on request.",
        description="Errors are problem details (RFC 9457): `detail` says what came, what was expected and the remedy.",
        lifespan=lifespan,
        docs_url=None,  # its page would ask another host for its scripts
        redoc_url=None,
    )
    app.state.service = service
    app.include_router(jobs_api.router, tags=["restore"])
    app.include_router(openai_api.router, tags=["OpenAI's image API"])
    app.include_router(info_api.router, tags=["about"])
    app.mount("/", StaticFiles(directory=PAGE, html=True), name="page")
    app.add_exception_handler(DiffPluginError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _failed)
    app.add_middleware(cast("Any", Guard), service=service)
    return app


def _answer(request: Request, problem: Problem) -> Response:
    request.app.state.service.metrics.error(problem.kind)
    openai = request.url.path.startswith("/v1/images")
    return respond(details(problem), problem.headers, openai=openai)


async def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, Cancelled):
        return Response(status_code=_CLIENT_GONE)
    return _answer(request, problem_of(error))


async def _invalid(request: Request, error: Exception) -> Response:
    """Fields of a form that are missing or of another type, in one line."""
    faults = []
    for one in cast("RequestValidationError", error).errors():
        name = one["loc"][-1] if one["loc"] else "body"
        came = one.get("input")
        shown = f" is {str(came)[:60]!r}" if isinstance(came, str | int | float) else ""
        faults.append(f"{name}{shown}: {one['msg'][0].lower()}{one['msg'][1:]}")
    return _answer(request, Problem("request", "; ".join(faults)))


async def _http(request: Request, error: Exception) -> Response:
    """Errors of the framework itself: paths, methods, forms that cannot be parsed."""
    error = cast("HTTPException", error)
    body = request.scope.get("diffplugin.body")
    if body is not None and body.problem is not None:
        return _answer(request, body.problem)
    kind = _OF_STATUS.get(error.status_code, "malformed" if error.status_code < 500 else "internal")
    details_of = {
        "not-found": f"no {request.url.path[:200]} here; /openapi.json lists what there is",
        "method": f"{request.method} is not understood at {request.url.path[:200]}",
        "malformed": f"the form cannot be read ({error.detail}); expected multipart/form-data with a photo in image",
    }
    return _answer(request, Problem(kind, details_of.get(kind, str(error.detail)), headers=error.headers))


async def _failed(request: Request, error: Exception) -> Response:
    if not isinstance(error, OSError | MemoryError):
        _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _answer(request, problem_of(error))
