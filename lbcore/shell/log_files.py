"""The log file of one process: whole lines appended, rotated, old ones removed, failures survived.

Several processes may write one file (a worker, a process it forked, the supervisor): every write is
one ``write(2)`` of whole lines in append mode, and a rotation is done by one of them while the
others notice that the path leads to a new file.  A file that cannot be written costs lines, never
the process; how many is written down once it works again.

loguru's own file sink is not used for four reasons, each a lost or forged line here: it prints a
traceback of many lines for every line that a full disk refuses, it writes on into a file that was
moved away, its retention takes ``worker-1.backup.log`` for an old file of ``worker-1``, and it
glues the next line to a torn one.  Called by ``logs.py`` and, for what a child wrote outside of
Python, by the supervisor.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path

from lbcore.core.errors import LBError
from lbcore.core.rotation import (
    Retention,
    Rotation,
    files_to_remove,
    parse_retention,
    parse_rotation,
    rotation_is_due,
)
from lbcore.core.topology import LogsConfig

from .log_lines import RAW, LogLine, format_line

#: between two complaints about the same file on stderr, and two tries to rotate a stubborn one
COMPLAINT_INTERVAL_S = 60.0
#: logs can hold what clients sent: the group may read them, others not
FILE_MODE = 0o640
FILE_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC

_PROCESS_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_ROTATED_NAME = re.compile(r"(.+)\.(\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_\d{6})\.log")
#: how a file of either format begins
_FIRST_STAMP = re.compile(
    rb'(?:\{"ts": ")?(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d\.\d{3}(?:\d{3}[+-]\d\d:\d\d)?)'
)
_STAMP = "%Y-%m-%d_%H-%M-%S_%f"


class LogSetupError(LBError):
    """Logs cannot be written as the topology asks; the message says where and what to change."""

    exit_code = 3


def live_path(folder: Path, process: str) -> Path:
    """The file that a process writes now.  Raises ``LogSetupError`` for an unusable name."""
    if not _PROCESS_NAME.fullmatch(process):
        raise LogSetupError(f"{process!r} cannot name a log file: use letters, digits, _ . and -")
    return folder / f"{process}.log"


def known_processes(folder: Path) -> list[str]:
    """The processes that have a live or a rotated log in ``folder``, sorted; [] without a folder.

    ``worker-1.2026-11-23_10-00-00_000000.log`` counts for ``worker-1``.
    """
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    found = set()
    for name in names:
        match = _ROTATED_NAME.fullmatch(name)
        process = match[1] if match else name.removesuffix(".log")
        if name.endswith(".log") and _PROCESS_NAME.fullmatch(process):
            found.add(process)
    return sorted(found)


def rotated_paths(path: Path) -> list[Path]:
    """The old files of the live file ``path``, oldest first, and nobody else's."""
    process = path.name.removesuffix(".log")
    found: list[tuple[int, str]] = []
    try:
        with os.scandir(path.parent) as entries:
            for entry in entries:
                match = _ROTATED_NAME.fullmatch(entry.name)
                if match is None or match[1] != process:
                    continue
                with suppress(FileNotFoundError):  # its own process may be removing it now
                    found.append((entry.stat().st_mtime_ns, entry.name))
    except OSError:
        return []
    return [path.parent / name for _, name in sorted(found)]


