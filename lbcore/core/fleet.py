"""The broker's picture of its workers: the nouns that policies compare.

Only ``broker.py`` changes these records; policies read them.  All times are monotonic seconds that
the caller passes in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from .children import ChildState
from .contention import CoreUse, availability_measured, read_report
from .costs import COST_KNOWN, LOG_SPEED_BOUND, SPEED_RATE
from .fleet_worker import Worker
from .sizes import TASK_MASK, CostTable, SizedTasks
from .topology import PolicyConfig, WorkerConfig

__all__ = ["Fleet", "Worker"]

#: what a request spends on the way to a worker and back, before it was ever measured
TRANSIT_FIRST_S: Final = 0.0003
TRANSIT_MIN_S: Final = 0.0001
TRANSIT_MAX_S: Final = 0.002
#: a request this many times longer than its transit needs no second one waiting behind it
PREFETCH_COST_RATIO: Final = 300.0
#: the most requests that may wait at a worker behind those that run
PREFETCH_MAX: Final = 512
#: a worker's queue is kept worth this many transits: the broker answers once per loop turn
PREFETCH_TRANSITS: Final = 3.0
#: a worker that joins a running system gets one request at a time until it has done this many
WARM_UP: Final = 3
#: successes that took less than this are learned from together, so often
TINY_S: Final = 0.001
LEARN_EVERY_S: Final = 0.003
#: the declared speed of a worker counts like so many samples, once a task's cost is known: the
#: first samples move it further than ``costs.SPEED_RATE``
SPEED_PRIOR: Final = 2.0
#: the first successes of a task are learned from one by one
LEARN_ALL: Final = 32


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
        #: cost of each kind of request: of each task, and where it declares a size of each size
        self.costs = CostTable()
        #: the tasks that do
        self.sized = SizedTasks()
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

    def seconds(self, task: int) -> float:
        """Expected seconds of a request of that kind on a worker of speed 1."""
        return self.costs[task].mean_s

    def sharing(self) -> int:
        """How many workers share the work; at least 1."""
        return len(self.ready) or 1

    def prefetch(self, task: int) -> int:
        """How many requests of that task may wait at a worker behind those that run there.

        None where one takes seconds, one where it takes milliseconds, and as many as keep the
        worker busy across a turn of the broker's loop where it takes microseconds.
        """
        if self.policy.prefetch >= 0:
            return self.policy.prefetch
        cost_s = self.costs[task].mean_s
        transit_s = self.transit_s
        if cost_s >= transit_s * PREFETCH_COST_RATIO:
            return 0
        wanted = math.ceil(PREFETCH_TRANSITS * transit_s / cost_s)
        return min(PREFETCH_MAX, max(1, wanted))

    def room(self, worker: Worker, task: int, now: float) -> int:
        """How many requests of that task the worker may be sent now."""
        free = worker.concurrency - len(worker.inflight)
        if worker.successes < WARM_UP and self.policy.slow_start:
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
        if now < worker.learn_at and seconds < TINY_S * count and cost.count >= LEARN_ALL:
            return
        worker.learn_at = now + LEARN_EVERY_S
        del worker.samples[task]
        total, seconds, cpu_share = sums
        policy, speed, known = self.policy, worker.speed(), (cost.mean_s, cost.log_cost)
        # what counts for nothing in a choice must explain nothing here
        availability = worker.availability_at_time(now) if policy.cpu_weight else 1.0
        rate = SPEED_RATE
        if cost.count >= COST_KNOWN:
            # of a worker's speed nothing is known at first
            rate = max(rate, 1.0 / (worker.speed_samples + SPEED_PRIOR))
        mean_s, count = seconds / total, int(total)
        shift = cost.learn(mean_s, count, speed, availability, cpu_share, rate)
        if task > TASK_MASK:
            # what its requests of all sizes cost
            whole = self.costs[task & TASK_MASK]
            whole.learn(mean_s, count, speed, availability, cpu_share, rate)
        if not policy.learn_costs:
            cost.mean_s, cost.log_cost = known
        worker.speed_samples += cost.tells_speed(mean_s)
        if shift and policy.learn_speeds:
            bound = math.log(worker.config.weight)
            before = worker.log_speed
            worker.log_speed = min(
                bound + LOG_SPEED_BOUND, max(bound - LOG_SPEED_BOUND, before + shift)
            )
            self.speed_version += 1
            if policy.learn_costs:
                # costs follow, so speeds can be relative to one another
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
