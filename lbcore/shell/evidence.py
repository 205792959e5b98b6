"""What can be found out about a process that has died: the kernel's counter, its last log lines.

Called by ``casualties.py``.  Never raises: evidence that is not there is not there.
"""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import Final

from .log_lines import LINE_CHARACTERS_MAX

LOG_LINES: Final = 10
#: a longer line is cut: a death is told over a connection, and kept
_SHOWN_CHARACTERS: Final = min(400, LINE_CHARACTERS_MAX)
_TAIL_BYTES: Final = 1 << 16
#: how faulthandler's dump begins, and its part about the thread that crashed
_CRASH: Final = "] Fatal Python error: "
_CRASHED: Final = "] Current thread 0x"
#: what a worker logs when it starts
_STARTED: Final = " tasks, listening on "
#: a kill and the end of the process are this far apart at most: its memory has to be freed
_OOM_WINDOW_S: Final = 10.0


class OomWatch:
    """The kernel's counters of processes that it killed because there was no memory left."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._files = [(root / "proc/vmstat", "oom_kill"), *_cgroup_files(root)]
        self._seen: deque[tuple[float, tuple[int, ...]]] = deque()

    def look(self, now: float) -> None:
        """To be called now and then, so that ``rose`` has something to compare with."""
        self._seen.append((now, self._read()))
        # the last one of before the window stays
        while len(self._seen) > 1 and self._seen[1][0] <= now - _OOM_WINDOW_S:
            self._seen.popleft()

    def rose(self, now: float) -> bool:
        """Whether a counter has risen within the last seconds, or since the last look before."""
        if not self._seen:
            return False
        before = self._seen[0][1]
        self.look(now)
        return any(new > old for old, new in zip(before, self._seen[-1][1], strict=True))

    def _read(self) -> tuple[int, ...]:
        return tuple(_counter(path, name) for path, name in self._files)


def _cgroup_files(root: Path) -> list[tuple[Path, str]]:
    """The counters of this process's control groups, of both versions."""
    files = []
    try:
        rows = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for row in rows:
        _, controllers, path = [*row.split(":", 2), "", ""][:3]
        mount, name = root / "sys/fs/cgroup", ""
        if not controllers:
            name = "memory.events"
        elif "memory" in controllers.split(","):
            mount, name = mount / "memory", "memory.oom_control"
        # in a container the path is the host's, and the group is mounted at the top
        for folder in (mount / path.lstrip("/"), mount):
            if name and (folder / name).exists():
                files.append((folder / name, "oom_kill"))
                break
    return files


def _counter(path: Path, name: str) -> int:
    try:
        for row in path.read_text().splitlines():
            key, _, value = row.partition(" ")
            if key == name:
                return int(value)
    except (OSError, ValueError):
        return 0
    return 0


def last_lines(path: Path, count: int = LOG_LINES) -> list[str]:
    """The last lines of a log, each cut to what one can read; of a crash in C code its place.

    The dump of such a crash is longer, and what it was doing stands in its middle.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            data = file.read(_TAIL_BYTES)
    except OSError:
        return []
    lines = data.decode(errors="replace").splitlines()
    if size > _TAIL_BYTES:
        lines = lines[1:]  # the first one is a part
    crash = _crash_in(lines, count)
    return [line[:_SHOWN_CHARACTERS] for line in crash or lines[-count:]]


def _crash_in(lines: list[str], count: int) -> list[str]:
    """The head of a crash dump and the stack of the thread that crashed; empty without one."""
    head = None
    for place, line in enumerate(lines):
        if _CRASH in line:
            head = place
        elif _STARTED in line:
            head = None  # that was an earlier process
    if head is None:
        return []
    stack = next((at for at in range(head, len(lines)) if _CRASHED in lines[at]), head + 1)
    return [lines[head], *lines[stack : stack + count - 1]]
