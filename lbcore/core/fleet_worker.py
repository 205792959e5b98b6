"""One worker as the broker sees it: what it has, since when, and how fast it is taken to be.

Only ``broker.py`` and what it calls change these records; policies read them.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Final, Protocol

from .children import ChildState
from .contention import availability_now
from .sizes import CostTable, SizedTasks
from .topology import PolicyConfig, WorkerConfig

#: how fast the residual of an overdue request grows with its age (``beta``): a stalled worker
#: looks worse the longer it is silent
OVERDUE_GROWTH: Final = 0.5
#: two workers within about five per cent of each other count as equally fast
SPEED_STEP: Final = 0.05
#: how long an availability that fades with age is taken as constant
SPEED_VALID_S: Final = 0.05


class Standing(IntEnum):
    """Whether a worker gets work, by how it did so far."""

    GOOD = 0
    #: it gets one request, to show whether it works again
    ON_TRIAL = 1
    #: ejected: it gets nothing
    OUT = 2


class Shared(Protocol):
    """What the workers of a fleet have in common."""

    policy: PolicyConfig
    costs: CostTable
    sized: SizedTasks
    log_speed_drift: float
    speed_version: int


class Worker:
    """One worker as the broker sees it."""

    __slots__ = (
        "_effective_speed",
        "_speed_until",
        "_speed_version",
        "availability",
        "availability_at",
        "completed",
        "concurrency",
        "config",
        "counts",
        "cpu",
        "cpu_at",
        "done_at",
        "draining",
        "failed",
        "failures_in_row",
        "fleet",
        "ghost_until",
        "head_at",
        "head_was_alone",
        "inflight",
        "learn_at",
        "log_speed",
        "name",
        "number",
        "pid",
        "place",
        "position",
        "restarts",
        "rss_bytes",
        "running_noise",
        "running_s",
        "samples",
        "solo",
        "speed_class",
        "speed_samples",
        "stamp",
        "standing",
        "state",
        "successes",
        "tasks",
        "virtual_s",
    )

    def __init__(self, fleet: Shared, number: int, config: WorkerConfig) -> None:
        self.fleet = fleet
        self.number = number
        self.config = config
        self.name = config.name
        self.concurrency = config.concurrency
        self.state = ChildState.STARTING
        self.pid: int | None = None
        self.restarts = 0
        #: it is to get nothing new: it will be stopped, or somebody wants it to rest
        self.draining = False
        #: id of a request that is to run, or runs, alone here: nothing new meanwhile; 0: none
        self.solo = 0
        self.rss_bytes = 0
        #: id -> frame of every request sent and not answered, in the order they were sent
        self.inflight: dict[int, bytes] = {}
        #: task number -> how many of ``inflight`` are of it; sums up to len(inflight)
        self.counts: dict[int, int] = {}
        #: when the request now at the head of ``inflight`` began, as far as the broker can tell
        self.head_at = 0.0
        #: it was sent to an idle worker: then ``head_at`` is when it was sent
        self.head_was_alone = False
        #: expected moment of being done with everything pending; kept by ``refresh``
        self.done_at = 0.0
        #: expected seconds of the request at the head; kept by ``refresh``
        self.running_s = 0.0
        #: and how uncertain that is: half the spread of such times, in logarithms
        self.running_noise = 0.0
        #: seconds of queued requests that a choice in progress has reserved here
        self.virtual_s = 0.0
        #: a request that failed fast still counts as work until then
        self.ghost_until = 0.0
        self.completed = 0
        self.failed = 0
        self.failures_in_row = 0
        self.standing = Standing.GOOD
        self.successes = 0
        #: task number -> [successes, seconds, CPU share] not yet learned from, and when to
        self.samples: dict[int, list[float]] = {}
        self.learn_at = 0.0
        #: logarithm of the learned speed, starting from the declared weight
        self.log_speed = math.log(config.weight)
        #: how many samples it was learned from
        self.speed_samples = 0
        #: share of its cores it could get, when last measured, and when that was
        self.availability = 1.0
        self.availability_at = -math.inf
        #: cores' worth of CPU it used (with children), when last reported, and when that was
        self.cpu = 0.0
        self.cpu_at = -math.inf
        #: numbers of the tasks it can run
        self.tasks: frozenset[int] = frozenset()
        #: place in ``fleet.ready``, -1 when not in it
        self.position = -1
        #: workers of one class have about the same effective speed
        self.speed_class = 0
        #: version of the policy's entry for this worker; older entries are stale
        self.stamp = 0
        #: of two equal workers the policy takes the one of the smaller place
        self.place = 0
        self._effective_speed = 1.0
        self._speed_version = -1
        self._speed_until = 0.0

    def __hash__(self) -> int:
        """Its number, not its address: a set of workers has the same order in every process."""
        return self.number

    @property
    def pending(self) -> int:
        """Requests sent to the worker and not yet answered."""
        return len(self.inflight)

    def forget_speed(self) -> None:
        """Take it for as fast as its configuration says."""
        self.log_speed = math.log(self.config.weight) + self.fleet.log_speed_drift
        self.speed_samples = 0

    @property
    def is_barred(self) -> bool:
        """Spared, kept for one request, ejected, or on trial with the one request that it has."""
        if self.draining or self.solo:
            return True
        standing = self.standing
        return standing is Standing.OUT or (standing is Standing.ON_TRIAL and bool(self.inflight))

    def speed(self) -> float:
        """Learned speed; 1 is the fleet's declared unit."""
        return math.exp(self.log_speed - self.fleet.log_speed_drift)

    def availability_at_time(self, now: float) -> float:
        """The share of its cores it can get now, by its last report and that report's age."""
        known = self.availability
        if not self.fleet.policy.fade_reports:
            return known
        return 1.0 if known >= 1.0 else availability_now(known, now - self.availability_at)

    def effective_speed(self, now: float) -> float:
        """Speed that a CPU-bound request would meet now: ``v * A ** cpu_weight``.

        Worked out anew when a speed was learned, a report came, or a report has aged.
        """
        version = self.fleet.speed_version
        if self._speed_version != version or now >= self._speed_until:
            log_speed = self.log_speed - self.fleet.log_speed_drift
            weight = self.fleet.policy.cpu_weight
            self._speed_until = math.inf
            if weight and self.availability < 1.0:
                log_speed += weight * math.log(self.availability_at_time(now))
                self._speed_until = now + SPEED_VALID_S
            self._speed_version = version
            self._effective_speed = math.exp(log_speed)
            self.speed_class = round(log_speed / SPEED_STEP)
        return self._effective_speed

    def service_s(self, task: int, now: float) -> float:
        """Expected seconds of one request of that task here."""
        return self.fleet.costs[task].service_s(self.effective_speed(now))

    def recount(self) -> None:
        """Count ``inflight`` by task anew."""
        self.counts = {}
        for frame in self.inflight.values():
            task = self.fleet.sized.kind(frame)
            self.counts[task] = self.counts.get(task, 0) + 1

    def refresh(self, now: float) -> None:
        """Work out ``done_at`` and the effective speed again, after anything about the worker
        changed."""
        inflight, speed = self.inflight, self.effective_speed(now)
        if not inflight:
            self.running_s = 0.0
            self.done_at = self.ghost_until
            return
        costs = self.fleet.costs
        total = 0.0
        for task, count in self.counts.items():
            total += count * costs[task].service_s(speed)
        if len(self.counts) == 1:
            running = total / len(inflight)
            self.running_noise = costs[task].uncertainty
        else:
            head = next(iter(inflight.values()))
            task = head[6] | head[7] << 8
            if task in self.fleet.sized.arguments:
                task = self.fleet.sized.kind(head)
            running = costs[task].service_s(speed)
            self.running_noise = costs[task].uncertainty
        self.running_s = running
        waiting = total - running
        if self.concurrency > 1:
            # time until a slot frees: the work there is, spread over the slots
            waiting = max(0.0, total / self.concurrency - running)
            if len(inflight) < self.concurrency:
                # a slot is free: what the others do delays nobody
                self.running_s = 0.0
                self.done_at = self.ghost_until
                return
        self.done_at = max(self.head_at + running + waiting, self.ghost_until)

    def backlog_s(self, now: float) -> float:
        """Expected seconds until a request sent now would begin to run.

        The residual of a running request is ``max(s - age, spread * age, beta * (age - s))``: what
        is left of its time; where such times vary, a part of its age (of a heavy tail, whoever has
        run for long will run for long); and when it is past its time, the more the later.
        """
        backlog = self.done_at - now
        if self.inflight and self.running_s:
            age = now - self.head_at
            if age * (1.0 + OVERDUE_GROWTH) >= self.running_s:
                # ``done_at`` has what is left of its time; the rest may be more
                backlog += self.rest_s(now) + (age - self.running_s)
        return (backlog if backlog > 0.0 else 0.0) + self.virtual_s

    def rest_s(self, now: float) -> float:
        """Expected seconds until the request at the head is done; ``backlog_s`` has the rule."""
        age = now - self.head_at
        late_s = age - self.running_s
        return max(-late_s, 2.0 * self.running_noise * age, OVERDUE_GROWTH * late_s)

    def load(self, task: int, now: float) -> float:
        """Expected seconds until a request of that task, sent now, would be done here.

        This is the number that ``least_load`` compares: ``pending_weight * backlog + service``.
        """
        return self.fleet.policy.pending_weight * self.backlog_s(now) + self.service_s(task, now)
