"""CPU and memory of the workers, seen from outside.

A worker that holds the GIL in C code cannot report; the supervisor has its pid and reads the same
figures.  Cheap by construction: reading them never takes more than a hundredth of the time.  Called
by ``supervisor.py``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from .process import ChildProcess

if TYPE_CHECKING:
    from .cpu import CpuProbe

#: how often figures are read, unless reading them takes long
INTERVAL_S: Final = 0.5
#: the share of the supervisor's time that reading may take
_COST_MAX: Final = 0.01


class Figures:
    """The last report of each process, as ``CpuProbe`` gives it."""

    def __init__(self) -> None:
        self._probes: dict[int, CpuProbe] = {}
        self._reports: dict[int, Mapping[str, Any]] = {}

    def read(self, workers: Iterable[ChildProcess]) -> float:
        """Read these processes now; returns after how many seconds to do it again."""
        # here and not above: what is not needed before the children run must not delay them
        from .cpu import CpuProbe

        started_at = time.monotonic()
        probes: dict[int, CpuProbe] = {}
        for worker in workers:
            pid = worker.pid
            if pid is None:
                continue
            try:
                probe = self._probes.pop(pid, None) or CpuProbe(pid, worker.plan.cpus)
            except OSError:
                continue  # its death is known in a moment; or no descriptor is left for now
            probes[pid] = probe
            self._reports[pid] = {**probe.sample(time.monotonic())}
        for pid, gone in self._probes.items():
            gone.close()
            self._reports.pop(pid, None)
        self._probes = probes
        return max(INTERVAL_S, (time.monotonic() - started_at) / _COST_MAX)

    def of(self, pid: int | None) -> Mapping[str, Any]:
        """The last ``CpuReport`` of a process; empty when there is none."""
        return {} if pid is None else self._reports.get(pid, {})

    def memory_of(self, pid: int) -> int:
        """Resident bytes of a process and its descendants; 0 when they are not known."""
        probe = self._probes.get(pid)
        return 0 if probe is None else probe.memory_with_children()
