"""The rows of the job store in SQLite (write-ahead log): one connection writes, another reads, so that no read waits
for the disk."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Any

from diffplugin.errors import DiffPluginError
from diffplugin.runtime.serve.rows import COLUMNS, FORMAT, INDICES


class Database:
    """A table ``jobs``. Its methods may be called from any thread.

    Attributes:
        mutex: held while a statement writes; a caller that reads and then writes holds it for both.
    """

    def __init__(self, folder: Path) -> None:
        """Open ``folder/jobs.sqlite``; it is created if it is missing.

        Raises:
            DiffPluginError: it is no database, or its format is newer.
        """
        self.mutex, self._reading, self._durable = threading.RLock(), threading.Lock(), True
        path = folder / "jobs.sqlite"
        try:
            self._writer = _connect(path)
            try:
                _create(self._writer, folder)
                self._reader = _connect(path)
            except BaseException:
                self._writer.close()
                raise
        except sqlite3.DatabaseError as error:
            raise DiffPluginError(f"{path}: {error}; move it away or choose another --state") from None

    def close(self) -> None:
        """Fold the log into the database."""
        with self.mutex, self._reading:
            self._reader.close()
            self._writer.close()

    def read(self, statement: str, *values: Any) -> list[sqlite3.Row]:
        """Rows of a SELECT, as of the last statement that has written."""
        with self._reading:
            return self._reader.execute(statement, values).fetchall()

    def write(self, statement: str, *values: Any, durable: bool) -> list[sqlite3.Row]:
        """Run a statement as a transaction of its own; returns the rows of its RETURNING clause.

        Args:
            durable: it is on the disk when this returns. Otherwise it survives the end of this process, but perhaps
                not of the machine; it never overtakes an earlier statement.
        """
        with self.mutex:
            if durable != self._durable:
                self._writer.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
                self._durable = durable
            return self._writer.execute(statement, values).fetchall()


def _connect(path: Path) -> sqlite3.Connection:
    found = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=10)
    try:
        found.row_factory = sqlite3.Row
        found.execute("PRAGMA journal_mode=WAL")
        found.execute("PRAGMA synchronous=FULL")
        found.execute("PRAGMA cache_size=-256")  # KiB; SQLite's own 2 MB fill up slowly and look like a leak
    except BaseException:
        found.close()
        raise
    return found


def _create(writer: sqlite3.Connection, folder: Path) -> None:
    (found,) = writer.execute("PRAGMA user_version").fetchone()
    if found > FORMAT:
        raise DiffPluginError(f"{folder}: format {found}, this version reads up to {FORMAT}; upgrade diffplugin")
    if found < FORMAT:
        columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
        with writer:
            writer.execute("BEGIN IMMEDIATE")
            writer.execute(f"CREATE TABLE jobs ({columns})")
            for index in INDICES:
                writer.execute(index)
            writer.execute(f"PRAGMA user_version={FORMAT}")
