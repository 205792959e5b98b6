"""The tasks of ``lb compare``: work of a given length on a worker whose speed a scenario decides.

The broker does not know any of it: what a worker is like is in its environment, and the broker
finds out as it would with any other worker.  With ``sleep`` work a request sleeps as long as it
would compute on that machine, and says that it computed; so many machines fit into one.  With
``spin`` it does compute.  Loaded as a task module by the workers of ``lb compare`` only.
"""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

import msgspec

from . import worker_pool, worker_process
from .tasks import task

#: holds a ``WorkerPlan`` as JSON
VARIABLE: Final = "COMPARE_WORKER"
MODULE: Final = __name__
#: no system call sleeps for ever
_LONG_S: Final = 3600.0
#: a sleep takes about so much longer than asked for, as a first guess; at most; and how far one
#: that was later or earlier moves the guess
_LATE_FIRST_S: Final = 0.00006
_LATE_MAX_S: Final = 0.0005
_LATE_STEP_S: Final = 0.000002

Size = Annotated[float, msgspec.Meta(ge=0.0, le=86_400.0)]


class Span(msgspec.Struct, frozen=True):
    """How the worker is from a moment on, until the next span; seconds count from the start."""

    at_s: float
    speed: float = 1.0
    is_stalled: bool = False
    #: seconds after which it fails each request
    fail_s: float | None = None

    def rate(self, cpu: float) -> float:
        """Seconds of work done in one second, of a task that needs a core for that part."""
        return 0.0 if self.is_stalled else 1.0 / (1.0 - cpu + cpu / self.speed)

    def cpu_share(self, cpu: float) -> float:
        """The part of the time that such a task would compute here."""
        on_core = cpu / self.speed
        return on_core / (1.0 - cpu + on_core)


class TaskPlan(msgspec.Struct, frozen=True):
    """One task."""

    name: str
    #: what it says that it takes
    cost_s: float
    #: the part of it that needs a core
    cpu: float


class WorkerPlan(msgspec.Struct, frozen=True):
    """What one worker is to be like."""

    #: its number, which it answers every request with
    number: int
    is_spinning: bool
    #: a file with the moment (monotonic) at which the scenario starts
    start: str
    tasks: list[TaskPlan]
    #: in order; the first begins at 0
    spans: list[Span]


class Failing(Exception):
    """The scenario has this worker fail now."""


class _Clock(threading.local):
    """A thread's CPU time, and what it pretends to have computed."""

    pretended_s: float = 0.0

    def __call__(self) -> float:
        return time.thread_time() + self.pretended_s


class _Machine:
    """A worker as its plan has it."""

    def __init__(self, plan: WorkerPlan) -> None:
        self.plan = plan
        self._moments = [span.at_s for span in plan.spans]
        self._start: float | None = None
        self.clock = _Clock()
        #: how much longer than asked for the median sleep takes
        self._late_s = _LATE_FIRST_S

    def pretend(self) -> None:
        """Have the time that a request sleeps reported as CPU time: only then it is to the broker
        what it is meant to be, and a slow worker is learned to be slow."""
        for module in (worker_process, worker_pool):
            vars(module)["thread_time"] = self.clock

    def now(self) -> float:
        """Seconds since the start."""
        if self._start is None:
            self._start = float(Path(self.plan.start).read_text())
        return time.monotonic() - self._start

    def span_at(self, now: float) -> tuple[Span, float]:
        """How it is then, and until when."""
        place = bisect_right(self._moments, now)
        end = self._moments[place] if place < len(self._moments) else float("inf")
        return self.plan.spans[max(0, place - 1)], end

    def sleep(self, cpu: float, seconds: float) -> None:
        """As many seconds of work, asleep."""
        now = self.now()
        while seconds > 0.0:
            span, edge = self.span_at(now)
            if span.fail_s is not None:
                self._fail(now + span.fail_s - self.now())
            rate = span.rate(cpu)
            end = min(edge, now + seconds / rate) if rate else min(edge, now + _LONG_S)
            seconds = seconds - (end - now) * rate if end == edge else 0.0
            if rate:
                self.clock.pretended_s += (end - now) * span.cpu_share(cpu)
            # by the clock, so that what one sleep takes too long is not added to the next
            self._sleep_until(end)
            now = end

    def _sleep_until(self, moment: float) -> None:
        """Until that moment after the start; a sleep that was asked for takes some longer."""
        left_s = moment - self.now() - self._late_s
        if left_s > 0.0:
            time.sleep(left_s)
            late_s = self._late_s + self.now() - moment
            # how late it usually is: of a machine that is busy nothing is learned
            step_s = _LATE_STEP_S if late_s > self._late_s else -_LATE_STEP_S
            self._late_s = min(_LATE_MAX_S, max(0.0, self._late_s + step_s))

    def spin(self, cpu: float, seconds: float) -> None:
        """As many seconds of work, the part that needs a core on a core."""
        time.sleep(seconds * (1.0 - cpu))
        left = seconds * cpu
        before = time.thread_time()
        while left > 0.0:
            span, _ = self.span_at(self.now())
            if span.fail_s is not None:
                self._fail(span.fail_s)
            after = time.thread_time()
            left -= (after - before) * span.speed
            before = after

    def _fail(self, after_s: float) -> None:
        time.sleep(max(0.0, after_s))
        raise Failing("the scenario has this worker fail now")


def _declare(machine: _Machine, plan: TaskPlan) -> None:
    work: Callable[[float, float], None]
    work = machine.spin if machine.plan.is_spinning else machine.sleep

    def run(seconds: Size) -> int:
        """Work for so many seconds of a worker of speed 1; the number of the worker."""
        work(plan.cpu, seconds)
        return machine.plan.number

    task(name=plan.name, cost=plan.cost_s)(run)


if _text := os.environ.get(VARIABLE):
    _machine = _Machine(msgspec.json.decode(_text, type=WorkerPlan))
    if not _machine.plan.is_spinning:
        _machine.pretend()
    for _plan in _machine.plan.tasks:
        _declare(_machine, _plan)
