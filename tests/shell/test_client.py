"""The client, against a real system: what each call gives, from one thread and from many."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, as_completed, wait
from concurrent.futures import TimeoutError as FutureTimeout
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from lbcore import Client
from lbcore.core.errors import (
    BadArguments,
    DeadlineExceeded,
    TaskError,
    UnknownTask,
)
from tests.e2e.running import PATIENCE_S, RunningSystem, together, wait_until

MEGABYTE = 1 << 20


@pytest.fixture
def client(shared: RunningSystem) -> Iterator[Client]:
    """A client of a system with two workers."""
    made = shared.client()
    yield made
    # not in this thread: a client that a failing test has locked up must not lock up the suite
    together(made.close)


# ---- call ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [None, True, -1, 2**63, 1.5, "text \u2603", b"bytes", [1, [2]], {"a": {"b": None}}, {1: 2}],
)
def test_values_go_there_and_back(value: object, client: Client) -> None:
    assert client.call("echo", value) == value
    assert client.call("echo", value=value) == value
    assert client.submit("echo", value).result(PATIENCE_S) == value
    assert list(client.map("echo", [value])) == [value]
    assert [reply.value() for reply in client.stream([("echo", {"value": value})])] == [value]


def test_a_task_may_have_arguments_with_the_names_of_ours(client: Client) -> None:
    with pytest.raises(BadArguments, match="unknown argument `task`"):
        client.call("echo", task=1)
    with pytest.raises(BadArguments, match="unknown argument `self`"):
        client.submit("echo", **dict[str, Any](self=1)).result(PATIENCE_S)


def test_a_timeout_is_a_deadline(client: Client) -> None:
    with pytest.raises(DeadlineExceeded):
        client.call("sleep", 0.5, timeout=0.03)
    with pytest.raises(DeadlineExceeded):
        client.submit("sleep", 0.5, timeout=0.03).result(PATIENCE_S)
    with pytest.raises(DeadlineExceeded):
        list(client.map("sleep", [0.5], timeout=0.03))
    assert client.call("sleep", 0.001, timeout=PATIENCE_S) == 0.001


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_a_timeout_that_is_none(timeout: float, client: Client) -> None:
    with pytest.raises(BadArguments, match="timeout must be above 0"):
        client.call("noop", timeout=timeout)
    with pytest.raises(BadArguments, match="timeout must be above 0"):
        list(client.stream([("noop", None)], timeout=timeout))


def test_a_timeout_beyond_all_bounds(client: Client) -> None:
    assert client.call("noop", timeout=float("inf")) is None
    assert client.call("noop", timeout=1e300) is None


def test_the_first_of_many_threads_and_the_last(client: Client) -> None:
    """One connection, twenty threads, each with its own answers."""

    def work(thread: int) -> None:
        for number in range(50):
            assert client.call("echo", [thread, number]) == [thread, number]

    together(*[lambda thread=thread: work(thread) for thread in range(20)])


def test_all_ways_at_once(client: Client) -> None:
    def calling() -> None:
        for number in range(150):
            assert client.call("echo", number) == number

    def submitting() -> None:
        futures: dict[Future[int], int] = {
            client.submit("echo", number): number for number in range(500)
        }
        for future in as_completed(futures, PATIENCE_S):
            assert future.result() == futures[future]

    def mapping() -> None:
        assert list(client.map("echo", range(1000))) == list(range(1000))

    def streaming() -> None:
        calls = [("echo", [number]) for number in range(2000)]
        found = {reply.index: reply.value() for reply in client.stream(calls, window=100)}
        assert found == {number: number for number in range(2000)}

    def asking() -> None:
        for _ in range(30):
            assert client.status()["state"] == "RUNNING"
            assert client.tasks()

    together(calling, calling, submitting, mapping, mapping, streaming, streaming, asking)


# ---- submit --------------------------------------------------------------------------------------


def test_errors_come_with_their_future(client: Client) -> None:
    future = client.submit("fail", "value")
    error = future.exception(PATIENCE_S)
    assert isinstance(error, TaskError)
    assert error.type_name == "ValueError"
    with pytest.raises(UnknownTask):
        client.submit("no_such_task")


def test_a_callback_may_use_the_client(client: Client) -> None:
    done: Future[list[Any]] = Future()

    def go_on(future: Future[Any]) -> None:
        try:
            # in the thread that reads the answers
            values = [future.result(), client.call("echo", "nested")]
            values += client.map("echo", [1, 2])
            values += [reply.value() for reply in client.stream([("echo", [3])])]
            client.submit("echo", 4).add_done_callback(
                lambda last: done.set_result([*values, last.result()])
            )
        except BaseException as error:
            done.set_exception(error)

    client.submit("echo", "first").add_done_callback(go_on)
    assert done.result(PATIENCE_S) == ["first", "nested", 1, 2, 3, 4]


def test_callbacks_that_submit_keep_themselves_going(client: Client) -> None:
    total, finished = 300, threading.Event()
    seen: list[int] = []

    def go_on(future: Future[Any]) -> None:
        seen.append(future.result())
        if len(seen) < total:
            client.submit("echo", len(seen)).add_done_callback(go_on)
        else:
            finished.set()

    client.submit("echo", 0).add_done_callback(go_on)
    assert finished.wait(PATIENCE_S)
    assert seen == list(range(total))


def test_a_callback_that_raises_harms_nobody(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    def raises(future: Future[Any]) -> None:
        raise ValueError("in a callback")

    futures = [client.submit("echo", number) for number in range(20)]
    for future in futures:
        future.add_done_callback(raises)
    assert [future.result(PATIENCE_S) for future in futures] == list(range(20))
    assert client.call("echo", 1) == 1
    assert "in a callback" in caplog.text


def test_a_cancelled_future_stays_cancelled(client: Client, tmp_path: Path) -> None:
    started, release = tmp_path / "started", tmp_path / "release"
    future = client.submit("hold", str(started), str(release))
    others = [client.submit("echo", number) for number in range(20)]
    wait_until(started.exists, "the task")
    assert future.cancel()
    release.touch()
    # also for those who wait for it
    assert wait([future, *others], PATIENCE_S).not_done == set()
    assert future.cancelled()
    assert client.call("echo", 1) == 1


def test_a_wait_that_is_given_up_loses_nothing(client: Client, tmp_path: Path) -> None:
    started, release = tmp_path / "started", tmp_path / "release"
    future = client.submit("hold", str(started), str(release))
    with pytest.raises(FutureTimeout):
        future.result(0.01)
    release.touch()
    assert future.result(PATIENCE_S).startswith("worker-")


# ---- map and stream ------------------------------------------------------------------------------


def test_map_takes_several_iterables_and_stops_with_the_shortest(client: Client) -> None:
    assert list(client.map("sort", [[3, 1], [2]], [5, 6, 7])) == [[1, 3], [2]]
    assert list(client.map("echo", [])) == []


def test_map_of_an_endless_iterable_reads_no_further_than_its_window(client: Client) -> None:
    pulled = 0

    def numbers() -> Iterator[int]:
        nonlocal pulled
        for number in count():
            pulled = number + 1
            yield number

    for expected, value in enumerate(client.map("echo", numbers(), window=50)):
        assert value == expected
        assert pulled <= expected + 1 + 2 * 50
        if expected == 3000:
            break
    assert client.call("echo", "afterwards") == "afterwards"


def test_map_keeps_the_order_when_the_first_is_slow(client: Client, tmp_path: Path) -> None:
    started, release = tmp_path / "started", tmp_path / "release"
    pulled: list[int] = []

    def starts() -> Iterator[str]:
        for number in range(200):
            pulled.append(number)
            yield str(started if number == 0 else tmp_path / "any")

    def releases() -> Iterator[str]:
        yield str(release)
        (tmp_path / "open").touch()
        for _ in range(199):
            yield str(tmp_path / "open")

    results = client.map("hold", starts(), releases(), window=20)
    first: list[str] = []

    def read() -> None:
        first.append(next(results))

    reading = threading.Thread(target=read, daemon=True)
    reading.start()
    wait_until(started.exists, "the slow one")
    # those behind it are done, wait for their turn, and count: nothing piles up
    wait_until(lambda: client.status()["broker"]["in_flight"] == 1, "the others")
    assert len(pulled) <= 21
    assert not first
    release.touch()
    reading.join(PATIENCE_S)
    assert len([*first, *results]) == 200


def test_map_raises_the_error_in_its_turn(client: Client) -> None:
    whats = ["value", "exit"]
    results = client.map("fail", whats)
    with pytest.raises(TaskError) as caught:
        next(results)
    assert caught.value.type_name == "ValueError"
    with pytest.raises(StopIteration):
        next(results)


def test_a_stream_tells_where_each_request_ran(client: Client) -> None:
    calls: list[tuple[str, Any]] = [
        ("sleep", {"seconds": 0.005}),
        ("fail", {"what": "value"}),
        ("echo", [1]),
    ]
    replies = {reply.index: reply for reply in client.stream(calls)}
    assert sorted(replies) == [0, 1, 2]
    assert replies[0].worker in ("worker-1", "worker-2")
    assert replies[0].service_s >= 0.005
    assert replies[0].latency_s >= replies[0].service_s
    error = replies[1].error()
    assert isinstance(error, TaskError)
    with pytest.raises(TaskError):
        replies[1].value()
    assert (replies[2].value(), replies[2].error()) == (1, None)
    assert len({reply.request_id for reply in replies.values()}) == 3


def test_a_stream_within_a_stream(client: Client) -> None:
    seen = []
    for outer in client.stream([("echo", [number]) for number in range(30)], window=10):
        inner = [reply.value() for reply in client.stream([("echo", [n]) for n in range(5)])]
        assert sorted(inner) == list(range(5))
        assert client.call("echo", "x") == "x"
        assert client.submit("echo", "y").result(PATIENCE_S) == "y"
        seen.append(outer.value())
    assert sorted(seen) == list(range(30))


def test_a_stream_that_is_abandoned_leaves_no_trace(client: Client) -> None:
    for _ in range(20):
        replies = client.stream([("echo", [number]) for number in range(500)], window=200)
        assert next(replies).error() is None
        replies.close()  # type: ignore[attr-defined]
    assert client.call("echo", "next") == "next"
    assert list(client.map("echo", range(100))) == list(range(100))
    assert not client._connection.session.open
    assert not client._connection.flows


def test_calls_that_raise_end_the_stream(client: Client) -> None:
    def calls() -> Iterator[tuple[str, Any]]:
        yield "echo", [1]
        raise LookupError("no more calls")

    with pytest.raises(LookupError):
        list(client.stream(calls()))
    assert client.call("echo", 1) == 1
    with pytest.raises(UnknownTask):
        list(client.stream([("echo", [1]), ("ehco", [2])]))
    assert client.call("echo", 2) == 2


@pytest.mark.parametrize("options", [{"window": 0}, {"rate": 0}, {"rate": -1.0}])
def test_impossible_options(options: dict[str, Any], client: Client) -> None:
    with pytest.raises(BadArguments):
        list(client.stream([("noop", None)], **options))


def test_a_paced_stream_leaves_the_client_to_others(client: Client) -> None:
    replies = client.stream([("echo", [number]) for number in range(20)], rate=100.0)
    for _ in replies:
        assert client.call("echo", 1) == 1


# ---- large values --------------------------------------------------------------------------------


def test_large_values_both_ways_while_the_window_is_full(client: Client) -> None:
    """Answers back up while requests are written: whoever writes has to read as well."""
    large, small = bytes(20 * MEGABYTE), bytes(MEGABYTE)

    def streaming() -> None:
        sizes = [len(r.value()) for r in client.stream([("echo", [small])] * 60, window=30)]
        assert sizes == [MEGABYTE] * 60

    def calling() -> None:
        for _ in range(2):
            assert len(client.call("echo", large)) == len(large)

    def submitting() -> None:
        futures = [client.submit("echo", small) for _ in range(20)]
        assert [len(future.result(PATIENCE_S)) for future in futures] == [MEGABYTE] * 20

    together(streaming, calling, submitting)


def test_a_callback_that_submits_while_another_thread_writes(client: Client) -> None:
    """The reading thread waits for the writing one, which waits for the broker to be read."""
    small, finished = bytes(MEGABYTE), threading.Semaphore(0)

    def again(future: Future[Any]) -> None:
        assert len(future.result()) == MEGABYTE
        client.submit("echo", small).add_done_callback(lambda _: finished.release())

    def submitting() -> None:
        for _ in range(60):
            client.submit("echo", small).add_done_callback(again)

    together(submitting, submitting)
    for _ in range(120):
        assert finished.acquire(timeout=PATIENCE_S)
