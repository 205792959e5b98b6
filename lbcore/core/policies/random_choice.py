"""Any worker, by weight: the baseline that knows nothing."""

from __future__ import annotations

from lbcore.core.fleet import Worker

from .base import Policy


class RandomChoice(Policy):
    """A random worker, with a probability in proportion to its weight.

    Inputs: declared weights.  Fails by design: some workers are piled upon while others idle; the
    longest of n queues grows like log n / log log n.
    """

    name = "random"

    def choose(self, task: int, now: float, startable: bool = False) -> Worker | None:
        """A random ready worker that has the task."""
        ready = self.fleet.ready
        if not ready:
            return None
        heaviest = self.fleet.weight_max
        # rejection: cost does not depend on the number of workers unless few of them qualify
        for _ in range(32):
            worker = ready[self.rng.randrange(len(ready))]
            if task in worker.tasks and self.rng.random() * heaviest < worker.config.weight:
                return worker
        able = self.able(task)
        point = self.rng.random() * sum(worker.config.weight for worker in able)
        for worker in able:
            point -= worker.config.weight
            if point < 0.0:
                return worker
        return able[-1] if able else None

    def reason(self, task: int, winner: Worker, now: float) -> str:
        """One sentence for a person: why that worker won."""
        return f"{winner.name} was drawn at random"
