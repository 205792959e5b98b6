"""The file of durable requests: one SQLite database, its tables, and each statement on it.

Four tables.  ``requests``: accepted and unfinished.  ``begun``: those of them that must not be sent
to a worker again, and the run of the system that sent them.  ``results``: finished, kept for a
while.  ``finished``: which results were written together and when, so that old ones are found
without an index.  Every row of a request or a result has a checksum of its own.

All methods belong to one thread at a time.  ``store.py`` calls them.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from zlib import crc32

from lbcore.core.errors import LBError
from lbcore.core.records import Batch, OpenRequest, Recovered, StoredRun

from .store_rows import chunks, crc_of, deletion, id_of, insertion, is_whole

#: "lbdr" as a number, in the header of the file
APPLICATION_ID: Final = 0x6C626472
SCHEMA_VERSION: Final = 1
SCHEMA: Final = (
    "CREATE TABLE numbers(name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE requests(id INTEGER PRIMARY KEY, at REAL, task TEXT, frame BLOB, crc INTEGER)",
    "CREATE TABLE begun(id INTEGER PRIMARY KEY, run INTEGER)",
    "CREATE TABLE results(id INTEGER PRIMARY KEY, frame BLOB, crc INTEGER)",
    "CREATE TABLE finished(number INTEGER PRIMARY KEY, at REAL, count INTEGER, bytes INTEGER, "
    "ids BLOB)",
)
#: SQLite's integers are signed; the core gives no larger ids
ID_MAX: Final = (1 << 63) - 1
#: memory for pages, in KiB
CACHE_KIB: Final = 32 << 10
#: what is in the write-ahead log goes into the file itself at this size
WAL_BYTES_MAX: Final = 16 << 20
#: entries of ``finished`` that one step of tidying looks at
TIDY_STEP: Final = 16

_SQLITE_FULL: Final = 13
_SQLITE_IOERR_WRITE: Final = 10 | 3 << 8

Row = tuple[Any, ...]
Connect = Callable[[str], sqlite3.Connection]


class StoreError(LBError):
    """The file cannot be used; the message says why, and what to do."""

    exit_code = 3


class StoreFull(StoreError):
    """Nothing was written, for want of space; everything before is as it was."""


class Damaged(LBError):
    """A row is not what was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """How long results stay: until one of these is exceeded, the oldest going first."""

    seconds: float = 86_400.0
    results: int = 1_000_000
    bytes: int = 1 << 30


def connect(path: str) -> sqlite3.Connection:
    """A connection without transactions of its own, which any one thread may use."""
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False)


