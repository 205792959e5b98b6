"""Virtual time: a clock that jumps from event to event, and the one source of chance.

Nothing in a simulation reads another clock or another random source, and no event depends on the
order of a set of objects or strings: so one seed gives one history, on every machine.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from random import Random
from typing import Any, Final

#: seconds on the virtual clock at which every simulation begins
START_S: Final = 1000.0

#: (moment, order among equals, what to call, with what)
_Event = tuple[float, int, Callable[..., None], tuple[Any, ...]]


class World:
    """The clock, the events to come, chance, and the trace."""

    __slots__ = ("_events", "_order", "count", "now", "random", "trace", "tracing")

    def __init__(self, seed: int, trace: Callable[[str], None] | None = None) -> None:
        self.now = START_S
        self.random = Random(seed)
        #: events that have happened
        self.count = 0
        self.trace = trace
        #: whether anybody listens; ask before making the text
        self.tracing = trace is not None
        self._events: list[_Event] = []
        self._order = 0

    def at(self, moment: float, call: Callable[..., None], *arguments: Any) -> None:
        """Call that then; what is in the past happens next, after what is due already."""
        self._order += 1
        heapq.heappush(self._events, (moment, self._order, call, arguments))

    def after(self, seconds: float, call: Callable[..., None], *arguments: Any) -> None:
        """Call that so many seconds from now."""
        self._order += 1
        heapq.heappush(self._events, (self.now + seconds, self._order, call, arguments))

    def run(self, until: float) -> None:
        """Let everything happen that is due up to that moment, then be at it."""
        events, pop = self._events, heapq.heappop
        while events and events[0][0] <= until:
            moment, _, call, arguments = pop(events)
            # after a leap of the clock much is late
            if moment > self.now:
                self.now = moment
            self.count += 1
            call(*arguments)
        self.now = max(self.now, until)

    def leap(self, seconds: float) -> None:
        """The clock jumps ahead, as after a suspended machine: everything due meanwhile is late."""
        self.now += seconds

    def say(self, text: str) -> None:
        """One line of the trace."""
        if self.trace is not None:
            self.trace(f"{self.now - START_S:12.6f} {text}")


class Process:
    """What every simulated process has: a name, a life, and moments in which it stands still."""

    __slots__ = ("_late", "alive", "frozen_until", "name", "world")

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.alive = True
        #: until then it gets no CPU, like a process that was sent SIGSTOP
        self.frozen_until = 0.0
        #: what happens to it when it goes on
        self._late: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    def freeze(self, until: float) -> None:
        """Stand still until then."""
        self.frozen_until = max(self.frozen_until, until)
        self.world.at(self.frozen_until, self._thaw)

    def thaw(self) -> None:
        """Go on now."""
        self.frozen_until = 0.0
        self._thaw()

    def defer(self, call: Callable[..., None], *arguments: Any) -> None:
        """Call that as soon as this process, which stands still, goes on."""
        self._late.append((call, arguments))

    def _thaw(self) -> None:
        if self.frozen_until > self.world.now:
            return
        late, self._late = self._late, []
        for call, arguments in late:
            self._wake(call, arguments)

    def later(self, seconds: float, call: Callable[..., None], *arguments: Any) -> None:
        """Call that in this process so many seconds from now, if it lives and runs then."""
        self.world.after(seconds, self._wake, call, arguments)

    def _wake(self, call: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if not self.alive:
            return
        if self.frozen_until > self.world.now:
            self._late.append((call, arguments))
            return
        call(*arguments)
