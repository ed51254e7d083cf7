"""Errors as problem details (RFC 9457), in the words of the command line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastapi.responses import JSONResponse

from diffplugin.errors import (
    Cancelled,
    DeviceMemoryFull,
    DiffPluginError,
    EngineUnavailable,
    ImageError,
    RequestError,
)
from diffplugin.plugins.cards import PluginCard, example_requests
from diffplugin.runtime.serve.store import KeyReused, QueueFull

if TYPE_CHECKING:
    from diffplugin.runtime.request.selection import Selection

MEDIA_TYPE = "application/problem+json"
# kind -> (status, title); a kind is the last part of the problem's type
KINDS: dict[str, tuple[int, str]] = {
    "malformed": (400, "Malformed request"),
    "unauthorized": (401, "A valid token is needed"),
    "forbidden": (403, "Not from this page or host"),
    "not-found": (404, "Not found"),
    "method": (405, "Method not allowed"),
    "slow": (408, "The upload took too long"),
    "cancelled": (409, "Cancelled"),
    "not-finished": (409, "Not finished yet"),
    "too-large": (413, "Too large"),
    "unsupported": (415, "Unsupported file type"),
    "request": (422, "The request cannot be understood"),
    "nothing-selected": (422, "No plugin fits the request"),
    "image": (422, "The photo cannot be used"),
    "key-reused": (422, "This Idempotency-Key belongs to another request"),
    "queue-full": (429, "The queue is full"),
    "internal": (500, "The server failed"),
    "engine": (500, "The engine failed"),
    "crashed": (500, "The server ended while it worked on this job"),
    "unavailable": (503, "Not available now"),
    "memory": (503, "Too little memory now"),
    "disk": (507, "The server's disk is full"),
}
_OF_ERRORS: tuple[tuple[type[BaseException], str], ...] = (
    (QueueFull, "queue-full"),
    (KeyReused, "key-reused"),
    (RequestError, "request"),
    (ImageError, "image"),
    (Cancelled, "cancelled"),
    (DeviceMemoryFull, "memory"),
    (EngineUnavailable, "unavailable"),
    (MemoryError, "memory"),
    (DiffPluginError, "engine"),
)


class Problem(DiffPluginError):
    """A refused request: its kind, its message, and when to retry.

    Attributes:
        kind: one of ``KINDS``.
        retry_after: seconds, if a retry can help.
        headers: further headers of the answer.
        facts: further members of the document.
    """

    def __init__(
        self,
        kind: str,
        detail: str,
        *,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.kind, self.detail, self.retry_after = kind, detail, retry_after
        self.headers, self.facts = dict(headers or {}), dict(facts or {})

    @property
    def status(self) -> int:
        return KINDS[self.kind][0]


def nothing_selected(selection: Selection, cards: Mapping[str, PluginCard]) -> Problem:
    """The refusal of a request that no plugin fits: what is near, and what can be asked for."""
    examples = dict(example_requests(cards.values()))
    near = [f'{cards[plugin].title} ("{cards[plugin].examples[0]}")' for plugin in selection.near]
    detail = f"nothing selected: understood was nothing that one of the {len(cards)} plugins does; "
    detail += f"near it: {', '.join(near)}; " if near else ""
    detail += "what can be asked for: " + ", ".join(f'"{example}"' for example in examples.values())
    return Problem("nothing-selected", detail, facts={"selection": selection.to_json(), "examples": examples})


def problem_of(error: BaseException) -> Problem:
    """Any error as a problem; an internal error reveals nothing about the server."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, OSError) and error.errno == 28:  # no space left on device
        return Problem("disk", "the server's disk is full; try again later", retry_after=60)
    kind = next((kind for known, kind in _OF_ERRORS if isinstance(error, known)), None)
    if kind is None:
        return Problem("internal", "the server failed on this request; its log says more")
    detail = str(error) or "does not fit into memory; make the photo smaller"
    return Problem(kind, detail, retry_after=10 if KINDS[kind][0] in (429, 503) else None)


def details(problem: Problem, instance: str | None = None) -> dict[str, Any]:
    """The document of a problem. ``error`` has the same in the form that OpenAI's clients read."""
    status, title = KINDS[problem.kind]
    found: dict[str, Any] = {
        "type": f"urn:diffplugin:{problem.kind}",
        "title": title,
        "status": status,
        "detail": problem.detail,
        "kind": problem.kind,
    }
    if instance is not None:
        found["instance"] = instance
    if problem.retry_after is not None:
        found["retry_after"] = math.ceil(problem.retry_after)
    return found | problem.facts


def respond(
    document: Mapping[str, Any], headers: Mapping[str, str] | None = None, *, openai: bool = False
) -> JSONResponse:
    """The answer that carries a problem's document."""
    body, sent = dict(document), dict(headers or {})
    if "retry_after" in body:
        sent["Retry-After"] = str(body["retry_after"])
    if body["status"] == 401:
        sent["WWW-Authenticate"] = "Bearer"
    if openai:
        fault = "invalid_request_error" if body["status"] < 500 else "server_error"
        body["error"] = {"message": body["detail"], "type": fault, "code": body["kind"], "param": None}
    return JSONResponse(body, status_code=body["status"], headers=sent, media_type=MEDIA_TYPE)
