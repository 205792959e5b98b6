"""Two random workers, the one with less pending: what balancers with a partial view do."""

from __future__ import annotations

from lbcore.core.fleet import Worker

from .sampled import TwoChoices


class PowerOfTwo(TwoChoices):
    """Of two random workers, the one with fewer requests pending per weight.

    Inputs: pending, declared weight.  Source: Mitzenmacher, "The power of two choices in randomized
    load balancing" (2001).  Fails where one broker sees everything: it looks at two of N workers,
    and a request that takes 3 s counts as much as one that takes 1 s.
    """

    name = "power_of_two"

    def load(self, worker: Worker, now: float) -> float:
        """Requests pending per weight."""
        return worker.pending / worker.config.weight

    def reason(self, task: int, winner: Worker, now: float) -> str:
        """One sentence for a person: why that worker won."""
        return f"{winner.name} had {winner.pending} pending, not more than another random worker"
