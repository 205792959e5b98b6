"""Reads the logs of several processes back as one: the last records, then whatever is added.

Files are read backwards in blocks, so that the last lines of a long history cost what they hold.
While following, a rotated file is read to its end before the new one, a truncated one from its
start, a new process's file when it appears.  Nothing here writes or prints.  Called by ``lb logs``.
"""

from __future__ import annotations

import heapq
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from .log_files import rotated_paths
from .log_lines import RAW, LogLine, continuation_of, parse_line

_BLOCK_BYTES = 1 << 16
#: a line without end beyond this is handed out in pieces; our own writers stay far below
_LINE_BYTES_MAX = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One record as it was found in a file."""

    line: LogLine
    #: the physical lines, without their ends
    rows: tuple[str, ...]
    #: False: more lines of the record before, which came too late to be part of its entry
    headed: bool = True


Keep = Callable[[LogLine], bool]


class _Piece(NamedTuple):
    """One line as bytes."""

    data: bytes
    #: its end was there
    complete: bool


class Tail:
    """One process's log, read from a moment on, and what was there before that moment."""

    def __init__(self, path: Path, process: str) -> None:
        self.path = path
        self.process = process
        self._fd = -1
        #: how far the open file has been read
        self._offset = 0
        #: the start of a line whose end is not written yet
        self._unfinished = b""
        self._last: LogLine | None = None

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def open_at_end(self) -> None:
        """Start after the last complete line that is there now; at the start when there is none."""
        if not self._open():
            return
        end = os.fstat(self._fd).st_size
        last = next(_lines_backwards(self._fd, end), None)
        self._offset = end
        if last is not None and not last.complete:
            self._offset -= len(last.data)  # it is being written now, and will be read then

    def _open(self) -> bool:
        self.close()
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        self._take(fd)
        return True

    def _take(self, fd: int) -> None:
        self.close()
        self._fd = fd
        self._offset = 0
        self._unfinished = b""

    def newest_first(self) -> Iterator[Entry]:
        """Every record before the point where reading starts, back over the rotated files."""
        return _group_backwards(self._rows(_lines_backwards, newest_first=True), self.process)

    def oldest_first(self) -> Iterator[Entry]:
        """The same records in the order in which they were written."""
        return _group(self._rows(_lines, newest_first=False), self.process)

    def _rows(
        self, lines_of: Callable[[int, int], Iterator[_Piece]], *, newest_first: bool
    ) -> Iterator[str]:
        older = rotated_paths(self.path)
        own: list[Path | None] = []
        if self._fd >= 0:
            # ours may have been rotated since it was opened; what came after it is not history
            status = os.fstat(self._fd)
            ours = next((i for i, path in enumerate(older) if _is_file(path, status)), len(older))
            older = older[:ours]
            own = [None]
        files = [*older, *own]
        for path in reversed(files) if newest_first else files:
            if path is None:
                yield from (_text(piece.data) for piece in lines_of(self._fd, self._offset))
                continue
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # retention was faster
            try:
                yield from (_text(piece.data) for piece in lines_of(fd, os.fstat(fd).st_size))
            finally:
                os.close(fd)

    def read(self) -> list[Entry]:
        """The records added since the last call, oldest first."""
        if self._fd < 0 and not self._open():
            return []
        rows = self._read_rows()
        try:
            here = os.path.samestat(os.stat(self.path), os.fstat(self._fd))
        except FileNotFoundError:
            here = True  # in the middle of a rotation: see next time
        if not here:
            rows += self._read_rows()  # what came between the last read and the rotation
            rows += self._flush_unfinished() + self._move_on()
        entries = list(_group(rows, self.process, self._last))
        if entries:
            self._last = entries[-1].line
        return entries

    def _move_on(self) -> list[str]:
        """Go over to the file that is live now; the rows of that and of those rotated meanwhile."""
        ours = os.fstat(self._fd)
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return []  # in the middle of a rotation: see next time
        self._take(fd)
        # listed after the new one was opened: what is rotated from here on comes after it
        new = os.fstat(self._fd)
        rows: list[str] = []
        for path in _rotated_since(self.path, ours):
            if _is_file(path, new):
                break
            rows += _read_all(path)
        return rows + self._read_rows()

    def _flush_unfinished(self) -> list[str]:
        rest, self._unfinished = self._unfinished, b""
        return [_text(rest)] if rest else []

    def _read_rows(self) -> list[str]:
        size = os.fstat(self._fd).st_size
        if size < self._offset:
            self._offset = 0
            self._unfinished = b""
        rows: list[str] = []
        while block := os.pread(self._fd, _BLOCK_BYTES, self._offset):
            self._offset += len(block)
            *complete, self._unfinished = (self._unfinished + block).split(b"\n")
            rows += map(_text, complete)
            if len(self._unfinished) > _LINE_BYTES_MAX:
                rows += self._flush_unfinished()
        return rows


