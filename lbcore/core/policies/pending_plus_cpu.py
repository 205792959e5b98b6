"""Pending plus CPU: the sum that comes to mind first."""

from __future__ import annotations

from lbcore.core.fleet import Worker

from .base import cpu_share
from .ranked import Ranked


class PendingPlusCpu(Ranked):
    """The smallest ``(pending_weight * (pending + 1) + cpu_weight * cpu) / weight``.

    ``cpu`` is the share of CPU that the worker used by its last report, from 0 to 1, however old
    that report is; the two factors are those of ``policy`` in the topology.

    Inputs: pending, reported CPU, declared weight.  Source: none that is worth the name; it is what
    everybody tries, and stands here to be compared with.

    Fails because a count and a share have no common unit, so that no factors are right: with 1 and
    1 the CPU only breaks ties, which makes it ``least_pending``.  And the CPU of a worker is what
    its pending requests burn, counted a second time and later.
    """

    name = "pending_plus_cpu"
    uses_cpu = True

    def rank(self, worker: Worker, now: float) -> float:
        """The weighted sum, per weight of the worker."""
        policy = self.fleet.policy
        pending = policy.pending_weight * (worker.pending + 1)
        return (pending + policy.cpu_weight * cpu_share(worker)) / worker.config.weight

    def reason(self, task: int, winner: Worker, now: float) -> str:
        """One sentence for a person: why that worker won."""
        return (
            f"{winner.name} had the smallest sum of pending ({winner.pending}) and "
            f"CPU ({cpu_share(winner):.0%})"
        )
