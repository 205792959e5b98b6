"""The fewest requests pending: what nginx and HAProxy call least connections."""

from __future__ import annotations

from lbcore.core.fleet import Worker

from .ranked import Ranked


class LeastPending(Ranked):
    """The worker with the fewest requests pending per weight; the one idle longest among equals.

    Inputs: pending, declared weight.  Compares ``(pending + 1) / weight``, so that weights count
    among idle workers too, as HAProxy's ``leastconn`` does.  Fails when costs differ: a request
    that takes 3 s counts as much as one that takes 1 s, and a slow worker that is idle looks as
    good as a fast one.
    """

    name = "least_pending"

    def rank(self, worker: Worker, now: float) -> float:
        """Requests pending with this one, per weight."""
        return (worker.pending + 1) / worker.config.weight

    def reason(self, task: int, winner: Worker, now: float) -> str:
        """One sentence for a person: why that worker won."""
        return f"{winner.name} had the fewest pending per weight: {winner.pending}"
