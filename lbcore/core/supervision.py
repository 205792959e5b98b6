"""Who is up, in backoff, given up: the supervisor's decisions, with no process in sight.

Events in, actions out, time passed in.  ``shell/supervisor.py`` feeds what happened (a child
reported, a process ended, a signal came, time passed), performs the returned actions in order, and
waits no longer than ``next_deadline``.  Nothing here forks, signals, sleeps or reads a clock.

Theory of operation.  Each child walks through ``children.TRANSITIONS``; a move that is not in that
table is our bug and raises.  What a child says is a peer's word: too early, too late or twice, it
is ignored.  A child that ends unasked is started again after a delay that doubles; more than
``restarts_max`` restarts within ``restart_window_s`` park it in FATAL, and so does a start that it
reports as failed.  The system has a phase in the same words: STARTING until every child was
RUNNING at once, RUNNING, DRAIN while the broker finishes what it accepted, STOPPING, EXITED.

Workers come and go while it runs: that half of the machine is ``staffing.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import assert_never

from .children import (
    EXIT_UNAVAILABLE,
    Action,
    BrokerDrained,
    Child,
    ChildAdded,
    ChildDied,
    ChildFailed,
    ChildReady,
    ChildRemoved,
    ChildState,
    Event,
    FleetChanged,
    HoldRequested,
    RestartRequested,
    ResumeRequested,
    Role,
    SendDrain,
    StopRequested,
    TimePassed,
    Timing,
    Trigger,
    WorkerDrained,
)
from .staffing import Staffing


class Supervision(Staffing):
    """The state machine of a broker and its workers; ``handle`` is the only door that changes it.

    ``random`` returns a number in [0, 1), for the jitter.
    """

    def __init__(self, timing: Timing, random: Callable[[], float]) -> None:
        super().__init__(timing)
        self.exit_code: int | None = None
        self.reason = ""
        self._random = random

    @property
    def children(self) -> Mapping[str, Child]:
        """Every child by name, in the order they were added; to be read only."""
        return MappingProxyType(self._children)

    @property
    def finished(self) -> bool:
        """True when the system has stopped and no process is left."""
        return self.phase is ChildState.EXITED

    def next_deadline(self) -> float | None:
        """When ``TimePassed`` is due next, monotonic seconds; None when only events matter."""
        return min(
            (child.deadline for child in self._children.values() if child.deadline is not None),
            default=None,
        )

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take in one event and return what is to be done about it, in order."""
        self._actions, self._changed = [], False
        match event:
            case ChildAdded():
                self._add(event, now)
            case ChildReady():
                self._mark_ready(event.name, now)
            case ChildFailed():
                self._fail(event, now)
            case ChildDied():
                self._bury(event, now)
            case ChildRemoved():
                self._remove(event, now)
            case BrokerDrained():
                self._finish_drain(event.name, now)
            case WorkerDrained():
                self._drained(event.name, now)
            case HoldRequested():
                self._hold(event.name, now)
            case ResumeRequested():
                self._resume(event.name, now)
            case RestartRequested():
                self._restart(event, now)
            case StopRequested():
                self._request_stop(event, now)
            case TimePassed():
                for child in list(self._children.values()):
                    if child.deadline is not None and child.deadline <= now:
                        self._act_on_deadline(child, now)
            case _:
                assert_never(event)
        if not self._is_ending:
            if self._changed:
                self._see_whether_ready()
            self._pass_turn(now)
        if self.phase is ChildState.STOPPING and not any(
            child.alive for child in self._children.values()
        ):
            self.phase, self._changed = ChildState.EXITED, True
        if self._changed:
            self._actions.append(FleetChanged())
        return self._actions

    def check(self) -> None:
        """Assert what must always hold; for tests and simulations."""
        for child in self._children.values():
            state = child.state
            assert not (child.alive and state in (ChildState.EXITED, ChildState.BACKOFF)), child
            assert child.alive or state not in (
                ChildState.STARTING,
                ChildState.RUNNING,
                ChildState.DRAIN,
                ChildState.STOPPING,
            ), child
            assert (state is not ChildState.BACKOFF) or child.deadline is not None, child
            assert child.alive or state is ChildState.BACKOFF or child.deadline is None, child
            assert len(child.restart_times) <= self.timing.restarts_max, child
        if self.phase in (ChildState.STOPPING, ChildState.EXITED):
            assert self.exit_code is not None
            assert not any(c.state is ChildState.BACKOFF for c in self._children.values())

    def _mark_ready(self, name: str, now: float) -> None:
        child = self._children[name]
        if child.state is not ChildState.STARTING or "SIGKILL" in child.signals:
            return
        self._note("INFO", name, f"ready after {now - child.since:.2f} s")
        self._move(child, Trigger.READY, now)
        child.proven = True
        self._pursue(child, now)

    def _see_whether_ready(self) -> None:
        if self.phase is ChildState.STARTING and all(
            each.state in (ChildState.RUNNING, ChildState.DRAIN) for each in self._children.values()
        ):
            self.phase, self._changed = ChildState.RUNNING, True

    def _fail(self, event: ChildFailed, now: float) -> None:
        child = self._children[event.name]
        if child.state is not ChildState.STARTING:
            # those that start together mostly fail together: the first was told to everybody
            level = "INFO" if child.state is ChildState.STOPPING else "WARNING"
            self._note(level, child.name, f"reported a failure: {event.error}")
            return
        child.cause = event.error
        self._note("ERROR", child.name, f"cannot start: {event.error}")
        if child.role is Role.BROKER and child.proven:
            # nobody else can do its work, and the disk that it lacks may come back
            child.refused = True
            child.deadline = now + self.timing.failed_grace_s
            return
        self._move(child, Trigger.FAIL, now)
        if child.alive:
            child.deadline = now + self.timing.failed_grace_s
        self._give_up_if_hopeless(child, event.code, now)

    def _bury(self, event: ChildDied, now: float) -> None:
        child = self._children[event.name]
        assert child.alive, f"{child.name} died twice"
        child.alive, child.deadline, self._changed = False, None, True
        child.death_counts = event.counts and not child.refused
        if child.state is ChildState.FATAL:
            self._pursue(child, now)
            return
        # a start that took too long was ended by us: its cause is known already
        is_known = child.refused or "SIGKILL" in child.signals
        if not is_known or child.state is not ChildState.STARTING:
            child.cause = event.cause
        if child.state is ChildState.DRAIN and child.role is Role.BROKER:
            self._move(child, Trigger.END, now)
            self._note("ERROR", child.name, f"died while draining: {event.cause}")
            self._begin_stop(0, "the broker died while draining", now)
        elif child.state is ChildState.DRAIN and self._is_leaving(child):
            self._move(child, Trigger.END, now)
            self._note("WARNING", child.name, f"died while draining: {event.cause}")
            self._pursue(child, now)
        elif child.state is ChildState.STOPPING:
            self._move(child, Trigger.END, now)
            self._note("INFO", child.name, f"stopped: {event.cause}")
            self._pursue(child, now)
        else:
            self._retry(child, now)

    def _retry(self, child: Child, now: float) -> None:
        timing, times = self.timing, child.restart_times
        if child.state is ChildState.RUNNING and now - child.since >= timing.stable_s:
            child.backoffs = 0
        while times and times[0] <= now - timing.restart_window_s:
            times.popleft()
        # a request that kills workers is stopped by its attempts, and a machine without room for a
        # process may have it later: neither must stop the system
        if len(times) >= timing.restarts_max and child.death_counts:
            self._move(child, Trigger.GIVE_UP, now)
            text = f"died ({child.cause}) after {len(times)} restarts in {now - times[0]:.0f} s"
            self._note("ERROR", child.name, f"{text}; given up")
            child.cause = f"{text}, see its log"
            self._give_up_if_hopeless(child, EXIT_UNAVAILABLE, now)
            return
        first_s, most_s = timing.backoff_first_s, timing.backoff_max_s
        if child.role is Role.BROKER and not child.refused:
            first_s, most_s = timing.broker_backoff_first_s, timing.broker_backoff_max_s
        delay_s = min(first_s * 2.0 ** min(child.backoffs, 60), most_s)
        delay_s *= 1 + timing.backoff_jitter * (2 * self._random() - 1)
        # one that worked, and died of a request, need not be spared
        if child.death_counts or child.state is ChildState.STARTING:
            child.backoffs += 1
        self._move(child, Trigger.CRASH, now)
        child.deadline = now + delay_s
        self._note("WARNING", child.name, f"died: {child.cause}; restart in {delay_s:.2f} s")

    def _give_up_if_hopeless(self, child: Child, code: int, now: float) -> None:
        """Stop the system when this child's end leaves nothing worth keeping up."""
        workers = [each for each in self._children.values() if each.role is Role.WORKER]
        if self.phase is ChildState.STARTING:
            self._begin_stop(code, f"{child.name} cannot start: {child.cause}", now)
        elif child.role is Role.BROKER:
            self._begin_stop(EXIT_UNAVAILABLE, f"the broker is given up: {child.cause}", now)
        elif all(worker.state is ChildState.FATAL for worker in workers):
            self._begin_stop(EXIT_UNAVAILABLE, "every worker is given up", now)

    def _finish_drain(self, name: str, now: float) -> None:
        if self._children[name].state is ChildState.DRAIN:
            self._note("INFO", name, "answered everything that it accepted")
            self._begin_stop(0, "drained", now)

    def _request_stop(self, event: StopRequested, now: float) -> None:
        asked_before = self.phase not in (ChildState.STARTING, ChildState.RUNNING)
        if self.exit_code is None:
            self.exit_code, self.reason = event.code, event.reason
        if event.at_once or asked_before:
            self._note("WARNING", "", f"stopping at once ({event.reason})")
            self._kill_all(now)
            return
        self._note("INFO", "", f"stopping ({event.reason})")
        brokers = [
            child
            for child in self._children.values()
            if child.role is Role.BROKER and child.state is ChildState.RUNNING
        ]
        if not brokers:
            self._begin_stop(event.code, event.reason, now)
            return
        self._drop_wishes(keep_begun=True)
        self.phase = ChildState.DRAIN
        for child in brokers:
            self._move(child, Trigger.DRAIN, now)
            child.deadline = now + self.timing.drain_s
            self._actions.append(SendDrain(name=child.name))

    def _begin_stop(self, code: int, reason: str, now: float) -> None:
        if self.phase in (ChildState.STOPPING, ChildState.EXITED):
            return
        if self.exit_code is None:
            self.exit_code, self.reason = code, reason
            self._note("ERROR" if code else "INFO", "", f"stopping: {reason}")
        self._drop_wishes(keep_begun=False)
        self.phase, self._changed = ChildState.STOPPING, True
        for child in self._children.values():
            self._stop(child, now)

    def _kill_all(self, now: float) -> None:
        self._begin_stop(0, "", now)
        for child in self._children.values():
            if child.alive:
                self._signal(child, "SIGKILL")

    def _act_on_deadline(self, child: Child, now: float) -> None:
        """What the end of a wait means, by the state that the child waited in."""
        child.deadline = None
        match child.state:
            case ChildState.BACKOFF:
                child.restarts += 1
                if child.death_counts:
                    child.restart_times.append(now)
                self._spawn(child, now)
            case ChildState.STARTING:
                if not child.refused:
                    child.cause = f"not ready within {self.timing.start_limit_s:g} s"
                self._signal(child, "SIGKILL")
                # once it has worked, slowness is the machine's: that is worth another try
                if not child.proven:
                    self._fail(ChildFailed(name=child.name, error=child.cause), now)
                    child.deadline = None
            case ChildState.DRAIN if child.role is Role.WORKER:
                self._lose_patience(child, now)
            case ChildState.DRAIN:
                self._note("WARNING", child.name, f"not drained in {self.timing.drain_s:g} s")
                self._begin_stop(0, "the time to drain is over", now)
            case ChildState.STOPPING if "SIGTERM" not in child.signals:
                self._signal(child, "SIGTERM")
                child.deadline = max(child.stop_at + self.timing.kill_after_s, now)
            case ChildState.STOPPING | ChildState.FATAL:
                self._note("WARNING", child.name, "does not end by itself: killed")
                self._signal(child, "SIGKILL")
            case ChildState.RUNNING | ChildState.EXITED:
                raise AssertionError(f"{child.name} has a deadline in {child.state}")
            case _:
                assert_never(child.state)