def _rotated_since(live: Path, ours: os.stat_result) -> list[Path]:
    """The files that were rotated after ``ours``, which is not live any more, was."""
    paths = rotated_paths(live)
    for index, path in enumerate(paths):
        if _is_file(path, ours):
            return paths[index + 1 :]
    # ours is removed already
    return [path for path in paths if _changed_ns(path) > ours.st_mtime_ns]


def last_entries(tails: Sequence[Tail], count: int | None, keep: Keep) -> Iterator[Entry]:
    """The last ``count`` records (None: all) of all tails that pass ``keep``, oldest first."""
    if count is None:
        return _merge([tail.oldest_first() for tail in tails], keep)
    # reversed, like the result in the end: of equal moments the first tail's comes first
    sources = [filter(_kept(keep), tail.newest_first()) for tail in reversed(tails)]
    newest = list(islice(heapq.merge(*sources, key=_moment, reverse=True), count))
    return reversed(newest)


def new_entries(tails: Sequence[Tail], keep: Keep) -> Iterator[Entry]:
    """What was added to all tails since the last call and passes ``keep``, oldest first."""
    return _merge([tail.read() for tail in tails], keep)


def _merge(sources: Iterable[Iterable[Entry]], keep: Keep) -> Iterator[Entry]:
    # merging keeps the order of each source, so a clock that was set back reorders no file
    return heapq.merge(*(filter(_kept(keep), source) for source in sources), key=_moment)


def _moment(entry: Entry) -> datetime:
    return entry.line.time


def _kept(keep: Keep) -> Callable[[Entry], bool]:
    return lambda entry: keep(entry.line)


def _group(rows: Iterable[str], process: str, last: LogLine | None = None) -> Iterator[Entry]:
    """Records with the lines below them; lines before the first belong to ``last``."""
    below: list[str] = []
    line: LogLine | None = None
    for row in rows:
        parsed = parse_line(row)
        if parsed is None:
            below.append(row)
            continue
        if line is None and below:
            yield _headless(last or _foreign_line(process, parsed.time), below)
        elif line is not None:
            yield _entry_of(line, below)
        line, below = parsed, [row]
    if line is not None:
        yield _entry_of(line, below)
    elif below:
        yield _headless(last or _foreign_line(process, datetime.now(UTC)), below)


def _group_backwards(rows: Iterable[str], process: str) -> Iterator[Entry]:
    below: deque[str] = deque()
    latest = datetime.now(UTC)
    for row in rows:
        below.appendleft(row)
        line = parse_line(row)
        if line is not None:
            latest = line.time
            yield _entry_of(line, list(below))
            below.clear()
    if below:
        yield _headless(_foreign_line(process, latest), list(below))


def _headless(line: LogLine, rows: list[str]) -> Entry:
    added = replace(line, message="", exception="\n".join(map(_below, rows)))
    return Entry(line=added, rows=tuple(rows), headed=False)


def _entry_of(line: LogLine, rows: list[str]) -> Entry:
    if len(rows) > 1:
        below = "\n".join(map(_below, rows[1:]))
        exception = f"{line.exception}\n{below}" if line.exception else below
        line = replace(line, exception=exception)
    return Entry(line=line, rows=tuple(rows))


def _below(row: str) -> str:
    text = continuation_of(row)
    return row if text is None else text


def _foreign_line(process: str, time: datetime) -> LogLine:
    return LogLine(time=time, level=RAW, process=process)


def _lines_backwards(fd: int, end: int) -> Iterator[_Piece]:
    """The lines before offset ``end``, last first."""
    complete = False
    rest = b""
    offset = end
    while offset > 0:
        size = min(_BLOCK_BYTES, offset)
        offset -= size
        head, *lines = (os.pread(fd, size, offset) + rest).split(b"\n")
        for line in reversed(lines):
            if line or complete:
                yield _Piece(line, complete)
            complete = True
        rest = head
        if len(rest) > _LINE_BYTES_MAX:
            yield _Piece(rest, complete)
            rest, complete = b"", False
    if rest or complete:
        yield _Piece(rest, complete)


def _lines(fd: int, end: int) -> Iterator[_Piece]:
    """The lines before offset ``end``, first first."""
    rest = b""
    offset = 0
    while offset < end:
        block = os.pread(fd, min(_BLOCK_BYTES, end - offset), offset)
        if not block:
            break  # truncated meanwhile
        offset += len(block)
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            yield _Piece(line, True)
        if len(rest) > _LINE_BYTES_MAX:
            yield _Piece(rest, False)
            rest = b""
    if rest:
        yield _Piece(rest, False)


def _read_all(path: Path) -> list[str]:
    try:
        rows = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []  # retention was faster
    return [_text(row) for row in (rows if rows[-1] else rows[:-1])]


def _text(line: bytes) -> str:
    return line.decode("utf-8", "backslashreplace")


def _is_file(path: Path, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), status)
    except OSError:
        return False


def _changed_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
