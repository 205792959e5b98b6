"""The broker's books: who is connected, what waits, what runs where, and what is unusual about it.

A request is in exactly one place: the queue, or one worker's ``inflight``; it leaves with its
answer. The usual request is its id and its frame there and nothing else.  What is unusual about
one (attempts after a worker's death, a deadline, an answer already given) lives under its id in a
side table, which the hot path looks at only while it is not empty.

The functions of ``intake``, ``dispatch`` and ``replies`` work on these books; ``broker`` is the
door.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import Final

import msgspec

from .actions import Outbox
from .errors import RequestError
from .fleet import Fleet, Worker
from .frames import SEQUENCE_BITS, Flag, FrameBuffer, reply_frame, task_of
from .journal import Journal
from .policies import POLICIES
from .policies.base import Random
from .queue import Entry, RequestQueue, Run
from .tasktable import TaskTable
from .topology import Topology

#: how often workers with requests waiting behind a running one are checked for a stall
STALL_CHECK_S: Final = 0.025

_encode = msgspec.msgpack.Encoder().encode


class ClientRecord:
    """One connected client."""

    __slots__ = ("accepted", "buffer", "in_flight", "name", "number")

    def __init__(self, number: int, name: str, buffer: FrameBuffer) -> None:
        self.number = number
        self.name = name
        self.buffer = buffer
        #: requests accepted and not yet answered
        self.in_flight = 0
        self.accepted = 0


class Ledger:
    """Everything the broker knows; ``check`` asserts what must always hold of it."""

    def __init__(self, topology: Topology, rng: Random) -> None:
        self.topology = topology
        self.limits = topology.limits
        self.fleet = Fleet(topology.workers, topology.policy)
        self.policy = POLICIES[topology.policy.name](self.fleet, rng)
        self.queue = RequestQueue()
        self.tasks = TaskTable()
        self.journal = Journal()
        self.clients: dict[int, ClientRecord] = {}
        self.draining = False
        #: requests sent to workers and not answered by them
        self.in_flight = 0
        self.accepted = 0
        self.completed = 0
        self.failed = 0
        #: worker number -> the unfinished tail of what it sends
        self.buffers: dict[int, FrameBuffer] = {}
        #: id -> attempts begun, for requests whose worker died
        self.attempts: dict[int, int] = {}
        #: id -> moment at which its deadline passes, and the same by moment
        self.timed: dict[int, float] = {}
        self.deadlines: list[tuple[float, int]] = []
        #: ids still at a worker whose client has had its answer
        self.answered: set[int] = set()
        #: workers that hold requests behind the running ones, and those asked to give them back
        self.loaded: set[Worker] = set()
        self.recalled: set[int] = set()
        #: when stalled workers are looked for next; set while ``loaded`` is not empty
        self.stall_at = 0.0
        #: when a request held for a better worker is looked at again
        self.hold_until: float | None = None

    def set_deadline(self, request_id: int, at: float) -> None:
        """Remember that a request must be answered by then."""
        self.timed[request_id] = at
        heapq.heappush(self.deadlines, (at, request_id))
        if len(self.deadlines) > 1024 + 2 * len(self.timed):
            # most of these requests are answered; they would stay until their deadlines pass
            self.deadlines = [(at, request_id) for request_id, at in self.timed.items()]
            heapq.heapify(self.deadlines)

    def forget(self, request_id: int) -> None:
        """Drop what the side tables hold of a request that leaves."""
        self.attempts.pop(request_id, None)
        self.timed.pop(request_id, None)

    def take_off(self, number: int, count: int) -> None:
        """A client will get ``count`` answers less."""
        client = self.clients.get(number)
        if client is not None:
            client.in_flight -= count

    def pass_on(self, number: int, data: bytes, count: int, outbox: Outbox) -> None:
        """Give a client ``count`` answers; nothing happens when it is gone."""
        client = self.clients.get(number)
        if client is not None and count:
            client.in_flight -= count
            outbox.to_client(number, data)

    def answer(self, request_id: int, task: int, error: RequestError, outbox: Outbox) -> None:
        """Answer an accepted request with an error of the broker's own."""
        self.failed += 1
        self.forget(request_id)
        body, status = _encode(error.to_wire()), int(error.status or 0)
        frame = reply_frame(request_id, task, body, status=status)
        self.pass_on(request_id >> SEQUENCE_BITS, frame, 1, outbox)

    def refuse(
        self,
        client: ClientRecord,
        entries: Iterable[Entry],
        task: int,
        error: RequestError,
        outbox: Outbox,
    ) -> None:
        """Answer requests that were never accepted."""
        body, status = _encode(error.to_wire()), int(error.status or 0)
        for request_id, _ in entries:
            self.failed += 1
            outbox.to_client(client.number, reply_frame(request_id, task, body, status=status))

    def requeue(self, entries: Iterable[Entry]) -> None:
        """Put requests back at the front of the queue, in order, in runs."""
        runs: list[Run] = []
        for request_id, frame in entries:
            client, task = request_id >> SEQUENCE_BITS, task_of(frame)
            if client not in self.clients:
                self.forget(request_id)
                continue
            explain = bool(frame[5] & Flag.EXPLAIN)
            last = runs[-1] if runs else None
            if last and (last.client, last.task, last.explain) == (client, task, explain):
                last.add((request_id, frame))
            else:
                runs.append(Run(client, task, [(request_id, frame)], explain))
        self.queue.push_front(runs)

    def changed(self, worker: Worker, now: float, keep_place: bool = False) -> None:
        """Work out a worker's load again and tell the policy."""
        worker.refresh(now)
        self.policy.changed(worker, now, keep_place)

    def backlog_s(self, now: float) -> float:
        """Expected seconds until a request sent now would begin, were all workers equal."""
        ready = self.fleet.ready
        if not ready:
            return 1.0
        waiting = sum(
            run.left * self.fleet.costs[run.task].mean_s
            for run in (self.queue.run_at(index) for index in range(min(64, self.queue.count)))
            if run is not None
        )
        slots = sum(worker.concurrency for worker in ready)
        return min(worker.backlog_s(now) for worker in ready[:64]) + waiting / slots

    def check(self) -> None:
        """Assert everything that must always hold; for tests and simulation."""
        fleet = self.fleet
        assert self.in_flight == sum(worker.pending for worker in fleet.workers)
        for worker in fleet.workers:
            assert sum(worker.counts.values()) == worker.pending, worker.name
            assert worker.virtual_s == 0.0, worker.name
            assert worker.position >= 0 or not worker.pending, worker.name
            assert all(count > 0 for count in worker.counts.values())
        ready = [worker for worker in fleet.ready if worker.pending < worker.concurrency]
        assert fleet.free_count == len(ready), (fleet.free_count, len(ready))
        runs = [run for index in range(self.queue.count) if (run := self.queue.run_at(index))]
        assert self.queue.count == sum(run.left for run in runs)
        assert self.queue.bytes == sum(
            len(frame) for run in runs for _, frame in run.entries[run.start :]
        )
        waiting = [request_id for run in runs for request_id, _ in run.entries[run.start :]]
        held = [request_id for worker in fleet.workers for request_id in worker.inflight]
        assert not set(waiting) & set(held)
        for client in self.clients.values():
            owned = sum(1 for request_id in waiting + held if request_id >> 32 == client.number)
            answered = sum(1 for request_id in self.answered if request_id >> 32 == client.number)
            assert client.in_flight == owned - answered, client.number
