"""Requests that wait in the broker, in runs.

A run is what one read brought from one client for one task: its requests wait, move and are handed
out together as far as they can, so that a million tiny requests do not cost a million decisions.
The usual request is two words here, its id and its frame; whatever is unusual about one (attempts,
deadline) is kept elsewhere under its id.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

#: (id, frame): one waiting request
Entry = tuple[int, bytes]


def frame_bytes(entries: Iterable[Entry]) -> int:
    """The size of their frames."""
    return sum([len(frame) for _, frame in entries])


class Run:
    """Requests of one client for one task, in order."""

    __slots__ = ("client", "entries", "explain", "left", "start", "task")

    def __init__(self, client: int, task: int, entries: list[Entry], explain: bool = False) -> None:
        self.client = client
        self.task = task
        self.entries = entries
        #: how many entries are already taken, and how many are left
        self.start = 0
        self.left = len(entries)
        #: keep the numbers behind the choice
        self.explain = explain

    def add(self, entry: Entry) -> None:
        """One more request at the end."""
        self.entries.append(entry)
        self.left += 1

    def waiting(self) -> list[Entry]:
        """The requests that are left."""
        return self.entries[self.start :]


class RequestQueue:
    """First come, first served, over runs; requests that come back from a lost worker go first."""

    __slots__ = ("_runs", "bytes", "count")

    def __init__(self) -> None:
        self._runs: deque[Run] = deque()
        #: requests waiting
        self.count = 0
        #: bytes of their frames
        self.bytes = 0

    def append(self, run: Run, size: int) -> None:
        """Add a run at the end; ``size`` is that of all its frames, in bytes."""
        self._runs.append(run)
        self.count += run.left
        self.bytes += size

    def push_front(self, runs: Iterable[Run]) -> None:
        """Put runs back at the front, the first of them first."""
        for run in reversed(list(runs)):
            self._runs.appendleft(run)
            self.count += run.left
            self.bytes += frame_bytes(run.waiting())

    def run_at(self, index: int) -> Run | None:
        """The run at that place from the front, or None."""
        return self._runs[index] if index < len(self._runs) else None

    def take(self, index: int, offset: int, count: int) -> list[Entry]:
        """Remove ``count`` requests from the run at ``index``, leaving ``offset`` before them."""
        run = self._runs[index]
        begin = run.start + offset
        taken = run.entries[begin : begin + count]
        taken_count = len(taken)
        if offset:
            del run.entries[begin : begin + count]
        else:
            run.start += taken_count
        run.left -= taken_count
        if not run.left:
            del self._runs[index]
        elif run.start > 4096:
            # let go of what is taken, or a long run would keep all its frames to the end
            del run.entries[: run.start]
            run.start = 0
        self.count -= taken_count
        self.bytes -= frame_bytes(taken)
        return taken

    def remove(self, unwanted: Callable[[Run], bool]) -> list[Run]:
        """Remove and return every run for which ``unwanted`` is true."""
        removed = [run for run in self._runs if unwanted(run)]
        if removed:
            self._runs = deque(run for run in self._runs if not unwanted(run))
            for run in removed:
                self.count -= run.left
                self.bytes -= frame_bytes(run.waiting())
        return removed

    def remove_request(self, request_id: int) -> Entry | None:
        """Remove and return one waiting request; None when it does not wait here.

        Looks at every run of its client.
        """
        for index, run in enumerate(self._runs):
            if run.client != request_id >> 32:
                continue
            for offset in range(run.left):
                if run.entries[run.start + offset][0] == request_id:
                    return self.take(index, offset, 1)[0]
        return None
