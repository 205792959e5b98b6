"""The queue of waiting requests, against a plain list that does the same slowly."""

from __future__ import annotations

import random
from typing import Any

import pytest

from lbcore.core.lanes import MERGED_ENTRIES, RUN_ENTRIES, TAKEN_MAX
from lbcore.core.queue import Entry, RequestQueue, Run

CLIENT = 3
COST_S = 1.0


def entry(sequence: int, client: int = CLIENT) -> Entry:
    return client << 32 | sequence, bytes(sequence % 7)


def run_of(*sequences: int, client: int = CLIENT, task: int = 0, priority: int = 0) -> Run:
    entries = [entry(sequence, client) for sequence in sequences]
    return Run(client, task, entries, priority=priority)


def append(queue: RequestQueue, run: Run, **more: bool) -> None:
    queue.append(run, sum(len(frame) for _, frame in run.entries), **more)


def queue_of(*runs: Run) -> RequestQueue:
    queue = RequestQueue()
    for run in runs:
        append(queue, run)
    return queue


def take(queue: RequestQueue, count: int = 1, cost_s: float = COST_S) -> list[Entry]:
    """Take from whatever is next; nothing when nothing is."""
    return queue.take(count, cost_s) if queue.head() is not None else []


def drain(queue: RequestQueue) -> list[Entry]:
    """Everything, in the order in which it would start."""
    taken: list[Entry] = []
    while queue.head() is not None:
        taken += queue.take(1, COST_S)
    return taken


def short(entries: list[Entry]) -> list[str]:
    """``client:sequence``, as people write ids."""
    return [f"{request_id >> 32}:{request_id & 0xFFFFFFFF}" for request_id, _ in entries]


# ---- one client --------------------------------------------------------------------------------


def test_first_come_first_served() -> None:
    queue = queue_of(run_of(1, 2, 3), run_of(4, task=1))
    assert take(queue, 2) == [entry(1), entry(2)]
    queue.check()
    assert take(queue, 9) == [entry(3)]
    assert take(queue, 1) == [entry(4)]
    assert queue.head() is None
    assert (queue.count, queue.bytes) == (0, 0)


def test_requests_that_are_held_stay_before_those_taken() -> None:
    queue = queue_of(run_of(1, 2, 3, 4, 5), run_of(6, task=1))
    for _ in range(2):
        assert queue.head() is not None
        queue.hold(COST_S)
    assert take(queue, 2) == [entry(3), entry(4)]
    assert queue.head() is not None
    queue.hold(COST_S)
    assert take(queue) == [entry(6)]
    assert queue.head() is None
    queue.release()
    queue.check()
    assert drain(queue) == [entry(1), entry(2), entry(5)]


def test_a_run_that_is_passed_over_is_next_again_after_the_look() -> None:
    queue = queue_of(run_of(1, 2), run_of(3, task=1), run_of(4, task=2))
    assert queue.head() is not None
    queue.pass_over()
    assert take(queue) == [entry(3)]
    assert queue.head() is not None
    queue.pass_over()
    assert queue.head() is None
    queue.release()
    queue.check()
    assert drain(queue) == [entry(1), entry(2), entry(4)]


def test_what_comes_back_goes_first_in_its_old_order() -> None:
    queue = queue_of(run_of(7), run_of(8, priority=10))
    queue.push_front([run_of(3), run_of(4, 5, task=1)])
    queue.push_front([run_of(1, 2, client=4)])
    queue.check()
    assert short(drain(queue)) == ["4:1", "4:2", "3:3", "3:4", "3:5", "3:8", "3:7"]


def test_small_runs_of_one_task_become_one() -> None:
    queue = queue_of(*(run_of(sequence) for sequence in range(1, 2 * MERGED_ENTRIES + 1)))
    assert len(list(queue.runs())) == 2
    queue.check()
    assert take(queue, 64) == [entry(sequence) for sequence in range(1, 65)]
    append(queue, Run(CLIENT, 0, [entry(9999)], explain=True))
    assert len(list(queue.runs())) == 3, "one that is to be explained is by itself"


def test_large_requests_do_not_stay_in_memory_behind_those_taken() -> None:
    queue = RequestQueue()
    for sequence in range(10):
        queue.append(Run(CLIENT, 0, [(CLIENT << 32 | sequence, bytes(100_000))]), 100_000)
    assert len(list(queue.runs())) == 10


def test_a_long_run_lets_go_of_what_is_taken() -> None:
    count = 2 * RUN_ENTRIES + 5
    queue = queue_of(run_of(*range(count)))
    assert [run.left for run in queue.runs()] == [RUN_ENTRIES, RUN_ENTRIES, 5]
    for taken in range(count - 1):
        assert take(queue) == [entry(taken)]
        run = queue.head()
        assert run is not None
        assert len(run.entries) - run.left <= TAKEN_MAX + 1


# ---- taking things out -------------------------------------------------------------------------


def test_a_client_that_leaves_takes_its_requests_along() -> None:
    queue = queue_of(run_of(1), run_of(2, client=4), run_of(3, 4, task=1), run_of(5, priority=2))
    queue.push_front([run_of(6), run_of(7, client=4)])
    assert take(queue) == [entry(6)]
    removed = queue.remove_client(CLIENT)
    assert sorted(short([each for run in removed for each in run.waiting()])) == [
        "3:1",
        "3:3",
        "3:4",
        "3:5",
    ]
    queue.check()
    assert queue.remove_client(CLIENT) == []
    assert short(drain(queue)) == ["4:7", "4:2"]


