"""Whatever clients and workers do, in whatever order: every request gets exactly one answer.

A random history of clients, workers, deadlines, deaths, recalls and reports; the books are checked
after each event, and at the end, when everything is answered, nothing may be left in them.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from typing import Any

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

from lbcore.core.actions import CloseWorker
from lbcore.core.errors import Status
from lbcore.core.frames import Flag, reply_frame, request_frame
from lbcore.core.policies import POLICIES
from lbcore.core.topology import Limits
from tests.core.driver import Driver, spec

WORKERS = 3
ATTEMPTS = 3
TASKS = [
    spec("short", 0.05),
    spec("long", 5.0),
    spec("milli", 0.002),
    spec("tiny", 1e-5),
    spec("frail", 0.05, idempotent=False),
]
FRAIL = 4
#: this one only the first worker has
RARE = 5
UNKNOWN = 99
FRAME_BYTES = 100

FIGURES = ("at", "wall_s", "cpu_s", "delay_s", "cores", "busy_s", "rss_bytes")
any_number = st.one_of(
    st.floats(), st.sampled_from([math.nan, math.inf, 0.0, 1e308]), st.integers(-5, 10**6)
)


class BrokerMachine(RuleBasedStateMachine):
    """One broker; the rules are what its peers may do."""

    def __init__(self, policy: str, concurrency: int) -> None:
        super().__init__()
        limits = Limits(
            queue=40,
            queue_bytes=4000,
            client_queue=30,
            frame_bytes=FRAME_BYTES,
            max_attempts=ATTEMPTS,
        )
        self.driver = Driver(
            WORKERS, policy, concurrency=concurrency, limits=limits, tasks=TASKS, join=False
        )
        for number in range(WORKERS):
            self.join(number)
        #: every id that a client sent, and those of clients that are still here
        self.sent: dict[int, list[int]] = {}
        #: bytes that a client has not sent yet
        self.rest: dict[int, bytes] = {}
        #: how often a worker died while it ran a request
        self.deaths: Counter[int] = Counter()
        self.client_joins()

    # ---- helpers -------------------------------------------------------------------------------

    def join(self, number: int) -> None:
        more = [spec("rare", 0.1)] if number == 0 else []
        self.driver.join(number, TASKS + more)

    def is_up(self, number: int) -> bool:
        return number in self.driver.ledger.buffers

    def count_deaths(self, number: int) -> None:
        concurrency = self.driver.fleet.workers[number].concurrency
        self.deaths.update(held.id for held in self.driver.held[number][:concurrency])

    # ---- clients -------------------------------------------------------------------------------

    @rule()
    @precondition(lambda self: len(self.sent) < 4)
    def client_joins(self) -> None:
        client = self.driver.client()
        self.sent[client], self.rest[client] = [], b""

    @rule(data=st.data())
    @precondition(lambda self: self.sent)
    def client_leaves(self, data: st.DataObject) -> None:
        client = data.draw(st.sampled_from(sorted(self.sent)))
        del self.sent[client], self.rest[client]
        self.driver.answers.pop(client, None)
        self.driver.leave(client)

    @rule(
        data=st.data(),
        runs=st.lists(
            st.tuples(
                st.sampled_from([0, 0, 1, 2, 2, 3, 3, 3, FRAIL, RARE, UNKNOWN]),
                st.integers(1, 8),
                st.sampled_from([0, 0, 0, 0, 1, 50, 1000]),
                st.sampled_from([0, 0, 0, int(Flag.EXPLAIN), 2, 255 - int(Flag.DETACHED)]),
                st.sampled_from([0, 1, 30, FRAME_BYTES, FRAME_BYTES + 1]),
                st.sampled_from([0, 0, 0, 1, -1, 10, 127, -128]),
            ),
            min_size=1,
            max_size=4,
        ),
        keep=st.integers(0, 60),
    )
    @precondition(lambda self: self.sent)
    def submit(self, data: st.DataObject, runs: list[tuple[int, ...]], keep: int) -> None:
        """A read that ends anywhere, also in the middle of a frame."""
        client = data.draw(st.sampled_from(sorted(self.sent)))
        stream = self.rest[client]
        for task, count, deadline_ms, flags, size, priority in runs:
            for _ in range(count):
                stream += self.driver.request(
                    client,
                    task,
                    bytes(size),
                    deadline_ms=deadline_ms,
                    flags=flags,
                    priority=priority,
                )
                self.sent[client].append(client << 32 | self.driver.sequence[client])
        cut = len(stream) - keep if keep < len(stream) else len(stream)
        self.rest[client] = stream[cut:]
        self.driver.from_client(client, stream[:cut])

    @rule(data=st.data(), paused=st.booleans())
    @precondition(lambda self: self.sent)
    def client_stops_reading_or_reads_again(self, data: st.DataObject, paused: bool) -> None:
        self.driver.pause(data.draw(st.sampled_from(sorted(self.sent))), paused)

    @rule(data=st.data())
    @precondition(lambda self: len(self.sent) > 1)
    def use_an_id_of_somebody_else(self, data: st.DataObject) -> None:
        thief, victim = data.draw(st.permutations(sorted(self.sent)))[:2]
        stolen = victim << 32 | max(1, self.driver.sequence[victim])
        if not self.rest[thief]:
            self.driver.from_client(thief, request_frame(stolen, 0))
            assert self.driver.answers[thief].pop().status == Status.BAD_REQUEST

    # ---- workers -------------------------------------------------------------------------------

    @rule(number=st.integers(0, WORKERS - 1))
    def worker_dies_or_comes_back(self, number: int) -> None:
        if self.is_up(number):
            self.count_deaths(number)
            self.driver.lose(number)
        else:
            self.join(number)

    @rule(
        number=st.integers(0, WORKERS - 1),
        count=st.integers(1, 30),
        status=st.sampled_from([0, 0, 0, 0, int(Status.TASK_ERROR), int(Status.BAD_ARGUMENTS)]),
        service_s=st.sampled_from([1e-6, 0.002, 0.05, 5.0]),
        cpu=st.sampled_from([0, 500, 1000, 0xFFFF]),
        stray=st.booleans(),
    )
    def worker_answers(
        self, number: int, count: int, status: int, service_s: float, cpu: int, stray: bool
    ) -> None:
        count = min(count, len(self.driver.held[number]))
        if self.is_up(number) and count:
            stranger = reply_frame(77 << 32 | 5, 1, b"for nobody") if stray else b""
            data = self.driver.replies(number, count, status=status, service_s=service_s, cpu=cpu)
            self.driver.from_worker(number, stranger + data + stranger)

    @rule(number=st.integers(0, WORKERS - 1), begun=st.integers(1, 4))
    def worker_gives_back(self, number: int, begun: int) -> None:
        if self.is_up(number):
            concurrency = self.driver.fleet.workers[number].concurrency
            self.driver.give_back(number, max(begun, concurrency))

    @rule(number=st.integers(0, WORKERS - 1), answered=st.integers(0, 2))
    def worker_breaks_the_protocol(self, number: int, answered: int) -> None:
        if not self.is_up(number):
            return
        good = self.driver.replies(number, min(answered, len(self.driver.held[number])))
        self.count_deaths(number)
        self.driver.held[number].clear()
        self.driver.from_worker(number, good + bytes(30))
        assert isinstance(self.driver.closed.pop(), CloseWorker)
        self.driver.lose(number)

    @rule(
        number=st.integers(0, WORKERS - 1),
        figures=st.fixed_dictionaries(
            {},
            optional=dict.fromkeys(FIGURES, any_number),
        ),
    )
    def worker_reports(self, number: int, figures: dict[str, Any]) -> None:
        self.driver.report(number, **figures)

    # ---- time ----------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1e-5, 0.001, 0.01, 0.1, 1.0, 20.0]))
    def time_passes(self, seconds: float) -> None:
        self.driver.advance(seconds)
        while self.driver.recalls:
            number = self.driver.recalls.pop()
            self.driver.give_back(number, self.driver.fleet.workers[number].concurrency)

    # ---- what must hold ------------------------------------------------------------------------

    @invariant()
    def nobody_gets_an_answer_twice(self) -> None:
        for client, sent in self.sent.items():
            answered = self.driver.answered_ids(client)
            assert len(answered) == len(set(answered))
            assert set(answered) <= set(sent)

    @invariant()
    def nothing_is_run_too_often(self) -> None:
        frail = {held.id for held in self.all_held() if held.task == FRAIL}
        assert not any(self.deaths[request_id] for request_id in frail)
        assert all(self.deaths[held.id] < ATTEMPTS for held in self.all_held())

    @invariant()
    def nobody_idles_beside_a_queue(self) -> None:
        ledger = self.driver.ledger
        if ledger.policy.late_binding and ledger.queue.count and ledger.hold_until is None:
            for run in ledger.queue.runs():
                client = ledger.clients.get(run.client)
                if client is not None and client.paused:
                    continue
                able = [worker for worker in ledger.fleet.ready if run.task in worker.tasks]
                assert all(worker.pending >= worker.concurrency for worker in able)

    @invariant()
    def figures_are_plain_numbers(self) -> None:
        for worker in self.driver.fleet.workers:
            assert 0.0 <= worker.backlog_s(self.driver.now) < math.inf
            assert 0.0 < worker.effective_speed(self.driver.now) < math.inf
            assert 0.1 <= worker.availability <= 1.0
            assert math.isfinite(worker.cpu)
        assert all(0.0 < cost.mean_s < math.inf for cost in self.driver.fleet.costs.values())

    def all_held(self) -> list[Any]:
        return [held for each in self.driver.held.values() for held in each]

    def teardown(self) -> None:
        """Everybody comes back and finishes; then each request has its one answer."""
        driver = self.driver
        for client in self.sent:
            driver.pause(client, False)
            driver.from_client(client, self.rest[client])
        driver.broker.drain()
        for number in range(WORKERS):
            if not self.is_up(number):
                self.join(number)
        driver.finish()
        assert driver.broker.drained
        for client, sent in self.sent.items():
            assert Counter(driver.answered_ids(client)) == Counter(sent)
        driver.assert_empty()
        driver.advance(100.0)
        assert driver.broker.next_deadline() is None
        assert not driver.ledger.deadlines


@pytest.mark.parametrize("concurrency", [1, 3])
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_request_gets_exactly_one_answer(policy: str, concurrency: int) -> None:
    examples = 40 if policy == "least_load" else 10
    run_state_machine_as_test(
        partial(BrokerMachine, policy, concurrency),  # type: ignore[arg-type]
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
