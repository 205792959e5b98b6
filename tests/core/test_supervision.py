"""The state machine of children, driven without a process: literal times, whole action lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from lbcore.core.children import (
    TRANSITIONS,
    Action,
    BrokerDrained,
    ChildAdded,
    ChildDied,
    ChildFailed,
    ChildReady,
    ChildState,
    Event,
    FleetChanged,
    Note,
    Role,
    SendDrain,
    SendSignal,
    SendStop,
    Spawn,
    StopRequested,
    TimePassed,
    Timing,
)
from lbcore.core.staffing import InvalidTransition
from lbcore.core.supervision import Supervision

S = ChildState


def no_jitter() -> float:
    """The middle of the range: a factor of exactly 1."""
    return 0.5


class Bench:
    """A machine with a broker and workers, and the actions since the last look."""

    def __init__(self, workers: int = 2, timing: Timing | None = None) -> None:
        self.machine = Supervision(timing or Timing(), no_jitter)
        self.actions: list[Action] = []
        self.feed(ChildAdded(name="broker", role=Role.BROKER))
        for number in range(1, workers + 1):
            self.feed(ChildAdded(name=f"worker-{number}", role=Role.WORKER))

    def feed(self, event: Event, now: float = 0.0) -> list[Action]:
        """What is to be done about an event, without the notes and the change mark."""
        actions = self.machine.handle(event, now)
        self.machine.check()
        self.actions += actions
        return [each for each in actions if not isinstance(each, Note | FleetChanged)]

    def make_ready(self, now: float = 0.0) -> None:
        for name in self.machine.children:
            self.feed(ChildReady(name=name), now)

    def state(self, name: str) -> ChildState:
        return self.machine.children[name].state

    def phase(self) -> ChildState:
        return self.machine.phase

    def notes(self) -> list[str]:
        return [each.text for each in self.actions if isinstance(each, Note)]


@pytest.fixture
def running() -> Bench:
    """A broker and two workers, all RUNNING since 0.0."""
    bench = Bench()
    bench.make_ready()
    return bench


def test_a_child_is_spawned_when_it_is_added() -> None:
    machine = Supervision(Timing(), no_jitter)
    actions = machine.handle(ChildAdded(name="broker", role=Role.BROKER), 0.0)
    assert actions == [Spawn(name="broker"), FleetChanged()]
    assert machine.children["broker"].state is S.STARTING


def test_the_system_runs_when_every_child_does() -> None:
    bench = Bench(workers=1)
    bench.feed(ChildReady(name="broker"))
    assert bench.phase() is S.STARTING
    bench.feed(ChildReady(name="worker-1"))
    assert bench.phase() is S.RUNNING
    assert bench.machine.next_deadline() is None


def test_delays_double_and_the_sixth_restart_in_the_window_parks(running: Bench) -> None:
    now, delays = 10.0, []
    for _ in range(5):
        assert running.feed(ChildDied(name="worker-1", cause="signal 9"), now) == []
        assert running.state("worker-1") is S.BACKOFF
        deadline = running.machine.next_deadline()
        assert deadline is not None
        delays.append(round(deadline - now, 6))
        assert running.feed(TimePassed(), deadline - 1e-6) == []
        now = deadline
        assert running.feed(TimePassed(), now) == [Spawn(name="worker-1")]
        running.feed(ChildReady(name="worker-1"), now)
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6]
    assert running.feed(ChildDied(name="worker-1", cause="signal 9"), now) == []
    assert running.state("worker-1") is S.FATAL
    assert running.machine.next_deadline() is None
    assert running.phase() is S.RUNNING, "one parked worker of two is no reason to stop"
    assert running.machine.children["worker-1"].restarts == 5
    assert any("given up" in note for note in running.notes())


def test_the_broker_is_back_sooner_than_a_worker(running: Bench) -> None:
    now, delays = 10.0, []
    for _ in range(5):
        running.feed(ChildDied(name="broker", cause="signal 9"), now)
        deadline = running.machine.next_deadline()
        assert deadline is not None
        delays.append(round(deadline - now, 6))
        now = deadline
        assert running.feed(TimePassed(), now) == [Spawn(name="broker")]
        running.feed(ChildReady(name="broker"), now)
    assert delays == [0.02, 0.04, 0.08, 0.16, 0.3]


def test_the_delay_has_a_ceiling_and_slow_crashes_are_never_parked(running: Bench) -> None:
    now = 0.0
    for _ in range(50):
        now += 7.0
        running.feed(ChildDied(name="worker-1", cause="code 1"), now)
        deadline = running.machine.next_deadline()
        assert deadline is not None
        assert deadline - now <= 5.0
        now = deadline
        assert running.feed(TimePassed(), now) == [Spawn(name="worker-1")]
        running.feed(ChildReady(name="worker-1"), now)
    assert running.state("worker-1") is S.RUNNING


def test_a_child_that_was_stable_starts_again_with_the_first_delay(running: Bench) -> None:
    for now in (0.0, 1.0, 2.0):
        running.feed(ChildDied(name="worker-1", cause="code 1"), now)
        running.feed(TimePassed(), now + 0.5)
        running.feed(ChildReady(name="worker-1"), now + 0.5)
    running.feed(ChildDied(name="worker-1", cause="code 1"), 2.5 + 30.0)
    assert running.machine.next_deadline() == pytest.approx(32.6)


@pytest.mark.parametrize(("sample", "factor"), [(0.0, 0.8), (0.5, 1.0), (0.75, 1.1)])
def test_jitter_is_a_fifth_either_way(sample: float, factor: float) -> None:
    machine = Supervision(Timing(), lambda: sample)
    machine.handle(ChildAdded(name="broker", role=Role.BROKER), 0.0)
    machine.handle(ChildReady(name="broker"), 0.0)
    machine.handle(ChildDied(name="broker", cause="signal 9"), 1.0)
    assert machine.next_deadline() == pytest.approx(1.0 + 0.02 * factor)


def test_a_failed_start_is_fatal_at_once_and_ends_the_start() -> None:
    bench = Bench()
    bench.feed(ChildReady(name="broker"))
    actions = bench.feed(ChildFailed(name="worker-1", error="no module named x", code=2), 1.0)
    assert actions == [SendStop(name="broker"), SendStop(name="worker-2")]
    assert bench.state("worker-1") is S.FATAL
    assert bench.machine.exit_code == 2
    assert bench.machine.reason == "worker-1 cannot start: no module named x"
    for name in ("worker-1", "broker", "worker-2"):
        assert not bench.machine.finished
        bench.feed(ChildDied(name=name, cause="code 0"), 1.1)
    assert bench.machine.finished
    assert bench.state("worker-1") is S.FATAL
    assert bench.state("broker") is S.EXITED


def test_a_failed_child_that_does_not_end_is_killed() -> None:
    bench = Bench(workers=1)
    bench.feed(ChildFailed(name="worker-1", error="no", code=2), 1.0)
    assert SendSignal(name="worker-1", signal="SIGKILL") in bench.feed(TimePassed(), 2.0)


def test_a_failed_restart_parks_only_that_worker(running: Bench) -> None:
    running.feed(ChildDied(name="worker-1", cause="signal 9"), 1.0)
    running.feed(TimePassed(), 1.1)
    running.feed(ChildFailed(name="worker-1", error="no module named x"), 1.2)
    assert running.state("worker-1") is S.FATAL
    assert running.phase() is S.RUNNING


def test_a_broker_that_cannot_start_again_is_tried_until_it_can(running: Bench) -> None:
    now, delays = 1.0, []
    running.feed(ChildDied(name="broker", cause="signal 9"), now)
    for _ in range(12):
        now = running.machine.next_deadline() or 0.0
        running.feed(TimePassed(), now)
        running.feed(ChildFailed(name="broker", error="no space left"), now)
        assert running.feed(TimePassed(), now + 1.0) == [
            SendSignal(name="broker", signal="SIGKILL")
        ]
        running.feed(ChildDied(name="broker", cause="signal 9"), now + 1.0)
        assert running.state("broker") is S.BACKOFF
        assert running.machine.children["broker"].cause == "no space left"
        delays.append((running.machine.next_deadline() or 0.0) - now - 1.0)
    assert max(delays) == delays[-1] == running.machine.timing.backoff_max_s
    running.feed(TimePassed(), now + 7.0)
    running.feed(ChildReady(name="broker"), now + 7.0)
    assert running.phase() is S.RUNNING
    assert running.state("broker") is S.RUNNING


def test_a_first_start_that_takes_too_long_is_fatal() -> None:
    bench = Bench(workers=1)
    bench.feed(ChildReady(name="broker"))
    actions = bench.feed(TimePassed(), 30.0)
    assert SendSignal(name="worker-1", signal="SIGKILL") in actions
    assert bench.state("worker-1") is S.FATAL
    assert bench.machine.exit_code == 3
    assert "not ready within 30 s" in bench.machine.reason


def test_a_restart_that_takes_too_long_is_tried_again(running: Bench) -> None:
    running.feed(ChildDied(name="worker-1", cause="signal 9"), 1.0)
    running.feed(TimePassed(), 1.1)
    assert running.feed(TimePassed(), 31.1) == [SendSignal(name="worker-1", signal="SIGKILL")]
    assert running.feed(TimePassed(), 31.2) == [], "killed once"
    running.feed(ChildReady(name="worker-1"), 31.2)
    assert running.state("worker-1") is S.STARTING, "too late: the kill is under way"
    running.feed(ChildDied(name="worker-1", cause="signal 9"), 31.3)
    assert running.state("worker-1") is S.BACKOFF
    assert running.machine.children["worker-1"].cause == "not ready within 30 s"
    running.feed(TimePassed(), 31.6)
    running.feed(ChildReady(name="worker-1"), 31.7)
    assert running.state("worker-1") is S.RUNNING, "what was sent to the last process is history"


def test_stopping_drains_first_and_then_asks_everybody(running: Bench) -> None:
    assert running.feed(StopRequested(reason="SIGTERM", code=143), 1.0) == [
        SendDrain(name="broker")
    ]
    assert running.phase() is S.DRAIN
    assert running.feed(BrokerDrained(name="broker"), 2.0) == [
        SendStop(name="broker"),
        SendStop(name="worker-1"),
        SendStop(name="worker-2"),
    ]
    assert running.feed(TimePassed(), 2.9) == []
    for name in ("broker", "worker-1"):
        running.feed(ChildDied(name=name, cause="code 0"), 2.9)
    assert running.feed(TimePassed(), 3.0) == [SendSignal(name="worker-2", signal="SIGTERM")]
    assert running.feed(TimePassed(), 6.9) == []
    assert running.feed(TimePassed(), 7.0) == [SendSignal(name="worker-2", signal="SIGKILL")]
    assert running.feed(TimePassed(), 99.0) == []
    assert running.machine.next_deadline() is None
    running.feed(ChildDied(name="worker-2", cause="signal 9"), 99.0)
    assert running.machine.finished
    assert running.machine.exit_code == 143
    assert {child.state for child in running.machine.children.values()} == {S.EXITED}


def test_draining_has_a_limit(running: Bench) -> None:
    running.feed(StopRequested(reason="SIGTERM"), 1.0)
    assert running.machine.next_deadline() == 31.0
    assert SendStop(name="worker-1") in running.feed(TimePassed(), 31.0)


def test_a_worker_is_restarted_while_the_broker_drains(running: Bench) -> None:
    running.feed(StopRequested(reason="SIGTERM"), 1.0)
    running.feed(ChildDied(name="worker-1", cause="signal 9"), 1.0)
    assert running.feed(TimePassed(), 1.1) == [Spawn(name="worker-1")]
    running.feed(ChildReady(name="worker-1"), 1.2)
    assert running.phase() is S.DRAIN


def test_a_broker_that_dies_draining_is_not_restarted(running: Bench) -> None:
    running.feed(StopRequested(reason="SIGINT", code=130), 1.0)
    actions = running.feed(ChildDied(name="broker", cause="signal 9"), 1.5)
    assert actions == [SendStop(name="worker-1"), SendStop(name="worker-2")]
    assert running.machine.exit_code == 130


@pytest.mark.parametrize("at_once", [False, True])
def test_a_second_request_kills_and_so_does_an_immediate_one(running: Bench, at_once: bool) -> None:
    if not at_once:
        running.feed(StopRequested(reason="SIGTERM", code=143), 1.0)
    actions = running.feed(StopRequested(reason="again", code=131, at_once=at_once), 1.5)
    kills = [each for each in actions if isinstance(each, SendSignal)]
    assert kills == [
        SendSignal(name=name, signal="SIGKILL") for name in ("broker", "worker-1", "worker-2")
    ]
    assert running.feed(StopRequested(reason="again", code=1), 2.0) == [], "each is sent once"
    assert running.machine.next_deadline() is None
    assert running.machine.exit_code == (131 if at_once else 143), "the first reason counts"


def test_a_child_in_backoff_ends_with_the_system(running: Bench) -> None:
    running.feed(ChildDied(name="broker", cause="signal 9"), 1.0)
    actions = running.feed(StopRequested(reason="SIGTERM"), 1.05)
    assert actions == [SendStop(name="worker-1"), SendStop(name="worker-2")]
    assert running.state("broker") is S.EXITED
    assert running.feed(TimePassed(), 1.5) == [], "nothing is started any more"


def park(bench: Bench, name: str, now: float) -> float:
    """Let a child crash until it is given up."""
    while bench.state(name) is not S.FATAL:
        bench.feed(ChildDied(name=name, cause="signal 11"), now)
        if bench.state(name) is S.BACKOFF:
            deadline = bench.machine.next_deadline()
            assert deadline is not None
            now = deadline
            bench.feed(TimePassed(), now)
    return now


def test_the_system_stops_without_its_broker(running: Bench) -> None:
    park(running, "broker", 1.0)
    assert running.phase() is S.STOPPING
    assert running.machine.exit_code == 3
    assert "the broker is given up" in running.machine.reason


def test_the_system_stops_without_workers(running: Bench) -> None:
    now = park(running, "worker-1", 1.0)
    assert running.phase() is S.RUNNING
    park(running, "worker-2", now)
    assert running.phase() is S.STOPPING
    assert running.machine.exit_code == 3
    assert running.machine.reason == "every worker is given up"


def test_a_crash_loop_ends_the_start() -> None:
    bench = Bench(workers=1)
    bench.feed(ChildReady(name="broker"))
    now = park(bench, "worker-1", 0.0)
    assert now < 5.0, "whoever waits for the start learns soon"
    assert bench.machine.exit_code == 3
    assert "signal 11" in bench.machine.reason


def test_a_child_added_later_is_started_and_cannot_fail_the_system(running: Bench) -> None:
    added = ChildAdded(name="worker-3", role=Role.WORKER)
    assert running.feed(added, 5.0) == [Spawn(name="worker-3")]
    running.feed(ChildFailed(name="worker-3", error="no"), 5.1)
    assert running.phase() is S.RUNNING


def test_a_child_added_while_stopping_is_not_started(running: Bench) -> None:
    running.feed(StopRequested(reason="SIGQUIT", at_once=True), 1.0)
    assert running.feed(ChildAdded(name="worker-3", role=Role.WORKER), 1.1) == []


def test_what_a_child_says_out_of_turn_is_ignored(running: Bench) -> None:
    assert running.feed(ChildReady(name="worker-1"), 1.0) == []
    assert running.feed(BrokerDrained(name="broker"), 1.0) == []
    assert running.feed(ChildFailed(name="worker-1", error="oops"), 1.0) == []
    assert running.state("worker-1") is S.RUNNING
    assert "reported a failure: oops" in running.notes()[-1]


def test_our_own_mistakes_are_not() -> None:
    bench = Bench()
    with pytest.raises(AssertionError, match="added twice"):
        bench.feed(ChildAdded(name="broker", role=Role.BROKER))
    bench.feed(ChildDied(name="broker", cause="code 1"))
    with pytest.raises(AssertionError, match="died twice"):
        bench.feed(ChildDied(name="broker", cause="code 1"))
    assert issubclass(InvalidTransition, AssertionError)


def test_the_table_leads_everywhere_and_out_again() -> None:
    reached = {S.EXITED}
    for _ in S:
        reached |= {end for (start, _), end in TRANSITIONS.items() if start in reached}
    assert reached == set(S)
    for state in set(S) - {S.EXITED, S.FATAL}:
        assert {S.EXITED, S.STOPPING} & {e for (s, _), e in TRANSITIONS.items() if s is state}


def test_the_page_shows_the_table() -> None:
    page = Path(__file__).parents[2] / "docs" / "supervision.md"
    rows = {
        tuple(cell.strip() for cell in line.split("|")[1:-1])
        for line in page.read_text().splitlines()
    }
    table = {
        (start.value, trigger.value, end.value) for (start, trigger), end in TRANSITIONS.items()
    }
    assert {row for row in rows if len(row) == 3 and row[0] in set(S)} == table
