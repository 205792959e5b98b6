"""What a worker's process takes of the CPU and what is taken from it, by psutil.

Called by a worker about itself and by the supervisor about its workers; whoever reads the figures
decides what they mean.  Everything is a difference of two cumulative counters over monotonic time,
so no figure is a snapshot, the first one is as true as the others, and nothing is negative.  Never
blocks to measure, never raises because a process ended, and never takes more than 1 % of a core:
a sample that comes too soon, or after too costly a one, is answered with the last report.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypedDict

import psutil

from .process_threads import ProcessThreads

#: the kernel counts CPU in ticks of 10 ms, so a shorter interval is mostly noise
INTERVAL_MIN_S: Final = 0.1
#: a sample that took x seconds of CPU is not repeated before this many times x
REST_FACTOR: Final = 100
#: finding children without /proc/<pid>/task/<tid>/children reads every process of the machine
SEARCH_REST_FACTOR: Final = 400


class CpuReport(TypedDict):
    """One sample; each amount is what was added since the sample before."""

    #: monotonic seconds at which it was taken
    at: float
    #: seconds covered; 0.0 when nothing has been measured yet
    wall_s: float
    #: CPU seconds of the process with its children, also of those that ended meanwhile
    cpu_s: float
    #: seconds its threads were ready to run and had to wait for a core; None where it is hidden
    delay_s: float | None
    #: how many cores the process may run on
    cores: int
    #: CPU seconds that everybody together used of these cores
    busy_s: float
    #: resident memory of the process itself
    rss_bytes: int


@dataclass(slots=True)
class _Member:
    """The process itself or one of its descendants, with its counters when last read."""

    process: psutil.Process
    threads: ProcessThreads
    parent: int | None
    #: CPU seconds of its own threads, dead ones included
    own_s: float = 0.0
    #: CPU seconds of the children that it has waited for, and of theirs
    reaped_s: float = 0.0

    def known_s(self) -> float:
        return self.own_s + self.reaped_s


class CpuProbe:
    """Samples one process; ``cpus`` are the cores it is bound to, empty for wherever it may run."""

    def __init__(self, pid: int, cpus: tuple[int, ...] = (), *, now: float | None = None) -> None:
        """Take the baseline, at ``now`` (monotonic seconds).

        Raises ``ProcessLookupError`` when there is no such process, another ``OSError`` when it
        cannot be read at the moment.
        """
        self._cpus = cpus
        try:
            self._family = _Family(pid)
        except psutil.NoSuchProcess:
            raise ProcessLookupError(f"there is no process {pid}") from None
        self._process = self._family.root.process
        self._busy_of_core: list[float] = []
        self._rest_until = 0.0
        #: whether the process has ended; from then on ``sample`` repeats its last report
        self.gone = False
        self._report = CpuReport(
            at=time.monotonic() if now is None else now,
            wall_s=0.0,
            cpu_s=0.0,
            delay_s=None,
            cores=len(self._allotted()),
            busy_s=0.0,
            rss_bytes=0,
        )
        self._report = self._measure(self._report["at"], is_first=True)

    def sample(self, now: float) -> CpuReport:
        """The figures since the last sample; ``now`` is monotonic seconds.

        The last report comes back as it was, with its old ``at``, when the process has ended, when
        less than ``INTERVAL_MIN_S`` passed, or while the probe pays for a costly sample.
        """
        too_soon = now < max(self._report["at"] + INTERVAL_MIN_S, self._rest_until)
        if not too_soon and not self.gone:
            self._report = self._measure(now)
        return self._report

    def close(self) -> None:
        """Give the open files of /proc back; the probe is of no more use."""
        self._family.close()
        self.gone = True

    def _measure(self, now: float, is_first: bool = False) -> CpuReport:
        started = time.thread_time()
        last = self._report
        # First, and both together: a thread that waits for the GIL between two readings gets them
        # from different moments.
        gained = self._family.advance(now)
        if gained is None:
            self.gone = True
            return last
        cpu_s, delay_s = gained
        cores = self._allotted()
        busy_s = self._busy(cores)
        wall_s = max(0.0, now - last["at"])
        most_s = wall_s * len(cores)
        report = CpuReport(
            at=now,
            wall_s=wall_s,
            # Counters in ticks can run ahead of the clock by a tick; more than all cores is noise.
            cpu_s=0.0 if is_first else min(cpu_s, most_s),
            delay_s=0.0 if is_first and delay_s is not None else delay_s,
            cores=len(cores),
            busy_s=0.0 if is_first else min(busy_s, most_s),
            rss_bytes=self._memory(last["rss_bytes"]),
        )
        self._rest_until = now + REST_FACTOR * (time.thread_time() - started)
        return report

    def _allotted(self) -> Sequence[int]:
        if self._cpus:
            return self._cpus
        try:
            return self._process.cpu_affinity()
        except (AttributeError, psutil.Error, OSError):  # not on macOS; or the process ended
            return range(os.cpu_count() or 1)

    def _busy(self, cores: Sequence[int]) -> float:
        """Busy seconds that the cores gained; 0.0, which blames nobody, where it is hidden."""
        try:
            readings = [_busy_s(reading) for reading in psutil.cpu_times(percpu=True)]
        except (OSError, RuntimeError, psutil.Error):
            return 0.0
        before, self._busy_of_core = self._busy_of_core, readings
        if not readings or len(before) != len(readings):  # the first, or a core went off line
            return 0.0
        gained = [max(0.0, new - old) for new, old in zip(readings, before, strict=True)]
        if max(cores) < len(gained):
            return sum(gained[core] for core in set(cores))
        # psutil lists the cores on line without their numbers: take the average one.
        return sum(gained) * min(1.0, len(cores) / len(gained))

    def memory_with_children(self) -> int:
        """Resident bytes of the process and of its descendants, as of now."""
        return self._family.memory()

    def _memory(self, last: int) -> int:
        try:
            return int(self._process.memory_info().rss)
        except (psutil.Error, OSError):
            return last


def _busy_s(reading: tuple[float, ...]) -> float:
    """All but idling: also what a hypervisor took away, which nobody here can have."""
    idle = ("idle", "iowait", "guest", "guest_nice")  # guest time is in user time already
    return sum(reading) - sum(getattr(reading, name, 0.0) for name in idle)


class _Family:
    """The CPU time of a process and its descendants, without loss when they end.

    A process that ended is gone from the table; its whole time is then in the ``reaped`` time of
    the parent that waited for it.  Of that, what had been counted while it lived is taken off.
    """

    def __init__(self, pid: int) -> None:
        self._root_pid = pid
        self.root = _Member(psutil.Process(pid), ProcessThreads(pid), None)
        self._members = {pid: self.root}
        self._has_lists = os.path.exists(f"/proc/{pid}/task/{pid}/children")
        self._search_at = 0.0

    def advance(self, now: float) -> tuple[float, float | None] | None:
        """CPU seconds and seconds of waiting since the last call; None when the root has ended."""
        delay_s = self._visit_threads()
        if not self._has_lists:
            self._search(now)
        gained_s = 0.0
        inherited: dict[int, float] = {}
        ended: dict[int, _Member] = {}
        # Children first: their time reaches the parent's counter before they leave the table.
        for pid, member in reversed(list(self._members.items())):
            try:
                times = member.process.cpu_times()
            except psutil.NoSuchProcess:
                ended[pid] = member
                continue
            except (psutil.AccessDenied, OSError):
                continue  # no descriptor is left, perhaps: the counters go on, nothing is missed
            own_s = times.user + times.system
            reaped_s = times.children_user + times.children_system
            gained_s += max(0.0, own_s - member.own_s)
            inherited[pid] = max(0.0, reaped_s - member.reaped_s)
            member.own_s, member.reaped_s = own_s, reaped_s
        if self._root_pid in ended:
            self.close()
            return None
        # One that was reaped between its own reading and its parent's would be counted twice.
        ended |= {
            pid: member
            for pid, member in self._members.items()
            if inherited.get(member.parent or 0) and not psutil.pid_exists(pid)
        }
        counted = _counted_before(ended)
        for pid in ended:
            self._members.pop(pid).threads.close()
        gained_s += sum(max(0.0, gain - counted.get(pid, 0.0)) for pid, gain in inherited.items())
        return gained_s, delay_s

    def close(self) -> None:
        """Give all open files back."""
        for member in self._members.values():
            member.threads.close()

    def memory(self) -> int:
        """Resident bytes of all."""
        total = 0
        for member in list(self._members.values()):
            with suppress(psutil.Error, OSError):  # it has ended
                total += member.process.memory_info().rss
        return total

    def _visit_threads(self) -> float | None:
        """Sum up the waiting, and add the descendants that are new.

        A known one stays until it ends, orphaned or not: the kernel's lists may miss some.
        """
        total_s: float | None = None
        waiting = list(self._members)
        for pid in waiting:  # grows as it goes: children of children
            delay_s, children = self._members[pid].threads.advance()
            if delay_s is not None:
                total_s = delay_s + (total_s or 0.0)
            waiting += [child for child in children if self._add(child, pid)]
        return total_s

    def _search(self, now: float) -> None:
        """Find descendants where the kernel has no list of children: costly, so seldom."""
        if now < self._search_at:
            return
        started = time.thread_time()
        try:
            for process in self.root.process.children(recursive=True):
                self._add(process.pid, process.ppid())
        except (psutil.Error, OSError):
            return  # it ended meanwhile; reading its times will tell
        self._search_at = now + SEARCH_REST_FACTOR * (time.thread_time() - started)

    def _add(self, pid: int, parent: int) -> bool:
        if pid in self._members:
            return False
        try:
            self._members[pid] = _Member(psutil.Process(pid), ProcessThreads(pid), parent)
        except (psutil.Error, OSError):
            return False
        return True


def _counted_before(ended: dict[int, _Member]) -> dict[int, float]:
    """For each process that lives, the time of its lost descendants that was counted before."""
    counted: dict[int, float] = {}
    for member in ended.values():
        heir = member.parent
        while heir in ended:
            heir = ended[heir].parent
        if heir is not None:
            counted[heir] = counted.get(heir, 0.0) + member.known_s()
    return counted
