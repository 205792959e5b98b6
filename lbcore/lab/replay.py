"""A recording of a running system as traffic: what if it had had other workers, or another policy?

The arrivals are the recorded ones.  What each request took is put back to a worker of speed 1, as
far as its task needs a core, by the speed that its worker was learned to have.  What the clients
would have done differently, because their answers had come sooner or later, is not known.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final

import msgspec

from lbcore.core.recording import (
    FORMAT,
    Figures,
    Header,
    Record,
    RecordedWorker,
    WorkerFigures,
)

from .measures import GRID, Detail, Measures, figures, quantile, worst_share
from .scenario import Scenario, ScenarioError, TaskShape, WorkerShape
from .traffic import Traffic

#: what a request takes at least, in seconds: some took less than a clock can tell
SIZE_MIN_S: Final = 1e-7
#: the name of the recorded system's own row
AS_RECORDED: Final = "as recorded"

_header = msgspec.json.Decoder(Header)
_figures = msgspec.json.Decoder(Figures)
_record = msgspec.json.Decoder(tuple[float, int, int, float, float, int, int])


@dataclass(slots=True)
class Recorded:
    """What a recording holds."""

    header: Header
    #: in order of arrival
    records: list[Record] = field(default_factory=list)
    policy: str = ""
    #: by number: what the topology said, and the last speed that was learned
    workers: dict[int, RecordedWorker] = field(default_factory=dict)
    speeds: dict[int, float] = field(default_factory=dict)
    #: by number: name, and the part of its time that needs a core
    tasks: dict[int, tuple[str, float]] = field(default_factory=dict)
    transit_s: float = 0.0003
    #: the system from moment to moment
    moments: list[Figures] = field(default_factory=list)
    #: records that were not kept
    lost: int = 0
    #: the last line was cut short
    is_truncated: bool = False


def read_recording(data: bytes, name: str) -> Recorded:
    """The recording that a file holds; its last line may be cut short.

    Raises ``ScenarioError`` with the place of the first line that is not of a recording.
    """
    first, *lines = data.split(b"\n")
    found = Recorded(_read_header(first, name))
    found.policy = found.header.policy
    found.workers = {worker.number: worker for worker in found.header.workers}
    for number, line in enumerate(lines, 2):
        if not line and number == len(lines) + 1:
            break
        try:
            if line.startswith(b"["):
                found.records.append(Record(*_record.decode(line)))
            else:
                _take(found, _figures.decode(line))
        except msgspec.DecodeError as error:
            if number < len(lines) + 1:
                what = f"not a line of a recording ({error})"
                raise ScenarioError(f"{name}:{number}: {what}") from None
            found.is_truncated = True
    if not found.records:
        raise ScenarioError(f"{name} holds no answered request")
    _check(found, name)
    found.records.sort()
    return found


def is_recording(data: bytes) -> bool:
    """Whether a file with these bytes claims to be one."""
    return data.startswith(b'{"lb_recording":')


def _read_header(line: bytes, name: str) -> Header:
    try:
        header = _header.decode(line)
    except msgspec.DecodeError:
        raise ScenarioError(f"{name} is no recording of `lb up --record`") from None
    if header.lb_recording != FORMAT:
        what = f"a recording of format {header.lb_recording}"
        raise ScenarioError(f"{name} is {what}; this lb reads format {FORMAT}")
    return header


def _take(found: Recorded, figures: Figures) -> None:
    found.moments.append(figures)
    found.transit_s = figures.transit_s
    found.lost += figures.lost
    found.policy = figures.policy or found.policy
    for worker in figures.changed:
        found.workers[worker.number] = worker
    for each in figures.workers:
        found.speeds[each.number] = each.speed
    for task in figures.tasks:
        found.tasks[task.number] = task.name, task.cpu


def _check(found: Recorded, name: str) -> None:
    """Everything is of the right kind; is it possible, too?"""
    for record in found.records:
        times = record.arrived_s, record.waiting_s, record.service_s
        if not all(0.0 <= seconds < math.inf for seconds in times):
            raise ScenarioError(f"{name}: a request at {record.arrived_s:g} s has impossible times")
        if record.worker not in found.workers:
            raise ScenarioError(f"{name}: there is no worker number {record.worker} in it")
    for worker in found.workers.values():
        if not (worker.weight > 0.0 and worker.concurrency > 0):
            raise ScenarioError(f"{name}: {worker.name} has an impossible weight or concurrency")


def replayed(
    found: Recorded, name: str, *, workers: int | None = None, load: float = 1.0
) -> tuple[Scenario, Traffic]:
    """The recorded requests as a scenario's traffic.

    With ``workers`` on so many equal ones of speed 1, else on the recorded ones, as fast as they
    were learned to be.  With ``load`` they come so many times as fast.
    """
    numbers = sorted({record.task for record in found.records})
    place_of = {number: place for place, number in enumerate(numbers)}
    cpus = [found.tasks.get(number, ("", 1.0))[1] for number in numbers]
    first = found.records[0].arrived_s
    moments = [(record.arrived_s - first) / load for record in found.records]
    places = [place_of[record.task] for record in found.records]
    sizes = [
        max(SIZE_MIN_S, record.service_s * _rate(_speed_of(found, record.worker), cpus[place]))
        for record, place in zip(found.records, places, strict=True)
    ]
    shapes = (WorkerShape(count=workers),) if workers else tuple(_worker_shapes(found))
    scenario = Scenario(
        name=name,
        workers=shapes,
        tasks=tuple(_task_shapes(found, numbers, places, sizes, cpus)),
        requests=len(sizes),
        arrivals="recorded",
        transit_s=found.transit_s,
    )
    able_s = sum(each.count * each.speed * each.concurrency for each in scenario.workers)
    span_s = moments[-1] or 1e-9
    return replace(scenario, load=math.fsum(sizes) / span_s / able_s), Traffic(
        moments, places, sizes
    )


def _rate(speed: float, cpu: float) -> float:
    return 1.0 / (1.0 - cpu + cpu / speed)


def _speed_of(found: Recorded, number: int) -> float:
    """As learned; as the topology says where nothing was."""
    speed = found.speeds.get(number, found.workers[number].weight)
    return speed if speed > 0.0 else 1.0


def _worker_shapes(found: Recorded) -> Iterable[WorkerShape]:
    for number, worker in sorted(found.workers.items()):
        yield WorkerShape(
            speed=_speed_of(found, number), weight=worker.weight, concurrency=worker.concurrency
        )


def _task_shapes(
    found: Recorded,
    numbers: list[int],
    places: list[int],
    sizes: list[float],
    cpus: list[float],
) -> Iterable[TaskShape]:
    counts = Counter(places)
    work: dict[int, float] = dict.fromkeys(counts, 0.0)
    for place, size in zip(places, sizes, strict=True):
        work[place] += size
    for place, number in enumerate(numbers):
        name, _ = found.tasks.get(number, (f"task {number}", 1.0))
        yield TaskShape(
            name=name,
            service_s=work[place] / counts[place],
            share=float(counts[place]),
            cpu=cpus[place],
        )


def _ables(found: Recorded) -> dict[int, float]:
    """What each worker can do, by number, relative to one slot of speed 1."""
    return {
        number: _speed_of(found, number) * worker.concurrency
        for number, worker in found.workers.items()
    }


def recorded_detail(found: Recorded, traffic: Traffic) -> Detail:
    """What a report shows of the recorded system; by worker, in the order of their numbers."""
    numbers, ables = sorted(found.workers), _ables(found)
    counts = Counter(record.worker for record in found.records)
    work = dict.fromkeys(numbers, 0.0)
    for record, size in zip(found.records, traffic.sizes, strict=True):
        work[record.worker] += size
    done, able = math.fsum(work.values()), math.fsum(ables.values())
    times = sorted(each.waiting_s + each.service_s for each in found.records if not each.status)
    rows = [{each.number: each for each in figures.workers} for figures in found.moments]
    return Detail(
        quantiles=[(q, quantile(times, q)) for q in GRID],
        requests=[counts[number] for number in numbers],
        shares=[work[number] / done / (ables[number] / able) for number in numbers],
        moments=[figures.at for figures in found.moments],
        pending=[[row[n].pending if n in row else 0 for n in numbers] for row in rows],
        busy=[
            [_cpu_of(row.get(number), found.workers[number].concurrency) for number in numbers]
            for row in rows
        ],
        load=[],
    )


def _cpu_of(figures: WorkerFigures | None, slots: int) -> float:
    """The part of the cores that a worker's requests can use that it did use."""
    return 0.0 if figures is None else min(1.0, figures.cpu / slots)


def as_recorded(found: Recorded, traffic: Traffic) -> Measures:
    """The figures of the recorded system itself, as far as a recording has them.

    ``traffic`` holds the same requests.  What only a simulation can know is NaN.
    """
    records = found.records
    responses = [
        math.nan if record.status else record.waiting_s + record.service_s for record in records
    ]
    work = dict.fromkeys(found.workers, 0.0)
    for record, size in zip(records, traffic.sizes, strict=True):
        work[record.worker] += size
    ables = _ables(found)
    failed = sum(record.status != 0 for record in records) / len(records)
    ends = [record.arrived_s + record.waiting_s + record.service_s for record in records]
    measured: dict[str, Any] = figures(responses, traffic)
    return Measures(
        **measured,
        makespan=max(ends) - records[0].arrived_s,
        worst_share=worst_share(list(work.values()), [ables[number] for number in work]),
        misroutes=math.nan,
        idle=math.nan,
        failed=failed,
        wasted=failed,
        lost=0,
    )
