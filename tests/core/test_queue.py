"""The queue of waiting requests, against a plain list that does the same slowly."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbcore.core.queue import Entry, RequestQueue, Run

CLIENT = 3


def entry(sequence: int, client: int = CLIENT) -> Entry:
    return client << 32 | sequence, bytes(sequence % 7)


def run_of(*sequences: int, client: int = CLIENT, task: int = 0) -> Run:
    return Run(client, task, [entry(sequence, client) for sequence in sequences])


def waiting(queue: RequestQueue) -> list[list[Entry]]:
    """What waits, run by run; and the sums are right."""
    runs: list[Run] = []
    while (run := queue.run_at(len(runs))) is not None:
        assert run.left, "an empty run waits"
        runs.append(run)
    entries = [run.waiting() for run in runs]
    assert [len(each) for each in entries] == [run.left for run in runs]
    assert queue.count == sum(len(each) for each in entries)
    assert queue.bytes == sum(len(frame) for each in entries for _, frame in each)
    return entries


def queue_of(*runs: Run) -> RequestQueue:
    queue = RequestQueue()
    for run in runs:
        queue.append(run, sum(len(frame) for _, frame in run.entries))
    return queue


def test_first_come_first_served() -> None:
    queue = queue_of(run_of(1, 2, 3), run_of(4))
    assert queue.take(0, 0, 2) == [entry(1), entry(2)]
    assert queue.take(0, 0, 9) == [entry(3)]
    assert waiting(queue) == [[entry(4)]]
    assert queue.take(0, 0, 1) == [entry(4)]
    assert queue.run_at(0) is None
    assert (queue.count, queue.bytes) == (0, 0)


def test_requests_that_are_held_stay_before_those_taken() -> None:
    queue = queue_of(run_of(1, 2, 3, 4, 5))
    assert queue.take(0, 2, 2) == [entry(3), entry(4)]
    assert waiting(queue) == [[entry(1), entry(2), entry(5)]]
    assert queue.take(0, 0, 1) == [entry(1)]
    assert queue.take(0, 1, 5) == [entry(5)]
    assert waiting(queue) == [[entry(2)]]


def test_what_comes_back_goes_first_in_its_old_order() -> None:
    queue = queue_of(run_of(7))
    queue.push_front([run_of(1, 2), run_of(3, task=1)])
    assert waiting(queue) == [[entry(1), entry(2)], [entry(3)], [entry(7)]]


def test_a_client_that_leaves_takes_its_runs_along() -> None:
    queue = queue_of(run_of(1), run_of(2, client=4), run_of(3, 4))
    queue.take(0, 0, 1)
    removed = queue.remove(lambda run: run.client == CLIENT)
    assert [run.waiting() for run in removed] == [[entry(3), entry(4)]]
    assert waiting(queue) == [[entry(2, client=4)]]
    assert queue.remove(lambda run: run.client == CLIENT) == []


def test_a_long_run_lets_go_of_what_is_taken() -> None:
    count = 20_000
    queue = queue_of(run_of(*range(count)))
    for taken in range(count - 1):
        assert queue.take(0, 0, 1) == [entry(taken)]
        run = queue.run_at(0)
        assert run is not None
        assert len(run.entries) - run.left <= 4097


@pytest.mark.parametrize("sequence", [1, 3, 5, 6])
def test_one_request_is_taken_out_of_the_middle(sequence: int) -> None:
    queue = queue_of(run_of(1, 2, 3), run_of(1, client=4), run_of(4, 5, 6))
    assert queue.remove_request(entry(sequence)[0]) == entry(sequence)
    left = [found[0] & 0xFF for run in waiting(queue) for found in run if found[0] >> 32 == CLIENT]
    assert left == [number for number in range(1, 7) if number != sequence]
    assert queue.remove_request(entry(sequence)[0]) is None


def test_a_request_that_was_taken_does_not_wait() -> None:
    queue = queue_of(run_of(1, 2))
    queue.take(0, 0, 1)
    assert queue.remove_request(entry(1)[0]) is None
    assert waiting(queue) == [[entry(2)]]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 6), st.integers(1, 3)),
        st.tuples(st.just("front"), st.integers(1, 6), st.integers(1, 3)),
        st.tuples(st.just("take"), st.integers(0, 4), st.integers(0, 4)),
        st.tuples(st.just("remove"), st.integers(0, 40), st.integers(1, 3)),
        st.tuples(st.just("leave"), st.just(0), st.integers(1, 3)),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=200)
@given(steps=steps)
def test_it_does_what_a_list_of_lists_does(steps: list[tuple[str, int, int]]) -> None:
    queue = RequestQueue()
    model: list[list[Entry]] = []
    sequence = 0
    for step, first, second in steps:
        if step in ("append", "front"):
            entries = [entry(sequence + number, second) for number in range(first)]
            sequence += first
            run = Run(second, 0, list(entries))
            if step == "append":
                queue.append(run, sum(len(frame) for _, frame in entries))
                model.append(entries)
            else:
                queue.push_front([run])
                model.insert(0, entries)
        elif step == "take" and model:
            index = first % len(model)
            offset = second % len(model[index])
            count = 1 + first % 3
            expected = model[index][offset : offset + count]
            assert queue.take(index, offset, count) == expected
            del model[index][offset : offset + count]
        elif step == "remove":
            request_id = entry(first, second)[0]
            places = [found for found in model if request_id in [each[0] for each in found]]
            found = queue.remove_request(request_id)
            assert (found is not None) == bool(places)
            for place in places:
                place[:] = [each for each in place if each[0] != request_id]
        elif step == "leave":
            queue.remove(lambda run, client=second: run.client == client)  # type: ignore[misc]
            model = [found for found in model if found[0][0] >> 32 != second]
        model = [found for found in model if found]
        assert waiting(queue) == model
