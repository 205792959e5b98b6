"""Why a worker was chosen: the numbers of every worker at the moment of a choice.

Taking them down costs a look at each worker, so it is done for requests that ask for it, for all
requests long enough that it does not matter, and otherwise for a choice now and then; in a large
fleet only for those that ask.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

from .frames import SEQUENCE_MASK

if TYPE_CHECKING:
    from .fleet import Fleet, Worker
    from .policies.base import Policy
    from .queue import Entry

#: decisions kept, and the most workers' numbers that they hold in all
DECISIONS_KEPT: Final = 1000
VIEWS_KEPT: Final = 20_000
#: in a fleet of at most so many workers choices are recorded without having been asked for:
RECORD_WORKERS_MAX: Final = 64
#: every one for tasks at least this long,
RECORD_COST_S: Final = 0.05
#: one in this time for others
RECORD_EVERY_S: Final = 0.2


def request_name(request_id: int) -> str:
    """The text form of a request id, ``client:sequence``: in logs, in ``explain``, in the CLI."""
    return f"{request_id >> 32}:{request_id & SEQUENCE_MASK}"


class Journal:
    """The last decisions, newest last."""

    def __init__(self) -> None:
        self.decisions: deque[dict[str, Any]] = deque()
        #: record every choice and describe it in a line (log level DEBUG)
        self.trace = False
        self._next_at = 0.0

    def due(self, cost_s: float, workers: int, now: float) -> bool:
        """Whether the next choice should be recorded."""
        if now < self._next_at and cost_s < RECORD_COST_S and not self.trace:
            return False
        if workers > RECORD_WORKERS_MAX:
            return self.trace
        self._next_at = now + RECORD_EVERY_S
        return True

    def record(
        self,
        names: dict[str, Any],
        entries: list[Entry],
        winner: Worker,
        views: list[dict[str, Any]],
        now: float,
    ) -> str | None:
        """Keep one decision; returns its one-line form when tracing.

        ``names`` holds what the caller knows: task, policy, reason and cost.
        """
        request = request_name(entries[0][0])
        self.decisions.append(
            {
                **names,
                "request": request,
                "ids": [request_id for request_id, _ in entries],
                "at": now,
                "winner": winner.name,
                "workers": views,
            }
        )
        kept = max(1, min(DECISIONS_KEPT, VIEWS_KEPT // len(views)))
        while len(self.decisions) > kept:
            self.decisions.popleft()
        if not self.trace:
            return None
        loads = " ".join(f"{view['name']}={view['load']:.6f}" for view in views)
        more = f" (+{len(entries) - 1} more)" if len(entries) > 1 else ""
        return f"{names['task']} {request}{more} -> {winner.name}: load {loads}"

    def last(self, count: int, now: float) -> list[dict[str, Any]]:
        """The last ``count`` decisions, newest first, as JSON values."""
        return [_public(entry, now) for entry in list(self.decisions)[: -count - 1 : -1]]

    def find(self, ids: list[int], now: float) -> list[dict[str, Any]]:
        """The newest decision about each of these requests that is still kept."""
        newest = {request_id: entry for entry in self.decisions for request_id in entry["ids"]}
        found = []
        for request_id in ids:
            if request_id in newest:
                public = _public(newest[request_id], now)
                public["request"] = request_name(request_id)
                found.append(public)
        return found


def _public(entry: dict[str, Any], now: float) -> dict[str, Any]:
    public = {key: value for key, value in entry.items() if key not in ("ids", "at")}
    public["at_s_ago"] = max(0.0, now - entry["at"])
    public["requests"] = len(entry["ids"])
    return public


def worker_views(fleet: Fleet, policy: Policy, task: int, now: float) -> list[dict[str, Any]]:
    """Every worker's numbers as a choice of a request of that task meets them."""
    views = []
    pending_weight = fleet.policy.pending_weight
    for worker in fleet.by_name.values():
        excluded = None
        if worker.position < 0:
            excluded = "ejected" if worker.standing else worker.state.value.lower()
        elif task not in worker.tasks:
            excluded = "does not have the task"
        elif policy.late_binding and not fleet.room(worker, task, now):
            excluded = "no room now"
        # as ``Worker.load``, of which both are parts: each costs time, in the middle of a choice
        backlog_s, service_s = worker.backlog_s(now), worker.service_s(task, now)
        views.append(
            {
                "name": worker.name,
                "state": worker.state.value,
                "pending": worker.pending,
                "backlog_s": backlog_s,
                "cpu": worker.cpu,
                "cpu_age_s": max(0.0, now - worker.cpu_at) if worker.cpu_at > 0 else None,
                "availability": worker.availability_at_time(now),
                "speed": worker.speed(),
                "service_s": service_s,
                "load": pending_weight * backlog_s + service_s,
                "excluded": excluded,
            }
        )
    return views
