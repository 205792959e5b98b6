"""Whatever breaks, in whatever order: each request is answered once, and what must not is not run
twice.

Connections of clients and workers, processes of workers and the broker itself break at any moment;
answers are lost on the way; clients take requests back.  The model keeps books of its own: of what
each client waits for, and of what each worker's process has begun.
"""

from __future__ import annotations

import random
from collections import Counter
from functools import partial

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from lbcore.core.broker import Broker
from lbcore.core.errors import Status
from lbcore.core.frames import Flag, Kind, control_frame, reply_frame, request_frame
from lbcore.core.topology import Limits
from tests.core.driver import Driver, Held, spec
from tests.core.test_losses import Rings

WORKERS = 3
TASKS = [spec("short", 0.05), spec("long", 5.0), spec("frail", 0.05, idempotent=False)]
SHORT, LONG, FRAIL = 0, 1, 2
NAMES = ["short", "long", "frail"]
LIMITS = Limits(max_attempts=3, cancel_grace_s=1.0)


class Process:
    """What one worker's process knows."""

    def __init__(self) -> None:
        #: begun and not done
        self.active: dict[int, int] = {}
        #: done while there was nobody to tell
        self.undelivered: dict[int, int] = {}
        #: done, and must not run twice
        self.kept: set[int] = set()


