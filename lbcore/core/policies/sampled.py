"""Policies that compare two workers drawn at random, whatever they compare."""

from __future__ import annotations

from lbcore.core.fleet import Worker

from .base import Policy


class TwoChoices(Policy):
    """Base class: subclasses give ``load``.  A choice costs the same with any number of workers."""

    def load(self, worker: Worker, now: float) -> float:
        """The number that is compared; the smaller wins, the first drawn among equals."""
        raise NotImplementedError

    def choose(self, task: int, now: float, startable: bool = False) -> Worker | None:
        """The better of two random ready workers that have the task."""
        pair = self._draw(task)
        if pair is None:
            return None
        first, second = pair
        return second if self.load(second, now) < self.load(first, now) else first

    def _draw(self, task: int) -> tuple[Worker, Worker] | None:
        ready = self.fleet.ready
        if not ready:
            return None
        first = ready[self.rng.randrange(len(ready))]
        second = ready[self.rng.randrange(len(ready))]
        if task not in first.tasks or task not in second.tasks:
            able = self.able(task)
            if not able:
                return None
            first = able[self.rng.randrange(len(able))]
            second = able[self.rng.randrange(len(able))]
        if len(ready) > 1 and first is second:
            # two different ones: with replacement a small fleet would often compare one with itself
            second = ready[(first.position + 1 + self.rng.randrange(len(ready) - 1)) % len(ready)]
            if task not in second.tasks:
                second = first
        return first, second
