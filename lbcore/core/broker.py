"""The broker: requests in, a worker chosen for each, answers out.

A state machine.  Every method that changes it takes what happened and the time, and returns the
actions to perform; it never calls back.  One event is one *read*, which may bring a thousand
frames, and leads to at most one write per peer.

This module is the door.  Its rooms, in the order a request passes them: ``intake`` (read, accept or
refuse), ``dispatch`` (choose and send), ``replies`` (match, learn, pass on), over the books that
``ledger`` keeps.  What goes wrong has rooms of its own: ``losses`` (workers), ``retries``,
``endings`` (cancelled, too late, nobody waits), ``resume`` (clients and requests that come back).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from .actions import Action, CloseClient, CloseWorker, Note, Outbox, Write
from .children import ChildState
from .clients import ClientRecord
from .costs import TaskCost
from .dispatch import dispatch
from .ejection import forget, have_needed_back, try_again
from .endings import drop_client, expire, press
from .errors import ProtocolError
from .frames import CONTROL_BYTES_MAX, FrameBuffer, Kind, control_frame
from .hedging import look, watch
from .history import NO_HISTORY, History
from .intake import ClientLeft, read_requests
from .ledger import Ledger, no_ticket
from .losses import give_up_missing, lose, note_deaths, take_back, worker_died
from .policies import POLICIES, PolicyMaker, Random
from .rebalance import is_late, rebalance, recall_from_stalled
from .recovery import claim, look_at_time, release
from .replies import end_solo, read_replies, settle
from .reshape import drop_lost_tasks, follow_process, follow_topology, retire, tell_drained
from .resume import (
    come_back,
    forget_known,
    give_up_client,
    give_up_placeholder,
    lose_client,
    read_running,
    rejoin,
)
from .retries import give_up_pinned, send_pinned, send_suspects
from .storeside import StoreSide
from .topology import Topology
from .unusual import Alarm


class Broker(StoreSide):
    """The core of the broker process; see the module's text for its rules."""

    def __init__(
        self,
        topology: Topology,
        rng: Random,
        started_at: float,
        *,
        clients_seen: int = 0,
        life: int = 1,
        history: History = NO_HISTORY,
        names: Sequence[str] = (),
        policies: Mapping[str, PolicyMaker] = POLICIES,
    ) -> None:
        """``clients_seen`` is the largest client number that earlier brokers of this run have
        given out, ``life`` which broker this one is, counted from 1.  ``names`` are the workers'
        names by number, if some of them are gone already."""
        self.ledger = Ledger(topology, rng, names, history, policies)
        #: what the supervisor says of the last change of the topology; None before the first
        self.last_change: Mapping[str, Any] | None = None
        self.started_at = started_at
        self.clients_seen = clients_seen
        self.life = life
        self.history = history

    # ---- clients -------------------------------------------------------------------------------

    def client_joined(
        self,
        name: str,
        now: float,
        resume: int = 0,
        rights: str = "client",
        ticket: Callable[[int], bytes] = no_ticket,
    ) -> tuple[int, list[Action]]:
        """A client connected: give it a number, and the tasks by number.

        ``resume`` is the number that it had before, when it has shown its ticket: then it goes on
        where it was, and an older connection of it counts no more.  ``ticket`` makes the one for
        the number that it gets.
        """
        ledger = self.ledger
        resumed = 0 < resume <= self.clients_seen
        if not resumed:
            self.clients_seen += 1
        number = resume if resumed else self.clients_seen
        client = ClientRecord(number, name, FrameBuffer(ledger.limits.frame_bytes), rights)
        kept: list[bytes] = []
        if resumed:
            kept = come_back(ledger, client, now)
        else:
            ledger.clients[number] = client
        welcome = {
            "client": number,
            "ticket": ticket(number),
            "life": self.life,
            "resumed": resumed,
            "tasks": ledger.tasks.wire(),
            **ledger.worker_news(),
        }
        outbox = Outbox()
        outbox.to_client(number, control_frame(Kind.WELCOME, welcome))
        for data in kept:
            outbox.to_client(number, data)
        return number, self._dispatched(now, outbox)

    def client_left(self, number: int, now: float) -> list[Action]:
        """A client is gone for good: what it has waiting is dropped, what runs is cancelled."""
        outbox = Outbox()
        drop_client(self.ledger, number, now, outbox)
        return self._dispatched(now, outbox)

    def client_lost(self, number: int, now: float) -> list[Action]:
        """A client's connection broke without a farewell: it may come back and go on."""
        outbox = Outbox()
        lose_client(self.ledger, number, now, outbox)
        return self._dispatched(now, outbox)

    def client_paused(self, number: int, paused: bool, now: float) -> list[Action]:
        """A client does not take its answers: nothing of it is started. Or it does so again."""
        self.ledger.pause(number, paused)
        return [] if paused else self._dispatched(now, Outbox())

    def client_data(self, number: int, data: bytes, now: float) -> list[Action]:
        """One read from a client.  A frame that breaks the protocol closes that client only."""
        client = self.ledger.clients.get(number)
        if client is None:
            return []
        outbox = Outbox()
        try:
            read_requests(self.ledger, client, data, now, outbox)
        except ProtocolError as error:
            outbox.add(CloseClient(number, str(error)))
            drop_client(self.ledger, number, now, outbox)
        except ClientLeft:
            drop_client(self.ledger, number, now, outbox)
        return self._dispatched(now, outbox)

    # ---- workers -------------------------------------------------------------------------------

    def worker_data(self, number: int, data: bytes, now: float) -> list[Action]:
        """One read from a worker's request connection: answers, passed on in one piece per client.

        A worker that breaks the protocol is lost at once; what it had answered before counts.
        """
        ledger = self.ledger
        outbox = Outbox()
        buffer = ledger.buffers.get(number)
        if buffer is None:
            return []
        data = buffer.join(data)
        if data:
            try:
                buffer.keep(read_replies(ledger, ledger.fleet.workers[number], data, now, outbox))
            except ProtocolError as error:
                outbox.add(CloseWorker(number, str(error)))
                lose(ledger, ledger.fleet.workers[number], None, now, outbox)
        return self._dispatched(now, outbox)

    def worker_joined(self, number: int, hello: Mapping[str, Any], now: float) -> list[Action]:
        """A worker is connected and says what it can run.

        Raises ``ProtocolError`` when what it says makes no sense.
        """
        ledger = self.ledger
        worker = ledger.fleet.workers[number]
        specs = hello.get("tasks")
        if not isinstance(specs, list) or not all(isinstance(spec, dict) for spec in specs):
            raise ProtocolError(f"{worker.name} did not say which tasks it has")
        running = read_running(hello)
        outbox = Outbox()
        # a second connection while the first still seems to be alive
        lose(ledger, worker, None, now, outbox)
        known = ledger.tasks.version
        worker.tasks = ledger.tasks.merge(specs)
        for task in set(range(len(ledger.tasks.specs))) - ledger.fleet.costs.keys():
            ledger.fleet.costs[task] = TaskCost(ledger.tasks.declared_s(task))
        is_first = worker.pid is None
        pid = hello.get("pid")
        worker.pid = pid if isinstance(pid, int) else None
        worker.state = ChildState.DRAIN if worker.draining else ChildState.RUNNING
        if worker.position < 0:
            # of the process that greets; it may have changed since the last one
            worker.concurrency = worker.config.concurrency
        worker.successes = worker.failures_in_row = 0
        worker.ghost_until = 0.0
        forget(ledger, worker)
        # an error with its traceback may be larger than a small limit on requests
        bytes_max = max(ledger.reply_bytes_max, CONTROL_BYTES_MAX)
        ledger.buffers[number] = FrameBuffer(bytes_max)
        ledger.joined_at[number] = now
        rejoin(
            ledger,
            worker,
            running,
            is_first=is_first,
            clients_seen=self.clients_seen,
            claim=partial(claim, ledger),
            now=now,
            outbox=outbox,
        )
        ledger.refresh_ready(worker, now)
        ledger.changed(worker, now)
        table = control_frame(Kind.TASKS, ledger.tasks.wire())
        outbox.to_worker(number, table)
        if number in ledger.pinned:
            send_pinned(ledger, worker, now, outbox)
        if ledger.tasks.version != known:
            for client in ledger.clients:
                outbox.to_client(client, table)
        release(ledger, now, outbox)
        drop_lost_tasks(ledger, now, outbox)
        return self._dispatched(now, outbox)

    def worker_lost(
        self, number: int, now: float, running: Collection[int] | None = None
    ) -> list[Action]:
        """A worker's connection is gone; what it had not begun goes to others at once.

        ``running`` are the ids of what it ran, where they are known; else its first ``concurrency``
        requests are taken for it, since workers begin them in order.  What becomes of those is
        decided by ``worker_died``, by ``worker_joined`` of the same process, or by time.
        """
        outbox = Outbox()
        lose(self.ledger, self.ledger.fleet.workers[number], running, now, outbox)
        return self._dispatched(now, outbox)

    def worker_died(self, name: str, death: Mapping[str, Any], now: float) -> list[Action]:
        """The supervisor saw a worker's process end; it may say so more than once.

        ``death`` has what is known: ``pid``, ``exit`` (for people), ``signal``, ``code``,
        ``peak_rss_bytes``, ``oom``, ``reason``, ``log_lines``, and ``requests``, the ids of what
        it ran at that moment.
        """
        outbox = Outbox()
        for worker in [each for each in self.ledger.fleet.workers if each.name == name]:
            worker_died(self.ledger, worker, death, now, outbox)
        return self._dispatched(now, outbox)

    def deaths_known(self, deaths: Mapping[Any, Any], now: float) -> list[Action]:
        """How many workers died under each of these requests in the lives of earlier brokers."""
        note_deaths(self.ledger, deaths)
        return self._dispatched(now, Outbox())

    def worker_recalled(self, number: int, ids: Iterable[int], now: float) -> list[Action]:
        """A worker gave back requests that it had not begun."""
        ledger = self.ledger
        worker = ledger.fleet.workers[number]
        outbox, before, head_at = Outbox(), len(worker.inflight), worker.head_at
        entries = take_back(ledger, worker, ids)
        ledger.requeue(entries)
        ledger.recalled.discard(number)
        if len(worker.inflight) != before:
            worker.recount()
            settle(ledger, worker, before, now)
            # what runs there began when it began
            worker.head_at = head_at
            ledger.changed(worker, now)
            if worker.solo:
                end_solo(ledger, worker, now)
            # where requests take milliseconds this is nothing special
            level = "INFO" if worker.draining or is_late(worker, now) else "DEBUG"
            outbox.add(Note(level, f"{len(entries)} requests taken back from {worker.name}"))
        return self._dispatched(now, outbox)

    def worker_report(self, number: int, report: Mapping[str, Any], now: float) -> list[Action]:
        """CPU figures of a worker, from itself or from outside; the fresher ones count."""
        self.ledger.take_report(self.ledger.fleet.workers[number], report, now)
        return []

    def topology_changed(
        self, topology: Topology, now: float, names: Sequence[str] = ()
    ) -> list[Action]:
        """Another topology holds; ``names`` are the workers' by number, those gone included."""
        outbox = Outbox()
        for worker in follow_topology(self.ledger, topology, names, now, outbox):
            lose(self.ledger, worker, None, now, outbox)
            retire(self.ledger, worker, now)
        return self._dispatched(now, outbox)

    def fleet_reported(self, workers: Iterable[Mapping[str, Any]], now: float) -> list[Action]:
        """What the supervisor knows of each worker: its process state, restarts and CPU."""
        outbox = Outbox()
        for view in workers:
            worker = self.ledger.fleet.by_name.get(str(view.get("name")))
            if worker is not None:
                follow_process(self.ledger, worker, view, now, outbox)
        if self.ledger.lost_tasks:
            drop_lost_tasks(self.ledger, now, outbox)
        return self._dispatched(now, outbox)

    # ---- time ----------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """The moment at which ``tick`` must be called next, or None when nothing waits for time."""
        ledger = self.ledger
        due = ledger.durable.next_moment()
        if ledger.loaded and ledger.stall_at < due:
            due = ledger.stall_at
        if ledger.deadlines and ledger.deadlines[0][0] < due:
            due = ledger.deadlines[0][0]
        if ledger.alarms and ledger.alarms[0][0] < due:
            due = ledger.alarms[0][0]
        hold_until = ledger.hold_until
        if hold_until is not None and hold_until < due and ledger.queue.count:
            due = hold_until
        return due if due < math.inf else None

    def tick(self, now: float) -> list[Action]:
        """Time has passed: deadlines, requests held for a better worker, stalled workers."""
        ledger = self.ledger
        outbox = Outbox()
        while ledger.deadlines and ledger.deadlines[0][0] <= now:
            at, request_id = heapq.heappop(ledger.deadlines)
            if ledger.timed.get(request_id) == at:
                expire(ledger, request_id, now, outbox)
        while ledger.alarms and ledger.alarms[0][0] <= now:
            _, what, key = heapq.heappop(ledger.alarms)
            self._ring(what, key, now, outbox)
        look_at_time(ledger, now, outbox)
        if ledger.loaded and ledger.stall_at <= now:
            recall_from_stalled(ledger, now, outbox)
        return self._dispatched(now, outbox)

    def _ring(self, what: Alarm, key: int, now: float, outbox: Outbox) -> None:
        """A moment has come that something was noted for."""
        ledger = self.ledger
        match what:
            case Alarm.AWAY:
                give_up_client(ledger, key, now, outbox)
            case Alarm.MISSING:
                give_up_missing(ledger, key, now, outbox)
            case Alarm.PINNED:
                give_up_pinned(ledger, key, outbox)
            case Alarm.GRACE:
                press(ledger, key, now, outbox)
            case Alarm.KNOWN:
                forget_known(ledger, key, now)
            case Alarm.ADOPTED:
                give_up_placeholder(ledger, key, now, outbox)
            case Alarm.HEDGE:
                look(ledger, now, outbox)
            case Alarm.EJECTED:
                try_again(ledger, key, now)

    # ---- stopping ------------------------------------------------------------------------------

    def drain(self) -> None:
        """Accept nothing more; ``drained`` becomes true when all that was accepted is answered."""
        self.ledger.draining = True

    @property
    def drained(self) -> bool:
        """Draining, and nothing left to do."""
        ledger = self.ledger
        return ledger.draining and ledger.idle

    def _dispatched(self, now: float, outbox: Outbox) -> list[Action]:
        """The end of every event: start what can start now, and hand over what is to be done."""
        ledger = self.ledger
        fleet, queue = ledger.fleet, ledger.queue
        if ledger.suspects:
            send_suspects(ledger, now, outbox)
        if queue.count:
            dispatch(ledger, now, outbox)
        if fleet.free_count and ledger.loaded and not queue.count:
            rebalance(ledger, now, outbox)
        if ledger.ejected and have_needed_back(ledger, now):
            dispatch(ledger, now, outbox)
        free = fleet.free_count
        if ledger.idling.beside or (free and ledger.in_flight > len(fleet.ready) - free):
            ledger.idling.look(fleet, now)
        if ledger.topology.policy.hedge:
            watch(ledger, now)
        if ledger.spared:
            tell_drained(ledger, outbox)
        batch = ledger.durable.batch
        if batch.runs or batch.results or batch.begun or batch.clients:
            outbox.add(Write(ledger.durable.take_batch()))
        return outbox.actions()
