"""A policy of your own: an example to copy from.

    policy: my_policies.py:HomeFirst

in the topology has the broker load this file and ask ``HomeFirst`` for a worker.
"""

from __future__ import annotations

from lbcore import Policy
from lbcore.core.fleet import Worker

#: a home with so many requests pending per slot is too busy
PENDING_MAX = 3


class HomeFirst(Policy):
    """Each task has a home, the worker whose caches know its data, and goes elsewhere when busy."""

    def choose(self, task: int, now: float, startable: bool = False) -> Worker | None:
        """The home of that task; the worker that would be done soonest when there is a queue."""
        able = self.able(task)  # ready, and has the task
        if not able:
            return None
        # by name, so that every task has the same home tomorrow
        able.sort(key=lambda worker: worker.name)
        home = able[task % len(able)]
        if home.pending < PENDING_MAX * home.concurrency:
            return home
        return min(able, key=lambda worker: worker.load(task, now))

    def reason(self, task: int, winner: Worker, now: float) -> str:
        """What `lb explain` shows."""
        return f"{winner.name}, with {winner.pending} pending, is the home or nearest to it"
