"""A broker core with virtual clients and workers around it: bytes in, actions out, virtual time.

Everything goes through the door (``Broker``); what it says to clients and workers is read back from
the bytes.  The books are checked after every event.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from lbcore.core.actions import (
    Action,
    CancelRequest,
    CloseClient,
    CloseWorker,
    Control,
    Drained,
    LookUp,
    Note,
    Recall,
    ReplaceWorker,
    ToClient,
    ToWorker,
    Write,
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
from lbcore.core.topology import Limits, PolicyConfig, WorkerConfig
from tests.core.nouns import START_S, TASKS, Answer, Held, Spec, spec, topology, weighted

from .virtual_store import VirtualStore

__all__ = ["START_S", "TASKS", "Answer", "Driver", "Held", "spec", "topology", "weighted"]


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
        **more: Any,
    ) -> None:
        self.now = START_S
        self.tasks = tasks
        self.broker = Broker(
            topology(workers, policy, limits, concurrency), random.Random(seed), self.now, **more
        )
        self.ledger = self.broker.ledger
        self.fleet = self.ledger.fleet
        self.checked = check
        #: worker number -> how many processes of it have died
        self.lives: dict[int, int] = defaultdict(int)
        self.cancels: list[tuple[int, int]] = []
        self.replacements: list[ReplaceWorker] = []
        #: the last WELCOME of each client
        self.welcomes: dict[int, dict[str, Any]] = {}
        #: worker number -> the requests it holds, in the order in which they came
        self.held: dict[int, list[Held]] = defaultdict(list)
        #: client number -> its answers, in the order in which they came
        self.answers: dict[int, list[Answer]] = defaultdict(list)
        #: (worker number, request id) of everything that was sent to a worker
        self.sent: list[tuple[int, int]] = []
        self.numbers: dict[str, int] = {}
        self.sequence: dict[int, int] = defaultdict(int)
        self.recalls: list[int] = []
        self.controls: list[Control] = []
        self.notes: list[Note] = []
        self.closed: list[CloseClient | CloseWorker] = []
        #: workers of which the broker said that they have nothing left
        self.drained: list[int] = []
        #: what clients were told of workers
        self.news: list[dict[str, Any]] = []
        self.disk = VirtualStore()
        self.told: dict[int, list[Any]] = defaultdict(list)
        self.accepted: list[tuple[int, int]] = []  # (client, id) of durable requests
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
                case Write() | LookUp():
                    self.disk.orders.append(action)
                case CancelRequest(worker=number, request_id=request_id):
                    self.cancels.append((number, request_id))
                case ReplaceWorker():
                    self.replacements.append(action)
                case Note():
                    self.notes.append(action)
                case Drained(worker=number):
                    self.drained.append(number)
                case CloseClient() | CloseWorker():
                    self.closed.append(action)
        if self.checked:
            self.check()
        if self.disk.works:
            self.let_store()

    def let_store(self) -> None:
        """The disk does what it was asked for."""
        while self.disk.orders:
            self.perform(self.broker.stored(self.disk.next_event(), self.now))

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
            elif kind == Kind.WORKERS:
                self.news.append(decode_body(body))
            elif kind == Kind.ACCEPTED:
                count = REQUEST_HEADER.unpack_from(data, offset)[5]
                self.accepted += [(number, request_id + each) for each in range(count)]
            elif kind == Kind.CONTROL_REPLY:
                self.told[number].append(decode_body(body))
            else:
                message = decode_body(body)
                if kind == Kind.WELCOME:
                    self.welcomes[number] = message
                self.numbers = message["tasks"] if kind == Kind.WELCOME else message
            offset += HEADER_BYTES + size
        assert offset == len(data), "the broker cut a frame in two"

    def check(self) -> None:
        """The books are right, and both sides agree on who holds what."""
        self.ledger.check()
        for worker in self.fleet.workers:
            ours = [held.id for held in self.held[worker.number]]
            marking = self.ledger.durable.marking
            sent = [request_id for request_id in worker.inflight if request_id not in marking]
            assert sent == ours, worker.name

    # ---- workers -------------------------------------------------------------------------------

    def pid(self, number: int) -> int:
        """The worker's present process."""
        return 100 + number + 1000 * self.lives[number]

    def join(
        self,
        number: int,
        tasks: Sequence[Spec] | None = None,
        running: Sequence[tuple[int, str]] = (),
    ) -> None:
        """A worker connects and greets; ``running`` is what it has begun for another connection."""
        hello = {
            "pid": self.pid(number),
            "tasks": [dict(task) for task in tasks or self.tasks],
            "running": [list(pair) for pair in running],
        }
        actions = self.broker.worker_joined(number, hello, self.now)
        for request_id, name in running:
            # what it is not sent it has already
            task = self.ledger.tasks.numbers.get(name, 0)
            if request_id in self.fleet.workers[number].inflight:
                self.held[number].append(Held(request_id, task, b"", 0))
        self.perform(actions)

    def cut(self, number: int, running: Collection[int] | None = None) -> list[Held]:
        """A worker's connection breaks; ``running`` is what it ran, as far as that is known.

        Returns what it held.
        """
        held, self.held[number] = self.held[number], []
        self.perform(self.broker.worker_lost(number, self.now, running))
        return held

    def die(self, number: int, **death: Any) -> None:
        """The supervisor says how a worker's process ended; its next one has another pid."""
        how = {"exit": "signal 9 (SIGKILL)", "signal": 9, "code": None, **death}
        name, pid = self.fleet.workers[number].name, self.pid(number)
        self.lives[number] += 1
        self.perform(self.broker.worker_died(name, {"pid": pid, **how}, self.now))

    def lose(self, number: int, running: Collection[int] | None = None, **death: Any) -> None:
        """A worker's process dies, and everybody hears of it."""
        self.cut(number, running)
        self.die(number, **death)

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

    def client(self, name: str = "client", resume: int = 0) -> int:
        """A client connects; returns its number."""
        number, actions = self.broker.client_joined(name, self.now, resume)
        self.perform(actions)
        return number

    def leave(self, number: int) -> None:
        """A client says farewell."""
        self.perform(self.broker.client_left(number, self.now))

    def pause(self, number: int, paused: bool) -> None:
        """A client does not take its answers, or does so again."""
        self.perform(self.broker.client_paused(number, paused, self.now))

    def vanish(self, number: int) -> None:
        """A client's connection breaks."""
        self.perform(self.broker.client_lost(number, self.now))

    def cancel(self, request_id: int) -> None:
        """A client takes a request back."""
        client = request_id >> 32
        self.from_client(client, control_frame(Kind.CANCEL, None, request_id))

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
        return answer_control(self.broker, decode_body(request.body), self.now, "admin")["ok"]

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
        assert ledger.idle
        assert not ledger.attempts
        assert not ledger.died_under
        assert not ledger.timed
        assert not ledger.grace
        assert not ledger.revived
        assert not ledger.adopted
        assert not any(worker.solo for worker in self.fleet.workers)
        assert not ledger.answered
        assert not ledger.loaded
        assert not ledger.recalled
        assert not ledger.spared
        assert not ledger.durable.open
        assert ledger.durable.is_idle
        assert not self.disk.requests
        assert all(client.in_flight == 0 for client in ledger.clients.values())
        assert all(not worker.counts for worker in self.fleet.workers)
