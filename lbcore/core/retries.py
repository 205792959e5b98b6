"""Requests that do not go to just any worker: a worker died under them, or one began them.

A request that a worker died under runs alone (``suspects``): one worker is kept free for it,
another than died if there is one, and gets nothing else until it is done.  A request that must not
run twice and was begun by some worker goes to that very one (``pinned``), which has its answer or
nobody has.  Called by ``broker`` and ``losses``; works on the ``Ledger``.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any, Final

from .actions import Outbox
from .dispatch import send
from .errors import WorkerLost
from .fleet import Worker
from .frames import Flag, task_of
from .ledger import Ledger
from .rebalance import recall
from .unusual import Alarm

#: the most requests with a death behind them that are looked at after one event
SUSPECTS_LOOK_MAX: Final = 64
#: a request waits so long for the one worker that can answer for it
PINNED_S: Final = 5.0
#: of a dead worker's last log lines an error carries so many
LOG_LINES_MAX: Final = 10


def evidence(
    ledger: Ledger, task: int, attempts: int, worker: str, death: Mapping[str, Any]
) -> dict[str, Any]:
    """What ``WorkerLost`` and ``Quarantined`` carry, under the same names everywhere."""
    lines = death.get("log_lines")
    return {
        "task": ledger.tasks.name(task),
        "attempts": attempts,
        "worker": worker,
        "pid": death.get("pid"),
        "exit": death.get("exit"),
        "signal": death.get("signal"),
        "code": death.get("code"),
        "peak_rss_bytes": death.get("peak_rss_bytes"),
        "out_of_memory": bool(death.get("oom")),
        "log_lines": list(lines)[-LOG_LINES_MAX:] if isinstance(lines, list | tuple) else [],
        "reason": death.get("reason"),
    }


# ---- requests that a worker died under ---------------------------------------------------------


def send_suspects(ledger: Ledger, now: float, outbox: Outbox) -> None:
    """Give each its own worker: one is kept free for it and gets nothing else until it is done."""
    for request_id, frame in list(islice(ledger.suspects.items(), SUSPECTS_LOOK_MAX)):
        worker = ledger.reserved.get(request_id)
        if worker is not None and worker.draining:
            # it is to get nothing new, not even this
            del ledger.reserved[request_id]
            worker.solo, worker = 0, None
        worker = worker or _reserve(ledger, request_id, frame, now, outbox)
        if worker is not None and not worker.inflight:
            del ledger.suspects[request_id], ledger.reserved[request_id]
            explain = bool(frame[5] & Flag.EXPLAIN)
            send(
                ledger,
                worker,
                ledger.tasks.sized.kind(frame),
                [(request_id, frame)],
                now,
                outbox,
                explain,
            )


def _reserve(
    ledger: Ledger, request_id: int, frame: bytes, now: float, outbox: Outbox
) -> Worker | None:
    task = task_of(frame)
    able = [worker for worker in ledger.fleet.ready if task in worker.tasks]
    if not able:
        return None
    died = ledger.died_under.get(request_id, ())
    others = [worker for worker in able if worker.number not in died]
    worker = min(others or able, key=lambda worker: (worker.load(task, now), worker.place))
    worker.solo = request_id
    ledger.reserved[request_id] = worker
    ledger.refresh_ready(worker, now)
    if worker.pending > worker.concurrency:
        recall(ledger, worker, outbox)
    return worker


# ---- requests that only one worker can answer for ----------------------------------------------


def pin(ledger: Ledger, request_id: int, frame: bytes, number: int, now: float) -> None:
    """Have a request wait for the worker that began it."""
    ledger.pinned.setdefault(number, {})[request_id] = frame
    ledger.wake(now + PINNED_S, Alarm.PINNED, request_id)


def send_pinned(ledger: Ledger, worker: Worker, now: float, outbox: Outbox) -> None:
    """A worker is here: whatever waited for it goes there, room or not, since it began it."""
    for request_id, frame in ledger.pinned.pop(worker.number, {}).items():
        send(ledger, worker, ledger.tasks.sized.kind(frame), [(request_id, frame)], now, outbox)


def end_pinned(ledger: Ledger, number: int, death: Mapping[str, Any], outbox: Outbox) -> None:
    """The process that could have answered is gone."""
    for request_id, frame in ledger.pinned.pop(number, {}).items():
        ledger.answer(request_id, task_of(frame), began_there(ledger, frame, number, death), outbox)


def give_up_pinned(ledger: Ledger, request_id: int, outbox: Outbox) -> None:
    """The worker that could answer did not come."""
    for number, requests in ledger.pinned.items():
        if request_id in requests:
            frame = requests.pop(request_id)
            if not requests:
                del ledger.pinned[number]
            error = began_there(ledger, frame, number, {})
            ledger.answer(request_id, task_of(frame), error, outbox)
            return


def began_there(ledger: Ledger, frame: bytes, number: int, death: Mapping[str, Any]) -> WorkerLost:
    """The end of a request that must not run twice, and that a worker had begun."""
    workers, task = ledger.fleet.workers, task_of(frame)
    worker = workers[number].name if 0 <= number < len(workers) else "a worker that is gone"
    name = ledger.tasks.name(task)
    message = f"{worker} had begun {name} and cannot say what became of it: it is not idempotent"
    return WorkerLost(message, **evidence(ledger, task, 1, worker, death))
