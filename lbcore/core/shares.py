"""Which lane is next: fair shares between priorities, and within one between clients.

The level with the smallest tag, and in it the lane with the smallest (see ``lanes``).  ``queue``
says which lanes have something to start, and what was served.
"""

from __future__ import annotations

from typing import Final

from .lanes import Lane, Level

#: a level's share of the work is so many times that of the level below
LEVEL_RATIO: Final = 4.0
#: no level's share is smaller than the best one's by more than this: it waits, but not for ever
SHARE_RATIO_MAX: Final = 64.0


class Shares:
    """The levels, those of them that have something to start, and the clock between them."""

    __slots__ = ("_clock", "_finish", "active", "levels")

    def __init__(self) -> None:
        self.levels: dict[int, Level] = {}
        self.active: list[Level] = []
        #: the largest tag that a level had when it was served: where a new one starts
        self._clock = 0.0
        #: the largest tag that a level had when nothing of it waited any more
        self._finish = 0.0

    def level(self, priority: int) -> Level:
        """The level of that priority."""
        level = self.levels.get(priority)
        if level is None:
            level = self.levels[priority] = Level(priority)
        return level

    def first(self) -> Lane | None:
        """The lane that is next."""
        active = self.active
        if not active:
            return None
        level = active[0]
        if len(active) > 1:
            level = min(active, key=lambda level: level.tag + level.held_s)
        return level.first()

    def file(self, lane: Lane, level: Level, *, owed: bool = False) -> None:
        """A lane has something to start.

        It begins at its level's clock, and a level at the clock of all; one that is ``owed`` only
        stepped aside for a look and keeps its place.
        """
        if not lane.stamp and not owed:
            lane.tag = max(lane.tag, level.clock)
        if not level.live:
            if not owed:
                level.tag = max(level.tag, self._clock)
            self.active.append(level)
            # of two with equal tags the higher goes first
            self.active.sort(key=lambda level: -level.priority)
            self._rescale()
        level.push(lane)

    def drop(self, lane: Lane, level: Level) -> None:
        """A lane has nothing more to start.

        Once nobody waits the past is settled: whoever comes next, also he who had most, begins with
        the others.
        """
        if lane.stamp:
            level.drop(lane)
            if lane.tag > level.finish:
                level.finish = lane.tag
            if not level.live:
                level.clock = max(level.clock, level.finish)
                if level.tag > self._finish:
                    self._finish = level.tag
                self.active.remove(level)
                if self.active:
                    self._rescale()
                else:
                    self._clock = max(self._clock, self._finish)

    def serve(self, lane: Lane, level: Level, cost_s: float, more: bool) -> bool:
        """The first lane was served that much; True when it is the only one and has more."""
        if level.tag > self._clock:
            self._clock = level.tag
        if lane.tag > level.clock:
            level.clock = lane.tag
        level.tag += cost_s * level.scale
        lane.tag += cost_s
        if more and len(level.heap) == 1 == len(self.active):
            # nobody else waits: nothing to compare
            level.heap[0] = (lane.tag + lane.held_s, lane.stamp, lane)
            return True
        return self._refile(lane, level, more)

    def hold(self, lane: Lane, level: Level, cost_s: float, more: bool) -> bool:
        """The first lane is looked at as if it had been served that much."""
        lane.held_s += cost_s
        level.held_s += cost_s * level.scale
        return self._refile(lane, level, more)

    def _refile(self, lane: Lane, level: Level, more: bool) -> bool:
        if more:
            return level.refile(lane) and len(self.active) == 1
        self.drop(lane, level)
        return False

    def _rescale(self) -> None:
        best = self.active[0].priority
        for level in self.active:
            level.scale = min(SHARE_RATIO_MAX, LEVEL_RATIO ** (best - level.priority))

    def check(self) -> None:
        """Assert what must always hold between two events."""
        for level in self.levels.values():
            lanes = {entry[2] for entry in level.heap if entry[2].stamp == entry[1]}
            assert (len(lanes), level.held_s) == (level.live, 0.0)
            assert (level in self.active) == (level.live > 0)
