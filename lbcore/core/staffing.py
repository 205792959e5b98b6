"""The staff of a system and how it changes while it works: added, held, restarted, removed.

The lower half of the state machine: the children by name, the moves that their table allows, and
what is wished for each.  ``supervision.py`` builds on it what concerns the system as a whole: its
phases, crashes, its end.  Nothing here forks, signals, sleeps or reads a clock.

Theory of operation.  A worker that is to be stopped for good or for a moment is *drained* first: in
DRAIN the broker gives it nothing new and takes back what it has not begun, and says when nothing is
left; only then is it asked to stop.  What is to become of it then is its wish.  A new wish replaces
an older one, so changes may come faster than they are carried out.  Rolling restarts have a turn:
one worker at a time is out, and the next one follows when it runs again.
"""

from __future__ import annotations

from .children import (
    TRANSITIONS,
    Action,
    Child,
    ChildAdded,
    ChildRemoved,
    ChildState,
    Forget,
    Note,
    RestartRequested,
    Role,
    SendSignal,
    SendStop,
    Spawn,
    Timing,
    Trigger,
    Wish,
)


class InvalidTransition(AssertionError):
    """A move that the table does not have: a bug of the machine, never of a child."""


class Staffing:
    """The children, their moves and wishes."""

    def __init__(self, timing: Timing) -> None:
        self.timing = timing
        self.phase = ChildState.STARTING
        self._children: dict[str, Child] = {}
        self._actions: list[Action] = []
        self._changed = False
        #: the worker whose rolling restart is under way
        self._turn: str | None = None

    # ---- what is wished ------------------------------------------------------------------------

    def _add(self, event: ChildAdded, now: float) -> None:
        child = self._children.get(event.name)
        if child is not None:
            # it had been removed, and has not left yet
            assert child.wish is Wish.REMOVE, f"{event.name} was added twice"
            self._wish(child, Wish.RESTART, now)
            return
        child = Child(name=event.name, role=event.role)
        self._children[event.name] = child
        if not self._is_ending:
            self._spawn(child, now)

    def _remove(self, event: ChildRemoved, now: float) -> None:
        child = self._children[event.name]
        assert child.role is Role.WORKER, "nothing works without its broker"
        child.limit_s, child.held = None, False
        self._wish(child, Wish.REMOVE, now)

    def _hold(self, name: str, now: float) -> None:
        child = self._children[name]
        child.held = True
        self._pursue(child, now)

    def _resume(self, name: str, now: float) -> None:
        child = self._children[name]
        child.held = False
        self._pursue(child, now)

    def _restart(self, event: RestartRequested, now: float) -> None:
        for name in event.names:
            child = self._children[name]
            # one that is on its way out already has no turn to wait for
            child.rolling = event.rolling and (child.rolling or child.wish is Wish.NONE)
            child.limit_s = event.limit_s
            self._wish(child, Wish.RESTART, now)

    def _drained(self, name: str, now: float) -> None:
        child = self._children.get(name)
        if child is not None and child.state is ChildState.DRAIN and child.role is Role.WORKER:
            if not child.drained:
                child.drained = self._changed = True
            self._pursue(child, now)

    def _wish(self, child: Child, wish: Wish, now: float) -> None:
        child.wish = wish
        if wish is not Wish.RESTART:
            child.rolling = False
        self._pursue(child, now)

    def _drop_wishes(self, keep_begun: bool) -> None:
        """The system is to stop: nothing more is restarted, or only what is out already."""
        for child in self._children.values():
            waits = child.rolling and child.name != self._turn
            if child.wish is Wish.RESTART and (waits or not keep_begun):
                child.wish, child.rolling = Wish.NONE, False
            if not keep_begun:
                child.wish, child.held = Wish.NONE, False
        if not keep_begun:
            self._turn = None

    # ---- and what comes of it ------------------------------------------------------------------

    def _pursue(self, child: Child, now: float) -> None:
        """Bring a child one step nearer to what is wished for it."""
        if self._is_ending:
            return
        leaving = self._is_leaving(child)
        match child.state:
            case ChildState.RUNNING if leaving or child.held:
                self._move(child, Trigger.DRAIN, now)
                child.drained = False
                if leaving:
                    child.deadline = now + self._patience_s(child)
            case ChildState.DRAIN if leaving and child.drained:
                self._stop(child, now)
            case ChildState.DRAIN if leaving and child.deadline is None:
                child.deadline = now + self._patience_s(child)
            case ChildState.DRAIN if not leaving and not child.held:
                self._move(child, Trigger.RESUME, now)
            case ChildState.STARTING if leaving:
                self._stop(child, now)
            case ChildState.BACKOFF if leaving:
                self._move(child, Trigger.STOP, now)
                self._fulfil(child, now)
            case ChildState.EXITED | ChildState.FATAL if leaving and not child.alive:
                self._fulfil(child, now)
            case _:
                pass  # it is on its way, or nothing is wished

    def _is_leaving(self, child: Child) -> bool:
        """Whether its process is to end; one that waits for its turn works on."""
        return child.wish is not Wish.NONE and (not child.rolling or child.name == self._turn)

    def _patience_s(self, child: Child) -> float:
        """How long draining may take before something is done, or at least said, about it."""
        return self.timing.drain_s if child.limit_s is None else child.limit_s

    def _lose_patience(self, child: Child, now: float) -> None:
        """A worker is still busy."""
        if child.limit_s is not None:
            self._note("WARNING", child.name, f"not drained in {child.limit_s:g} s: stopped")
            self._stop(child, now)
            return
        text = f"still busy after {now - child.since:.0f} s; it is stopped once it has answered"
        self._note("WARNING", child.name, text)

    def _fulfil(self, child: Child, now: float) -> None:
        """No process is left: do what was wished."""
        if child.wish is Wish.REMOVE:
            del self._children[child.name]
            self._changed = True
            self._note("INFO", child.name, "removed")
            self._actions.append(Forget(name=child.name))
        elif child.wish is Wish.RESTART:
            child.backoffs = 0
            child.restart_times.clear()
            self._spawn(child, now)

    def _pass_turn(self, now: float) -> None:
        """See whether the worker that is out is back, and let the next one go."""
        child = self._children.get(self._turn) if self._turn is not None else None
        if child is not None and child.state is ChildState.FATAL and child.wish is Wish.NONE:
            self._turn = None
            rest = [each for each in self._children.values() if each.rolling]
            for each in rest:
                each.wish, each.rolling = Wish.NONE, False
            if rest:
                text = f"the rolling restart ends here; {len(rest)} not restarted"
                self._note("ERROR", child.name, text)
            return
        if child is not None and (
            child.wish is not Wish.NONE or child.state not in (ChildState.RUNNING, ChildState.DRAIN)
        ):
            return
        self._turn = None
        if self.phase is not ChildState.RUNNING:
            return
        waiting = (each for each in self._children.values() if each.rolling)
        following = next(waiting, None)
        if following is not None:
            self._turn = following.name
            self._pursue(following, now)

    # ---- moves ---------------------------------------------------------------------------------

    @property
    def _is_ending(self) -> bool:
        return self.phase in (ChildState.STOPPING, ChildState.EXITED)

    def _spawn(self, child: Child, now: float) -> None:
        if child.wish is Wish.RESTART:
            child.wish, child.rolling = Wish.NONE, False
        self._move(child, Trigger.SPAWN, now)
        child.alive = True
        child.signals.clear()
        child.refused = False
        child.deadline = now + self.timing.start_limit_s
        self._actions.append(Spawn(name=child.name))

    def _stop(self, child: Child, now: float) -> None:
        if child.state in (ChildState.EXITED, ChildState.FATAL, ChildState.STOPPING):
            return
        self._move(child, Trigger.STOP, now)
        if child.alive:
            child.stop_at = now
            child.deadline = now + self.timing.term_after_s
            self._actions.append(SendStop(name=child.name))

    def _signal(self, child: Child, name: str) -> None:
        if name == "SIGKILL":
            child.deadline = None
        if name not in child.signals:
            child.signals.add(name)
            self._actions.append(SendSignal(name=child.name, signal=name))

    def _move(self, child: Child, trigger: Trigger, now: float) -> None:
        state = TRANSITIONS.get((child.state, trigger))
        if state is None:
            raise InvalidTransition(f"{child.name}: {trigger} in {child.state}")
        child.state, child.since, child.deadline = state, now, None
        self._changed = True

    def _note(self, level: str, name: str, text: str) -> None:
        self._actions.append(Note(level=level, name=name, text=text))