@pytest.mark.parametrize("sequence", [1, 3, 5, 6])
def test_one_request_is_taken_out_of_the_middle(sequence: int) -> None:
    queue = queue_of(run_of(1, 2, 3), run_of(1, client=4), run_of(4, 5, 6, task=1))
    assert queue.remove_request(entry(sequence)[0]) == entry(sequence)
    queue.check()
    assert queue.remove_request(entry(sequence)[0]) is None
    left = [each for each in short(drain(queue)) if each.startswith("3:")]
    assert left == [f"3:{number}" for number in range(1, 7) if number != sequence]


def test_a_request_that_was_taken_does_not_wait() -> None:
    queue = queue_of(run_of(1, 2))
    take(queue)
    assert queue.remove_request(entry(1)[0]) is None
    assert drain(queue) == [entry(2)]


def test_ids_in_any_order_are_found() -> None:
    queue = queue_of(run_of(5, 2, 9, 1))
    assert queue.remove_request(entry(9)[0]) == entry(9)
    assert queue.remove_request(entry(1)[0]) == entry(1)
    append(queue, run_of(3, 8))
    assert queue.remove_request(entry(8)[0]) == entry(8)
    assert drain(queue) == [entry(5), entry(2), entry(3)]


def test_only_requests_with_a_deadline_are_found_without_an_index() -> None:
    queue = queue_of(run_of(1, 2))
    append(queue, run_of(3), timed=True)
    assert queue.remove_request(entry(1)[0], timed=True) is None
    assert queue.remove_request(entry(3)[0], timed=True) == entry(3)
    queue.push_front([run_of(4)])
    assert queue.remove_request(entry(4)[0], timed=True) == entry(4), "it may have a deadline"


def test_taking_out_many_costs_the_same_each() -> None:
    """Counted, not timed: how often a request's place is looked at."""
    looked = 0

    class Counting(list[Entry]):
        def __getitem__(self, place: Any) -> Any:
            nonlocal looked
            looked += 1
            return super().__getitem__(place)

    count = 4000
    queue = RequestQueue()
    for sequence in range(count):
        append(queue, run_of(sequence, task=sequence % 5), timed=True)
    for run in queue.runs():
        run.entries = Counting(run.entries)
    order = list(range(count))
    random.Random(1).shuffle(order)
    for sequence in order:
        assert queue.remove_request(entry(sequence)[0], timed=True) == entry(sequence)
    assert queue.count == 0
    assert looked < 20 * count


def test_requests_that_run_out_of_time_leave_nothing_behind() -> None:
    queue = queue_of(run_of(1))
    for sequence in range(2, 5000):
        append(queue, run_of(sequence, task=sequence % 2 + 1), timed=True)
        queue.remove_request(entry(sequence)[0], timed=True)
    queue.check()
    assert len(queue._clients[CLIENT].lanes[0].runs) < 100


# ---- tasks that nobody has ---------------------------------------------------------------------


def test_what_is_parked_stands_in_nobodys_way_and_comes_back_in_order() -> None:
    queue = queue_of(run_of(1, task=9), run_of(2), run_of(3, task=9), run_of(4, client=4))
    assert queue.head() is not None
    queue.park()
    assert short(take(queue)) == ["4:4"]
    assert take(queue) == [entry(2)]
    assert queue.head() is not None
    queue.park()
    assert queue.head() is None
    assert not queue.can_start()
    append(queue, run_of(5, task=9))
    assert queue.head() is None, "the next one of that task is not even looked at"
    append(queue, run_of(6))
    assert queue.can_start()
    queue.check()
    queue.unpark(1)
    queue.check()
    assert short(drain(queue)) == ["3:1", "3:3", "3:5", "3:6"]


def test_parked_requests_can_be_taken_out() -> None:
    queue = queue_of(run_of(1, 2, task=9), run_of(3, task=8))
    queue.push_front([run_of(4, task=9)])
    for _ in range(3):
        assert queue.head() is not None
        queue.park()
    assert queue.remove_request(entry(3)[0]) == entry(3)
    assert queue.remove_request(entry(1)[0]) == entry(1)
    queue.check()
    assert [run.left for run in queue.remove_client(CLIENT)] == [1, 1]
    queue.check()
    assert queue.count == 0


# ---- clients that do not take their answers ----------------------------------------------------


def test_nothing_of_a_blocked_client_is_started() -> None:
    queue = queue_of(run_of(1), run_of(2, client=4))
    queue.block(CLIENT, True)
    append(queue, run_of(3))
    append(queue, run_of(4, priority=5))
    queue.check()
    assert short(drain(queue)) == ["4:2"]
    assert not queue.can_start()
    assert queue.remove_request(entry(1)[0]) == entry(1)
    queue.block(CLIENT, False)
    queue.check()
    assert short(drain(queue)) == ["3:4", "3:3"]


def test_a_client_that_is_gone_is_forgotten_when_nothing_of_it_waits() -> None:
    connected = {CLIENT}
    queue = RequestQueue(connected)
    append(queue, run_of(1))
    append(queue, run_of(2, client=4))
    drain(queue)
    assert set(queue._clients) == {CLIENT}
