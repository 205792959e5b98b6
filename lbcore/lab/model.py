"""A worker as a model: requests wait in order, each slot runs one, at a speed that changes.

It keeps what a real worker's CPU reports are made of, and what only a simulation can know: when it
would be done with everything that it was sent.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from lbcore.sim.world import World

from .conditions import Condition


class Job(NamedTuple):
    """One request at a worker."""

    request_id: int
    task: int
    #: seconds at speed 1
    size_s: float
    #: the part of it that needs a core
    cpu: float


class _Run:
    """A job in a slot."""

    __slots__ = ("began", "cpu_s", "job", "left_s", "rate", "since", "version")

    def __init__(self, job: Job, now: float, rate: float) -> None:
        self.job = job
        self.left_s = job.size_s
        self.rate = rate
        self.began = self.since = now
        #: CPU seconds used
        self.cpu_s = 0.0
        #: a finish that was planned at another speed is void
        self.version = 0


class WorkerModel:
    """One worker; ``done`` takes what is finished."""

    __slots__ = (
        "_done", "_free_at", "_world", "busy_s", "condition", "core_cpu_s", "core_delay_s",
        "number", "running", "served", "slots", "waiting", "work_s",
    )  # fmt: skip

    def __init__(
        self,
        number: int,
        slots: int,
        condition: Condition,
        world: World,
        done: Callable[[WorkerModel, Job, float, float, bool], None],
    ) -> None:
        self.number = number
        self.slots = slots
        self.condition = condition
        self.waiting: deque[Job] = deque()
        self.running: dict[int, _Run] = {}
        self._world = world
        self._done = done
        self._free_at = 0.0
        #: requests answered with a result, and seconds of work at speed 1 in them
        self.served = 0
        self.work_s = 0.0
        #: seconds in which its slots ran something
        self.busy_s = 0.0
        #: CPU used, and time in which it was ready to run and waited for its core
        self.core_cpu_s = 0.0
        self.core_delay_s = 0.0

    # ---- what only a simulation can know -------------------------------------------------------

    def note_sent(self, job: Job, now: float) -> None:
        """It was sent that."""
        rate = self.condition.rate(job.cpu)
        seconds = job.size_s / rate / self.slots if rate else math.inf
        self._free_at = max(self._free_at, now) + seconds

    def finish_at(self, size_s: float, cpu: float, now: float) -> float:
        """When a request sent now would be done, if nothing changed any more."""
        rate = self.condition.rate(cpu)
        if not rate:
            return math.inf
        free_at = now if len(self.running) < self.slots and not self.waiting else self._free_at
        return max(free_at, now) + size_s / rate

    def _plan_anew(self, now: float) -> None:
        left = [(run.left_s, run.job.cpu) for run in self.running.values()]
        left += [(job.size_s, job.cpu) for job in self.waiting]
        rates = [(seconds, self.condition.rate(cpu)) for seconds, cpu in left]
        total = sum(seconds / rate if rate else math.inf for seconds, rate in rates)
        self._free_at = now + total / self.slots

    # ---- requests ------------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether a slot is idle that could work."""
        condition = self.condition
        return (
            len(self.running) < self.slots and not condition.is_stalled and not condition.is_absent
        )

    def take(self, job: Job, now: float) -> None:
        """A request arrives."""
        if len(self.running) < self.slots:
            self._begin(job, now)
        else:
            self.waiting.append(job)

    def _begin(self, job: Job, now: float) -> None:
        run = _Run(job, now, self.condition.rate(job.cpu))
        self.running[job.request_id] = run
        self._plan_finish(run, now)

    def _plan_finish(self, run: _Run, now: float) -> None:
        run.version += 1
        condition = self.condition
        if condition.is_stalled or condition.is_absent:
            return
        if condition.fail_s is not None:
            self._world.at(now + condition.fail_s, self.finish, run, run.version)
        elif run.rate:
            self._world.at(now + run.left_s / run.rate, self.finish, run, run.version)

    def finish(self, run: _Run, version: int) -> None:
        """A slot is done, unless its speed has changed since that was planned."""
        if run.version != version or self.running.get(run.job.request_id) is not run:
            return
        now = self._world.now
        self._progress(run, now)
        del self.running[run.job.request_id]
        failed = self.condition.fail_s is not None
        if not failed:
            self.served += 1
            self.work_s += run.job.size_s
        wall_s = now - run.began
        self._done(self, run.job, wall_s, run.cpu_s, failed)
        if self.waiting:
            self._begin(self.waiting.popleft(), now)

    def give_back(self, now: float) -> list[int]:
        """The ids of what has not begun; it is not here any more."""
        ids = [job.request_id for job in self.waiting]
        self.waiting.clear()
        self._plan_anew(now)
        return ids

    def drop(self, request_id: int, now: float) -> bool:
        """Nobody wants that any more; False when it is not here."""
        run = self.running.pop(request_id, None)
        if run is not None:
            self._progress(run, now)
            if self.waiting:
                self._begin(self.waiting.popleft(), now)
            self._plan_anew(now)
            return True
        for job in self.waiting:
            if job.request_id == request_id:
                self.waiting.remove(job)
                self._plan_anew(now)
                return True
        return False

    def crash(self, now: float) -> list[int]:
        """Its process ends; the ids of what ran."""
        for run in self.running.values():
            self._progress(run, now)
        ids = list(self.running)
        self.running.clear()
        self.waiting.clear()
        self._free_at = now
        return ids

    # ---- speed ---------------------------------------------------------------------------------

    def become(self, condition: Condition, now: float) -> None:
        """Its condition changes: what runs goes on at another speed."""
        for run in self.running.values():
            self._progress(run, now)
        self.condition = condition
        for run in self.running.values():
            run.rate = condition.rate(run.job.cpu)
            self._plan_finish(run, now)
        self._plan_anew(now)

    def catch_up(self, now: float) -> None:
        """Bring the figures for reports up to now."""
        for run in self.running.values():
            self._progress(run, now)

    def _progress(self, run: _Run, now: float) -> None:
        elapsed = now - run.since
        run.since = now
        run.left_s = max(0.0, run.left_s - elapsed * run.rate)
        self.busy_s += elapsed
        condition = self.condition
        if not run.rate or condition.fail_s is not None:
            return
        cpu, core = run.job.cpu, condition.core
        on_core = cpu / (condition.speed * core)
        wants_core = elapsed * on_core / (1.0 - cpu + on_core)
        run.cpu_s += wants_core * core
        self.core_cpu_s += wants_core * core
        self.core_delay_s += wants_core * (1.0 - core)
