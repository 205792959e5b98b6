"""A broker core with virtual clients and workers around it: bytes in, actions out, virtual time.

Everything goes through the door (``Broker``); what it says to clients and workers is read back from
the bytes.  The books are checked after every event.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lbcore.core.actions import (
    Action,
    CloseClient,
    CloseWorker,
    Control,
    Note,
    Recall,
    ToClient,
    ToWorker,
)
from lbcore.core.broker import Broker
from lbcore.core.frames import (
    CPU_UNKNOWN,
    HEADER_BYTES,
    REPLY_HEADER,
    REQUEST_HEADER,
    Kind,
    control_frame,
    decode_body,
    reply_frame,
    request_frame,
)
from lbcore.core.status import answer_control
from lbcore.core.topology import Address, Limits, PolicyConfig, Topology, WorkerConfig

#: seconds on the virtual clock at which every test begins
START_S = 1000.0

Spec = Mapping[str, Any]


def spec(name: str, cost: float = 1.0, **more: Any) -> dict[str, Any]:
    """What a worker says of a task."""
    return {"name": name, "aliases": [], "cost": cost, **more}


#: what the workers of a test can run unless it says otherwise
TASKS: tuple[Spec, ...] = (
    spec("short", 0.5, aliases=["Short"]),
    spec("long", 10.0),
    spec("tiny", 1e-6),
    spec("frail", 0.5, idempotent=False),
)


class Held(NamedTuple):
    """A request that a virtual worker has received and not answered."""

    id: int
    task: int
    body: bytes
    flags: int


class Answer(NamedTuple):
    """A reply frame that a virtual client has received."""

    id: int
    status: int
    body: bytes
    task: int
    worker: int
    service_s: float

    @property
    def error(self) -> dict[str, Any]:
        """The body of an answer that is an error."""
        value = decode_body(self.body)
        assert isinstance(value, dict), value
        return value


def weighted(*weights: float, **more: Any) -> list[WorkerConfig]:
    """Workers of these declared weights."""
    return [
        WorkerConfig(name=f"worker-{number + 1}", weight=weight, **more)
        for number, weight in enumerate(weights)
    ]


def topology(
    workers: int | Sequence[WorkerConfig] = 2,
    policy: str | PolicyConfig = "least_load",
    limits: Limits | None = None,
    concurrency: int = 1,
) -> Topology:
    """A topology of that many equal workers, or of these."""
    if isinstance(workers, int):
        workers = weighted(*[1.0] * workers, concurrency=concurrency)
    return Topology(
        name="tested",
        broker=Address(port=8000),
        workers=tuple(workers),
        policy=PolicyConfig(name=policy) if isinstance(policy, str) else policy,
        limits=limits or Limits(),
    )


class Driver:
    """Drives one broker; keeps what each virtual worker holds and what each client received."""

    def __init__(
        self,
        workers: int | Sequence[WorkerConfig] = 2,
        policy: str | PolicyConfig = "least_load",
        *,
        tasks: Sequence[Spec] = TASKS,
        limits: Limits | None = None,
        concurrency: int = 1,
        seed: int = 0,
        join: bool = True,
        check: bool = True,
    ) -> None:
        self.now = START_S
        self.tasks = tasks
        self.broker = Broker(
            topology(workers, policy, limits, concurrency), random.Random(seed), self.now
        )
        self.ledger = self.broker.ledger
        self.fleet = self.ledger.fleet
        self.checked = check
        #: worker number -> the requests it holds, in the order in which they came
        self.held: dict[int, list[Held]] = defaultdict(list)
        #: client number -> its answers, in the order in which they came
        self.answers: dict[int, list[Answer]] = defaultdict(list)
        #: (worker number, request id) of everything that was ever sent to a worker
        self.sent: list[tuple[int, int]] = []
        self.numbers: dict[str, int] = {}
        self.sequence: dict[int, int] = defaultdict(int)
        self.recalls: list[int] = []
        self.controls: list[Control] = []
        self.notes: list[Note] = []
        self.closed: list[CloseClient | CloseWorker] = []
        if join:
            for number in range(len(self.fleet.workers)):
                self.join(number)

    # ---- what the broker decided ---------------------------------------------------------------

    def perform(self, actions: Iterable[Action]) -> None:
        """Deliver what the broker wrote, and check its books."""
        for action in actions:
            match action:
                case ToWorker(worker=number, parts=parts):
                    self._to_worker(number, b"".join(parts))
                case ToClient(client=number, parts=parts):
                    self._to_client(number, b"".join(parts))
                case Recall(worker=number):
                    self.recalls.append(number)
                case Control():
                    self.controls.append(action)
                case Note():
                    self.notes.append(action)
                case CloseClient() | CloseWorker():
                    self.closed.append(action)
        if self.checked:
            self.check()

    def _to_worker(self, number: int, data: bytes) -> None:
        offset = 0
        while offset < len(data):
            size, kind, flags, task, request_id, _, _ = REQUEST_HEADER.unpack_from(data, offset)
            body = data[offset + HEADER_BYTES : offset + HEADER_BYTES + size]
            if kind == Kind.REQUEST:
                self.held[number].append(Held(request_id, task, body, flags))
                self.sent.append((number, request_id))
            else:
                assert kind == Kind.TASKS, kind
            offset += HEADER_BYTES + size
        assert offset == len(data), "the broker cut a frame in two"

    def _to_client(self, number: int, data: bytes) -> None:
        offset = 0
        while offset < len(data):
            size, kind, status, task, request_id, service_s, worker, _ = REPLY_HEADER.unpack_from(
                data, offset
            )
            body = data[offset + HEADER_BYTES : offset + HEADER_BYTES + size]
            if kind == Kind.REPLY:
                assert request_id >> 32 == number or status, "an answer for somebody else"
                self.answers[number].append(
                    Answer(request_id, status, body, task, worker, service_s)
                )
            else:
                message = decode_body(body)
                self.numbers = message["tasks"] if kind == Kind.WELCOME else message
            offset += HEADER_BYTES + size
        assert offset == len(data), "the broker cut a frame in two"

    def check(self) -> None:
        """The books are right, and both sides agree on who holds what."""
        self.ledger.check()
        for worker in self.fleet.workers:
            ours = [held.id for held in self.held[worker.number]]
            assert list(worker.inflight) == ours, worker.name

    # ---- workers -------------------------------------------------------------------------------

    def join(self, number: int, tasks: Sequence[Spec] | None = None) -> None:
        """A worker connects and greets."""
        hello = {"pid": 100 + number, "tasks": [dict(task) for task in tasks or self.tasks]}
        self.perform(self.broker.worker_joined(number, hello, self.now))

    def lose(self, number: int, running: int | None = None) -> None:
        """A worker's connection breaks; ``running`` is what it ran, as far as that is known."""
        self.held[number].clear()
        self.perform(self.broker.worker_lost(number, self.now, running))

    def replies(
        self,
        number: int,
        count: int = 1,
        *,
        status: int = 0,
        service_s: float = 0.5,
        cpu: int = CPU_UNKNOWN,
        body: bytes = b"\xc0",
    ) -> bytes:
        """The bytes with which a worker answers its first requests; they are no longer held."""
        held = self.held[number]
        done, held[:] = held[:count], held[count:]
        assert len(done) == count, f"worker {number} holds only {len(done)}"
        return b"".join(
            reply_frame(
                request.id,
                request.task,
                body,
                status=status,
                service_s=service_s,
                worker=number,
                cpu=cpu,
            )
            for request in done
        )

    def answer(self, number: int, count: int = 1, **more: Any) -> None:
        """A worker answers its first ``count`` requests, in one read; see ``replies``."""
        self.from_worker(number, self.replies(number, count, **more))

    def from_worker(self, number: int, data: bytes) -> None:
        """One read from a worker's request connection."""
        self.perform(self.broker.worker_data(number, data, self.now))

    def give_back(self, number: int, running: int = 1) -> list[int]:
        """A worker answers a recall: all but the first ones, which it has begun."""
        held = self.held[number]
        back, held[:] = held[running:], held[:running]
        ids = [request.id for request in back]
        self.perform(self.broker.worker_recalled(number, ids, self.now))
        return ids

    def report(self, number: int, **figures: Any) -> None:
        """A worker's CPU report: by default of an idle worker on one quiet core."""
        report = {
            "at": self.now,
            "wall_s": 0.25,
            "cpu_s": 0.0,
            "delay_s": 0.0,
            "cores": 1,
            "busy_s": 0.0,
            "rss_bytes": 1 << 20,
            **figures,
        }
        self.perform(self.broker.worker_report(number, report, self.now))

    def pending(self) -> list[int]:
        """How many requests each worker holds."""
        return [len(self.held[worker.number]) for worker in self.fleet.workers]

    # ---- clients -------------------------------------------------------------------------------

    def client(self, name: str = "client") -> int:
        """A client connects; returns its number."""
        number, actions = self.broker.client_joined(name)
        self.perform(actions)
        return number

    def leave(self, number: int) -> None:
        """A client's connection ends."""
        self.perform(self.broker.client_left(number, self.now))

    def request(
        self, client: int, task: str | int = "short", body: bytes = b"", **more: int
    ) -> bytes:
        """A request frame with the client's next id."""
        self.sequence[client] += 1
        number = task if isinstance(task, int) else self.numbers[task]
        return request_frame(client << 32 | self.sequence[client], number, body, **more)

    def send(
        self, client: int, task: str | int = "short", count: int = 1, body: bytes = b"", **more: int
    ) -> list[int]:
        """A client sends requests, all in one read; returns their ids."""
        first = self.sequence[client] + 1
        data = b"".join([self.request(client, task, body, **more) for _ in range(count)])
        self.from_client(client, data)
        return [client << 32 | sequence for sequence in range(first, first + count)]

    def from_client(self, client: int, data: bytes) -> None:
        """One read from a client."""
        self.perform(self.broker.client_data(client, data, self.now))

    def ask(self, client: int, message: Mapping[str, Any]) -> Any:
        """Ask the broker about itself; returns the answer's value."""
        self.from_client(client, control_frame(Kind.CONTROL, message, 7))
        request = self.controls.pop()
        assert (request.client, request.request_id) == (client, 7)
        return answer_control(self.broker, decode_body(request.body), self.now)["ok"]

    def statuses(self, client: int) -> list[int]:
        """The statuses of a client's answers so far."""
        return [answer.status for answer in self.answers[client]]

    def answered_ids(self, client: int) -> list[int]:
        """The ids of a client's answers so far."""
        return [answer.id for answer in self.answers[client]]

    # ---- time ----------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Let time pass; the broker is woken whenever it asked for it."""
        end = self.now + seconds
        while (at := self.broker.next_deadline()) is not None and at <= end:
            self.now = max(self.now, at)
            self.perform(self.broker.tick(self.now))
        self.now = end

    def finish(self) -> None:
        """Answer everything that is still held or comes meanwhile; then nothing may be left."""
        while any(self.held.values()):
            for worker in self.fleet.workers:
                if self.held[worker.number]:
                    self.answer(worker.number, len(self.held[worker.number]))
        self.advance(0.1)
        if any(self.held.values()):
            self.finish()

    def assert_empty(self) -> None:
        """Nothing waits, nothing runs, and no side table remembers a request."""
        ledger = self.ledger
        assert (ledger.queue.count, ledger.queue.bytes, ledger.in_flight) == (0, 0, 0)
        assert not ledger.attempts
        assert not ledger.timed
        assert not ledger.answered
        assert not ledger.loaded
        assert not ledger.recalled
        assert all(client.in_flight == 0 for client in ledger.clients.values())
        assert all(not worker.counts for worker in self.fleet.workers)
