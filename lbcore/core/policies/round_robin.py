"""The next worker in turn: blind to what requests cost and how fast workers are."""

from __future__ import annotations

from lbcore.core.fleet import Worker

from .turns import Turns


class RoundRobin(Turns):
    """Workers in turn, one of weight 2 twice as often: smooth weighted round robin.

    Inputs: declared weight.  The turns of a worker are ``1 / weight`` apart on a virtual clock, so
    those of a heavy one are spread out evenly and not in a row.  Source: stride scheduling
    (Waldspurger and Weihl 1995), which gives each as many turns as nginx's smooth weighted round
    robin, in O(log N).  Fails when costs differ: alternating long and short requests over an even
    number of workers puts every long one on the same half.
    """

    name = "round_robin"

    def stride(self, worker: Worker, task: int, now: float) -> float:
        """``1 / weight``."""
        return 1.0 / worker.config.weight

    def reason(self, task: int, winner: Worker, now: float) -> str:
        """One sentence for a person: why that worker won."""
        return f"it was {winner.name}'s turn"
