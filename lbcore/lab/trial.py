"""One policy on one scenario's requests: the real broker, and models of workers.

Everything that a real run has in between is here too: the way to a worker and back takes time,
CPU reports come late or not at all, what a worker has not begun can be recalled.  What a choice
costs the broker is not: it decides in no time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import Any, Final

import msgspec

from lbcore.core.actions import (
    Action,
    CancelRequest,
    Recall,
    ReplaceWorker,
    ToClient,
    ToWorker,
)
from lbcore.core.broker import Broker
from lbcore.core.errors import Status
from lbcore.core.frames import (
    CPU_SCALE,
    HEADER_BYTES,
    REPLY_HEADER,
    REPLY_SCAN,
    REQUEST_HEADER,
    REQUEST_SCAN,
    SEQUENCE_BITS,
    SEQUENCE_MASK,
    Kind,
)
from lbcore.core.policies import POLICIES, PolicyMaker
from lbcore.core.topology import Address, Limits, PolicyConfig, Topology, WorkerConfig
from lbcore.sim.world import START_S, World

from .conditions import Condition, Conditions
from .measures import SAMPLES, SERIES_WORKERS, Measures, Meter
from .model import Job, WorkerModel
from .scenario import Scenario
from .traffic import Traffic

#: a run that is not over after so many times the time that its work takes is hopeless
PATIENCE: Final = 50.0
#: what a task that takes a second says of its size, where it says one
SIZE_OF_A_SECOND: Final = 1000.0
_encode = msgspec.msgpack.Encoder().encode
_MANY: Final = 1 << 40


class Trial:
    """One run; ``run`` gives what was measured."""

    def __init__(
        self,
        scenario: Scenario,
        traffic: Traffic,
        policy: PolicyConfig,
        seed: int,
        policies: Mapping[str, PolicyMaker] = POLICIES,
    ) -> None:
        self.scenario = scenario
        self.traffic = traffic
        self.world = World(seed)
        self.conditions = Conditions(scenario)
        #: one way
        self._way_s = scenario.transit_s / 2.0
        topology = Topology(
            name=scenario.name,
            broker=Address(),
            workers=tuple(self._worker_configs()),
            policy=policy,
            limits=Limits(
                queue=_MANY, queue_bytes=_MANY, client_queue=_MANY, client_queue_bytes=_MANY
            ),
        )
        self.broker = Broker(topology, Random(seed), START_S, policies=policies)
        self.models = [
            WorkerModel(number, slots, self.conditions.at(number, 0.0), self.world, self._done)
            for number, slots in enumerate(self.conditions.slots)
        ]
        self.meter = Meter(scenario, traffic, self.models)
        self._due = self._sample_s = 0.0
        self._next = 0
        #: sequence of the client's last request; and of each repeat, which it repeats, how often
        self._sequence = len(traffic.moments)
        self._repeats: dict[int, tuple[int, int]] = {}
        self._reported = [(START_S, 0.0, 0.0)] * len(self.models)
        self._specs: list[dict[str, Any]] = [
            {"name": task.name, "cost": task.service_s, "idempotent": True}
            | ({"size": {"name": "size", "place": 0}} if task.sized else {})
            for task in scenario.tasks
        ]
        self.client = 0
        #: place in the scenario's tasks -> number of the task, and back
        self._places: dict[int, int] = {}
        self._of_number: dict[int, int] = {}

    def _worker_configs(self) -> Iterable[WorkerConfig]:
        number = core = 0
        for shape in self.scenario.workers:
            for _ in range(shape.count):
                number += 1
                # each has its cores to itself, but for what the scenario puts there
                cpus = tuple(range(core, core + shape.concurrency))
                core += shape.concurrency
                yield WorkerConfig(
                    name=f"worker-{number}",
                    weight=shape.weight,
                    concurrency=shape.concurrency,
                    cpus=cpus,
                )

    def run(self) -> Measures:
        """Let every request be answered."""
        world = self.world
        for number, model in enumerate(self.models):
            if not model.condition.is_absent:
                self._join(number)
            self._watch(number)
        self.client, actions = self.broker.client_joined("client", world.now)
        self._perform(actions)
        numbers = self.broker.ledger.tasks.numbers
        self._places = {place: numbers[spec["name"]] for place, spec in enumerate(self._specs)}
        self._of_number = {number: place for place, number in self._places.items()}
        if self._needs_reports:
            for number in range(len(self.models)):
                world.after(
                    self.scenario.reports.every_s * (number + 1) / len(self.models),
                    self._report,
                    number,
                )
        self._plan_arrival()
        self._sample_s = max(1e-6, self._span_s / SAMPLES)
        world.after(self._sample_s, self._sample)
        end = START_S + self.traffic.moments[-1] + PATIENCE * self._longest_s
        step = max(1.0, (end - START_S) / 1000.0)
        while not self.meter.is_over and world.now < end:
            world.run(world.now + step)
        return self.meter.measures()

    @property
    def _span_s(self) -> float:
        """About how long it takes, for samples."""
        return max(self.traffic.moments[-1], self.traffic.work_s / len(self.models))

    def _sample(self) -> None:
        if not self.meter.is_over and len(self.meter.series.moments) < 2 * SAMPLES:
            now, workers = self.world.now, self.broker.ledger.fleet.workers[:SERIES_WORKERS]
            load = [worker.backlog_s(now) for worker in workers]
            self.meter.series.sample(now - START_S, now, load)
            self.world.after(self._sample_s, self._sample)

    @property
    def _longest_s(self) -> float:
        return self.traffic.work_s / len(self.models) + 100.0 * self.scenario.mean_service_s

    # ---- workers -------------------------------------------------------------------------------

    def _join(self, number: int) -> None:
        hello = {"tasks": self._specs, "pid": 1000 + number}
        self._perform(self.broker.worker_joined(number, hello, self.world.now))

    def _watch(self, number: int) -> None:
        """Have its condition changed when it does."""
        edge = self.conditions.next_change(number, self.world.now - START_S)
        if edge < float("inf"):
            self.world.at(START_S + edge, self._change, number)

    def _change(self, number: int) -> None:
        now, model = self.world.now, self.models[number]
        before, after = model.condition, self.conditions.at(number, now - START_S)
        if after != before:
            self._become(number, before, after)
            self.meter.look(now)
        self._watch(number)

    def _become(self, number: int, before: Condition, after: Condition) -> None:
        now, model = self.world.now, self.models[number]
        if after.is_absent and not before.is_absent:
            running = model.crash(now)
            model.become(after, now)
            self._perform(self.broker.worker_lost(number, now, running))
            name = self.broker.ledger.fleet.workers[number].name
            death = {"pid": 1000 + number, "exit": "stopped", "requests": running}
            self._perform(self.broker.worker_died(name, death, now))
            return
        model.become(after, now)
        if before.is_absent and not after.is_absent:
            self._join(number)

    def _done(
        self, model: WorkerModel, job: Job, wall_s: float, cpu_s: float, failed: bool
    ) -> None:
        """A worker is done with a request: its answer sets out."""
        cpu = min(CPU_SCALE, round(cpu_s / wall_s * CPU_SCALE)) if wall_s > 0.0 else 0
        status = Status.TASK_ERROR if failed else Status.OK
        frame = REPLY_HEADER.pack(
            0, Kind.REPLY, status, self._places[job.task], job.request_id, wall_s, 0, cpu
        )
        if job.request_id >> SEQUENCE_BITS:
            self.meter.ran(self.world.now)
        self.world.after(self._way_s, self._answer, model.number, frame)

    def _answer(self, number: int, frame: bytes) -> None:
        self._perform(self.broker.worker_data(number, frame, self.world.now))

    def _take(self, number: int, jobs: list[Job]) -> None:
        """Requests arrive at a worker."""
        model, now = self.models[number], self.world.now
        if model.condition.is_absent:
            return
        for job in jobs:
            model.take(job, now)
        self.meter.look(now)

    def _recall(self, number: int) -> None:
        ids = self.models[number].give_back(self.world.now)
        self.world.after(self._way_s, self._recalled, number, ids)

    def _recalled(self, number: int, ids: list[int]) -> None:
        self._perform(self.broker.worker_recalled(number, ids, self.world.now))

    def _cancel(self, number: int, request_id: int) -> None:
        """A worker hears that nobody wants a request: it stops, and says so."""
        model, now = self.models[number], self.world.now
        run = model.running.get(request_id)
        wall_s = now - run.began if run is not None else 0.0
        if model.drop(request_id, now):
            if request_id >> SEQUENCE_BITS:
                self.meter.ran(now)
            frame = REPLY_HEADER.pack(0, Kind.REPLY, Status.CANCELLED, 0, request_id, wall_s, 0, 0)
            self.world.after(self._way_s, self._answer, number, frame)

    # ---- reports -------------------------------------------------------------------------------

    @property
    def _needs_reports(self) -> bool:
        """Whether reports say anything that a policy looks at; there are many."""
        scenario = self.scenario
        is_told = scenario.reports.lie or any(change.core < 1.0 for change in scenario.changes)
        return bool(is_told) or self.broker.ledger.policy.uses_cpu

    def _report(self, number: int) -> None:
        world, reports, model = self.world, self.scenario.reports, self.models[number]
        now = world.now
        model.catch_up(now)
        at, cpu_s, delay_s = self._reported[number]
        wall_s = now - at
        used, waited = model.core_cpu_s - cpu_s, model.core_delay_s - delay_s
        self._reported[number] = (now, model.core_cpu_s, model.core_delay_s)
        # where others want the core, it is never idle
        others = wall_s * model.slots - used if model.condition.core < 1.0 else 0.0
        figures: dict[str, Any] = {
            "at": now,
            "wall_s": wall_s,
            "cpu_s": used,
            "delay_s": waited,
            "cores": model.slots,
            "busy_s": used + others,
        }
        if reports.lie and (not reports.workers or number + 1 in reports.workers):
            figures |= _LIES[reports.lie](wall_s)
        world.after(reports.delay_s, self._take_report, number, figures)
        world.after(reports.every_s, self._report, number)

    def _take_report(self, number: int, figures: Mapping[str, Any]) -> None:
        if not self.meter.is_over:
            self.broker.worker_report(number, figures, self.world.now)

    # ---- requests ------------------------------------------------------------------------------

    def _plan_arrival(self) -> None:
        if self._next < len(self.traffic.moments):
            self.world.at(START_S + self.traffic.moments[self._next], self._arrive)

    def _arrive(self) -> None:
        """The next request comes, and all that come with it."""
        moments, first = self.traffic.moments, self._next
        moment, end = moments[first], first + 1
        while end < len(moments) and moments[end] == moment:
            end += 1
        self._next = end
        high = self.client << 32
        frames = [self._frame(high | each + 1, each) for each in range(first, end)]
        self.meter.arrived(end - first, self.world.now)
        self._perform(self.broker.client_data(self.client, b"".join(frames), self.world.now))
        self._plan_arrival()

    def _frame(self, request_id: int, index: int) -> bytes:
        """A request as a client sends it; one of a task with sizes says its size."""
        place = self.traffic.tasks[index]
        body = b""
        if self.scenario.tasks[place].sized:
            body = _encode([[round(self.traffic.sizes[index] * SIZE_OF_A_SECOND)], {}])
        return (
            REQUEST_HEADER.pack(len(body), Kind.REQUEST, 0, self._places[place], request_id, 0, 0)
            + body
        )

    def _original(self, sequence: int) -> tuple[int, int]:
        """Which request of the traffic that is, and how often it was repeated already."""
        return self._repeats.get(sequence, (sequence - 1, 0))

    def _repeat(self, index: int, repeated: int) -> None:
        """The client sends a request again that failed."""
        self._sequence += 1
        self._repeats[self._sequence] = index, repeated + 1
        request_id = self.client << 32 | self._sequence
        frame = self._frame(request_id, index)
        self.meter.arrived(1, self.world.now)
        self._perform(self.broker.client_data(self.client, frame, self.world.now))

    # ---- what the broker wants -----------------------------------------------------------------

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            if type(action) is ToWorker:
                self._send(action.worker, action.parts)
            elif type(action) is ToClient:
                for part in action.parts:
                    self._take_answers(part)
            elif type(action) is Recall:
                self.world.after(self._way_s, self._recall, action.worker)
            elif type(action) is CancelRequest:
                self.world.after(self._way_s, self._cancel, action.worker, action.request_id)
            elif type(action) is ReplaceWorker:
                raise AssertionError(f"nothing here should want a worker replaced: {action}")
        due = self.broker.next_deadline()
        if due is not None and (self._due <= self.world.now or due < self._due):
            self._due = max(due, self.world.now)
            self.world.at(due, self._tick)

    def _tick(self) -> None:
        self._due = 0.0
        self._perform(self.broker.tick(self.world.now))

    def _send(self, number: int, parts: list[bytes]) -> None:
        """Requests set out for a worker."""
        data = b"".join(parts) if len(parts) > 1 else parts[0]
        offset, end, unpack = 0, len(data), REQUEST_SCAN.unpack_from
        jobs: list[Job] = []
        hedges = self.broker.ledger.hedges
        sizes, shapes, now = self.traffic.sizes, self.scenario.tasks, self.world.now
        model = self.models[number]
        while offset < end:
            size, tag, request_id, _ = unpack(data, offset)
            offset += HEADER_BYTES + size
            if tag & 0xFF != Kind.REQUEST:
                continue
            # a second run has an id of the broker's own
            own = request_id if request_id >> SEQUENCE_BITS else hedges[request_id]
            index, _ = self._original(own & SEQUENCE_MASK)
            place = self._of_number[tag >> 16]
            job = Job(request_id, place, sizes[index], shapes[place].cpu)
            self.meter.sent(index, job, model, now)
            model.note_sent(job, now)
            jobs.append(job)
        if jobs:
            self.world.after(self._way_s, self._take, number, jobs)

    def _take_answers(self, data: bytes) -> None:
        offset, end, unpack = 0, len(data), REPLY_SCAN.unpack_from
        while offset < end:
            size, tag, request_id, _, _ = unpack(data, offset)
            offset += HEADER_BYTES + size
            if tag & 0xFF != Kind.REPLY:
                continue
            index, repeated = self._original(request_id & SEQUENCE_MASK)
            failed = bool(tag >> 8 & 0xFF)
            if failed and repeated < self.scenario.retries:
                self.meter.wasted += 1
                self.world.after(self.scenario.retry_s, self._repeat, index, repeated)
                continue
            self.meter.answered(index, self.world.now - START_S, failed)


#: what a report says instead of the truth, of that many seconds
_LIES: Final[Mapping[str, Callable[[float], dict[str, float]]]] = {
    "idle": lambda wall_s: {"cpu_s": 0.0, "delay_s": 0.0, "busy_s": 0.0},
    "busy": lambda wall_s: {"cpu_s": wall_s, "delay_s": 9.0 * wall_s, "busy_s": wall_s},
    "nan": lambda wall_s: {"cpu_s": float("nan"), "busy_s": float("nan")},
}
