"""A real worker process: what it does when its broker changes, and what is taken back from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lbcore.core.errors import Status
from lbcore.core.frames import Flag
from tests.shell.systems import wait_until
from tests.shell.worker_rig import Channel, Rig, rig

Make = Callable[..., Rig]

HOLD, ONCE, ECHO = 1, 2, 3


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    with ExitStack() as stack:
        yield lambda concurrency=1: stack.enter_context(rig(tmp_path, concurrency))


def numbered(channel: Channel) -> Channel:
    return channel.number(hold=HOLD, once=ONCE, echo=ECHO)


# ---- another broker ------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 3])
def test_what_runs_when_the_broker_dies_is_answered_to_the_next_one(
    concurrency: int, make: Make, tmp_path: Path
) -> None:
    worker, release = make(concurrency), tmp_path / "release"
    requests, control = worker.broker(worker=4)
    assert requests.welcome["running"] == []
    numbered(requests).send(7, HOLD, str(release))
    worker.wait_running(7)
    requests.close()
    control.close()
    worker.shared.begin_life()
    # it greets while it runs, and names what it runs
    requests, _ = worker.broker(worker=9)
    assert requests.welcome["running"] == [[7, "hold"]]
    requests.number(echo=50, hold=60)
    release.touch()
    answer = requests.reply()
    # in the numbers of the broker that gets it
    assert (answer.id, answer.status, answer.task, answer.worker) == (7, 0, 60, 9)
    assert answer.body == "released"
    requests.send(8, 50, "x")
    assert requests.reply().body == "x"


def test_a_broker_that_comes_while_the_old_one_seems_alive_takes_over(
    make: Make, tmp_path: Path
) -> None:
    worker, release = make(), tmp_path / "release"
    old, _ = worker.broker()
    numbered(old).send(7, HOLD, str(release))
    old.send(8, ECHO, "dropped")
    worker.wait_running(7)
    new, _ = worker.broker()
    assert new.welcome["running"] == [[7, "hold"]]
    numbered(new).send(9, ECHO, "first of the new one")
    release.touch()
    answers = [new.reply() for _ in range(2)]
    # what waited for the old one was dropped: it would have come before 9
    assert {answer.id for answer in answers} == {7, 9}
    with pytest.raises((AssertionError, ConnectionError)):
        old.reply()


def test_an_answer_that_was_not_taken_comes_before_anything_else(
    make: Make, tmp_path: Path
) -> None:
    worker, release = make(2), tmp_path / "release"
    requests, control = worker.broker()
    numbered(requests).send(7, HOLD, str(release))
    worker.wait_running(7)
    requests.close()
    control.close()
    release.touch()
    worker.wait_running()
    requests, _ = worker.broker()
    assert requests.welcome["running"] == [[7, "hold"]]
    numbered(requests)
    assert requests.reply().id == 7
    # told once
    requests, _ = worker.broker()
    assert requests.welcome["running"] == []


# ---- what must not run twice ---------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 3])
@pytest.mark.parametrize("name", ["once", "once_async"])
def test_a_repeat_of_what_is_done_is_answered_and_not_run(
    name: str, concurrency: int, make: Make, tmp_path: Path
) -> None:
    worker, trace = make(concurrency), tmp_path / "trace"
    requests, control = worker.broker()
    requests.number(**{name: ONCE})
    requests.send(7, ONCE, str(trace))
    assert requests.reply().body == 1
    assert worker.slot.started_count == 1
    requests.close()
    control.close()
    # the answer may have died with the broker
    requests, _ = worker.broker()
    assert requests.welcome["running"] == []
    requests.number(echo=1, **{name: 5})
    for _ in range(2):
        requests.send(7, 5, str(trace), flags=Flag.RESENT)
        answer = requests.reply()
        assert (answer.id, answer.status, answer.task, answer.body) == (7, 0, 5, 1)
    assert trace.read_text() == "x"


def test_a_repeat_of_what_runs_is_ignored(make: Make, tmp_path: Path) -> None:
    worker, trace, release = make(), tmp_path / "trace", tmp_path / "release"
    requests, _ = worker.broker()
    numbered(requests).send(7, ONCE, str(trace), str(release))
    # not only taken up: until it has begun, another connection takes it away
    wait_until(trace.exists, "the task")
    requests, control = worker.broker()
    assert requests.welcome["running"] == [[7, "once"]]
    numbered(requests).send(7, ONCE, str(trace), str(release), flags=Flag.RESENT)
    requests.send(8, ECHO, "after")
    # it takes in what has come, while the task runs
    requests.send(9, ECHO, "taken back")
    control.cancel(9)
    assert requests.reply().id == 9
    release.touch()
    assert sorted(requests.reply().id for _ in range(2)) == [7, 8]
    assert requests.is_silent()
    assert trace.read_text() == "x"


def test_what_an_earlier_process_began_is_lost_and_not_run(make: Make, tmp_path: Path) -> None:
    worker, trace = make(), tmp_path / "trace"
    worker.slot.note_start(7, 1.0)
    requests, _ = worker.broker()
    numbered(requests).send(7, ONCE, str(trace), flags=Flag.RESENT)
    answer = requests.reply()
    assert (answer.id, answer.status) == (7, Status.WORKER_LOST)
    assert answer.body["task"] == "once"
    requests.send(8, ONCE, str(trace), flags=Flag.RESENT)
    assert requests.reply().body == 1
    assert trace.read_text() == "x"


@pytest.mark.parametrize("concurrency", [1, 2])
@pytest.mark.parametrize("how", ["lease", "life", "connection"])
def test_nothing_begins_for_a_broker_that_has_lost_its_right(
    how: str, concurrency: int, make: Make, tmp_path: Path
) -> None:
    worker, trace, release = make(concurrency), tmp_path / "trace", tmp_path / "release"
    requests, control = worker.broker()
    numbered(requests)
    for number in range(concurrency):
        requests.send(7 + number, HOLD, str(release))
    requests.send(20, ONCE, str(trace))
    worker.wait_running(*range(7, 7 + concurrency))
    if how == "lease":
        worker.slot.lease = 0
    elif how == "life":
        worker.shared.begin_life()
    else:
        # unread data lies before the end of the connection
        requests.send(21, ECHO, "x")
        requests.close()
        control.close()
    release.touch()
    wait_until(lambda: worker.slot.running_ids() == (), "the end of what ran")
    requests, _ = worker.broker()
    numbered(requests).send(22, ECHO, "still here")
    while requests.reply().id != 22:
        continue
    assert not trace.exists()
    assert [worker.slot.started_id(index) for index in range(worker.slot.started_count)] in (
        [],
        [0],
    )


# ---- taking back ---------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 2])
def test_a_request_that_waits_is_taken_out(concurrency: int, make: Make, tmp_path: Path) -> None:
    worker, release = make(concurrency), tmp_path / "release"
    requests, control = worker.broker()
    numbered(requests)
    for number in range(concurrency):
        requests.send(7 + number, HOLD, str(release))
    worker.wait_running(*range(7, 7 + concurrency))
    # this one lies in the connection's buffer
    requests.send(20, ECHO, "x")
    control.cancel(20)
    answer = requests.reply()
    assert (answer.id, answer.status) == (20, Status.CANCELLED)
    # and this one comes later
    control.cancel(21)
    control.cancel(22)
    wait_until(lambda: worker.slot.running_ids() != (), "what runs")
    release.touch()
    for _ in range(concurrency):
        requests.reply()
    control.cancel(7)  # it has ended: nothing happens
    requests.send(30, ECHO, "alive")
    assert requests.reply().id == 30


@pytest.mark.parametrize(
    ("name", "concurrency"),
    [
        ("nap", 1),
        ("compute", 1),
        ("nap_async", 1),
        ("compute_async", 1),
        ("compute", 3),
        ("nap_async", 3),
    ],
)
def test_a_task_that_runs_is_interrupted(name: str, concurrency: int, make: Make) -> None:
    worker = make(concurrency)
    requests, control = worker.broker()
    requests.number(echo=ECHO, **{name: 5})
    for request_id in (7, 8):
        requests.send(request_id, 5)
        worker.wait_running(request_id)
        control.cancel(request_id)
        answer = requests.reply()
        assert (answer.id, answer.status) == (request_id, Status.CANCELLED), answer
    requests.send(9, ECHO, "alive")
    assert requests.reply().body == "alive"
    assert worker.is_alive()
    assert "failed" not in worker.log


def test_a_task_may_clean_up_when_it_is_cancelled(make: Make, tmp_path: Path) -> None:
    worker, trace = make(), tmp_path / "trace"
    requests, control = worker.broker()
    requests.number(tidy=5)
    requests.send(7, 5, str(trace))
    worker.wait_running(7)
    control.cancel(7)
    assert requests.reply().status == Status.CANCELLED
    assert trace.read_text() == "clean"


@pytest.mark.parametrize("concurrency", [1, 2])
def test_a_task_that_does_not_end_can_ask_and_goes_on(
    concurrency: int, make: Make, tmp_path: Path
) -> None:
    worker, release, trace = make(concurrency), tmp_path / "release", tmp_path / "trace"
    requests, control = worker.broker()
    requests.number(stubborn=5)
    requests.send(7, 5, str(release), str(trace))
    worker.wait_running(7)
    control.cancel(7)
    wait_until(trace.exists, "the task knows")
    assert worker.slot.running_ids() == (7,)
    release.touch()
    assert requests.reply().body == "released"


@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_storm_of_cancellations_hits_tasks_only(concurrency: int, make: Make) -> None:
    worker = make(concurrency)
    requests, control = worker.broker()
    requests.number(quick=5, echo=ECHO)
    count = 3000
    statuses: dict[int, int] = {}
    for first in range(0, count, 100):
        for request_id in range(first + 1, first + 101):
            requests.send(request_id, 5, 300)
        for request_id in range(first + 1, first + 101):
            control.cancel(request_id)
        while len(statuses) < first + 100:
            answer = requests.reply()
            assert answer.id not in statuses
            statuses[answer.id] = answer.status
    assert set(statuses) == set(range(1, count + 1))
    assert set(statuses.values()) == {0, int(Status.CANCELLED)}
    requests.send(count + 1, ECHO, "alive")
    assert requests.reply().body == "alive"
    assert worker.is_alive()
    assert "Traceback" not in worker.log
