"""The state machine of children against thousands of simulated lives, each from one seed.

Virtual processes start, report, crash, hang and ignore signals; whatever they do, the system ends
when it is asked to, nobody is started in a busy loop and nobody is killed twice.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from dataclasses import replace

from hypothesis import example, given, settings
from hypothesis import strategies as st

from lbcore.core.children import (
    Action,
    BrokerDrained,
    ChildAdded,
    ChildDied,
    ChildFailed,
    ChildReady,
    ChildRemoved,
    ChildState,
    Event,
    Forget,
    HoldRequested,
    RestartRequested,
    ResumeRequested,
    Role,
    SendDrain,
    SendSignal,
    SendStop,
    Spawn,
    StopRequested,
    TimePassed,
    Timing,
    Wish,
    WorkerDrained,
)
from lbcore.core.supervision import Supervision


class World:
    """Virtual processes: performs the actions, with a seeded choice of how each child behaves."""

    def __init__(self, seed: int, workers: int, good_start: bool, calm: bool = False) -> None:
        self.random = random.Random(seed)
        #: every process starts at once and does what it is told
        self.calm = calm
        #: trouble begins with the second process of a child; else few systems would ever run
        self.good_start = good_start
        self.timing = replace(Timing(), drain_s=20.0)
        self.machine = Supervision(self.timing, self.random.random)
        self.now = 0.0
        self.order = itertools.count()
        #: (when, order, process number or 0, event)
        self.due: list[tuple[float, int, int, Event]] = []
        self.process: dict[str, int] = {}
        self.numbers = itertools.count(1)
        self.spawned_at: dict[str, list[float]] = {}
        #: after these starts of a broker that said it cannot start, the next one costs nothing
        self.refused_at: set[float] = set()
        #: names that were removed, or restarted: their processes may follow one another closely
        self.touched: set[str] = set()
        self.removed: set[str] = set()
        self.draining: set[str] = set()
        self.signals: Counter[tuple[int, str]] = Counter()
        self.feed(ChildAdded(name="broker", role=Role.BROKER))
        for number in range(workers):
            self.feed(ChildAdded(name=f"worker-{number}", role=Role.WORKER))

    def later(self, delay_s: float, event: Event, process: int = 0) -> None:
        heapq.heappush(self.due, (self.now + delay_s, next(self.order), process, event))

    def feed(self, event: Event) -> None:
        for action in self.machine.handle(event, self.now):
            self.perform(action)
        self.machine.check()

        self.watch_drains()
        rolling = [
            child
            for child in self.machine.children.values()
            if child.rolling
            and child.state in (ChildState.DRAIN, ChildState.STOPPING)
            and not child.held
        ]
        assert len(rolling) <= 1, "one at a time"

    def watch_drains(self) -> None:
        """The broker says, some time later, that it has nothing left with a worker."""
        draining = {
            child.name
            for child in self.machine.children.values()
            if child.state is ChildState.DRAIN and child.role is Role.WORKER and not child.drained
        }
        for name in draining - self.draining:
            if self.calm or self.random.random() < 0.9:
                process = self.process[name]
                self.later(self.random.expovariate(1.0), WorkerDrained(name=name), process)
        self.draining = draining

    def change(self) -> None:
        """Somebody changes the staff."""
        machine = self.machine
        present = [
            child.name
            for child in machine.children.values()
            if child.role is Role.WORKER and child.wish is not Wish.REMOVE
        ]
        name = self.random.choice(present)
        match self.random.choice(["add", "remove", "hold", "resume", "restart", "roll", "limit"]):
            case "add":
                gone = sorted(self.removed) or [f"worker-{len(self.spawned_at) + 100}"]
                self.removed.discard(gone[0])
                self.touched.add(gone[0])
                self.feed(ChildAdded(name=gone[0], role=Role.WORKER))
            case "remove" if len(present) > 1:
                self.removed.add(name)
                self.touched.add(name)
                self.feed(ChildRemoved(name=name))
            case "hold":
                self.feed(HoldRequested(name=name))
            case "restart":
                self.touched.add(name)
                self.feed(RestartRequested(names=(name,)))
            case "limit":
                self.touched.add(name)
                self.feed(RestartRequested(names=(name,), limit_s=2.0))
            case "roll":
                self.touched.update(present)
                self.feed(RestartRequested(names=tuple(present), rolling=True))
            case _:
                self.feed(ResumeRequested(name=name))

    def perform(self, action: Action) -> None:
        match action:
            case Forget(name=name):
                assert name not in self.process, f"{name} is forgotten and has a process"
                assert name in self.removed
            case Spawn(name=name):
                self.spawn(name)
            case SendDrain(name=name):
                if self.random.random() < 0.7:
                    self.later(self.random.expovariate(0.2), BrokerDrained(name=name))
            case SendStop(name=name) | SendSignal(name=name, signal="SIGTERM"):
                self.count(name, "stop" if isinstance(action, SendStop) else "SIGTERM")
                if self.calm:
                    self.end(name, 0.01)
                elif self.random.random() < 0.5:
                    self.end(name, self.random.expovariate(1.0))
            case SendSignal(name=name):
                self.count(name, "SIGKILL")
                self.end(name, 0.001)

    def count(self, name: str, what: str) -> None:
        assert name in self.process, f"{what} for {name}, which has no process"
        self.signals[self.process[name], what] += 1

    def spawn(self, name: str) -> None:
        assert name not in self.process, f"{name} has a process already"
        number = self.process[name] = next(self.numbers)
        self.spawned_at.setdefault(name, []).append(self.now)
        ready_s = self.random.choice([0.0, 0.05, 3.0, 40.0])
        way = self.random.choice(["steady", "steady", "crash", "fails", "mute", "brief"])
        if self.calm:
            ready_s, way = 0.1, "steady"
        elif self.good_start and len(self.spawned_at[name]) == 1:
            ready_s, way = 0.0, "brief"
        match way:
            case "steady":
                self.later(ready_s, ChildReady(name=name), number)
            case "crash":
                self.end(name, self.random.choice([0.0, 0.01, 2.0]))
            case "brief":
                self.later(ready_s, ChildReady(name=name), number)
                self.end(name, ready_s + self.random.choice([0.0, 1.0, 45.0]))
            case "fails":
                if name == "broker":
                    self.refused_at.add(self.now)
                self.later(ready_s, ChildFailed(name=name, error="no"), number)
                if self.random.random() < 0.5:
                    self.end(name, ready_s + 0.01)

    def end(self, name: str, delay_s: float) -> None:
        self.later(delay_s, ChildDied(name=name, cause="gone"), self.process[name])

    def run_until(self, limit: float) -> None:
        """Let things happen up to a time, waking the machine exactly when it asks for it."""
        idle_turns = 0
        while not self.machine.finished:
            deadline = self.machine.next_deadline()
            times = [
                at for at in (deadline, self.due[0][0] if self.due else None) if at is not None
            ]
            if not times or min(times) > limit:
                self.now = limit
                return
            idle_turns = idle_turns + 1 if min(times) <= self.now else 0
            assert idle_turns < 1000, "a busy loop"
            self.now = max(self.now, min(times))
            if self.due and self.due[0][0] <= self.now:
                _, _, number, event = heapq.heappop(self.due)
                self.happen(number, event)
            else:
                self.feed(TimePassed())
                after = self.machine.next_deadline()
                assert after is None or after > self.now, "it asks to be woken for nothing"

    def happen(self, number: int, event: Event) -> None:
        name = getattr(event, "name", "")
        if number and self.process.get(name) != number:
            return  # of a process that is gone
        if isinstance(event, ChildDied):
            del self.process[name]
        self.feed(event)


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    workers=st.integers(1, 4),
    run_s=st.sampled_from([0.0, 0.5, 20.0, 300.0]),
    patience_s=st.sampled_from([None, 0.3, 10.0]),
    good_start=st.booleans(),
)
def test_every_run_ends_and_no_child_spins(
    seed: int, workers: int, run_s: float, patience_s: float | None, good_start: bool
) -> None:
    world = World(seed, workers, good_start)
    world.run_until(run_s)
    stopped_at = world.now
    if world.machine.phase in (ChildState.STARTING, ChildState.RUNNING):
        world.feed(StopRequested(reason="test"))
    if patience_s is not None and not world.machine.finished:
        world.run_until(world.now + patience_s)
        if not world.machine.finished:
            world.feed(StopRequested(reason="again"))
            world.feed(StopRequested(reason="and again"))
    world.run_until(stopped_at + 1000.0)
    check_ended(world, stopped_at)


def check_ended(world: World, stopped_at: float) -> None:
    assert world.machine.finished
    assert not world.process, "no process outlives the system"
    assert {each.state for each in world.machine.children.values()} <= {
        ChildState.EXITED,
        ChildState.FATAL,
    }
    assert max(world.signals.values(), default=0) <= 1, "each is sent once to each process"
    timing = world.timing
    assert world.now - stopped_at <= timing.drain_s + timing.kill_after_s + 10.0
    for name, times in world.spawned_at.items():
        if name in world.touched:
            continue
        is_broker = world.machine.children[name].role is Role.BROKER
        first_s = timing.broker_backoff_first_s if is_broker else timing.backoff_first_s
        for first, later in itertools.pairwise(times):
            assert later - first >= first_s * (1 - timing.backoff_jitter) - 1e-9
        costly = [
            later
            for first, later in itertools.pairwise([-1.0, *times])
            if not (is_broker and first in world.refused_at)
        ]
        for index, first in enumerate(costly):
            inside = [at for at in costly[index:] if at - first < timing.restart_window_s]
            assert len(inside) <= timing.restarts_max + 1


@example(seed=294, workers=3, changes=1)
@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), workers=st.integers(1, 4), changes=st.integers(1, 12))
def test_the_staff_may_change_at_any_time(seed: int, workers: int, changes: int) -> None:
    world = World(seed, workers, good_start=True)
    for _ in range(changes):
        world.run_until(world.now + world.random.choice([0.0, 0.05, 2.0, 40.0]))
        if world.machine.phase in (ChildState.STARTING, ChildState.RUNNING, ChildState.DRAIN):
            world.change()
        if world.random.random() < 0.05 and not world.machine.finished:
            world.feed(StopRequested(reason="test"))
    stopped_at = world.now
    if world.machine.phase in (ChildState.STARTING, ChildState.RUNNING):
        world.feed(StopRequested(reason="test"))
    world.run_until(stopped_at + 1000.0)
    check_ended(world, stopped_at)


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), workers=st.integers(1, 5), changes=st.integers(1, 12))
def test_every_wish_comes_true_when_nothing_breaks(seed: int, workers: int, changes: int) -> None:
    world = World(seed, workers, good_start=True, calm=True)
    for _ in range(changes):
        world.run_until(world.now + world.random.choice([0.0, 0.05, 2.0]))
        world.change()
    world.run_until(world.now + 1000.0)
    children = world.machine.children
    assert world.machine.phase is ChildState.RUNNING
    assert not world.removed & children.keys()
    assert {each.wish for each in children.values()} == {Wish.NONE}
    for child in children.values():
        wanted = ChildState.DRAIN if child.held else ChildState.RUNNING
        assert child.state is wanted, child
    assert world.process.keys() == children.keys(), "every process, and no other"
