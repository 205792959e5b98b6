"""One queue for all: the first worker that is free takes the next request."""

from __future__ import annotations

from lbcore.core.fleet import Worker

from .ranked import Ranked


class CentralFifo(Ranked):
    """Any worker that is free, the one free longest first; without one the request waits here.

    Late binding: nothing is sent before it can start, but for tasks of milliseconds and less, of
    which a few wait at the worker so that it does not idle while an answer is on its way.

    Inputs: which workers are free.  Weights and costs do not count.  Source: the central queue of
    M/G/k, as a bank's single line; HAProxy with ``maxconn 1``, and every pool of threads.

    Fails where workers differ: it is greedy, so a slow worker that is free takes a long request
    which a fast one would have had done sooner after a little wait.
    """

    name = "central_fifo"
    late_binding = True

    def rank(self, worker: Worker, now: float) -> float:
        """0 for one that is free, else how many are there beyond that, per slot."""
        beyond = worker.pending + 1 - worker.concurrency
        return beyond / worker.concurrency if beyond > 0 else 0.0

    def choose(self, task: int, now: float, startable: bool = False) -> Worker | None:
        """The one that is free longest; None when the request has to wait."""
        worker = super().choose(task, now, startable)
        if worker is None or not self.fleet.room(worker, task, now):
            return None
        return worker

    def reason(self, task: int, winner: Worker, now: float) -> str:
        """One sentence for a person: why that worker won."""
        return f"{winner.name} was free longest"
