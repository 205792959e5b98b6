"""Counting replies: nothing lost, nothing twice, whatever interrupts it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from lbcore.cli import tally as tally_module
from lbcore.cli.connection import Reply
from lbcore.cli.interrupts import interrupts_deferred
from lbcore.cli.tally import Tally
from lbcore.core.errors import BrokerUnavailable, Busy, DeadlineExceeded, RequestError, TaskError
from tests.cli.fake_broker import FakeReply, failed_reply, good_reply


def replies(count: int) -> Iterator[FakeReply]:
    return (good_reply(index, "noop", None) for index in range(count))


def task_of(index: int) -> str:
    return "noop"


def test_every_reply_is_counted_for_its_worker() -> None:
    tally = Tally(task_of)
    tally.consume(replies(100))
    assert (tally.succeeded, tally.failed, tally.answered) == (100, 0, 100)
    assert {name: len(services) for name, services in tally.services.items()} == {
        "worker-1": 34,
        "worker-2": 33,
        "worker-3": 33,
    }
    assert tally.services["worker-3"].mean == pytest.approx(0.003)
    assert tally.latencies.maximum == pytest.approx(0.109)


def test_more_replies_than_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally_module, "_BATCH", 7)
    for count in (6, 7, 8, 14, 50):
        tally = Tally(task_of)
        tally.consume(replies(count))
        assert tally.succeeded == count
        assert sum(map(len, tally.services.values())) == count


def test_failures_are_kept_by_kind_with_the_first_message() -> None:
    tally = Tally(task_of)
    errors: list[RequestError] = [Busy("full"), DeadlineExceeded("first"), DeadlineExceeded("2nd")]
    tally.consume(failed_reply(index, error) for index, error in enumerate(errors))
    assert tally.failed == tally.answered == 3
    found = {kind: (failure.count, failure.message) for kind, failure in tally.failures.items()}
    assert found == {"Busy": (1, "full"), "DeadlineExceeded": (2, "first")}
    assert len(tally.latencies) == 0


def test_an_exception_in_a_task_keeps_its_type_and_the_first_traceback() -> None:
    tally = Tally(task_of)
    error = TaskError("bad value", type="ValueError", traceback="Traceback...\nValueError")
    other = TaskError("other", type="KeyError", traceback="another")
    tally.consume(iter([failed_reply(0, error, "worker-2"), failed_reply(1, other)]))
    failure = tally.failures["TaskError"]
    assert failure.message == "ValueError: bad value"
    assert failure.traceback == "Traceback...\nValueError"
    assert failure.worker == "worker-2"
    assert failure.count == 2
    assert len(tally.services["worker-2"]) == 1


def test_a_failure_that_no_worker_saw_belongs_to_none() -> None:
    tally = Tally(task_of)
    tally.consume(iter([failed_reply(0, Busy("full"), worker="")]))
    assert tally.services == {}


def test_an_error_of_a_newer_broker_is_counted_too() -> None:
    tally = Tally(task_of)
    tally.consume(iter([FakeReply(status=77, body=b"\x80")]))
    assert tally.failures["RequestError"].count == 1


def test_a_wrong_result_is_a_failure() -> None:
    def check(reply: Reply) -> str | None:
        return "odd" if reply.index % 2 else None

    tasks = dict.fromkeys(range(5), "sort") | dict.fromkeys(range(5, 10), "noop")
    tally = Tally(tasks.pop, {"sort": check})
    tally.consume((FakeReply(index=index) for index in range(10)), mixed=True)
    assert tasks == {}
    assert (tally.succeeded, tally.failed) == (8, 2)
    assert tally.failures["WrongResult"].task == "sort"
    assert tally.failures["WrongResult"].message == "odd"
    assert len(tally.services["worker-1"]) == 10


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BrokerUnavailable("gone")])
def test_what_was_answered_before_an_end_is_counted(error: BaseException) -> None:
    def broken() -> Iterator[FakeReply]:
        yield from replies(10)
        raise error

    tally = Tally(task_of)
    with pytest.raises(type(error)):
        tally.consume(broken())
    assert tally.answered == 10
    assert sum(map(len, tally.services.values())) == 10


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Ctrl-C raises, also in a suite that a script runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_an_interrupt_within_the_folding_waits_for_its_end() -> None:
    steps = []

    def fold() -> None:
        with interrupts_deferred():
            os.kill(os.getpid(), signal.SIGINT)
            steps.append("after the signal")
        steps.append("never")

    with pytest.raises(KeyboardInterrupt):
        fold()
    assert steps == ["after the signal"]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
