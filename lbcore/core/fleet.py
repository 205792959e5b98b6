"""The broker's picture of its workers: the nouns that policies compare.

Only ``broker.py`` changes these records; policies read them.  All times are monotonic seconds that
the caller passes in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from .children import ChildState
from .contention import CoreUse, availability_measured, availability_now, read_report
from .costs import LOG_SPEED_BOUND, TaskCost
from .frames import task_of
from .topology import PolicyConfig, WorkerConfig

#: how fast the residual of an overdue request grows with its age (``beta``): a stalled worker
#: looks worse the longer it is silent
OVERDUE_GROWTH: Final = 0.5
#: what a request spends on the way to a worker and back, before it was ever measured
TRANSIT_FIRST_S: Final = 0.0003
TRANSIT_MIN_S: Final = 0.0001
TRANSIT_MAX_S: Final = 0.002
#: a request this many times longer than its transit needs no second one waiting behind it
PREFETCH_COST_RATIO: Final = 300.0
#: the most requests that may wait at a worker behind those that run
PREFETCH_MAX: Final = 512
#: a worker's queue is kept worth this many transits: the broker answers once per loop turn
PREFETCH_TRANSITS: Final = 2.0
#: a worker that joins a running system gets one request at a time until it has done this many
WARM_UP: Final = 3
#: two workers within about five per cent of each other count as equally fast
SPEED_STEP: Final = 0.05
#: how long an availability that fades with age is taken as constant
SPEED_VALID_S: Final = 0.05
#: tiny successes are learned from together, this often
LEARN_EVERY_S: Final = 0.001
#: the first successes of a task are learned from one by one
LEARN_ALL: Final = 32


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
        "running_s",
        "samples",
        "solo",
        "speed_class",
        "stamp",
        "state",
        "successes",
        "tasks",
        "virtual_s",
    )

    def __init__(self, fleet: Fleet, number: int, config: WorkerConfig) -> None:
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
        #: expected moment of being done with everything pending; kept by ``refresh``
        self.done_at = 0.0
        #: expected seconds of the request at the head; kept by ``refresh``
        self.running_s = 0.0
        #: seconds of queued requests that a choice in progress has reserved here
        self.virtual_s = 0.0
        #: a request that failed fast still counts as work until then
        self.ghost_until = 0.0
        self.completed = 0
        self.failed = 0
        self.failures_in_row = 0
        self.successes = 0
        #: task number -> [successes, seconds, CPU share] not yet learned from, and when to
        self.samples: dict[int, list[float]] = {}
        self.learn_at = 0.0
        #: logarithm of the learned speed, starting from the declared weight
        self.log_speed = math.log(config.weight)
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

    def speed(self) -> float:
        """Learned speed; 1 is the fleet's declared unit."""
        return math.exp(self.log_speed - self.fleet.log_speed_drift)

    def availability_at_time(self, now: float) -> float:
        """The share of its cores it can get now, by its last report and that report's age."""
        known = self.availability
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
            task = task_of(frame)
            self.counts[task] = self.counts.get(task, 0) + 1

    def refresh(self, now: float) -> None:
        """Work out ``done_at`` again, after anything about the worker changed."""
        inflight = self.inflight
        if not inflight:
            self.running_s = 0.0
            self.done_at = self.ghost_until
            return
        speed = self.effective_speed(now)
        costs = self.fleet.costs
        total = 0.0
        for task, count in self.counts.items():
            total += count * costs[task].service_s(speed)
        if len(self.counts) == 1:
            running = total / len(inflight)
        else:
            head = next(iter(inflight.values()))
            running = costs[head[6] | head[7] << 8].service_s(speed)
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

        The residual of a running request is ``max(s - age, beta * age)``, the second only when it
        is near or past its time.
        """
        backlog = self.done_at - now
        if self.inflight and self.running_s:
            age = now - self.head_at
            if age * (1.0 + OVERDUE_GROWTH) >= self.running_s:
                backlog += max(0.0, OVERDUE_GROWTH * age - (self.running_s - age))
        return (backlog if backlog > 0.0 else 0.0) + self.virtual_s

    def load(self, task: int, now: float) -> float:
        """Expected seconds until a request of that task, sent now, would be done here.

        This is the number that ``least_load`` compares: ``pending_weight * backlog + service``.
        """
        return self.fleet.policy.pending_weight * self.backlog_s(now) + self.service_s(task, now)


class Fleet:
    """All workers, what tasks cost on them, and who can take work now."""

    def __init__(
        self, workers: Iterable[WorkerConfig], policy: PolicyConfig, names: Sequence[str] = ()
    ) -> None:
        """``names``, if given, are the workers' names by number, those long gone included."""
        self.policy = policy
        #: by number, for ever: one that is gone keeps its place
        self.workers: list[Worker] = []
        #: the workers that the topology has
        self.by_name: dict[str, Worker] = {}
        #: cost of each task, by task number
        self.costs: list[TaskCost] = []
        #: the workers that take new work (state RUNNING), in no order
        self.ready: list[Worker] = []
        #: how many of ``ready`` have fewer requests pending than they can run at once
        self.free_count = 0
        self.arrivals = 0  # changes whenever a worker begins to take new work
        #: the largest declared weight
        self.weight_max = 0.0
        #: what all learned log-speeds have in common; subtracted, so that speeds stay relative
        self.log_speed_drift = 0.0
        #: changes whenever a worker's speed or availability does
        self.speed_version = 0
        #: smoothed seconds that a request spends between broker and worker, both ways
        self.transit_s = TRANSIT_FIRST_S
        #: what our workers ask for and use, core by core
        self._cores = CoreUse()
        present = {config.name: config for config in workers}
        for name in dict.fromkeys((*names, *present)):
            self.add(present.get(name, WorkerConfig(name=name)), name in present)

    def add(self, config: WorkerConfig, present: bool = True) -> Worker:
        """A record for one more worker; without ``present`` only its number is taken."""
        worker = Worker(self, len(self.workers), config)
        self.workers.append(worker)
        if present:
            self.by_name[config.name] = worker
            self.weight_max = max(self.weight_max, config.weight)
        else:
            worker.state = ChildState.EXITED
        return worker

    def set_ready(self, worker: Worker, ready: bool) -> None:
        """Put the worker among those that take new work, or take it out."""
        if ready == (worker.position >= 0):
            return
        if ready:
            worker.position = len(self.ready)
            self.ready.append(worker)
            self.arrivals += 1
            self.free_count += worker.pending < worker.concurrency
        else:
            last = self.ready.pop()
            if last is not worker:
                self.ready[worker.position] = last
                last.position = worker.position
            worker.position = -1
            self.free_count -= worker.pending < worker.concurrency

    def prefetch(self, task: int) -> int:
        """How many requests of that task may wait at a worker behind those that run there.

        None where one takes seconds, one where it takes milliseconds, and as many as keep the
        worker busy across a turn of the broker's loop where it takes microseconds.
        """
        cost_s = self.costs[task].mean_s
        transit_s = self.transit_s
        if cost_s >= transit_s * PREFETCH_COST_RATIO:
            return 0
        wanted = math.ceil(PREFETCH_TRANSITS * transit_s / cost_s)
        return min(PREFETCH_MAX, max(1, wanted))

    def room(self, worker: Worker, task: int, now: float) -> int:
        """How many requests of that task the worker may be sent now."""
        free = worker.concurrency - len(worker.inflight)
        if worker.successes < WARM_UP:
            return max(0, free)
        extra = self.prefetch(task)
        if free > 0:
            return free + extra
        if not extra or free + extra <= 0:
            return 0
        # what waits there must be short too, or this request would be stuck behind it
        horizon_s = (extra + worker.concurrency) * self.costs[task].mean_s
        return free + extra if worker.backlog_s(now) <= 2.0 * horizon_s else 0

    def observe_transit(self, seconds: float) -> None:
        """One request's round trip less its service time, seen from the broker."""
        seconds = min(TRANSIT_MAX_S, max(TRANSIT_MIN_S, seconds))
        self.transit_s += 0.05 * (seconds - self.transit_s)

    def learn(
        self, worker: Worker, task: int, seconds: float, count: int, cpu_share: float, now: float
    ) -> None:
        """Take in ``count`` successes of one task on one worker, which took ``seconds`` in all.

        Learning costs as much as several tiny requests: those are summed up for a while first.
        """
        cost = self.costs[task]
        sums = worker.samples.get(task)
        if sums is None:
            sums = worker.samples[task] = [0.0, 0.0, -1.0]
        sums[0] += count
        sums[1] += seconds
        if cpu_share >= 0.0:
            sums[2] = cpu_share
        if now < worker.learn_at and seconds < LEARN_EVERY_S * count and cost.count >= LEARN_ALL:
            return
        worker.learn_at = now + LEARN_EVERY_S
        del worker.samples[task]
        total, seconds, cpu_share = sums
        speed, availability = worker.speed(), worker.availability_at_time(now)
        shift = cost.learn(seconds / total, int(total), speed, availability, cpu_share)
        if shift:
            bound = math.log(worker.config.weight)
            before = worker.log_speed
            worker.log_speed = min(
                bound + LOG_SPEED_BOUND, max(bound - LOG_SPEED_BOUND, before + shift)
            )
            self.speed_version += 1
            self.log_speed_drift += (worker.log_speed - before) / len(self.by_name)

    def take_report(self, worker: Worker, message: Mapping[str, Any], now: float) -> bool:
        """Take in one CPU report; False when it is older than what is known, or is nonsense."""
        report = read_report(message)
        if report is None or report.at <= worker.cpu_at or report.at > now + 1.0:
            return False
        if worker.position < 0 and not worker.solo:
            # what a worker does that takes no work is nobody's business
            return False
        if report.rss_bytes is not None:
            worker.rss_bytes = report.rss_bytes
        cores = worker.config.cpus or range(report.cores)
        own_demand, own_cpu = self._cores.place(worker.number, cores, report.demand, report.cpu)
        worker.cpu, worker.cpu_at = report.cpu, report.at
        measured = availability_measured(
            wall_s=report.wall_s,
            cpu_s=report.cpu_s,
            delay_s=report.delay_s,
            cores=report.cores,
            others_busy=max(0.0, report.busy - own_cpu),
            own_demand=own_demand,
        )
        if measured is not None:
            known = worker.availability_at_time(now)
            # fall at once, rise half-way: a neighbour that pauses for a moment is still there
            worker.availability = measured if measured < known else known + (measured - known) / 2
            worker.availability_at = report.at
            self.speed_version += 1
            if worker.availability > 0.99:
                worker.availability = 1.0
        return True

    def forget_report(self, worker: Worker) -> None:
        """What a worker reported no longer holds: it is gone."""
        self._cores.remove(worker.number)
        worker.cpu, worker.availability = 0.0, 1.0
        self.speed_version += 1
