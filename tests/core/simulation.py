"""A driver whose virtual workers take their time: arrivals, service, transit, CPU reports."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from lbcore.core.frames import CPU_UNKNOWN, reply_frame
from tests.core.driver import Driver, Held

#: seconds of a request of that task on that worker
Service = Callable[[str, int], float]


class Outcome(NamedTuple):
    """What became of one request."""

    task: str
    status: int
    worker: int
    sent_at: float
    done_at: float

    @property
    def latency_s(self) -> float:
        """Seconds from the client's view."""
        return self.done_at - self.sent_at


class Simulation(Driver):
    """One client, and workers that take ``service(task, worker)`` seconds for each request."""

    def __init__(
        self,
        *args: Any,
        service: Service,
        cpu_share: float = 1.0,
        status: Callable[[str, int], int] = lambda task, worker: 0,
        transit_s: float = 0.0001,
        **more: Any,
    ) -> None:
        self.service = service
        self.status = status
        self.transit_s = transit_s
        self.cpu = CPU_UNKNOWN if cpu_share < 0 else int(cpu_share * 1000)
        #: (when, order, what happens then)
        self.agenda: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        #: worker number -> ids of what it runs now
        self.running: dict[int, set[int]] = {}
        self.outcomes: list[Outcome] = []
        self.sent_at: dict[int, tuple[str, float]] = {}
        super().__init__(*args, **more)
        self.caller = self.client()
        self.names = {number: name for name, number in reversed(self.numbers.items())}

    # ---- the virtual world ---------------------------------------------------------------------

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Let something happen at that time."""
        heapq.heappush(self.agenda, (when, next(self.order), what))

    def perform(self, actions: Any) -> None:
        """Deliver, and let workers that have something to run begin it."""
        super().perform(actions)
        for worker in self.fleet.workers:
            self._begin(worker.number)
        while self.recalls:
            number = self.recalls.pop()
            self.at(self.now + self.transit_s, lambda number=number: self._recalled(number))  # type: ignore[misc]
        self._note_answers()

    def _begin(self, number: int) -> None:
        running = self.running.setdefault(number, set())
        slots = self.fleet.workers[number].concurrency
        for held in self.held[number]:
            if len(running) >= slots:
                break
            if held.id not in running:
                running.add(held.id)
                service_s = self.service(self.names[held.task], number)
                self.at(
                    self.now + self.transit_s + service_s,
                    lambda held=held, service_s=service_s: self._done(number, held, service_s),  # type: ignore[misc]
                )

    def _done(self, number: int, held: Held, service_s: float) -> None:
        if held.id not in self.running[number]:
            return  # the worker died meanwhile
        self.running[number].discard(held.id)
        self.held[number] = [other for other in self.held[number] if other.id != held.id]
        frame = reply_frame(
            held.id,
            held.task,
            b"\xc0",
            status=self.status(self.names[held.task], number),
            service_s=service_s,
            worker=number,
            cpu=self.cpu,
        )
        self.from_worker(number, frame)

    def _recalled(self, number: int) -> None:
        running = self.running[number]
        back = [held.id for held in self.held[number] if held.id not in running]
        self.held[number] = [held for held in self.held[number] if held.id in running]
        self.perform(self.broker.worker_recalled(number, back, self.now))

    def _note_answers(self) -> None:
        for found in self.answers.values():
            for answer in found:
                task, sent_at = self.sent_at.pop(answer.id)
                self.outcomes.append(Outcome(task, answer.status, answer.worker, sent_at, self.now))
            found.clear()

    def call(self, task: str, count: int = 1) -> None:
        """The client sends requests now."""
        first = self.sequence[self.caller] + 1
        for sequence in range(first, first + count):
            self.sent_at[self.caller << 32 | sequence] = (task, self.now)
        self.send(self.caller, task, count)

    def arrivals(self, times: Iterable[tuple[float, str]]) -> None:
        """The client sends each of these requests at its time (seconds from now)."""
        for after_s, task in times:
            self.at(self.now + after_s, lambda task=task: self.call(task))  # type: ignore[misc]

    def reports(
        self, figures: Callable[[int], dict[str, Any] | None], every_s: float = 0.25
    ) -> None:
        """Each worker reports from now on; ``figures(worker)`` gives what differs, None nothing."""

        def report() -> None:
            for worker in self.fleet.workers:
                found = figures(worker.number)
                if found is not None:
                    self.report(worker.number, **found)
            if self.sent_at or self.agenda:
                self.at(self.now + every_s, report)

        self.at(self.now, report)

    def run(self, until: Callable[[], bool] | None = None, limit_s: float = 1e6) -> float:
        """Run until everything sent is answered (or ``until`` is true); the seconds it took."""
        began = self.now
        while self.sent_at or self.agenda:
            if (until is not None and until()) or self.now - began > limit_s:
                break
            deadline = self.broker.next_deadline()
            event_at = self.agenda[0][0] if self.agenda else None
            if deadline is not None and (event_at is None or deadline <= event_at):
                self.now = max(self.now, deadline)
                self.perform(self.broker.tick(self.now))
            elif event_at is not None:
                self.now, _, what = heapq.heappop(self.agenda)
                what()
            else:
                raise AssertionError(f"{len(self.sent_at)} requests wait for nothing")
        return self.now - began

    # ---- figures -------------------------------------------------------------------------------

    def shares(self) -> list[float]:
        """The share of all answers that came from each worker."""
        counts = [0] * len(self.fleet.workers)
        for outcome in self.outcomes:
            counts[outcome.worker] += 1
        return [count / max(1, len(self.outcomes)) for count in counts]

    def mean_latency_s(self) -> float:
        """Over all answers."""
        return sum(outcome.latency_s for outcome in self.outcomes) / len(self.outcomes)

    def latency_s(self, quantile: float) -> float:
        """That quantile of the latency."""
        ordered = sorted(outcome.latency_s for outcome in self.outcomes)
        return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))]


def poisson(rate: float, count: int, task: str = "job", seed: int = 1) -> list[tuple[float, str]]:
    """Arrival times of a seeded open stream."""
    source = random.Random(seed)
    times, now = [], 0.0
    for _ in range(count):
        now += source.expovariate(rate)
        times.append((now, task))
    return times


def one_at_a_time(
    simulation: Simulation,
    count: int,
    task: str = "job",
    between: Callable[[], None] = lambda: None,
    pause_s: float = 0.01,
) -> None:
    """Each request is sent when the one before it is answered."""
    for _ in range(count):
        simulation.call(task)
        simulation.run(lambda: not simulation.sent_at)
        simulation.now += pause_s
        between()