class StoreFile:
    """One open database; see the module's text."""

    def __init__(
        self,
        path: Path,
        *,
        synchronous: str,
        keep: Keep,
        clock: Callable[[], float],
        connect: Connect = connect,
        run: int = 0,
    ) -> None:
        """``synchronous`` is SQLite's word; ``clock`` gives unix time; ``run`` is a number of this
        run of the system, below 2^63, which no other run has."""
        self._path = path
        self._wal = path.with_name(path.name + "-wal")
        self._synchronous = synchronous
        self._keep = keep
        self._clock = clock
        self._connect = connect
        self._run = run
        self._connection: sqlite3.Connection | None = None
        #: results kept, their bytes, and when the oldest of them was written
        self.results = 0
        self.result_bytes = 0
        self._oldest_at = 0.0

    # ---- opening -------------------------------------------------------------------------------

    def open(self) -> Recovered:
        """Open the file, or make it, and give back what is unfinished in it.

        Raises ``StoreError``.
        """
        is_new = not self._path.exists()
        try:
            self._connection = self._connect(str(self._path))
            execute = self._connection.execute
            # one process has it for itself, and then there is no file for shared memory either
            execute("PRAGMA locking_mode = EXCLUSIVE")
            execute("PRAGMA journal_mode = WAL")
            execute(f"PRAGMA synchronous = {self._synchronous}")
            execute("PRAGMA wal_autocheckpoint = 0")
            execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            execute("PRAGMA cell_size_check = ON")
            self._prepare()
            if is_new:
                _sync_folder(self._path.parent)
            recovered = self._recover()
        except (sqlite3.Error, OSError) as error:
            self.abandon()
            raise StoreError(_explain(self._path, error)) from error
        except StoreError:
            self.abandon()
            raise
        return recovered

    def _prepare(self) -> None:
        """Make the tables of a new file; refuse a file of somebody else or of another version."""
        execute = self._execute
        (version,) = execute("PRAGMA user_version").fetchone()
        (application,) = execute("PRAGMA application_id").fetchone()
        if version == SCHEMA_VERSION and application == APPLICATION_ID:
            return
        if application == APPLICATION_ID and version:
            raise StoreError(
                f"{self._path} was written by another version of lb (its format is {version}, "
                f"this one's {SCHEMA_VERSION}): finish its requests there, or move it away"
            )
        if execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            raise StoreError(f"{self._path} is a database, but not one of lb's: move it away")
        with self._transaction():
            for statement in SCHEMA:
                execute(statement)
            execute(f"PRAGMA application_id = {APPLICATION_ID}")
            execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _recover(self) -> Recovered:
        execute = self._execute
        now = self._clock()
        begun = dict(execute("SELECT id, run FROM begun"))
        recovered = Recovered()
        rows = execute("SELECT id, at, task, frame, crc FROM requests ORDER BY id")
        for request_id, at, task, frame, crc in rows:
            if is_whole(request_id, at, task, frame, crc):
                age_s = max(0.0, now - at)
                begun_here = begun.get(request_id) == self._run
                recovered.requests.append(
                    OpenRequest(request_id, task, frame, age_s, request_id in begun, begun_here)
                )
            else:
                recovered.damaged.append(request_id)
        found = execute("SELECT value FROM numbers WHERE name = 'clients'").fetchone()
        recovered.clients = int(found[0]) if found else 0
        self.results, self.result_bytes, oldest = execute(
            "SELECT ifnull(sum(count), 0), ifnull(sum(bytes), 0), ifnull(min(at), 0) FROM finished"
        ).fetchone()
        self._oldest_at = float(oldest)
        return recovered

    # ---- writing -------------------------------------------------------------------------------

    def write(self, batches: Sequence[Batch]) -> None:
        """Write these in one transaction; on return it has reached the disk, as far as it shall.

        Raises ``StoreFull`` with nothing written, and ``StoreError`` for all other failures: then
        nobody knows what is written before the file is opened anew.
        """
        runs = [run for batch in batches for run in batch.runs]
        begun = [each for batch in batches for row in batch.begun for each in (row, self._run)]
        results = [result for batch in batches for result in batch.results]
        clients = max(batch.clients for batch in batches)
        with self._transaction():
            if clients:
                self._execute("INSERT OR REPLACE INTO numbers VALUES ('clients', ?)", (clients,))
            if runs:
                self._write_requests(runs)
            if begun:
                self._insert("begun", 2, begun)
            if results:
                self._write_results(results)

    def _write_requests(self, runs: list[StoredRun]) -> None:
        at = self._clock()
        values: list[Any] = []
        for run in runs:
            task, begin = run.task, crc_of(at, run.task)
            for request_id, frame in run.entries:
                values += (request_id, at, task, frame, crc32(frame, begin))
        self._insert("requests", 5, values)

    def _write_results(self, results: list[tuple[int, bytes]]) -> None:
        values: list[Any] = []
        for request_id, frame in results:
            values += (request_id, frame, crc32(frame))
        ids = [result[0] for result in results]
        size = sum([len(result[1]) for result in results])
        self._insert("results", 3, values)
        self._delete("requests", ids)
        # nobody but non-idempotent tasks is in here: mostly it is empty
        if self._execute("SELECT EXISTS(SELECT 1 FROM begun)").fetchone()[0]:
            self._delete("begun", ids)
        at = self._clock()
        self._execute(
            "INSERT INTO finished(at, count, bytes, ids) VALUES (?, ?, ?, ?)",
            (at, len(ids), size, struct.pack(f"<{len(ids)}q", *ids)),
        )
        if not self.results:
            self._oldest_at = at
        self.results += len(ids)
        self.result_bytes += size
        if self._is_over():
            self._drop_oldest()

    def _insert(self, table: str, width: int, values: list[Any]) -> None:
        for count, part in chunks(values, width):
            self._execute(insertion(table, width, count), part)

    def _delete(self, table: str, ids: list[int]) -> None:
        if ids == list(range(ids[0], ids[0] + len(ids))):
            self._execute(f"DELETE FROM {table} WHERE id BETWEEN ? AND ?", (ids[0], ids[-1]))
            return
        for count, part in chunks(ids, 1):
            self._execute(deletion(table, count), part)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of it or nothing.  Raises ``StoreFull`` and ``StoreError``."""
        before = self.results, self.result_bytes, self._oldest_at
        try:
            self._execute("BEGIN IMMEDIATE")
            yield
            self._execute("COMMIT")
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0)
            text = _explain(self._path, error)
            if code not in (_SQLITE_FULL, _SQLITE_IOERR_WRITE):
                raise StoreError(text) from error
            # a write failed before the record that makes a transaction count: it can be undone
            try:
                if self._connection is not None and self._connection.in_transaction:
                    self._execute("ROLLBACK")
            except sqlite3.Error as second:
                raise StoreError(_explain(self._path, second)) from second
            self.results, self.result_bytes, self._oldest_at = before
            raise StoreFull(text) from error

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        assert self._connection is not None, "the store is not open"
        return self._connection.execute(statement, values)

    # ---- reading -------------------------------------------------------------------------------

    def find(self, request_id: int) -> bytes | None:
        """The reply frame of a finished request; None when there is none (any more).

        Raises ``Damaged`` and ``StoreError``.
        """
        if request_id > ID_MAX:
            return None
        try:
            row = self._execute(
                "SELECT frame, crc FROM results WHERE id = ?", (request_id,)
            ).fetchone()
        except sqlite3.Error as error:
            raise StoreError(_explain(self._path, error)) from error
        if row is None:
            return None
        frame, crc = row
        if not isinstance(frame, bytes) or crc != crc32(frame) or id_of(frame) != request_id:
            raise Damaged("the stored result is not what was written: its checksum is wrong")
        return frame

    # ---- keeping it small ----------------------------------------------------------------------

    def _is_over(self) -> bool:
        keep = self._keep
        return bool(self.results) and (
            self.results > keep.results
            or self.result_bytes > keep.bytes
            or self._oldest_at < self._clock() - keep.seconds
        )

    def _drop_oldest(self) -> None:
        """Within a transaction: drop the oldest results, as far as they are too old or too many."""
        rows = self._execute(
            "SELECT number, at, count, bytes, ids FROM finished ORDER BY number LIMIT ?",
            (TIDY_STEP,),
        ).fetchall()
        gone: list[int] = []
        last = 0
        for number, at, count, size, ids in rows:
            self._oldest_at = at
            if not self._is_over():
                break
            if isinstance(ids, bytes) and len(ids) == 8 * count:  # else it is damaged
                gone += struct.unpack(f"<{count}q", ids)
            last = number
            self.results -= count
            self.result_bytes -= size
        if gone:
            self._delete("results", gone)
        self._execute("DELETE FROM finished WHERE number <= ?", (last,))

    def tidy(self) -> bool:
        """One small step of what can wait: old results go.  True when there is more to do.

        Raises ``StoreError``.
        """
        if not self._is_over():
            return False
        with self._transaction():
            self._drop_oldest()
        return self._is_over()

    def checkpoint(self, wal_bytes_max: int = WAL_BYTES_MAX) -> None:
        """Move the write-ahead log into the file itself when it has grown above a size.

        Raises ``StoreError``; for want of space only nothing happens.
        """
        try:
            if os.stat(self._wal).st_size > wal_bytes_max:
                self._execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except FileNotFoundError:
            pass
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) not in (_SQLITE_FULL, _SQLITE_IOERR_WRITE):
                raise StoreError(_explain(self._path, error)) from error

    def close(self) -> None:
        """Close in good order, everything being in one file then.  Raises ``StoreError``."""
        if self._connection is not None:
            self.checkpoint(0)
            self.abandon()

    def abandon(self) -> None:
        """Let go of the file, whatever its state."""
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None


def _explain(path: Path, error: Exception) -> str:
    """One line: what failed, and what to do where that is known."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    advice = {
        5: "another process has it open",
        8: "it must be writable",
        11: "it is damaged: move it away, or put a copy back",
        13: "there is no space left",
        14: "its folder must exist and be writable",
        26: "it is not a database: move it away",
    }.get(code)
    text = getattr(error, "strerror", None) or str(error)
    return f"cannot keep durable requests in {path}: {text}" + (f"; {advice}" if advice else "")


def _sync_folder(folder: Path) -> None:
    """Make a new file's name as durable as its content."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
