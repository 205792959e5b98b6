"""The threads of one process as Linux shows them under /proc: their waiting, and their children.

Called by ``cpu.py``.  A worker reads about itself while a task may hold the GIL, and each system
call then costs a wait of milliseconds to get it back; so the files stay open and one pass makes as
few calls as it can.  Elsewhere than on Linux there is nothing to see, and nothing fails.
"""

from __future__ import annotations

import os
from typing import Final

#: threads are listed anew when their number changed, and at least every so many passes
PASSES_PER_LISTING_MAX: Final = 20
_BYTES_MAX: Final = 1 << 16
_NANOSECONDS: Final = 1e-9


class _Thread:
    """The two files of one thread, and what it had waited when last read."""

    __slots__ = ("_children", "_schedstat", "waited_ns")

    def __init__(self, folder: str) -> None:
        self._schedstat = _open(f"{folder}/schedstat")
        self._children = _open(f"{folder}/children")
        self.waited_ns = 0

    def gained_ns(self) -> int | None:
        """Nanoseconds waited since the last call; None where the kernel does not tell."""
        fields = _read(self._schedstat).split()
        # A kernel that keeps no such figures shows zeros; nothing alive has run for 0 ns.
        if len(fields) < 2 or fields[0] == b"0":
            return None
        before, self.waited_ns = self.waited_ns, int(fields[1])
        return max(0, self.waited_ns - before)

    def children(self) -> list[int]:
        """Process ids of the children that this thread started and that live."""
        return [int(pid) for pid in _read(self._children).split()]

    def close(self) -> None:
        """Give the files back."""
        for file in (self._schedstat, self._children):
            if file is not None:
                os.close(file)
        self._schedstat = self._children = None


class ProcessThreads:
    """Reads all threads of one process, again and again."""

    __slots__ = ("_folder", "_links", "_passes_left", "_threads")

    def __init__(self, pid: int) -> None:
        self._folder = f"/proc/{pid}/task"
        self._threads: dict[str, _Thread] = {}
        self._links = -1
        self._passes_left = 0

    def advance(self) -> tuple[float | None, list[int]]:
        """Seconds that the threads waited for a core since the last call, and the child processes.

        The waiting is None where the kernel hides it; the rest of a thread that ended is lost.
        """
        self._list()
        total_ns: int | None = None
        children: list[int] = []
        for name, thread in list(self._threads.items()):
            try:
                gained_ns = thread.gained_ns()
                children += thread.children()
            except OSError:  # the thread ended; another may have taken its place in the count
                thread.close()
                del self._threads[name]
                self._passes_left = 0
                continue
            if gained_ns is not None:
                total_ns = gained_ns + (total_ns or 0)
        return (None if total_ns is None else total_ns * _NANOSECONDS), children

    def close(self) -> None:
        """Give all files back; the next ``advance`` would count from the beginning."""
        for thread in self._threads.values():
            thread.close()
        self._threads.clear()
        self._passes_left = 0

    def _list(self) -> None:
        try:
            # The number of links tells the number of threads: one call instead of a listing.
            links = os.stat(self._folder).st_nlink
            self._passes_left -= 1
            if links == self._links and self._passes_left > 0:
                return
            names = set(os.listdir(self._folder))
        except OSError:  # the process ended, or this is not Linux
            self.close()
            return
        self._links, self._passes_left = links, PASSES_PER_LISTING_MAX
        for name in self._threads.keys() - names:
            self._threads.pop(name).close()
        for name in names - self._threads.keys():
            self._threads[name] = _Thread(f"{self._folder}/{name}")


def _open(path: str) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def _read(file: int | None) -> bytes:
    return b"" if file is None else os.pread(file, _BYTES_MAX, 0)
