"""A worker that is idle, else any: join idle queue."""

from __future__ import annotations

from collections import OrderedDict

from lbcore.core.fleet import Fleet, Worker

from .base import Random
from .random_choice import RandomChoice


class JoinIdle(RandomChoice):
    """The worker that has been idle longest; without an idle one, any, by weight.

    Idle is one that could begin a request at once.  A choice costs the same with any number of
    workers, but for those that are idle and do not have the task.

    Inputs: which workers are idle; declared weight where none is.  Source: Lu, Xie, Kliot, Geller,
    Larus and Greenberg, "Join-Idle-Queue" (2011).

    Fails under high load, when nobody is idle: then it is ``random``.  And an idle worker that is
    slow is as good as a fast one.
    """

    name = "join_idle"

    def __init__(self, fleet: Fleet, rng: Random) -> None:
        super().__init__(fleet, rng)
        #: numbers of the workers that are idle, the one idle longest first
        self._idle: OrderedDict[int, None] = OrderedDict()

    def changed(self, worker: Worker, now: float, keep_place: bool = False) -> None:
        """Keep the list of idle workers."""
        if worker.position < 0 or worker.pending >= worker.concurrency:
            self._idle.pop(worker.number, None)
        elif worker.number not in self._idle:
            self._idle[worker.number] = None
        elif not keep_place:
            self._idle.move_to_end(worker.number)

    def choose(self, task: int, now: float, startable: bool = False) -> Worker | None:
        """The first idle worker that has the task, or else a random one."""
        workers = self.fleet.workers
        for number in self._idle:
            if task in workers[number].tasks:
                return workers[number]
        return super().choose(task, now, startable)

    def reason(self, task: int, winner: Worker, now: float) -> str:
        """One sentence for a person: why that worker won."""
        if winner.number in self._idle:
            return f"{winner.name} was idle"
        return f"{winner.name} was drawn at random: no worker was idle"
