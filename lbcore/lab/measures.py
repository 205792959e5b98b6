"""What is measured in a trial, and how the figures are worked out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from .model import Job, WorkerModel
    from .scenario import Scenario
    from .traffic import Traffic

#: a choice is wrong where the best worker would have been done sooner by more than this
WRONG: float = 0.01
#: samples of a run, and the workers that they are taken of
SAMPLES: int = 240
SERIES_WORKERS: int = 16
#: the quantiles that a report draws
GRID = [place / 100 for place in range(1, 100)] + [0.995, 0.999, 0.9995, 0.9999, 1.0]
#: in larger fleets only every so many-th choice is judged
JUDGED: int = 64


class Measures(NamedTuple):
    """The figures of one policy on one trace; times in seconds."""

    mean: float
    p50: float
    p99: float
    p999: float
    #: response divided by the request's own time on an idle worker of speed 1: mean, and p99
    slowdown: float
    slowdown_p99: float
    #: from the first arrival to the last answer
    makespan: float
    #: the largest share of the work that one worker got, relative to its share of the capacity
    worst_share: float
    #: part of the choices after which another worker would have been done sooner
    misroutes: float
    #: part of the workers' time in which one was idle beside a request that waited
    idle: float
    #: part of the requests that ended in an error; they count in no time
    failed: float
    #: attempts that failed, for each request
    wasted: float
    #: requests that were never answered
    lost: int


class Detail(NamedTuple):
    """What a report shows of one policy on one trace; times in seconds, from the start."""

    #: (part of the requests, seconds that they took at most)
    quantiles: list[tuple[float, float]]
    #: by worker: requests done, and its share of the work relative to its share of the capacity
    requests: list[int]
    shares: list[float]
    #: moments, and at each of them by worker: requests there, and the part of the time before in
    #: which it was busy; of the first workers only
    moments: list[float]
    pending: list[list[int]]
    busy: list[list[float]]
    #: what the broker took for each one's load, in seconds; empty where there is no broker
    load: list[list[float]]


class Series:
    """Samples of the first workers, at moments that the caller chooses."""

    def __init__(self, models: Sequence[WorkerModel]) -> None:
        self._models = models[:SERIES_WORKERS]
        self._busy_s = [0.0] * len(self._models)
        self._at = 0.0
        self.moments: list[float] = []
        self.pending: list[list[int]] = []
        self.busy: list[list[float]] = []
        self.load: list[list[float]] = []

    def sample(self, moment: float, now: float, load: list[float]) -> None:
        """Look at the workers; ``moment`` counts from the start, ``now`` is on the clock."""
        self.load.append(load[: len(self._models)])
        elapsed = max(1e-12, moment - self._at)
        self._at = moment
        self.moments.append(moment)
        self.pending.append([len(each.running) + len(each.waiting) for each in self._models])
        row = []
        for place, model in enumerate(self._models):
            model.catch_up(now)
            row.append(min(1.0, (model.busy_s - self._busy_s[place]) / elapsed / model.slots))
            self._busy_s[place] = model.busy_s
        self.busy.append(row)


class Meter:
    """Takes note of what happens in a trial."""

    def __init__(self, scenario: Scenario, traffic: Traffic, models: Sequence[WorkerModel]) -> None:
        self.scenario = scenario
        self.traffic = traffic
        self.models = models
        count = len(traffic.moments)
        #: seconds until each had its result; NaN before, and for one that failed
        self.responses = [math.nan] * count
        self.left = count
        self._answers = bytearray(count)
        self.failures = self.wasted = 0
        self._last = 0.0
        self._judged = self._wrong = self._sent = 0
        self._every = 1 if len(models) <= JUDGED else len(models) // 8
        #: requests that no worker is done with
        self._open = 0
        #: workers that are idle beside a request that waits, since when, and for how long in all
        self._beside = 0
        self._looked_at = 0.0
        self._idle_s = 0.0
        self.series = Series(models)

    @property
    def is_over(self) -> bool:
        """Whether everything is answered."""
        return not self.left

    def arrived(self, count: int, now: float) -> None:
        """So many more requests are there."""
        self._open += count
        self.look(now)

    def ran(self, now: float) -> None:
        """A worker is done with something."""
        self._open -= 1
        self.look(now)

    def look(self, now: float) -> None:
        """Something has changed: add up how many workers were idle beside requests that waited."""
        self._idle_s += (now - self._looked_at) * self._beside
        self._looked_at = now
        if len(self.models) > JUDGED:
            return
        idle = running = 0
        for model in self.models:
            running += len(model.running)
            idle += model.has_room
        self._beside = min(idle, max(0, self._open - running))

    def sent(self, index: int, job: Job, model: WorkerModel, now: float) -> None:
        """The broker has chosen a worker: was there a better one?"""
        self._sent += 1
        if self._sent % self._every:
            return
        finish_at = model.finish_at(job.size_s, job.cpu, now)
        best = min(each.finish_at(job.size_s, job.cpu, now) for each in self.models)
        self._judged += 1
        if best < math.inf and finish_at - now > (best - now) * (1.0 + WRONG) + 1e-9:
            self._wrong += 1

    def answered(self, index: int, moment: float, failed: bool) -> None:
        """A request has its answer for good."""
        if self._answers[index]:
            raise AssertionError(f"request {index} is answered twice")
        self.left -= 1
        self._answers[index] = 1
        if failed:
            self.failures += 1
            self.wasted += 1
        else:
            self.responses[index] = moment - self.traffic.moments[index]
        self._last = max(self._last, moment)

    def measures(self) -> Measures:
        """The figures."""
        found = figures(self.responses, self.traffic)
        workers_s = max(self._last - self.traffic.moments[0], 1e-9) * len(self.models)
        work = [model.work_s for model in self.models]
        return Measures(
            **found,
            makespan=self._last - self.traffic.moments[0],
            worst_share=worst_share(work, [m.slots * s for m, s in self._capacities()]),
            misroutes=self._wrong / max(1, self._judged),
            idle=self._idle_s / workers_s,
            failed=self.failures / len(self.responses),
            wasted=self.wasted / len(self.responses),
            lost=self.left,
        )

    def detail(self) -> Detail:
        """What a report shows."""
        times = sorted(each for each in self.responses if not math.isnan(each))
        work, able = [model.work_s for model in self.models], self._capacities()
        total, capacity = math.fsum(work), sum(model.slots * speed for model, speed in able)
        shares = [
            done / max(total, 1e-12) / (model.slots * speed / capacity)
            for done, (model, speed) in zip(work, able, strict=True)
        ]
        return Detail(
            quantiles=[(q, quantile(times, q)) for q in GRID],
            requests=[model.served for model in self.models],
            shares=shares,
            moments=self.series.moments,
            pending=self.series.pending,
            busy=self.series.busy,
            load=self.series.load,
        )

    def _capacities(self) -> list[tuple[WorkerModel, float]]:
        speeds = [each.speed for each in self.scenario.workers for _ in range(each.count)]
        return list(zip(self.models, speeds, strict=True))


def figures(responses: Sequence[float], traffic: Traffic) -> dict[str, Any]:
    """Mean and quantiles of responses and of slowdowns."""
    pairs = [
        (response, size)
        for response, size in zip(responses, traffic.sizes, strict=True)
        if not math.isnan(response)
    ]
    times = sorted(response for response, _ in pairs)
    slowdowns = sorted(response / size for response, size in pairs if size > 0.0)
    return {
        "mean": math.fsum(times) / max(1, len(times)),
        "p50": quantile(times, 0.5),
        "p99": quantile(times, 0.99),
        "p999": quantile(times, 0.999),
        "slowdown": math.fsum(slowdowns) / max(1, len(slowdowns)),
        "slowdown_p99": quantile(slowdowns, 0.99),
    }


def worst_share(work: Sequence[float], capacities: Sequence[float]) -> float:
    """The largest of the shares of the work, each relative to its worker's share of capacity."""
    done, able = math.fsum(work), math.fsum(capacities)
    if not done:
        return 0.0
    return max(one / done / (part / able) for one, part in zip(work, capacities, strict=True))


def quantile(ordered: Sequence[float], q: float) -> float:
    """The smallest value that at least the part ``q`` does not exceed; 0 of nothing."""
    if not ordered:
        return 0.0
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]
