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

from hypothesis import given, settings
from hypothesis import strategies as st

from lbcore.core.children import (
    Action,
    BrokerDrained,
    ChildAdded,
    ChildDied,
    ChildFailed,
    ChildReady,
    ChildState,
    Event,
    Role,
    SendDrain,
    SendSignal,
    SendStop,
    Spawn,
    StopRequested,
    TimePassed,
    Timing,
)
from lbcore.core.supervision import Supervision


class World:
    """Virtual processes: performs the actions, with a seeded choice of how each child behaves."""

    def __init__(self, seed: int, workers: int, good_start: bool) -> None:
        self.random = random.Random(seed)
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

    def perform(self, action: Action) -> None:
        match action:
            case Spawn(name=name):
                self.spawn(name)
            case SendDrain(name=name):
                if self.random.random() < 0.7:
                    self.later(self.random.expovariate(0.2), BrokerDrained(name=name))
            case SendStop(name=name) | SendSignal(name=name, signal="SIGTERM"):
                self.count(name, "stop" if isinstance(action, SendStop) else "SIGTERM")
                if self.random.random() < 0.5:
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
        if self.good_start and len(self.spawned_at[name]) == 1:
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

    assert world.machine.finished
    assert not world.process, "no process outlives the system"
    assert {each.state for each in world.machine.children.values()} <= {
        ChildState.EXITED,
        ChildState.FATAL,
    }
    assert max(world.signals.values(), default=0) <= 1, "each is sent once to each process"
    timing = world.timing
    assert world.now - stopped_at <= timing.drain_s + timing.kill_after_s + 10.0
    for times in world.spawned_at.values():
        for first, later in itertools.pairwise(times):
            assert later - first >= timing.backoff_first_s * (1 - timing.backoff_jitter) - 1e-9
        for index, first in enumerate(times):
            inside = [at for at in times[index:] if at - first < timing.restart_window_s]
            assert len(inside) <= timing.restarts_max + 1
