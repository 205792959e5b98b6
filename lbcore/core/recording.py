"""What a recording of a running broker holds, and how the core hands it over.

The broker tells of each request that a worker answered: when it came, what it waited and what it
took.  Nothing here writes: a ``Sink`` takes the records.  The books are looked at only where a
policy would be told of the same (``following``), so a broker that records nothing pays nothing.

A file of it is JSON lines: a ``Header``, then a list for each request and an object for everything
else; ``lbcore/shell/recorder.py`` writes it, ``lbcore/lab/replay.py`` reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from .errors import Status
from .ledger import Ledger
from .queue import RequestQueue, Run

#: of the format, in every header
FORMAT: Final = 1
#: requests that left without a worker's answer are swept out beyond so many
OPEN_MIN: Final = 1024
#: nobody's task takes decades; a worker that says so is not believed
SERVICE_MAX_S: Final = 1e9

_CANCELLED: Final = int(Status.CANCELLED)


class Record(NamedTuple):
    """One request that a worker answered; a line is a list of these, in this order."""

    #: when it came, in seconds since the recording began
    arrived_s: float
    #: number of its task, named by a ``Figures`` before it
    task: int
    #: number of the worker that answered
    worker: int
    #: from its arrival to its answer, less what it ran
    waiting_s: float
    service_s: float
    #: 0, or the number of an error
    status: int
    #: number of its client
    client: int


class RecordedWorker(msgspec.Struct, frozen=True):
    """One worker of the topology."""

    number: int
    name: str
    weight: float
    concurrency: int


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The first line."""

    lb_recording: int
    name: str
    policy: str
    workers: tuple[RecordedWorker, ...]
    #: wall time of the beginning, and the same on the clock that the records count from
    started: str
    began: float


class WorkerFigures(msgspec.Struct, frozen=True, array_like=True):
    """One worker at a moment."""

    number: int
    pending: int
    cpu: float
    #: as learned; 1 is the fleet's unit
    speed: float


class TaskFigures(msgspec.Struct, frozen=True, array_like=True):
    """What is known of a task."""

    number: int
    name: str
    cost_s: float
    #: the part of that which needs a core
    cpu: float


class Figures(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The whole system at a moment; ``tasks`` and ``lost`` only where they say something new."""

    at: float
    queued: int
    transit_s: float
    workers: list[WorkerFigures]
    tasks: tuple[TaskFigures, ...] = ()
    #: records that could not be kept, since the last such line
    lost: int = 0
    #: another topology holds since then
    policy: str = ""
    changed: tuple[RecordedWorker, ...] = ()


class Sink(Protocol):
    """Takes records; must neither block nor raise."""

    def take(self, record: Record) -> None:
        """One more."""
        ...


class Recording:
    """What the broker has to remember of each request that is not answered: when it came."""

    def __init__(
        self, ledger: Ledger, sink: Sink, began: float, clock: Callable[[], float]
    ) -> None:
        """``began`` is the moment that records count from, on the broker's clock."""
        self._ledger = ledger
        self._sink = sink
        self._began = began
        self._clock = clock
        #: id -> when it came
        self._open: dict[int, float] = {}

    def queued(self, run: Run) -> None:
        """These requests have to wait; or do so again."""
        now, known = self._clock(), self._open
        for request_id, _ in run.entries:
            known.setdefault(request_id, now)

    def sent(self, ids: Sequence[int], now: float) -> None:
        """These requests were sent to a worker."""
        known, ledger = self._open, self._ledger
        for request_id in ids:
            known.setdefault(request_id, now)
        if len(known) > OPEN_MIN + 2 * (ledger.in_flight + ledger.queue.count):
            self._sweep()

    def _sweep(self) -> None:
        """Forget what nobody will answer: it was cancelled, or its client has left."""
        ledger = self._ledger
        present = {each for run in ledger.queue.runs() for each, _ in run.entries}
        present.update(*(worker.inflight for worker in ledger.fleet.workers))
        self._open = {key: value for key, value in self._open.items() if key in present}

    def answered(
        self, worker: int, task: int, request_id: int, service_s: float, status: int, now: float
    ) -> None:
        """A worker has answered a request."""
        if status == _CANCELLED:
            return  # it may be sent again; else somebody ended it
        arrived = self._open.pop(request_id, None)
        if arrived is not None:
            if not 0.0 <= service_s < SERVICE_MAX_S:
                service_s = 0.0
            self._sink.take(
                Record(
                    arrived - self._began,
                    task,
                    worker,
                    max(0.0, now - arrived - service_s),
                    service_s,
                    status,
                    request_id >> 32,
                )
            )


class _RecordedQueue(RequestQueue):
    """A queue that tells what comes in."""

    __slots__ = ("_recording",)

    def __init__(self, ledger: Ledger, recording: Recording) -> None:
        super().__init__(ledger.clients)
        self._recording = recording

    def append(self, run: Run, size: int, *, timed: bool = False) -> None:
        """Add a run, and tell of it."""
        self._recording.queued(run)
        super().append(run, size, timed=timed)


def start_recording(
    ledger: Ledger, sink: Sink, began: float, clock: Callable[[], float]
) -> Recording:
    """Have the books of a broker that has not begun tell of every request."""
    assert not ledger.queue.count, "what waits already would be lost"
    recording = Recording(ledger, sink, began, clock)
    ledger.recording = recording
    ledger.queue = _RecordedQueue(ledger, recording)
    ledger.heed_policy()
    return recording


def recorded_workers(ledger: Ledger) -> tuple[RecordedWorker, ...]:
    """The workers of the topology that holds."""
    return tuple(
        RecordedWorker(worker.number, worker.name, worker.config.weight, worker.config.concurrency)
        for worker in ledger.fleet.by_name.values()
    )


def present_figures(ledger: Ledger, at: float, **more: Any) -> Figures:
    """The figures of this moment, every task included."""
    fleet = ledger.fleet
    return Figures(
        at=at,
        queued=ledger.queue.count,
        transit_s=fleet.transit_s,
        workers=[
            WorkerFigures(each.number, each.pending, round(each.cpu, 4), round(each.speed(), 5))
            for each in fleet.by_name.values()
        ],
        tasks=tuple(
            TaskFigures(number, ledger.tasks.name(number), cost.mean_s, round(cost.cpu_share, 3))
            for number in range(len(ledger.tasks.specs))
            if (cost := fleet.costs[number]).count
        ),
        **more,
    )
