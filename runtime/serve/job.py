"""A job: one request in the queue, from its acceptance to its result."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

State = Literal["queued", "running", "done", "failed", "cancelled"]
FINISHED = ("done", "failed", "cancelled")


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """The caller's request, complete and validated (``runtime.serve.fields`` reads it from a form).

    Attributes:
        bundle: name of the bundle that restores.
        prompt, plugins: the request in words, or the plugins in order.
        seed, steps, sampler, size, tile, strength: as ``Restorer.restore`` takes them.
        region: (x, y, width, height) to restore, or None.
        feather: of the mask's edge, in pixels; None: by the mask.
        fit: the result is resized to fit into this (width, height), or None.
        suffix: of the result's format, with the dot; "": the input's.
    """

    bundle: str
    prompt: str | None = None
    plugins: tuple[str, ...] = ()
    seed: int = 42
    steps: int | None = None
    sampler: str = "unipc"
    size: str | int | tuple[int, int] = "native"
    tile: str | int = "auto"
    strength: float | str = 1.0
    region: tuple[int, int, int, int] | None = None
    feather: int | None = None
    fit: tuple[int, int] | None = None
    suffix: str = ""

    def to_text(self) -> str:
        """Canonical JSON: equal requests have equal texts."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_text(cls, text: str) -> JobRequest:
        """The request that :meth:`to_text` wrote."""
        values: dict[str, Any] = json.loads(text)
        known = {one.name for one in fields(cls)}
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known}
        return cls(**given)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One row of the store.

    Attributes:
        number: place in the order of acceptance.
        id: unguessable; the name that callers use.
        owner: name of the caller's token; "" without tokens.
        key: the caller's Idempotency-Key, or None.
        digest: SHA-256 of the whole request.
        name: of the caller's file, for messages and downloads.
        width, height: of the input as stored, px.
        has_mask: the request has a mask.
        need_bytes: estimated peak memory beyond the engines.
        attached: the caller waits on the connection that created it; it ends with that connection.
        attempts: how often it was started.
        created, started, finished: seconds since 1970.
        report: plan, selection and timings, once done.
        problem: the failure, as problem details.
        result: file name below ``results/``, or None.
    """

    number: int
    id: str
    owner: str
    state: State
    request: JobRequest
    name: str
    width: int
    height: int
    digest: str
    created: float
    key: str | None = None
    has_mask: bool = False
    need_bytes: int = 0
    attached: bool = False
    attempts: int = 0
    started: float | None = None
    finished: float | None = None
    report: dict[str, Any] | None = None
    problem: dict[str, Any] | None = None
    result: str | None = None

    @property
    def is_finished(self) -> bool:
        return self.state in FINISHED


class Progress:
    """The progress of a running job; written by its worker, read by any thread.

    Attributes:
        step, steps: of all plugins together; 0 of 0 until the plan is known.
        plugin: the plugin that is running.
        began: ``time.monotonic()`` of the first step.
        plan, selection: what will run and why, once decided.
        cancel: set when the caller has cancelled it.
    """

    def __init__(self) -> None:
        self.step = self.steps = 0
        self.plugin = ""
        self.began = 0.0
        self.plan: dict[str, Any] | None = None
        self.selection: dict[str, Any] | None = None
        self.cancel = threading.Event()
