"""Tells that files have changed, once they have come to rest.

By looking: no file system is without ``stat``, and editors that write another file and rename it
are seen like those that write in place.  Called by ``changes.py``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TypeAlias

#: what changes when a file does; None while there is no such file
Stamp: TypeAlias = tuple[int, int, int, int] | None


class FileWatch:
    """The stamps of some files, as they were when somebody last cared."""

    def __init__(self, paths: Iterable[str] = ()) -> None:
        self._known: dict[str, Stamp] = {}
        #: stamps that are not those known, from the last look
        self._fresh: dict[str, Stamp] = {}
        self.watch(paths)

    def watch(self, paths: Iterable[str]) -> None:
        """Watch these from now on, instead of others; known ones keep their stamps."""
        self._known = {
            path: self._known[path] if path in self._known else _stamp(path) for path in paths
        }

    def look(self) -> list[str]:
        """The files that have changed and were the same at the last look.

        One that is gone has not changed: it is being written anew, or it will be missed elsewhere.
        """
        changed: list[str] = []
        fresh: dict[str, Stamp] = {}
        for path, known in self._known.items():
            stamp = _stamp(path)
            if stamp == known or stamp is None:
                continue
            if self._fresh.get(path) == stamp:
                self._known[path] = stamp
                changed.append(path)
            else:
                fresh[path] = stamp
        self._fresh = fresh
        return changed


def _stamp(path: str) -> Stamp:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino
