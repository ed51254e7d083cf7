"""Durable jobs: their states in SQLite (write-ahead log), their files in folders beside it.

    STATE/lock                 held by the server that uses this folder
    STATE/jobs.sqlite          one row a job
    STATE/incoming/            uploads that are still arriving; emptied at every start
    STATE/inputs/<id>          the photo of a job that is not finished;  STATE/masks/<id>: its mask
    STATE/results/<id>.<ext>   the restored photo of a finished one

Every change of state is one transaction, so a server that was killed finds each job either queued, running (it is then
queued again) or finished with its result.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, Self

from diffplugin.errors import DiffPluginError
from diffplugin.runtime.serve.job import Job
from diffplugin.runtime.serve.rows import COLUMNS, CRASHED, FORMAT, INDICES, MAX_ATTEMPTS, job_of_row, lost_problem

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
        self._mutex = threading.RLock()
        self._lock = _locked(folder)
        try:
            self._db = self._connect()
        except sqlite3.DatabaseError as error:
            self._lock.close()
            raise DiffPluginError(f"{folder}/jobs.sqlite: {error}; move it away or choose another --state") from None
        except BaseException:
            self._lock.close()
            raise

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.folder / "jobs.sqlite", check_same_thread=False, isolation_level=None, timeout=10)
        try:
            self._set_up(db)
        except BaseException:
            db.close()
            raise
        return db

    def _set_up(self, db: sqlite3.Connection) -> None:
        db.row_factory = sqlite3.Row
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")  # an accepted job survives a power failure, too
        db.execute("PRAGMA cache_size=-256")  # KiB; SQLite's own 2 MB fill up slowly and look like a leak
        (found,) = db.execute("PRAGMA user_version").fetchone()
        if found > FORMAT:
            raise DiffPluginError(
                f"{self.folder}: format {found}, this version reads up to {FORMAT}; upgrade diffplugin"
            )
        if found < FORMAT:
            columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
            with db:
                db.execute("BEGIN IMMEDIATE")
                db.execute(f"CREATE TABLE jobs ({columns})")
                for index in INDICES:
                    db.execute(index)
                db.execute(f"PRAGMA user_version={FORMAT}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Fold the log into the database and release the folder."""
        with self._mutex:
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
        with self._mutex:
            running = [row["id"] for row in self._db.execute("SELECT id FROM jobs WHERE state = 'running'")]
            lost = self._rows("state IN ('queued', 'running') AND attached = 1")
            for job in lost:
                self.finish(job.id, "cancelled", problem=lost_problem(job))
            for job in self._rows("state = 'running' AND attempts >= ?", MAX_ATTEMPTS):
                self.finish(job.id, "failed", problem=CRASHED)
            self._db.execute("UPDATE jobs SET state = 'queued' WHERE state = 'running'")
            self._sweep()
            return self.count("queued"), len(set(running) - {job.id for job in lost})

    def _sweep(self) -> None:
        shutil.rmtree(self.folder / "incoming")
        (self.folder / "incoming").mkdir(mode=0o700)
        rows = self._db.execute("SELECT id, state, result FROM jobs").fetchall()
        waiting = {row["id"] for row in rows if row["state"] == "queued"}
        keep = {"inputs": waiting, "masks": waiting, "results": {row["result"] for row in rows}}
        for kind, names in keep.items():
            for file in (self.folder / kind).iterdir():
                if file.name not in names:
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
        with self._mutex:
            known = self.by_key(row["owner"], row.get("key"))
            if known is not None:
                if known.digest != row["digest"]:
                    raise KeyReused(f"Idempotency-Key {row['key']!r} was used for another request; choose a new one")
                return known, False
            if self.count("queued") >= max_queue:
                raise QueueFull(f"{max_queue} jobs wait already, as many as may; try again later")
            for kind, file in files.items():
                file.replace(self.path(kind, row["id"]))
            names = ", ".join(row)
            self._db.execute(f"INSERT INTO jobs ({names}) VALUES ({', '.join('?' * len(row))})", tuple(row.values()))
            found = self.get(row["id"])
            assert found is not None
            return found, True

    def _rows(self, where: str, *values: Any) -> list[Job]:
        with self._mutex:
            return [job_of_row(row) for row in self._db.execute(f"SELECT * FROM jobs WHERE {where}", values)]

    def get(self, job_id: str) -> Job | None:
        """The job of an id."""
        return next(iter(self._rows("id = ?", job_id)), None)

    def by_key(self, owner: str, key: str | None) -> Job | None:
        """The job that a caller accepted under a key."""
        return None if key is None else next(iter(self._rows("owner = ? AND key = ?", owner, key)), None)

    def of_owner(self, owner: str, *, state: str | None, limit: int, before: int | None) -> list[Job]:
        """The caller's jobs, newest first; ``before``: those with smaller numbers."""
        where = "owner = ? AND (? IS NULL OR state = ?) AND number < ? ORDER BY number DESC LIMIT ?"
        return self._rows(where, owner, state, state, before or 2**62, limit)

    def count(self, state: str) -> int:
        """How many jobs are in a state."""
        with self._mutex:
            (found,) = self._db.execute("SELECT count(*) FROM jobs WHERE state = ?", (state,)).fetchone()
        return int(found)

    def ahead(self, job: Job) -> int:
        """How many queued jobs will begin before this one."""
        with self._mutex:
            (found,) = self._db.execute(
                "SELECT count(*) FROM jobs WHERE state = 'queued' AND number < ?", (job.number,)
            ).fetchone()
        return int(found)

    def claim(self) -> Job | None:
        """Take the next queued job and mark it as running; None: nothing waits."""
        with self._mutex:
            row = self._db.execute(
                "UPDATE jobs SET state = 'running', started = ?, attempts = attempts + 1 WHERE number = "
                "(SELECT number FROM jobs WHERE state = 'queued' ORDER BY number LIMIT 1) RETURNING *",
                (time.time(),),
            ).fetchone()
        return None if row is None else job_of_row(row)

    def hand_back(self, job_id: str) -> None:
        """Return a running job to the queue, as if it had not started, because the server stops."""
        with self._mutex:
            self._db.execute(
                "UPDATE jobs SET state = 'queued', started = NULL, attempts = attempts - 1 "
                "WHERE id = ? AND state = 'running'",
                (job_id,),
            )

    def finish(
        self,
        job_id: str,
        state: str,
        *,
        result: str | None = None,
        report: Mapping[str, Any] | None = None,
        problem: Mapping[str, Any] | None = None,
    ) -> bool:
        """End a queued or running job and remove its input. False: it had ended before."""
        texts = [None if value is None else json.dumps(value) for value in (report, problem)]
        with self._mutex:
            done = self._db.execute(
                "UPDATE jobs SET state = ?, finished = ?, result = ?, report = ?, problem = ? "
                "WHERE id = ? AND state IN ('queued', 'running')",
                (state, time.time(), result, *texts, job_id),
            )
            ended = done.rowcount == 1
        if ended:
            self._unlink(("inputs", "masks"), job_id)
        return ended

    def cancel_queued(self, job_id: str, problem: Mapping[str, Any]) -> bool:
        """Cancel a job that has not started; False: it has."""
        with self._mutex:
            found = self.get(job_id)
            return found is not None and found.state == "queued" and self.finish(job_id, "cancelled", problem=problem)

    def detach(self, job_id: str) -> None:
        """Let the job continue without the connection that created it."""
        with self._mutex:
            self._db.execute("UPDATE jobs SET attached = 0 WHERE id = ?", (job_id,))

    def forget(self, jobs: Iterable[Job]) -> int:
        """Remove finished jobs and their results; returns the number removed."""
        gone = 0
        for job in jobs:
            with self._mutex:
                if not self._db.execute(
                    "DELETE FROM jobs WHERE id = ? AND state NOT IN ('queued', 'running')", (job.id,)
                ).rowcount:
                    continue
            gone += 1
            if job.result is not None:
                self._unlink(("results",), job.result)
        return gone

    def expire(self, keep_seconds: float) -> int:
        """Remove jobs that finished longer ago than that; returns the number removed."""
        old = self._rows("finished IS NOT NULL AND finished < ? LIMIT 1000", time.time() - keep_seconds)
        return self.forget(old)

    def _unlink(self, kinds: Iterable[str], name: str) -> None:
        for kind in kinds:
            self.path(kind, name).unlink(missing_ok=True)


def _locked(folder: Path) -> IO[str]:
    """The folder's lock, held as long as the file is open."""
    try:
        for name in FOLDERS:
            (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
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
