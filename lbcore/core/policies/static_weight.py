"""A sum of declared weights for each worker: what a classroom's load balancer does."""

from __future__ import annotations

from lbcore.core.fleet import Worker

from .turns import Turns


class StaticWeight(Turns):
    """The worker with the smallest sum; a choice adds the weight that the task declares.

    A task's weight is its ``cost`` or else its ``weight`` of ``@task`` (a long one 3, a short one
    1), and what is added is that divided by the worker's weight.  A worker that joins begins at the
    present smallest sum.

    Inputs: declared weights of tasks and workers; nothing is measured.  Source: the exercise that
    many a course sets.

    Fails because the sums only grow: nothing that a worker did, or did not do, is ever taken off.
    One that hangs gets its share on and on, and so does one that is long done.  Declared weights
    that are wrong stay wrong.
    """

    name = "static_weight"

    def stride(self, worker: Worker, task: int, now: float) -> float:
        """What the choice adds to the worker's sum."""
        return self.fleet.costs[task].declared_s / worker.config.weight

    def reason(self, task: int, winner: Worker, now: float) -> str:
        """One sentence for a person: why that worker won."""
        added = self.fleet.costs[task].declared_s
        return f"{winner.name} had the smallest sum of declared weights; this one adds {added:g}"
