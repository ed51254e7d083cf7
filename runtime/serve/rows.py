"""Rows of the job store: their columns, how one becomes a Job, and the problems that the store itself writes."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from diffplugin.runtime.serve.job import Job, JobRequest

FORMAT = 1
MAX_ATTEMPTS = 3
COLUMNS = {
    "number": "INTEGER PRIMARY KEY AUTOINCREMENT",
    "id": "TEXT NOT NULL UNIQUE",
    "owner": "TEXT NOT NULL",
    "state": "TEXT NOT NULL",
    "request": "TEXT NOT NULL",
    "name": "TEXT NOT NULL",
    "width": "INTEGER NOT NULL",
    "height": "INTEGER NOT NULL",
    "digest": "TEXT NOT NULL",
    "created": "REAL NOT NULL",
    "key": "TEXT",
    "has_mask": "INTEGER NOT NULL DEFAULT 0",
    "need_bytes": "INTEGER NOT NULL DEFAULT 0",
    "attached": "INTEGER NOT NULL DEFAULT 0",
    "attempts": "INTEGER NOT NULL DEFAULT 0",
    "started": "REAL",
    "finished": "REAL",
    "report": "TEXT",
    "problem": "TEXT",
    "result": "TEXT",
}
INDICES = (
    "CREATE UNIQUE INDEX jobs_key ON jobs (owner, key) WHERE key IS NOT NULL",
    "CREATE INDEX jobs_state ON jobs (state, number)",
    "CREATE INDEX jobs_owner ON jobs (owner, number)",
)
CRASHED = {
    "type": "urn:diffplugin:crashed",
    "title": "The server ended while it worked on this job",
    "status": 500,
    "detail": f"the server ended {MAX_ATTEMPTS} times while it worked on this photo; send another one",
    "kind": "crashed",
}


def lost_problem(job: Job) -> dict[str, Any]:
    """Of a job whose only waiter went with the former server."""
    return {
        "type": "urn:diffplugin:cancelled",
        "title": "Cancelled",
        "status": 409,
        "detail": "the connection that waited for this photo ended with the server; send it again, or as a job",
        "kind": "cancelled",
        "instance": f"/v1/jobs/{job.id}",
    }


def job_of_row(row: sqlite3.Row) -> Job:
    """The job that a row holds."""
    values = dict(row)
    values["request"] = JobRequest.from_text(values["request"])
    for name in ("report", "problem"):
        values[name] = None if values[name] is None else json.loads(values[name])
    for name in ("has_mask", "attached"):
        values[name] = bool(values[name])
    return Job(**values)