class LogFile:
    """One process's live log file, open for appending.

    ``write`` never raises ``OSError``.  It is not safe against itself: loguru's handler lock, or a
    caller with its own instance, keeps it to one thread at a time.
    """

    def __init__(
        self,
        path: Path,
        rotation: Rotation,
        retention: Retention,
        note_formatter: Callable[[str], str],
    ) -> None:
        """``note_formatter`` makes a log line of what this class itself has to say."""
        self.path = path
        self._rotation = rotation
        self._retention = retention
        self._format_note = note_formatter
        self._fd = -1
        #: device and inode behind the open fd
        self._identity = (-1, -1)
        #: moment of the first record, local; only kept where rotation goes by time
        self._started = datetime.min
        #: the file ends in the middle of a line
        self._torn = False
        self._lost_records = 0
        self._lost_reason = ""
        self._complaint_due = 0.0
        self._rotation_due = 0.0

    def open(self) -> None:
        """Open or create the file.  Raises ``OSError``."""
        self.close()
        fd = os.open(self.path, FILE_FLAGS, FILE_MODE)
        status = os.fstat(fd)
        self._fd = fd
        self._identity = (status.st_dev, status.st_ino)
        self._torn = stat.S_ISREG(status.st_mode) and _is_torn(fd)
        self._started = self._read_start()

    def close(self) -> None:
        """Close the file; a later ``write`` opens it again."""
        if self._fd >= 0 and self._is_ours():
            os.close(self._fd)
        self._fd = -1

    def _is_ours(self) -> bool:
        """False when a task closed our descriptor, after which its number may be anything."""
        try:
            status = os.fstat(self._fd)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._identity

    def write(self, text: str) -> bool:
        """Append whole lines; False when they were lost, which is noted, not raised."""
        data = text.encode("utf-8", "backslashreplace")
        try:
            self._prepare(len(data))
            if self._lost_records:
                note = f"records lost here: {self._lost_records}, because: {self._lost_reason}"
                self._append(self._format_note(note).encode())
                self._lost_records = 0
            self._append(data)
        except OSError as error:
            self._lost_records += 1
            self._lost_reason = error.strerror or type(error).__name__
            self._complain(f"{self._lost_reason}; log lines are lost until it can be written again")
            return False
        return True

    def _append(self, data: bytes) -> None:
        view = memoryview(b"\n" + data if self._torn else data)
        while view:
            written = os.write(self._fd, view)
            view = view[written:]
            # a full disk takes a part and refuses the rest in the next call
            self._torn = bool(view)

    def _prepare(self, added_bytes: int) -> None:
        """See that the open file is the one at ``path`` and has room."""
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            # someone removed it, or the whole folder
            self.path.parent.mkdir(exist_ok=True)
            status = None
        here = status is not None and (status.st_dev, status.st_ino) == self._identity
        if not here or not self._is_ours():
            self.open()
            status = os.fstat(self._fd)
        if status is None or not stat.S_ISREG(status.st_mode):
            return
        now = datetime.now()
        if status.st_size == 0:
            self._started = now
        if rotation_is_due(self._rotation, status.st_size, added_bytes, self._started, now):
            self._rotate(now)

    def _rotate(self, now: datetime) -> None:
        """Give the live file its dated name and start a new one, unless someone else just did."""
        if time.monotonic() < self._rotation_due:
            return
        try:
            # a descriptor of its own: one inherited by fork would share its lock with the parent
            lock_fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_here():
                    os.rename(self.path, self._free_name(now))
                    remove_expired(self.path, self._retention, now)
                self.open()
            finally:
                os.close(lock_fd)
        except BlockingIOError:
            return  # another process is at it; this line may still go into the old file
        except FileNotFoundError:
            self.open()  # another process is between its rename and its new file
        except OSError as error:
            # better one long file than lost lines
            self._rotation_due = time.monotonic() + COMPLAINT_INTERVAL_S
            self._complain(f"it cannot be rotated: {error.strerror or error}")
            if not self._is_here():
                self.open()

    def _is_here(self) -> bool:
        """Whether ``path`` still leads to the file that we hold open."""
        with suppress(FileNotFoundError):
            status = os.stat(self.path)
            return (status.st_dev, status.st_ino) == self._identity
        return False

    def _free_name(self, now: datetime) -> Path:
        stem = self.path.name.removesuffix(".log")
        microsecond = now.microsecond
        while True:
            stamp = now.replace(microsecond=microsecond % 1_000_000).strftime(_STAMP)
            name = self.path.with_name(f"{stem}.{stamp}.log")
            if not name.exists():
                return name
            microsecond += 1

    def _read_start(self) -> datetime:
        """When the open file began: its first record, since a restart must not reset its age."""
        if self._rotation.age is None and self._rotation.boundary is None:
            return datetime.min
        match = _FIRST_STAMP.match(os.pread(self._fd, 64, 0))
        with suppress(ValueError):
            if match is not None:
                return datetime.fromisoformat(match[1].decode()).astimezone().replace(tzinfo=None)
        return datetime.fromtimestamp(os.fstat(self._fd).st_mtime)

    def _complain(self, what: str) -> None:
        """One line on the raw stderr: our own streams would lead back here."""
        if time.monotonic() < self._complaint_due:
            return
        self._complaint_due = time.monotonic() + COMPLAINT_INTERVAL_S
        with suppress(OSError):
            os.write(2, f"lb: log file {self.path}: {what}\n".encode("utf-8", "backslashreplace"))


def _is_torn(fd: int) -> bool:
    """Whether a file ends in the middle of a line.

    It looks so too while another process's write is under way: a file grows page by page.
    """
    for pause_s in (0.0, 0.001, 0.005):
        if pause_s:
            time.sleep(pause_s)
        size = os.fstat(fd).st_size
        if size == 0 or os.pread(fd, 1, size - 1) == b"\n":
            return False
    return True


def remove_expired(path: Path, retention: Retention, now: datetime) -> None:
    """Remove the old files of ``path`` that ``retention`` does not keep; never the live one."""
    dated: list[tuple[str, datetime]] = []
    for old in rotated_paths(path):
        with suppress(OSError):
            dated.append((old.name, datetime.fromtimestamp(old.stat().st_mtime)))
    for name in files_to_remove(retention, dated, now):
        with suppress(OSError):
            path.with_name(name).unlink()


def append_raw(
    path: Path,
    process: str,
    text: str,
    request_id: int = 0,
    *,
    logs: LogsConfig | None = None,
    level: str = RAW,
    pid: int = 0,
) -> bool:
    """Write what ``process`` said outside of its own logging: a record for each line of ``text``.

    Empty lines are left out.  It is for another process than ``process``, on the same file, from
    one thread.  ``logs`` gives the format and the rotation (defaults without it).  False when it
    could not be written, which is never raised.  Raises ``BadRotation`` for unchecked ``logs``.
    """
    logs = logs or LogsConfig()
    now = datetime.now().astimezone()
    records = [
        LogLine(time=now, level=level, process=process, request=request_id, message=row, pid=pid)
        for row in text.replace("\r\n", "\n").split("\n")
        if row
    ]
    file = _raw_file(path, process, logs)
    try:
        return file.write("".join(format_line(record, logs.format) for record in records))
    finally:
        # kept closed: whoever forks next would hand the descriptor on
        file.close()


@lru_cache(maxsize=8192)
def _raw_file(path: Path, process: str, logs: LogsConfig) -> LogFile:
    """The same object every time, since it remembers what was lost and what was complained of."""
    return LogFile(
        path,
        parse_rotation(logs.rotation),
        parse_retention(logs.retention),
        partial(format_note, process, logs.format),
    )


def format_note(process: str, style: str, message: str) -> str:
    """A WARNING line that the log has to say about itself."""
    now = datetime.now().astimezone()
    return format_line(LogLine(time=now, level="WARNING", process=process, message=message), style)
