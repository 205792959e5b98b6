"""CPU and memory of the children, seen from outside.

A worker that holds the GIL in C code cannot report; the supervisor has its pid and reads the same
figures.  Cheap by construction: reading them never takes more than a hundredth of the time.  Called
by ``supervisor.py``.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import psutil

#: how often figures are read, unless reading them takes long
INTERVAL_S: Final = 0.5
#: the share of the supervisor's time that reading may take
_COST_MAX: Final = 0.01


class Figures:
    """The last reading of each process."""

    def __init__(self) -> None:
        self._processes: dict[int, psutil.Process] = {}
        self._readings: dict[int, dict[str, Any]] = {}

    def read(self, pids: list[int]) -> float:
        """Read these processes now; returns after how many seconds to do it again."""
        # here and not above: what is not needed before the children run must not delay them
        import psutil

        started_at = time.monotonic()
        readings: dict[int, dict[str, Any]] = {}
        processes: dict[int, psutil.Process] = {}
        for pid in pids:
            try:
                process = self._processes.get(pid) or psutil.Process(pid)
                with process.oneshot():
                    cpu, memory = process.cpu_times(), process.memory_info()
            except psutil.Error:
                continue
            processes[pid] = process
            readings[pid] = {
                "cpu_s": cpu.user + cpu.system + cpu.children_user + cpu.children_system,
                "rss_bytes": memory.rss,
                "at": time.monotonic(),
            }
        self._processes, self._readings = processes, readings
        return max(INTERVAL_S, (time.monotonic() - started_at) / _COST_MAX)

    def of(self, pid: int | None) -> dict[str, Any]:
        """``cpu_s`` since its start with its ended children, ``rss_bytes``, and ``at``, when."""
        unknown = {"cpu_s": None, "rss_bytes": None, "at": None}
        return unknown if pid is None else self._readings.get(pid, unknown)
