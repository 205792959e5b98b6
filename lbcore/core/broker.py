"""The broker: requests in, a worker chosen for each, answers out.

A state machine.  Every method that changes it takes what happened and the time, and returns the
actions to perform; it never calls back.  One event is one *read*, which may bring a thousand
frames, and leads to at most one write per peer.

This module is the door.  Its rooms, in the order a request passes them: ``intake`` (read, accept or
refuse), ``dispatch`` (choose and send), ``replies`` (match, learn, pass on), over the books that
``ledger`` keeps.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from typing import Any, Final

from .actions import Action, CloseClient, CloseWorker, Note, Outbox, Recall
from .children import ChildState
from .costs import TaskCost
from .dispatch import dispatch
from .errors import DeadlineExceeded, ProtocolError, WorkerLost
from .fleet import Worker
from .frames import CONTROL_BYTES_MAX, FrameBuffer, Kind, control_frame, task_of
from .intake import read_requests
from .ledger import STALL_CHECK_S, ClientRecord, Ledger
from .policies.base import Random
from .queue import Entry
from .replies import read_replies, settle
from .topology import Topology

#: a worker whose running request is this late gives back what waits behind it
STALL_MIN_S: Final = 0.05
STALL_FACTOR: Final = 10.0

_STATES: Final = frozenset(state.value for state in ChildState)


class Broker:
    """The core of the broker process; see the module's text for its rules."""

    def __init__(self, topology: Topology, rng: Random, started_at: float) -> None:
        self.ledger = Ledger(topology, rng)
        self.started_at = started_at
        self._clients_seen = 0

    # ---- clients -------------------------------------------------------------------------------

    def client_joined(self, name: str) -> tuple[int, list[Action]]:
        """A client connected: give it a number, and the tasks by number."""
        ledger = self.ledger
        self._clients_seen += 1
        number = self._clients_seen
        buffer = FrameBuffer(ledger.limits.frame_bytes)
        ledger.clients[number] = ClientRecord(number, name, buffer)
        welcome = {
            "client": number,
            "tasks": ledger.tasks.wire(),
            "workers": [worker.name for worker in ledger.fleet.workers],
            "frame_bytes_max": ledger.limits.frame_bytes,
        }
        outbox = Outbox()
        outbox.to_client(number, control_frame(Kind.WELCOME, welcome))
        return number, outbox.actions()

    def client_left(self, number: int, now: float) -> list[Action]:
        """A client is gone: what it has waiting is dropped, what runs for it is finished unseen."""
        ledger = self.ledger
        if ledger.clients.pop(number, None) is not None:
            for run in ledger.queue.remove(lambda run: run.client == number):
                for request_id, _ in run.entries[run.start :]:
                    ledger.forget(request_id)
        return self._dispatched(now, Outbox())

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
                self._lose(ledger.fleet.workers[number], now, outbox)
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
        known = ledger.tasks.version
        worker.tasks = ledger.tasks.merge(specs)
        while len(ledger.fleet.costs) < len(ledger.tasks.specs):
            ledger.fleet.costs.append(TaskCost(ledger.tasks.declared_s(len(ledger.fleet.costs))))
        pid = hello.get("pid")
        worker.pid = pid if isinstance(pid, int) else None
        worker.state = ChildState.RUNNING
        worker.successes = worker.failures_in_row = 0
        worker.ghost_until = 0.0
        # an error with its traceback may be larger than a small limit on requests
        bytes_max = max(ledger.limits.frame_bytes, CONTROL_BYTES_MAX)
        ledger.buffers[number] = FrameBuffer(bytes_max)
        ledger.fleet.set_ready(worker, True)
        ledger.changed(worker, now)
        outbox = Outbox()
        table = control_frame(Kind.TASKS, ledger.tasks.wire())
        outbox.to_worker(number, table)
        if ledger.tasks.version != known:
            for client in ledger.clients:
                outbox.to_client(client, table)
        return self._dispatched(now, outbox)

    def worker_lost(self, number: int, now: float, running: int | None = None) -> list[Action]:
        """A worker's connection is gone: what it held goes to others.

        Only what it was running costs an attempt.  ``running`` is the id of that request (0: none),
        where it is known; else its first ``concurrency`` requests are taken for it, since workers
        begin them in order.  Those waiting behind are moved free of charge.
        """
        outbox = Outbox()
        self._lose(self.ledger.fleet.workers[number], now, outbox, running)
        return self._dispatched(now, outbox)

    def _lose(self, worker: Worker, now: float, outbox: Outbox, running: int | None = None) -> None:
        ledger, number = self.ledger, worker.number
        ledger.buffers.pop(number, None)
        ledger.fleet.set_ready(worker, False)
        if worker.state is ChildState.RUNNING:
            worker.state = ChildState.BACKOFF
        ledger.loaded.discard(worker)
        ledger.recalled.discard(number)
        held = list(worker.inflight.items())
        worker.inflight.clear()
        worker.counts.clear()
        ledger.fleet.forget_report(worker)
        ledger.in_flight -= len(held)
        begun = held[: worker.concurrency]
        if running is not None:
            begun = self._begun(held, running)
        blamed = {entry[0] for entry in begun}
        again = {entry[0] for entry in begun if self._may_retry(worker, entry, outbox)}
        moved = [
            entry
            for entry in held
            if entry[0] not in ledger.answered and (entry[0] not in blamed or entry[0] in again)
        ]
        ledger.answered.difference_update([request_id for request_id, _ in held])
        ledger.requeue(moved)
        ledger.changed(worker, now)
        if held:
            text = f"{worker.name} lost with {len(held)} requests, {len(begun)} of them running; "
            text += f"sent on to others: {len(moved)}"
            outbox.add(Note("WARNING", text, begun[0][0] if len(begun) == 1 else 0))

    def _begun(self, held: list[Entry], running: int) -> list[Entry]:
        """Of the unanswered requests of a lost worker, in order, those it must answer for.

        Those before the running one were done and their answers lost: no attempt of theirs died,
        but one that must not run twice cannot be sent again.
        """
        ids = [request_id for request_id, _ in held]
        if running not in ids:
            return []
        done = held[: ids.index(running)]
        idempotent = self.ledger.tasks.idempotent
        return [entry for entry in done if not idempotent(task_of(entry[1]))] + [held[len(done)]]

    def _may_retry(self, worker: Worker, entry: Entry, outbox: Outbox) -> bool:
        """Count the attempt that died; answer the request when it may not be tried again."""
        ledger = self.ledger
        request_id, frame = entry
        if request_id in ledger.answered:
            return False
        task = task_of(frame)
        attempts = ledger.attempts.get(request_id, 1)
        allowed = ledger.tasks.max_attempts(task, ledger.limits.max_attempts)
        idempotent = ledger.tasks.idempotent(task)
        if idempotent and attempts < allowed:
            ledger.attempts[request_id] = attempts + 1
            return True
        message = f"{worker.name} died while it ran {ledger.tasks.name(task)}: "
        message += f"attempt {attempts} of {allowed}" if idempotent else "it is not idempotent"
        error = WorkerLost(message, attempts=attempts, worker=worker.name)
        ledger.answer(request_id, task, error, outbox)
        return False

    def worker_recalled(self, number: int, ids: Iterable[int], now: float) -> list[Action]:
        """A worker gave back requests that it had not begun."""
        ledger = self.ledger
        worker = ledger.fleet.workers[number]
        outbox = Outbox()
        before, head_at = len(worker.inflight), worker.head_at
        entries: list[Entry] = []
        for request_id in ids:
            frame = worker.inflight.pop(request_id, None) if isinstance(request_id, int) else None
            if frame is None:
                continue
            ledger.in_flight -= 1
            if request_id in ledger.answered:
                ledger.answered.discard(request_id)
            else:
                entries.append((request_id, frame))
        ledger.requeue(entries)
        ledger.recalled.discard(number)
        if len(worker.inflight) != before:
            worker.recount()
            settle(ledger, worker, before, now)
            # what runs there began when it began
            worker.head_at = head_at
            ledger.changed(worker, now)
            outbox.add(Note("INFO", f"{len(entries)} requests taken back from {worker.name}"))
        return self._dispatched(now, outbox)

    def worker_report(self, number: int, report: Mapping[str, Any], now: float) -> list[Action]:
        """CPU figures of a worker, from itself or from outside; the fresher ones count."""
        ledger = self.ledger
        worker = ledger.fleet.workers[number]
        if ledger.fleet.take_report(worker, report, now):
            ledger.changed(worker, now, keep_place=True)
        return []

    def fleet_reported(self, workers: Iterable[Mapping[str, Any]], now: float) -> list[Action]:
        """What the supervisor knows of each worker: its process state, restarts and CPU."""
        by_name = self.ledger.fleet.by_name
        for view in workers:
            worker = by_name.get(str(view.get("name")))
            if worker is None:
                continue
            worker.restarts = int(view.get("restarts") or 0)
            state = str(view.get("state"))
            # RUNNING is what the broker sees itself, by the worker's greeting
            if worker.position < 0 and state in _STATES and state != ChildState.RUNNING:
                worker.state = ChildState(state)
            if "wall_s" in view:
                self.worker_report(worker.number, view, now)
            if worker.availability < 1.0:
                # its last report has aged since
                self.ledger.changed(worker, now, keep_place=True)
        return []

    # ---- time ----------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """The moment at which ``tick`` must be called next, or None when nothing waits for time."""
        ledger = self.ledger
        if not (ledger.deadlines or ledger.loaded or ledger.hold_until):
            return None
        moments = [ledger.deadlines[0][0]] if ledger.deadlines else []
        if ledger.hold_until is not None and ledger.queue.count:
            moments.append(ledger.hold_until)
        if ledger.loaded:
            moments.append(ledger.stall_at)
        return min(moments) if moments else None

    def tick(self, now: float) -> list[Action]:
        """Time has passed: deadlines, requests held for a better worker, stalled workers."""
        ledger = self.ledger
        outbox = Outbox()
        while ledger.deadlines and ledger.deadlines[0][0] <= now:
            at, request_id = heapq.heappop(ledger.deadlines)
            if ledger.timed.get(request_id) == at:
                self._expire(request_id, outbox)
        if ledger.loaded and ledger.stall_at <= now:
            ledger.stall_at = now + STALL_CHECK_S
            for worker in ledger.loaded:
                late_s = now - worker.head_at
                if (
                    ledger.fleet.free_count
                    and worker.number not in ledger.recalled
                    and late_s > max(STALL_MIN_S, STALL_FACTOR * worker.running_s)
                ):
                    ledger.recalled.add(worker.number)
                    outbox.add(Recall(worker.number))
        return self._dispatched(now, outbox)

    def _expire(self, request_id: int, outbox: Outbox) -> None:
        """A deadline passed.  Waiting: it never runs.  Running: its answer will not be passed
        on."""
        ledger = self.ledger
        entry = ledger.queue.remove_request(request_id)
        frame = entry[1] if entry is not None else None
        if frame is None:
            for worker in ledger.fleet.workers:
                frame = worker.inflight.get(request_id)
                if frame is not None:
                    break
            else:
                ledger.forget(request_id)
                return
            ledger.answered.add(request_id)
        error = DeadlineExceeded("the deadline passed before the request was done")
        ledger.answer(request_id, task_of(frame), error, outbox)

    # ---- stopping ------------------------------------------------------------------------------

    def drain(self) -> None:
        """Accept nothing more; ``drained`` becomes true when all that was accepted is answered."""
        self.ledger.draining = True

    @property
    def drained(self) -> bool:
        """Draining, and nothing left to do."""
        ledger = self.ledger
        return ledger.draining and not ledger.queue.count and not ledger.in_flight

    def _dispatched(self, now: float, outbox: Outbox) -> list[Action]:
        """The end of every event: start what can start now, and hand over what is to be done."""
        if self.ledger.queue.count:
            dispatch(self.ledger, now, outbox)
        return outbox.actions()
