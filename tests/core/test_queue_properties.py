"""The queue under anything in any order, against the simplest words for it."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from lbcore.core.queue import Entry, RequestQueue, Run
from tests.core.test_queue import COST_S, append, drain, entry, run_of

steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 6), st.integers(1, 3), st.integers(-1, 1)),
        st.tuples(st.just("front"), st.integers(1, 6), st.integers(1, 3), st.integers(-1, 1)),
        st.tuples(st.just("take"), st.integers(1, 4), st.just(0), st.just(0)),
        st.tuples(st.just("look"), st.integers(1, 4), st.integers(0, 255), st.integers(0, 3)),
        st.tuples(st.just("remove"), st.integers(0, 40), st.integers(1, 3), st.just(0)),
        st.tuples(st.just("leave"), st.just(0), st.integers(1, 3), st.just(0)),
        st.tuples(st.just("block"), st.integers(0, 1), st.integers(1, 3), st.just(0)),
        st.tuples(st.just("unpark"), st.just(0), st.just(0), st.just(0)),
    ),
    max_size=40,
)


class Checked:
    """A queue beside the simplest words for it: what waits, what came back, who is blocked."""

    def __init__(self) -> None:
        self.queue = RequestQueue()
        self.waiting: dict[int, tuple[int, int, bytes]] = {}
        self.returned: set[int] = set()
        self.blocked: set[int] = set()
        self.sequence = 0

    def new_run(self, count: int, client: int, priority: int) -> Run:
        entries = [entry(self.sequence + number, client) for number in range(count)]
        self.sequence += count
        run = Run(client, count % 2, entries, priority=priority)
        for request_id, frame in entries:
            self.waiting[request_id] = priority, run.task, frame
        return run

    def append(self, count: int, client: int, priority: int) -> None:
        append(self.queue, self.new_run(count, client, priority))

    def front(self, count: int, client: int, priority: int) -> None:
        run = self.new_run(count, client, priority)
        self.returned.update(request_id for request_id, _ in run.entries)
        self.queue.push_front([run])

    def oldest(self, client: int, priority: int, task: int) -> int:
        """The first request of those that did not come back."""
        return next(
            request_id
            for request_id, (of, wanted, _) in self.waiting.items()
            if of == priority
            and wanted == task
            and request_id >> 32 == client
            and request_id not in self.returned
        )

    def take(self, count: int, *_: int) -> None:
        head = self.queue.head()
        if head is not None:
            client, priority, task = head.client, head.priority, head.task
            taken = self.queue.take(count, COST_S)
            if taken[0][0] not in self.returned and not self.queue._parking.tasks:
                assert taken[0][0] == self.oldest(client, priority, task)
            self.took(client, taken)

    def took(self, client: int, taken: list[Entry]) -> None:
        for request_id, frame in taken:
            assert request_id in self.returned or client not in self.blocked
            assert self.waiting.pop(request_id)[2] == frame

    def look(self, count: int, choices: int, other: int) -> None:
        for place in range(8):
            if (head := self.queue.head()) is None:
                break
            if choices >> place & 1:
                self.took(head.client, self.queue.take(count, COST_S))
            elif other == 0 and not self.queue._touched:
                self.queue.park()
            elif other == 1:
                self.queue.pass_over()
            else:
                self.queue.hold(COST_S)
        self.queue.release()

    def remove(self, sequence: int, client: int, _: int) -> None:
        request_id = entry(sequence, client)[0]
        found = self.queue.remove_request(request_id)
        assert (found is not None) == (request_id in self.waiting)
        self.waiting.pop(request_id, None)

    def leave(self, _: int, client: int, __: int) -> None:
        gone = [each[0] for run in self.queue.remove_client(client) for each in run.waiting()]
        self.blocked.discard(client)
        expected = [request_id for request_id in self.waiting if request_id >> 32 == client]
        assert sorted(gone) == sorted(expected)
        for request_id in expected:
            del self.waiting[request_id]

    def block(self, blocked: int, client: int, _: int) -> None:
        self.queue.block(client, bool(blocked))
        (self.blocked.add if blocked else self.blocked.discard)(client)

    def unpark(self, *_: int) -> None:
        self.queue.unpark(0)

    def check(self) -> None:
        self.queue.check()
        waiting = [request_id for run in self.queue.runs() for request_id, _ in run.waiting()]
        assert sorted(waiting) == sorted(self.waiting)


@settings(deadline=None, max_examples=300)
@given(steps=steps)
def test_whatever_happens_nothing_is_lost_or_doubled(
    steps: list[tuple[str, int, int, int]],
) -> None:
    checked = Checked()
    for step, *numbers in steps:
        getattr(checked, step)(*numbers)
        checked.check()
    checked.unpark()
    for client in (1, 2, 3):
        checked.block(False, client, 0)
    left = [request_id for request_id, _ in drain(checked.queue)]
    assert sorted(left) == sorted(checked.waiting)
    checked.queue.check()


@settings(deadline=None, max_examples=100)
@given(
    runs=st.lists(st.tuples(st.integers(1, 3), st.integers(-2, 2), st.integers(0, 2)), max_size=60)
)
def test_a_clients_requests_of_one_priority_start_in_the_order_in_which_they_came(
    runs: list[tuple[int, int, int]],
) -> None:
    queue = RequestQueue()
    priority_of = {}
    for sequence, (client, priority, task) in enumerate(runs):
        append(queue, run_of(sequence, client=client, task=task, priority=priority))
        priority_of[entry(sequence, client)[0]] = priority
    started = [request_id for request_id, _ in drain(queue)]
    for client in (1, 2, 3):
        for priority in range(-2, 3):
            own = [
                request_id
                for request_id in started
                if request_id >> 32 == client and priority_of[request_id] == priority
            ]
            assert all(one < other for one, other in pairwise(own))