class DeliveryMachine(RuleBasedStateMachine):
    """One system; the rules are what may happen to it."""

    def __init__(self, concurrency: int) -> None:
        super().__init__()
        self.rings = Rings()
        self.driver = Driver(
            WORKERS, concurrency=concurrency, tasks=TASKS, limits=LIMITS, history=self.rings
        )
        self.concurrency = concurrency
        self.processes = [Process() for _ in range(WORKERS)]
        #: client -> ids that it waits for
        self.open: dict[int, set[int]] = {}
        self.tasks: dict[int, int] = {}
        self.online: set[int] = set()
        #: client -> answers that it has taken, oldest first; and how many of the driver's it has
        #: looked at
        self.taken: dict[int, list[int]] = {}
        self.seen: Counter[int] = Counter()
        #: requests that their clients have taken back
        self.cancelled: set[int] = set()
        self.life = 1
        self.client_joins()

    # ---- the model ------------------------------------------------------------------------------

    def is_up(self, number: int) -> bool:
        return number in self.driver.ledger.buffers

    def is_repeat(self, number: int, held: Held) -> bool:
        """Whether a worker knows a request that comes again, and does not run it."""
        if not held.flags & Flag.RESENT or held.id in self.processes[number].active:
            return False
        return held.id in self.processes[number].kept or self.rings.started.get(held.id) == number

    def look(self) -> None:
        """Workers begin what they can, and clients take their answers."""
        for number in range(WORKERS):
            for held in self.driver.held[number] if self.is_up(number) else ():
                self.begin(number, held)
        for client in self.online:
            answers = self.driver.answers[client]
            for answer in answers[self.seen[client] :]:
                # one that it does not wait for was on its way before, and is here again
                if answer.id in self.open[client]:
                    self.open[client].discard(answer.id)
                    self.taken[client].append(answer.id)
            self.seen[client] = len(answers)

    def begin(self, number: int, held: Held) -> None:
        active = self.processes[number].active
        if (
            held.id in active
            or len(active) >= self.concurrency
            or self.is_repeat(number, held)
            or held.id in self.processes[number].undelivered
        ):
            return
        if held.task == FRAIL:
            assert held.id not in self.rings.started, "it runs twice"
            self.rings.started[held.id] = number
        active[held.id] = held.task

    @invariant()
    def all_is_seen(self) -> None:
        self.look()

    # ---- clients --------------------------------------------------------------------------------

    @rule()
    @precondition(lambda self: len(self.open) < 3)
    def client_joins(self) -> None:
        client = self.driver.client()
        self.open[client], self.taken[client] = set(), []
        self.online.add(client)

    @rule(
        data=st.data(),
        runs=st.lists(
            st.tuples(
                st.sampled_from([SHORT, SHORT, LONG, FRAIL, FRAIL]),
                st.integers(1, 4),
                st.sampled_from([0, 0, 0, 500]),
            ),
            min_size=1,
            max_size=3,
        ),
    )
    @precondition(lambda self: self.online)
    def submit(self, data: st.DataObject, runs: list[tuple[int, int, int]]) -> None:
        client = data.draw(st.sampled_from(sorted(self.online)))
        for task, count, deadline_ms in runs:
            frames = []
            for _ in range(count):
                self.driver.sequence[client] += 1
                request_id = client << 32 | self.driver.sequence[client]
                self.open[client].add(request_id)
                self.tasks[request_id] = task
                frames.append(request_frame(request_id, task, deadline_ms=deadline_ms))
            self.driver.from_client(client, b"".join(frames))

    @rule(data=st.data())
    @precondition(lambda self: any(self.open[client] for client in self.online))
    def cancel(self, data: st.DataObject) -> None:
        ids = sorted(each for client in self.online for each in self.open[client])
        request_id = data.draw(st.sampled_from(ids))
        self.cancelled.add(request_id)
        self.driver.cancel(request_id)

    @rule(data=st.data(), lost=st.integers(0, 3))
    @precondition(lambda self: self.online)
    def client_loses_its_connection(self, data: st.DataObject, lost: int) -> None:
        client = data.draw(st.sampled_from(sorted(self.online)))
        self.break_client(client, lost)
        self.driver.vanish(client)

    def break_client(self, client: int, lost: int) -> None:
        """Its connection is gone, and with it the last answers, which were on their way."""
        self.look()
        self.online.discard(client)
        taken = self.taken[client]
        for _ in range(min(lost, len(taken))):
            self.open[client].add(taken.pop())

    @rule(data=st.data())
    @precondition(lambda self: self.open)
    def client_comes_back(self, data: st.DataObject) -> None:
        """Perhaps while its older connection still seems to be alive."""
        client = data.draw(st.sampled_from(sorted(self.open)))
        if client in self.online:
            self.break_client(client, 0)
        self.come_back(client)

    def come_back(self, client: int) -> None:
        assert self.driver.client(resume=client) == client
        self.online.add(client)
        self.look()
        # whoever took it back does not ask for it again
        self.open[client] -= self.cancelled
        for request_id in sorted(self.open[client]):
            task = self.tasks[request_id]
            frame = request_frame(request_id, task, flags=Flag.RESENT, age_ms=1000)
            self.driver.from_client(client, frame)

    @rule(data=st.data())
    @precondition(lambda self: len(self.online) > 1)
    def client_says_farewell(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(sorted(self.online)))
        self.driver.from_client(client, control_frame(Kind.GOODBYE, None))
        self.online.discard(client)
        del self.open[client], self.taken[client]

    # ---- workers --------------------------------------------------------------------------------

    @rule(number=st.integers(0, WORKERS - 1), count=st.integers(1, 6))
    def worker_answers(self, number: int, count: int) -> None:
        if self.is_up(number):
            self.answer(number, count)

    def answer(self, number: int, count: int) -> None:
        """A worker is done with the first ones, or knows that it was."""
        self.look()
        process = self.processes[number]
        for held in self.driver.held[number][:count]:
            is_cancelled = (number, held.id) in self.driver.cancels
            if held.id in process.active:
                status = Status.CANCELLED if is_cancelled else Status.OK
                del process.active[held.id]
                if held.task == FRAIL:
                    process.kept.add(held.id)
            elif self.is_repeat(number, held):
                status = Status.OK if held.id in process.kept else Status.WORKER_LOST
            elif is_cancelled:
                status = Status.CANCELLED
            else:
                continue
            self.reply(number, held, status)
        # begun for a connection that broke, and sent to somebody else meanwhile: not asked for
        asked_for = {held.id for held in self.driver.held[number]}
        for request_id in [each for each in process.active if each not in asked_for][:count]:
            task = process.active.pop(request_id)
            if task == FRAIL:
                process.kept.add(request_id)
            frame = reply_frame(request_id, task, b"\xc0", service_s=0.05)
            self.driver.from_worker(number, frame)
        self.look()

    def reply(self, number: int, held: Held, status: Status = Status.OK) -> None:
        self.driver.held[number].remove(held)
        if (number, held.id) in self.driver.cancels:
            # it was told of this run, not of the next one
            self.driver.cancels.remove((number, held.id))
        frame = reply_frame(held.id, held.task, b"\xc0", status=status, service_s=0.05)
        self.driver.from_worker(number, frame)
        self.look()

    @rule(number=st.integers(0, WORKERS - 1), knows=st.booleans(), late=st.booleans())
    def worker_dies(self, number: int, knows: bool, late: bool) -> None:
        self.look()
        running = list(self.processes[number].active)
        if self.is_up(number):
            self.driver.cut(number, running)
        self.processes[number] = Process()
        if late:
            self.driver.advance(1.5)
        self.driver.die(number, **({"requests": running} if knows else {}))

    @rule(number=st.integers(0, WORKERS - 1), done=st.integers(0, 2))
    def worker_is_cut_off(self, number: int, done: int) -> None:
        """Its process goes on, and may finish something meanwhile."""
        if self.is_up(number):
            self.look()
            self.driver.cut(number, list(self.processes[number].active))
            self.finish_alone(number, done)

    def finish_alone(self, number: int, count: int) -> None:
        process = self.processes[number]
        for request_id in list(process.active)[:count]:
            task = process.active.pop(request_id)
            process.undelivered[request_id] = task
            if task == FRAIL:
                process.kept.add(request_id)

    @rule(number=st.integers(0, WORKERS - 1))
    def worker_joins(self, number: int) -> None:
        if not self.is_up(number):
            self.join(number)

    def join(self, number: int) -> None:
        process = self.processes[number]
        declared = {**process.undelivered, **process.active}
        self.driver.join(number, running=[(each, NAMES[task]) for each, task in declared.items()])
        self.look()
        for request_id in list(process.undelivered):
            del process.undelivered[request_id]
            for held in [each for each in self.driver.held[number] if each.id == request_id]:
                self.reply(number, held)

    @rule(number=st.integers(0, WORKERS - 1))
    def worker_gives_back(self, number: int) -> None:
        if not self.is_up(number):
            return
        self.look()
        active = self.processes[number].active
        kept: list[Held] = []
        back: list[Held] = []
        for held in self.driver.held[number]:
            is_here = held.id in active or self.is_repeat(number, held)
            (kept if is_here else back).append(held)
        self.driver.held[number] = kept
        ids = [held.id for held in back]
        self.driver.perform(self.driver.broker.worker_recalled(number, ids, self.driver.now))

    # ---- the broker -----------------------------------------------------------------------------

    @rule(lost=st.integers(0, 3), done=st.integers(0, 2))
    def broker_dies(self, lost: int, done: int) -> None:
        """Everybody loses it; another one begins with nothing but the counters and the rings."""
        self.look()
        for client in sorted(self.online):
            self.break_client(client, lost)
        for number in range(WORKERS):
            self.driver.held[number].clear()
            self.finish_alone(number, done)
        driver, before = self.driver, self.driver.broker
        self.life += 1
        driver.broker = Broker(
            before.ledger.topology,
            random.Random(0),
            driver.now,
            clients_seen=before.clients_seen,
            life=self.life,
            history=self.rings,
        )
        driver.ledger, driver.fleet = driver.broker.ledger, driver.broker.ledger.fleet
        driver.cancels.clear()
        driver.recalls.clear()

    # ---- time -----------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.001, 0.1, 1.0, 6.0]))
    def time_passes(self, seconds: float) -> None:
        self.driver.advance(seconds)
        while self.driver.recalls:
            self.worker_gives_back(self.driver.recalls.pop())

    # ---- at the end -----------------------------------------------------------------------------

    def teardown(self) -> None:
        """All is healed: then nobody waits for anything."""
        for number in range(WORKERS):
            if not self.is_up(number):
                self.join(number)
        for client in sorted(self.open.keys() - self.online):
            self.come_back(client)
        for _ in range(300):
            for number in range(WORKERS):
                self.answer(number, len(self.driver.held[number]) or self.concurrency)
            self.time_passes(0.05)
            if self.driver.ledger.idle:
                break
        self.look()
        for client, waiting in self.open.items():
            assert not waiting, f"client {client} waits for {sorted(waiting)}"
        self.driver.advance(100.0)
        self.driver.assert_empty()


@pytest.mark.parametrize("concurrency", [1, 3])
def test_each_request_is_answered_once_whatever_breaks(concurrency: int) -> None:
    run_state_machine_as_test(
        partial(DeliveryMachine, concurrency),  # type: ignore[arg-type]
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
