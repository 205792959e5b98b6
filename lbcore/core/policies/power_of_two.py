"""Two random workers, the one with less pending: what balancers with a partial view do."""

from __future__ import annotations

from lbcore.core.fleet import Worker

from .base import Policy


class PowerOfTwo(Policy):
    """Of two random workers, the one with fewer requests pending per weight.

    Inputs: pending, declared weight.  Source: Mitzenmacher, "The power of two choices in randomized
    load balancing" (2001).  Fails where one broker sees everything: it looks at two of N workers,
    and a request that takes 3 s counts as much as one that takes 1 s.
    """

    name = "power_of_two"

    def choose(self, task: int, now: float, startable: bool = False) -> Worker | None:
        """The better of two random ready workers that have the task."""
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
        if second.pending * first.config.weight < first.pending * second.config.weight:
            return second
        return first

    def reason(self, task: int, winner: Worker, now: float) -> str:
        """One sentence for a person: why that worker won."""
        return f"{winner.name} had {winner.pending} pending, not more than another random worker"
