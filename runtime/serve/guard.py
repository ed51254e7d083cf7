"""Checks before every request: token, origin, size and speed. Pure ASGI, before any parsing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from diffplugin.runtime.serve.problems import Problem, details, respond
from diffplugin.runtime.serve.settings import is_loopback

if TYPE_CHECKING:
    from diffplugin.runtime.serve.service import Service

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_QUEUEING = ("/v1/jobs", "/v1/restore", "/v1/images/edits")
_FORM_BYTES = 64 * 1024  # of a body beside its files
_LOWEST_RATE = 10_000  # bytes a second that an upload must reach, after the first silence that is allowed
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'self'; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline'; "
     b"object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"),
)  # fmt: skip


class Guard:
    """ASGI middleware: tokens, origins, limits of bodies, security headers, counts of requests."""

    def __init__(self, app: App, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), [500]

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                status[0] = message["status"]
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            # a client that reads nothing would keep its connection for ever
            async with asyncio.timeout(4 * self._service.settings.read_seconds):
                await send(message)

        try:
            problem = self._refusal(scope)
            if problem is None:
                body = _Body(
                    receive, self._service.settings.max_upload_bytes + _FORM_BYTES, self._service.settings.read_seconds
                )
                scope["diffplugin.body"] = body
                await self._app(scope, body.receive, sending)
            else:
                await self.refuse(problem, scope, receive, sending)
        finally:
            route = getattr(scope.get("route"), "path", None) or "other"
            self._service.metrics.request(_known_method(scope["method"]), route, status[0], time.perf_counter() - began)

    async def refuse(self, problem: Problem, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer without reading the body; the connection is closed, because the rest would be read as a request."""
        self._service.metrics.error(problem.kind)
        openai = scope["path"].startswith("/v1/images")
        answer = respond(details(problem), {**problem.headers, "Connection": "close"}, openai=openai)
        await answer(scope, receive, send)

    def _refusal(self, scope: MutableMapping[str, Any]) -> Problem | None:
        """Why this request is refused."""
        settings = self._service.settings
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if not settings.tokens and settings.is_local and not is_loopback(_hostname(host)):
            return Problem("forbidden", f"host {host[:100]!r} is not this machine; ask for localhost")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return Problem("forbidden", f"pages of {origin[:100]!r} may not use this server")
        path = scope["path"]
        scope["diffplugin.owner"] = owner = settings.owner(headers.get("authorization"))
        signed = path.startswith("/v1/files/")  # the address itself is the proof
        if owner is None and (path.startswith("/v1") or path == "/metrics") and not signed:
            return Problem("unauthorized", "the token is missing or unknown; send Authorization: Bearer TOKEN")
        length = headers.get("content-length", "")
        most = settings.max_upload_bytes
        if length.isdecimal() and int(length) > most + _FORM_BYTES:
            return Problem("too-large", f"the upload has {int(length):,} bytes, expected at most {most:,}")
        if scope["method"] == "POST" and path in _QUEUEING and "idempotency-key" not in headers:
            try:
                self._service.check_room()
            except Problem as problem:
                return problem
        return None


class _Body:
    """The body of one request, counted and timed while it arrives.

    Attributes:
        problem: why it was stopped, or None.
    """

    def __init__(self, receive: Receive, most: int, silence: float) -> None:
        self._receive, self._most, self._silence = receive, most, silence
        self._began, self._bytes, self._complete = time.monotonic(), 0, False
        self.problem: Problem | None = None

    async def receive(self) -> Message:
        if self._complete:  # what comes now is the end of the connection, and nobody is slow
            return await self._receive()
        allowed = self._silence + self._bytes / _LOWEST_RATE - (time.monotonic() - self._began)
        try:
            async with asyncio.timeout(min(self._silence, max(allowed, 0))):
                message = await self._receive()
        except TimeoutError:
            self.problem = Problem(
                "slow",
                f"the upload stopped after {self._bytes:,} bytes; send it again",
                headers={"Connection": "close"},
            )
            raise self.problem from None
        if message["type"] == "http.request":
            self._bytes += len(message.get("body", b""))
            self._complete = not message.get("more_body", False)
            if self._bytes > self._most:
                self.problem = Problem(
                    "too-large",
                    f"the upload has more than the {self._most:,} bytes that are allowed",
                    headers={"Connection": "close"},
                )
                raise self.problem
        return message


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _known_method(method: str) -> str:
    return method if method in ("GET", "POST", "DELETE", "HEAD", "OPTIONS") else "other"
