"""Workers that are added, held, restarted one by one and removed while the system runs."""

from __future__ import annotations

import pytest

from lbcore.core.children import (
    BrokerDrained,
    ChildAdded,
    ChildDied,
    ChildFailed,
    ChildReady,
    ChildRemoved,
    Forget,
    HoldRequested,
    RestartRequested,
    ResumeRequested,
    Role,
    SendStop,
    Spawn,
    StopRequested,
    TimePassed,
    WorkerDrained,
)
from tests.core.test_supervision import Bench, S, park


@pytest.fixture
def running() -> Bench:
    """A broker and two workers, all RUNNING since 0.0."""
    bench = Bench()
    bench.make_ready()
    return bench


def test_a_worker_is_drained_before_it_is_removed(running: Bench) -> None:
    assert running.feed(ChildRemoved(name="worker-1"), 1.0) == []
    assert running.state("worker-1") is S.DRAIN
    stop = [SendStop(name="worker-1")]
    assert running.feed(WorkerDrained(name="worker-1"), 1.5) == stop
    assert running.feed(WorkerDrained(name="worker-1"), 1.6) == [], "it is asked once"
    assert running.feed(ChildDied(name="worker-1", cause="code 0"), 1.7) == [
        Forget(name="worker-1")
    ]
    assert list(running.machine.children) == ["broker", "worker-2"]
    assert running.phase() is S.RUNNING


def test_a_busy_worker_is_waited_for_and_told_of_once(running: Bench) -> None:
    running.feed(ChildRemoved(name="worker-1"), 1.0)
    assert running.machine.next_deadline() == 31.0
    assert running.feed(TimePassed(), 31.0) == []
    assert running.notes()[-1] == "still busy after 30 s; it is stopped once it has answered"
    assert running.machine.next_deadline() is None


def test_a_worker_that_comes_back_before_it_left_gets_a_new_process(running: Bench) -> None:
    running.feed(ChildRemoved(name="worker-1"), 1.0)
    assert running.feed(ChildAdded(name="worker-1", role=Role.WORKER), 1.1) == []
    assert running.feed(WorkerDrained(name="worker-1"), 1.2) == [SendStop(name="worker-1")]
    assert running.feed(ChildDied(name="worker-1", cause="code 0"), 1.3) == [Spawn(name="worker-1")]
    running.feed(ChildReady(name="worker-1"), 1.4)
    assert running.state("worker-1") is S.RUNNING


def test_a_worker_in_backoff_is_removed_at_once(running: Bench) -> None:
    running.feed(ChildDied(name="worker-1", cause="signal 9"), 1.0)
    assert running.feed(ChildRemoved(name="worker-1"), 1.01) == [Forget(name="worker-1")]
    assert running.feed(TimePassed(), 2.0) == []


def test_a_worker_that_is_given_up_can_be_restarted(running: Bench) -> None:
    now = park(running, "worker-1", 1.0)
    assert running.feed(RestartRequested(names=("worker-1",)), now) == [Spawn(name="worker-1")]
    running.feed(ChildReady(name="worker-1"), now + 0.1)
    assert running.state("worker-1") is S.RUNNING
    running.feed(ChildDied(name="worker-1", cause="signal 9"), now + 0.2)
    assert running.state("worker-1") is S.BACKOFF, "what it did before is forgiven"


def test_a_held_worker_stays_and_comes_back(running: Bench) -> None:
    running.feed(HoldRequested(name="worker-1"), 1.0)
    running.feed(WorkerDrained(name="worker-1"), 1.1)
    assert running.state("worker-1") is S.DRAIN
    assert running.machine.next_deadline() is None
    running.feed(ChildDied(name="worker-1", cause="signal 9"), 2.0)
    running.feed(TimePassed(), 2.1)
    running.feed(ChildReady(name="worker-1"), 2.2)
    assert running.state("worker-1") is S.DRAIN, "a new process is held as the old one was"
    running.feed(ResumeRequested(name="worker-1"), 3.0)
    assert running.state("worker-1") is S.RUNNING


def roll_one(bench: Bench, name: str, now: float) -> None:
    """Take one worker through its restart."""
    assert bench.feed(WorkerDrained(name=name), now) == [SendStop(name=name)]
    assert bench.feed(ChildDied(name=name, cause="code 0"), now) == [Spawn(name=name)]


def test_a_rolling_restart_has_one_worker_out_at_a_time() -> None:
    bench = Bench(workers=3)
    bench.make_ready()
    names = ("worker-1", "worker-2", "worker-3")
    bench.feed(RestartRequested(names=names, rolling=True), 1.0)
    for index, name in enumerate(names):
        states = [bench.state(each) for each in names]
        assert states == [S.DRAIN if each == name else S.RUNNING for each in names]
        roll_one(bench, name, 2.0 + index)
        assert [bench.state(each) for each in names].count(S.RUNNING) == 2
        bench.feed(ChildReady(name=name), 2.5 + index)
    assert {bench.state(each) for each in names} == {S.RUNNING}
    assert bench.machine.children["worker-1"].restarts == 0, "nothing went wrong"


def test_asking_twice_makes_nobody_jump_the_queue(running: Bench) -> None:
    request = RestartRequested(names=("worker-1", "worker-2"), rolling=True)
    running.feed(request, 1.0)
    running.feed(request, 1.1)
    assert running.state("worker-2") is S.RUNNING
    roll_one(running, "worker-1", 1.2)
    running.feed(request, 1.3)
    assert running.state("worker-1") is S.STOPPING, "it may have started before the last request"
    running.feed(ChildDied(name="worker-1", cause="code 0"), 1.4)
    running.feed(ChildReady(name="worker-1"), 1.5)
    roll_one(running, "worker-2", 1.6)


def test_a_rolling_restart_ends_with_the_first_that_cannot_start(running: Bench) -> None:
    running.feed(RestartRequested(names=("worker-1", "worker-2"), rolling=True), 1.0)
    roll_one(running, "worker-1", 1.1)
    running.feed(ChildFailed(name="worker-1", error="no module named x"), 1.2)
    assert running.state("worker-1") is S.FATAL
    assert running.state("worker-2") is S.RUNNING
    assert running.notes()[-1] == "the rolling restart ends here; 1 not restarted"


def test_without_rolling_all_go_at_once(running: Bench) -> None:
    running.feed(RestartRequested(names=("worker-1", "worker-2"), limit_s=5.0), 1.0)
    assert running.state("worker-1") is running.state("worker-2") is S.DRAIN
    roll_one(running, "worker-1", 1.1)
    assert SendStop(name="worker-2") in running.feed(TimePassed(), 6.0), "the limit is over"


def test_a_stop_ends_what_waits_and_finishes_what_is_out(running: Bench) -> None:
    running.feed(RestartRequested(names=("worker-1", "worker-2"), rolling=True), 1.0)
    roll_one(running, "worker-1", 1.1)
    running.feed(StopRequested(reason="SIGTERM"), 1.2)
    running.feed(ChildReady(name="worker-1"), 1.3)
    assert running.state("worker-1") is running.state("worker-2") is S.RUNNING
    running.feed(RestartRequested(names=("worker-2",)), 1.4)
    running.feed(BrokerDrained(name="broker"), 1.5)
    for name in ("broker", "worker-1", "worker-2"):
        assert running.feed(ChildDied(name=name, cause="code 0"), 1.6) == []
    assert running.machine.finished
