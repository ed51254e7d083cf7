"""Durable jobs: their states in SQLite (write-ahead log), their files in folders beside it.

    STATE/lock                 held by the server that uses this folder
    STATE/jobs.sqlite          one row a job
    STATE/incoming/            uploads that are still arriving; emptied at every start
    STATE/inputs/<id>          the photo of a job that is not finished;  STATE/masks/<id>: its mask
    STATE/results/<id>.<ext>   the restored photo of a finished one

Every change of state is one transaction, so a server that was killed finds each job either queued, running (it is then
queued again) or finished with its result. An accepted job survives a power failure, too, unless it ends with the
connection that waits for it.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, Self

from diffplugin.errors import DiffPluginError
from diffplugin.files import TEMPORARY
from diffplugin.runtime.serve.database import Database
from diffplugin.runtime.serve.job import Job
from diffplugin.runtime.serve.rows import CRASHED, MAX_ATTEMPTS, job_of_row, lost_problem

FOLDERS = ("incoming", "inputs", "masks", "results")


class QueueFull(DiffPluginError):
    """The queue has its maximum number of waiting jobs."""


class KeyReused(DiffPluginError):
    """An Idempotency-Key was used again with another request."""


class JobStore:
    """The jobs of one server. Its methods may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        """Open the folder; it is created if it is missing.

        Raises:
            DiffPluginError: another server uses it, it cannot be written, or its format is newer.
        """
        self.folder = folder
        self._lock = _locked(folder)
        try:
            self._db = Database(folder)
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Fold the log into the database and release the folder."""
        self._db.close()
        self._lock.close()

    def path(self, kind: str, name: str) -> Path:
        """File of a job: ``kind`` is one of ``FOLDERS``, ``name`` its id or its result."""
        return self.folder / kind / name

    def recover(self) -> tuple[int, int]:
        """After a start: running jobs are queued again, those that nobody waits for any more or that ended the server
        too often are finished, and files without a job are removed.

        Returns:
            (jobs queued, jobs among them that had been running).
        """
        with self._db.mutex:
            running = {row["id"] for row in self._db.read("SELECT id FROM jobs WHERE state = 'running'")}
            lost = self._jobs("state IN ('queued', 'running') AND attached = 1")
            for job in lost:
                self.finish(job, "cancelled", problem=lost_problem(job))
            for job in self._jobs("state = 'running' AND attempts >= ?", MAX_ATTEMPTS):
                self.finish(job, "failed", problem=CRASHED)
            self._db.write("UPDATE jobs SET state = 'queued' WHERE state = 'running'", durable=True)
            self._sweep()
            return self.count("queued"), len(running - {job.id for job in lost})

    def _sweep(self) -> None:
        """Remove files that no job has."""
        shutil.rmtree(self.folder / "incoming")
        (self.folder / "incoming").mkdir(mode=0o700)
        rows = self._db.read("SELECT id, state, result FROM jobs")
        waiting = {row["id"] for row in rows if row["state"] == "queued"}
        keep = {"inputs": waiting, "masks": waiting, "results": {row["result"] for row in rows}}
        for kind, names in keep.items():
            for file in (self.folder / kind).iterdir():
                if file.name not in names:
                    file.unlink()
        for file in self.folder.glob(f"{TEMPORARY}*"):
            file.unlink()

    def add(self, values: Mapping[str, Any], files: Mapping[str, Path], *, max_queue: int) -> tuple[Job, bool]:
        """Accept a job.

        Args:
            values: columns of the row, ``request`` as a JobRequest.
            files: "inputs" (and "masks"): files below ``incoming/``, which are moved.
            max_queue: how many jobs may wait.

        Returns:
            (the job, whether it is new): a job that was accepted before under this owner's key is returned again.

        Raises:
            QueueFull, KeyReused.
        """
        row = {**values, "request": values["request"].to_text(), "state": "queued", "created": time.time()}
        with self._db.mutex:
            known = self._by_key(row["owner"], row.get("key"))
            if known is not None:
                if known.digest != row["digest"]:
                    raise KeyReused(f"Idempotency-Key {row['key']!r} was used for another request; choose a new one")
                return known, False
            if self.count("queued") >= max_queue:
                raise QueueFull(f"{max_queue} jobs wait already, as many as may; try again later")
            for kind, file in files.items():
                file.replace(self.path(kind, row["id"]))
            places = ", ".join("?" * len(row))
            (made,) = self._db.write(
                f"INSERT INTO jobs ({', '.join(row)}) VALUES ({places}) RETURNING *",
                *row.values(),
                durable=not row.get("attached"),
            )
            return job_of_row(made), True

    def _jobs(self, where: str, *values: Any) -> list[Job]:
        return [job_of_row(row) for row in self._db.read(f"SELECT * FROM jobs WHERE {where}", *values)]

    def get(self, job_id: str) -> Job | None:
        """The job of an id."""
        return next(iter(self._jobs("id = ?", job_id)), None)

    def _by_key(self, owner: str, key: str | None) -> Job | None:
        """The job that a caller accepted under a key."""
        return None if key is None else next(iter(self._jobs("owner = ? AND key = ?", owner, key)), None)

    def of_owner(self, owner: str, *, state: str | None, limit: int, before: int | None) -> list[Job]:
        """The caller's jobs, newest first; ``before``: those with smaller numbers."""
        where = "owner = ? AND (? IS NULL OR state = ?) AND number < ? ORDER BY number DESC LIMIT ?"
        return self._jobs(where, owner, state, state, before or 2**62, limit)

    def count(self, state: str) -> int:
        """How many jobs are in a state."""
        ((found,),) = self._db.read("SELECT count(*) FROM jobs WHERE state = ?", state)
        return int(found)

    def ahead(self, job: Job) -> int:
        """How many queued jobs will begin before this one."""
        ((found,),) = self._db.read("SELECT count(*) FROM jobs WHERE state = 'queued' AND number < ?", job.number)
        return int(found)

    def claim(self) -> Job | None:
        """Take the next queued job and mark it as running; None: nothing waits."""
        rows = self._db.write(
            "UPDATE jobs SET state = 'running', started = ?, attempts = attempts + 1 WHERE number = "
            "(SELECT number FROM jobs WHERE state = 'queued' ORDER BY number LIMIT 1) RETURNING *",
            time.time(),
            durable=False,  # one that is queued again runs again
        )
        return job_of_row(rows[0]) if rows else None

    def hand_back(self, job: Job) -> None:
        """Return a running job to the queue, as if it had not started, because the server stops."""
        self._db.write(
            "UPDATE jobs SET state = 'queued', started = NULL, attempts = attempts - 1 "
            "WHERE id = ? AND state = 'running'",
            job.id,
            durable=True,
        )

    def finish(
        self,
        job: Job,
        state: str,
        *,
        result: str | None = None,
        report: Mapping[str, Any] | None = None,
        problem: Mapping[str, Any] | None = None,
    ) -> bool:
        """End a queued or running job and remove its input. False: it had ended before."""
        texts = [None if value is None else json.dumps(value) for value in (report, problem)]
        ended = self._db.write(
            "UPDATE jobs SET state = ?, finished = ?, result = ?, report = ?, problem = ? "
            "WHERE id = ? AND state IN ('queued', 'running') RETURNING id",
            state,
            time.time(),
            result,
            *texts,
            job.id,
            durable=not job.attached,
        )
        if ended:
            self._unlink(("inputs", "masks"), job.id)
        return bool(ended)

    def cancel_queued(self, job: Job, problem: Mapping[str, Any]) -> bool:
        """Cancel a job that has not started; False: it has."""
        with self._db.mutex:
            found = self.get(job.id)
            return found is not None and found.state == "queued" and self.finish(job, "cancelled", problem=problem)

    def forget(self, job: Job) -> None:
        """Remove a finished job and its result."""
        self._remove("id = ? AND state NOT IN ('queued', 'running')", job.id)

    def expire(self, keep_seconds: float) -> int:
        """Remove jobs that finished longer ago than that; returns the number removed."""
        return self._remove("finished IS NOT NULL AND finished < ?", time.time() - keep_seconds)

    def _remove(self, where: str, *values: Any) -> int:
        gone = self._db.write(f"DELETE FROM jobs WHERE {where} RETURNING result", *values, durable=True)
        for (result,) in gone:
            if result is not None:
                self._unlink(("results",), result)
        return len(gone)

    def _unlink(self, kinds: Iterable[str], name: str) -> None:
        for kind in kinds:
            self.path(kind, name).unlink(missing_ok=True)


def _locked(folder: Path) -> IO[str]:
    """The folder's lock, held as long as the file is open."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in FOLDERS:
            (folder / name).mkdir(exist_ok=True, mode=0o700)
        lock = (folder / "lock").open("a")
    except OSError as error:
        reason = error.strerror
        raise DiffPluginError(f"{folder}: cannot hold the server's state ({reason}); choose another --state") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise DiffPluginError(f"{folder}: another dp-serve uses this folder; choose another --state") from None
    return lock
