"""The CPU that each worker used while ``lb send`` was sending.

The broker knows a worker's CPU of the last moment; a run wants its own span.  So the processes of a
topology that runs here are read directly, before and after.  Of a broker that is known by its
address only, the pids may belong to another machine or container: then its last report has to do.
Called by send and demo.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from .connection import Facts, Target

if TYPE_CHECKING:
    from lbcore.shell.cpu import CpuProbe

#: a probe keeps some files open; with more workers than this there is no CPU column
_PROBES_MAX: Final = 64
#: a report of the broker covers a moment; it says something about a run that is longer than this
_REPORT_SPAN_S: Final = 1.0


class RunCpu:
    """Measures from its making until ``shares`` is called."""

    def __init__(self, target: Target, before: Facts) -> None:
        """``before`` is the answer of ``status`` at the start."""
        self._probes: dict[str, CpuProbe] = {}
        self._pids = {worker["name"]: worker.get("pid") for worker in before["workers"]}
        self._started_at = time.monotonic()
        if len(self._pids) <= _PROBES_MAX and _runs_here(target):
            from lbcore.shell.cpu import CpuProbe

            for name, pid in self._pids.items():
                try:
                    if pid is not None:
                        self._probes[name] = CpuProbe(pid)
                except ProcessLookupError:
                    continue  # it died just now; its row stays empty

    def shares(self, after: Facts) -> dict[str, float | None]:
        """By worker: cores' worth of CPU since the start, None where it is not known.

        ``after`` is the answer of ``status`` at the end, or empty.
        """
        now = time.monotonic()
        workers = {worker["name"]: worker for worker in after.get("workers", ())}
        if not self._probes:
            return {name: self._last_report(worker, now) for name, worker in workers.items()}
        shares: dict[str, float | None] = {}
        for name, probe in self._probes.items():
            report = probe.sample(now)
            restarted = name in workers and workers[name].get("pid") != self._pids[name]
            measured = report["wall_s"] > 0.0 and not probe.gone and not restarted
            shares[name] = report["cpu_s"] / report["wall_s"] if measured else None
            probe.close()
        return shares

    def _last_report(self, worker: Facts, now: float) -> float | None:
        age_s = worker.get("cpu_age_s")
        if now - self._started_at < _REPORT_SPAN_S or age_s is None or age_s > _REPORT_SPAN_S:
            return None
        cpu: float | None = worker.get("cpu")
        return cpu


def _runs_here(target: Target) -> bool:
    """Whether the pids that the broker names are those of this machine."""
    if target.topology is None:
        return False
    from lbcore.shell.state import read_state

    return read_state(target.topology) is not None
