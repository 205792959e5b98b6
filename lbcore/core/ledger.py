"""The broker's books: who is connected, what waits, what runs where, and what is unusual about it.

A request is in exactly one place: the queue, or one worker's ``inflight``; or, rarely, among those
whose worker was lost (``missing``), that killed one (``suspects``) or that only one worker can
answer for (``pinned``).  It leaves with its answer.  The usual request is its id and its frame
there and nothing else.  What is unusual about one (attempts after a worker's death, a deadline, an
answer already given) lives under its id in a side table, which the hot path looks at only while it
is not empty.

The functions of ``intake``, ``dispatch`` and ``replies`` work on these books; ``broker`` is the
door.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Final

import msgspec

from .actions import Outbox
from .clients import ClientRecord
from .durable import Durable
from .errors import RequestError
from .fleet import Fleet, Worker
from .frames import SEQUENCE_BITS, Flag, FrameBuffer, priority_of, reply_frame
from .history import NO_HISTORY, History
from .journal import Journal
from .lanes import clamp_priority
from .policies import POLICIES, PolicyMaker, Random
from .queue import Entry, RequestQueue, Run, frame_bytes
from .sizes import TASK_MASK
from .tasktable import TaskTable
from .topology import Topology
from .unusual import Alarm, SideTables

#: how often workers with requests waiting behind a running one are checked for a stall
STALL_CHECK_S: Final = 0.025
#: answers kept for one client that is away, and for all of them
KEPT_BYTES_MAX: Final = 4 << 20
ALL_KEPT_BYTES_MAX: Final = 256 << 20

_encode = msgspec.msgpack.Encoder().encode


def no_ticket(_number: int) -> bytes:
    """The ticket of a system whose clients cannot come back."""
    return b""


class Ledger(SideTables):
    """Everything the broker knows; ``check`` asserts what must always hold of it."""

    # as an ordinary object with so many attributes, each look at one would cost twice as much
    # fmt: off
    __slots__ = (
        "accepted", "answered", "away", "buffers", "clients", "completed", "deadlines", "draining",
        "dropped", "durable", "failed", "fleet", "history", "hold_until", "in_flight", "journal",
        "kept_bytes", "limits", "loaded", "policies", "policy", "queue", "recalled",
        "refused", "reply_bytes_max", "spared", "stall_at", "tasks", "timed", "topology",
    )
    # fmt: on

    def __init__(
        self,
        topology: Topology,
        rng: Random,
        names: Sequence[str] = (),
        history: History = NO_HISTORY,
        policies: Mapping[str, PolicyMaker] = POLICIES,
    ) -> None:
        super().__init__()
        self.topology = topology
        self.history = history
        self.limits = topology.limits
        self.fleet = Fleet(topology.workers, topology.policy, names)
        #: what makes each policy, by its name in the topology
        self.policies = dict(policies)
        self.policy = self.policies[topology.policy.name](self.fleet, rng)
        self.tasks = TaskTable()
        self.fleet.sized = self.tasks.sized
        self.journal = Journal()
        #: the connected ones
        self.clients: dict[int, ClientRecord] = {}
        self.away: dict[int, ClientRecord] = {}
        #: bytes of answers that are kept for those who are away
        self.kept_bytes = 0
        self.queue = RequestQueue(self.clients)
        self.heed_policy()
        self.durable = Durable(topology.durability)
        self.draining = False
        #: requests sent to workers and not answered by them
        self.in_flight = 0
        self.accepted = 0
        self.completed = 0
        self.failed = 0
        #: of ``failed`` those that were never accepted; and the accepted ones that nobody wants
        self.refused = 0
        self.dropped = 0
        #: worker number -> the unfinished tail of what it sends
        self.buffers: dict[int, FrameBuffer] = {}
        #: id -> moment at which its deadline passes, and the same by moment
        self.timed: dict[int, float] = {}
        self.deadlines: list[tuple[float, int]] = []
        #: ids still at a worker whose client has had its answer
        self.answered: set[int] = set()
        #: workers that hold requests behind the running ones, and those asked to give them back
        self.loaded: dict[int, Worker] = {}
        self.recalled: set[int] = set()
        #: workers that get nothing new, until it was said that they have nothing left
        self.spared: set[Worker] = set()
        #: the largest result of which a worker may ever have thought that it is allowed
        self.reply_bytes_max = topology.limits.frame_bytes
        #: when stalled workers are looked for next; set while ``loaded`` is not empty
        self.stall_at = 0.0
        #: when a request held for a better worker is looked at again
        self.hold_until: float | None = None

    def worker_news(self) -> dict[str, object]:
        """What clients are told: the workers' names by number, and how large a body may be."""
        return {
            "workers": [worker.name for worker in self.fleet.workers],
            "frame_bytes_max": self.limits.frame_bytes,
        }

    def set_deadline(self, request_id: int, at: float) -> None:
        """Remember that a request must be answered by then."""
        self.timed[request_id] = at
        heapq.heappush(self.deadlines, (at, request_id))
        if len(self.deadlines) > 1024 + 2 * len(self.timed):
            # most of these requests are answered; they would stay until their deadlines pass
            self.deadlines = [(at, request_id) for request_id, at in self.timed.items()]
            heapq.heapify(self.deadlines)

    def owner(self, request_id: int) -> ClientRecord | None:
        """Whose request that is; None when that client has left."""
        number = request_id >> SEQUENCE_BITS
        return self.clients.get(number) or self.away.get(number)

    def accept(self, client: ClientRecord, count: int) -> None:
        """A client will get ``count`` answers more."""
        client.in_flight += count
        client.accepted += count
        self.accepted += count

    def forget(self, request_id: int) -> None:
        """Drop what the side tables hold of a request that leaves."""
        if attempts := self.attempts.pop(request_id, 0):
            self.died_under.pop(request_id, None)
            # its client may send it again all the same: it was away, or the answer is lost
            self.remember_deaths(request_id, attempts - 1)
        self.timed.pop(request_id, None)

    def pause(self, number: int, paused: bool) -> None:
        """Start nothing of a client, so that at most what is in flight piles up for it."""
        client = self.clients.get(number)
        if client is not None and client.paused != paused:
            client.paused = paused
            self.queue.block(number, paused)

    def drop(self, request_id: int) -> None:
        """A request leaves without an answer: nobody wants one, or it will be sent again."""
        self.dropped += 1
        self.forget(request_id)
        client = self.owner(request_id)
        if client is not None:
            client.in_flight -= 1
            client.known.discard(request_id)

    def take_off(self, number: int, count: int) -> None:
        """A client will get ``count`` answers less."""
        self.dropped += count
        client = self.clients.get(number) or self.away.get(number)
        if client is not None:
            client.in_flight -= count

    def pass_on(self, number: int, data: bytes, count: int, outbox: Outbox) -> None:
        """Give a client ``count`` answers; nothing happens when it is gone."""
        client = self.clients.get(number)
        if client is not None and count:
            client.in_flight -= count
            outbox.to_client(number, data)
        elif count and number in self.away:
            self._keep(self.away[number], data, count)

    def _keep(self, client: ClientRecord, data: bytes, count: int) -> None:
        """Keep answers for a client that is away; those beyond the bounds it will ask for again."""
        client.in_flight -= count
        size = client.kept_bytes + len(data)
        if size <= KEPT_BYTES_MAX and self.kept_bytes + len(data) <= ALL_KEPT_BYTES_MAX:
            client.kept.append(data)
            client.kept_bytes = size
            self.kept_bytes += len(data)

    def answer(self, request_id: int, task: int, error: RequestError, outbox: Outbox) -> None:
        """Answer an accepted request with an error of the broker's own."""
        self.failed += 1
        self.forget(request_id)
        body, status = _encode(error.to_wire()), int(error.status or 0)
        frame = reply_frame(request_id, task, body, status=status)
        if request_id in self.durable.open:
            self.durable.finish(request_id, frame)
            return
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
            self.refused += 1
            outbox.to_client(client.number, reply_frame(request_id, task, body, status=status))

    def take_report(self, worker: Worker, report: Mapping[str, Any], now: float) -> None:
        """CPU figures of a worker, from itself or from outside; the fresher ones count."""
        if self.fleet.take_report(worker, report, now):
            self.changed(worker, now, keep_place=True)

    def heed_policy(self) -> None:
        """What depends on the policy: in which order requests wait, who is told of each."""
        self.follows = self.policy.follows or self.recording is not None
        self.queue.costs = self.fleet if self.topology.policy.order == "shortest" else None

    def requeue(self, entries: Iterable[Entry]) -> None:
        """Put requests back at the front of the queue, in order, in runs.

        One that a worker died under waits for a worker of its own.
        """
        if self.attempts:
            entries = list(entries)
            self.suspects.update([entry for entry in entries if entry[0] in self.attempts])
            entries = [entry for entry in entries if entry[0] not in self.attempts]
        self.queue.push_front(self._runs(entries))

    def enqueue(self, entries: Iterable[Entry]) -> None:
        """Put accepted requests at the end of the queue, in order, in runs."""
        for run in self._runs(entries):
            timed = any(request_id in self.timed for request_id, _ in run.entries)
            self.queue.append(run, frame_bytes(run.entries), timed=timed)

    def _runs(self, entries: Iterable[Entry]) -> list[Run]:
        """Neighbours of one client and task together; those of clients that left are dropped."""
        runs: list[Run] = []
        for request_id, frame in entries:
            client, task = request_id >> SEQUENCE_BITS, self.tasks.sized.kind(frame)
            if self.owner(request_id) is None and request_id not in self.durable.open:
                self.drop(request_id)
                continue
            explain, priority = bool(frame[5] & Flag.EXPLAIN), clamp_priority(priority_of(frame))
            last = runs[-1] if runs else None
            if last and (last.client, last.task, last.explain, last.priority) == (
                client,
                task,
                explain,
                priority,
            ):
                last.add((request_id, frame))
            else:
                runs.append(Run(client, task, [(request_id, frame)], explain, priority))
        return runs

    def changed(self, worker: Worker, now: float, keep_place: bool = False) -> None:
        """Work out a worker's load again and tell the policy."""
        worker.refresh(now)
        self.policy.changed(worker, now, keep_place)

    def backlog_s(self, now: float) -> float:
        """Expected seconds until a request sent now would begin, were all workers equal."""
        ready = self.fleet.ready
        if not ready:
            return 1.0
        costs, sample, seconds = self.fleet.costs, 0, 0.0
        for run in islice(self.queue.runs(), 64):
            sample += run.left
            seconds += run.left * costs[run.task].mean_s
        waiting = seconds * self.queue.count / sample if sample else 0.0
        slots = sum(worker.concurrency for worker in ready)
        return min(worker.backlog_s(now) for worker in ready[:64]) + waiting / slots

    def take_out(self, request_id: int, now: float, timed: bool = False) -> bytes | None:
        """Remove a request that is with no worker, and return its frame; None if it is not here.

        ``timed``: it has a deadline, so the queue knows it by its id.
        """
        missing = self.missing.pop(request_id, None)
        if missing is not None:
            self.adopted.discard(request_id)
            return missing.frame
        frame = self.suspects.pop(request_id, None)
        if frame is not None:
            worker = self.reserved.pop(request_id, None)
            if worker is not None:
                worker.solo = 0
                self.refresh_ready(worker, now)
            return frame
        frame = self.unmarkable.pop(request_id, None)
        if frame is not None:
            return frame
        for number, requests in self.pinned.items():
            if request_id in requests:
                frame = requests.pop(request_id)
                if not requests:
                    del self.pinned[number]
                return frame
        entry = self.queue.remove_request(request_id, timed=timed)
        return entry[1] if entry is not None else None

    def holder(self, request_id: int) -> Worker | None:
        """The worker that a request was sent to."""
        for worker in self.fleet.workers:
            if request_id in worker.inflight:
                return worker
        return None

    def successes(self, task: int) -> int:
        """How many requests of a task were ever answered with a result."""
        workers = self.fleet.workers
        unlearned = sum(worker.samples[task][0] for worker in workers if task in worker.samples)
        return self.fleet.costs[task].count + int(unlearned)

    def refresh_ready(self, worker: Worker, now: float) -> None:
        """Let a worker take new work if it may: connected, not spared, ejected or kept free."""
        ready = worker.number in self.buffers and not worker.is_barred
        if ready != (worker.position >= 0):
            self.fleet.set_ready(worker, ready)
            self.changed(worker, now)

    @property
    def idle(self) -> bool:
        """Nothing that was accepted is left to do."""
        special = self.missing or self.suspects or self.pinned or self.unmarkable
        return not (self.queue.count or self.in_flight or special) and self.durable.is_idle

    def queued_ids(self, client: int = 0, task: int = -1) -> list[int]:
        """The ids of what waits in the queue, of one client or of one task."""
        return [
            request_id
            for run in self.queue.runs()
            if client in (0, run.client) and task in (-1, run.task & TASK_MASK)
            for request_id, _ in run.waiting()
        ]

    def check(self) -> None:
        """Assert everything that must always hold; for tests and simulation."""
        fleet = self.fleet
        assert self.in_flight == sum(worker.pending for worker in fleet.workers)
        for worker in fleet.workers:
            assert sum(worker.counts.values()) == worker.pending, worker.name
            assert worker.virtual_s == 0.0, worker.name
            assert worker.number in self.buffers or not worker.pending, worker.name
            assert worker.position < 0 or not worker.is_barred, worker.name
            assert worker.position < 0 or worker.name in fleet.by_name, worker.name
            assert all(count > 0 for count in worker.counts.values())
        ready = [worker for worker in fleet.ready if worker.pending < worker.concurrency]
        assert fleet.free_count == len(ready), (fleet.free_count, len(ready))
        self.queue.check()
        waiting = self.queued_ids() + self.special_ids()
        held = [request_id for worker in fleet.workers for request_id in worker.inflight]
        assert not set(waiting) & set(held)
        assert self.durable.open.keys() <= {*waiting, *held}
        self.durable.check()
        counted = self.durable.open.get
        everywhere = Counter(
            request_id >> SEQUENCE_BITS
            for request_id in waiting + held
            if counted(request_id, True)
        )
        everywhere.subtract(request_id >> SEQUENCE_BITS for request_id in self.answered)
        for client in (*self.clients.values(), *self.away.values()):
            owned = everywhere[client.number] + self.durable.counted(client.number)
            assert client.in_flight == owned, client.number
        present = len(waiting) + len(held) - len(self.answered) + len(self.durable.staged)
        present -= len(self.hedges)
        unanswered = {*waiting, *held} - self.answered - self.durable.open.keys() - {*self.hedges}
        assert all(self.owner(request_id) is not None for request_id in unanswered)
        gone = self.completed + self.failed + self.dropped
        assert self.accepted + self.refused == gone + present
        self._check_away()
        self.check_side_tables(fleet.workers, set(waiting), set(held), self.answered)
        assert not self.buffers.keys() & self.pinned.keys()

    def _check_away(self) -> None:
        assert not self.clients.keys() & self.away.keys()
        assert len(self.away) <= self.limits.connections
        assert self.kept_bytes == sum(client.kept_bytes for client in self.away.values())
        assert self.kept_bytes <= ALL_KEPT_BYTES_MAX
        for client in self.away.values():
            assert client.kept_bytes == sum(map(len, client.kept)) <= KEPT_BYTES_MAX
        watched = {key for _, what, key in self.alarms if what is Alarm.AWAY}
        assert self.away.keys() <= watched
