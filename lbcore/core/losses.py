"""Workers are lost: who answers for it, what is tried again, and where.

A connection that ends says little: the process may be dead, or only cut off.  What had not begun
moves at once, free of charge.  What was running is *missing* until the supervisor says that the
process died, or the same process comes back with it, or ``MISSING_S`` is over.  Only a request that
was running costs an attempt; one that has a death behind it waits for a worker of its own, so that
the next death leaves no doubt.  Called by ``broker``; works on the ``Ledger``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from .actions import Note, Outbox
from .children import ChildState
from .errors import Quarantined, WorkerLost
from .fleet import Worker
from .frames import HEADER_BYTES, SEQUENCE_BITS, task_of
from .ledger import Ledger
from .quarantine import QuarantinedRequest
from .queue import Entry
from .retries import end_pinned, evidence
from .unusual import Alarm, Missing, Replaced

#: a lost worker of which nobody hears for so long is taken for dead
MISSING_S: Final = 1.0
#: what a process runs was begun at most so long before it greeted this broker
LONG_S: Final = 3600.0


def lose(
    ledger: Ledger,
    worker: Worker,
    running: Collection[int] | None,
    now: float,
    outbox: Outbox,
) -> None:
    """A worker's connection is gone.  ``running`` are the ids of what it ran, where known."""
    number = worker.number
    if ledger.buffers.pop(number, None) is None:
        return
    if worker.solo:
        ledger.reserved.pop(worker.solo, None)
        worker.solo = 0
    ledger.fleet.set_ready(worker, False)
    if worker.state is ChildState.RUNNING:
        worker.state = ChildState.BACKOFF
    ledger.loaded.pop(worker.number, None)
    ledger.recalled.discard(number)
    held = list(worker.inflight.items())
    worker.inflight.clear()
    worker.counts.clear()
    ledger.fleet.forget_report(worker)
    ledger.in_flight -= len(held)
    begun = _begun(ledger, worker, held, running, now)
    moved: list[Entry] = []
    until = now + MISSING_S
    for request_id, frame in held:
        if not request_id >> SEQUENCE_BITS:
            # a second run: the first goes on
            ledger.forget_copy(request_id)
            ledger.answered.discard(request_id)
            begun.pop(request_id, None)
            continue
        if request_id in ledger.answered:
            ledger.answered.discard(request_id)
            ledger.grace.pop(request_id, None)
            continue
        ledger.revived.discard(request_id)
        if request_id in begun:
            ledger.missing[request_id] = Missing(
                frame, number, worker.pid, until, begun[request_id]
            )
        elif request_id in ledger.adopted:
            forget_placeholder(ledger, request_id)
        else:
            moved.append((request_id, frame))
    ledger.requeue(moved)
    ledger.changed(worker, now)
    if held:
        text = f"{worker.name} lost with {len(held)} requests, {len(begun)} of them begun; "
        text += f"sent on to others at once: {len(moved)}"
        outbox.add(Note("WARNING", text, next(iter(begun)) if len(begun) == 1 else 0))
    death = ledger.deaths.pop(number, None)
    if death is None and worker.pid is not None:
        # a greeting that was read when its sender was dead already, and known to be
        death = ledger.buried.get(number, {}).get(worker.pid) or None
    if begun:
        ledger.wake(until, Alarm.MISSING, number)
    if death is not None:
        bury(ledger, worker, death, now, outbox)


def _begun(
    ledger: Ledger,
    worker: Worker,
    held: list[Entry],
    running: Collection[int] | None,
    now: float,
) -> dict[int, bool]:
    """Of what a lost worker held, in order, the ids of what it has, or may have, begun.

    With each whether it counts as what ran when there will be no evidence.  Those before a running
    one were done and their answers lost: no attempt of theirs died, but one that must not run twice
    cannot simply be sent again.  When nobody knows what ran, the word of the supervisor is waited
    for with all of them, since one that is tried again before that word might kill once too often.
    """
    idempotent, history = ledger.tasks.idempotent, ledger.history
    # where starts are written down, what must not run twice is found there or did not begin
    since = max(history.began_at, ledger.joined_at.get(worker.number, now) - LONG_S)
    is_written = not history.overwritten_since(since)
    if running is None:
        places = set(range(min(worker.concurrency, len(held))))
    else:
        places = {place for place, entry in enumerate(held) if entry[0] in running}
    last = max(places, default=-1)
    begun = {}
    for place, (request_id, frame) in enumerate(held):
        if request_id in ledger.durable.marking:
            continue  # it was not even sent
        if idempotent(task_of(frame)):
            is_begun = running is None or place in places
        else:
            is_begun = (
                (running is not None and place in places)
                or (not is_written and place <= last)
                or history.find(request_id) is not None
            )
        if is_begun:
            begun[request_id] = place in places
    return begun


def take_back(ledger: Ledger, worker: Worker, ids: Iterable[Any]) -> list[Entry]:
    """Requests that a worker gives back, since it has not begun them; those that are to go on."""
    entries: list[Entry] = []
    for request_id in ids:
        frame = worker.inflight.pop(request_id, None) if isinstance(request_id, int) else None
        if frame is None:
            continue
        ledger.in_flight -= 1
        if not request_id >> SEQUENCE_BITS:
            ledger.forget_copy(request_id)
            ledger.answered.discard(request_id)
        elif request_id in ledger.answered:
            ledger.answered.discard(request_id)
            ledger.grace.pop(request_id, None)
        elif request_id in ledger.adopted:
            forget_placeholder(ledger, request_id)
        else:
            ledger.revived.discard(request_id)
            entries.append((request_id, frame))
    return entries


def forget_placeholder(ledger: Ledger, request_id: int) -> None:
    """A request of which only the header is known leaves; its client may send it again."""
    ledger.adopted.discard(request_id)
    ledger.drop(request_id)


def note_deaths(ledger: Ledger, deaths: Mapping[Any, Any]) -> None:
    """How many workers died under these requests, while other brokers lived."""
    for key, deaths_before in deaths.items():
        request_id, count = int(key), int(deaths_before)
        is_here = ledger.owner(request_id) is not None or request_id in ledger.durable.open
        if not is_here or request_id in ledger.attempts:
            ledger.remember_deaths(request_id, count)
        elif ledger.holder(request_id) is not None:
            if request_id not in ledger.answered:
                ledger.attempts[request_id] = count + 1
        elif (entry := ledger.queue.remove_request(request_id)) is not None:
            ledger.attempts[request_id] = count + 1
            ledger.suspects[request_id] = entry[1]
        else:
            ledger.remember_deaths(request_id, count)


# ---- the supervisor's word ---------------------------------------------------------------------


def worker_died(
    ledger: Ledger, worker: Worker, death: Mapping[str, Any], now: float, outbox: Outbox
) -> None:
    """A worker's process ended; ``death`` says how.  It may be said again, and late."""
    if worker.number in ledger.buffers:
        # what it sent before it died is still to be read
        if worker.pid is not None and death.get("pid") == worker.pid:
            ledger.deaths[worker.number] = death
        return
    bury(ledger, worker, death, now, outbox)
    end_pinned(ledger, worker.number, death, outbox)


def bury(
    ledger: Ledger, worker: Worker, death: Mapping[str, Any], now: float, outbox: Outbox
) -> None:
    """Decide what becomes of the requests that a process ran when it ended."""
    pid = death.get("pid")
    lost = [
        (request_id, missing)
        for request_id, missing in ledger.missing.items()
        if missing.worker == worker.number and missing.pid == pid
    ]
    _decide(ledger, worker, lost, death, now, outbox)
    if isinstance(pid, int) and ledger.remember_end(worker.number, pid, death):
        if _was_ours(ledger.replaced.get(worker.number), pid, death):
            return
        _blame_others(ledger, worker, {request_id for request_id, _ in lost}, death, now, outbox)


def _blame_others(
    ledger: Ledger,
    worker: Worker,
    decided: Collection[int],
    death: Mapping[str, Any],
    now: float,
    outbox: Outbox,
) -> None:
    """Requests that ran when a worker died, though this broker did not know it.

    It was not connected then, or was so late to see the end that another process had the worker's
    name already; so they moved free of charge, or their clients have not sent them again yet.
    """
    at_work = death.get("requests")
    again: list[Entry] = []
    for request_id in at_work if isinstance(at_work, list | tuple) else ():
        if request_id in decided or not isinstance(request_id, int):
            continue
        if not request_id >> SEQUENCE_BITS:
            continue  # a second run
        if request_id in ledger.missing or ledger.holder(request_id) is not None:
            # it runs, or ran, elsewhere: what becomes of it is told by that worker's end
            if request_id not in ledger.answered:
                ledger.attempts[request_id] = ledger.attempts.get(request_id, 1) + 1
                ledger.died_under.setdefault(request_id, set()).add(worker.number)
            continue
        frame = ledger.take_out(request_id, now)
        if frame is None:
            ledger.remember_deaths(request_id, ledger.deaths_before.get(request_id, 0) + 1)
        elif _may_retry(ledger, worker, (request_id, frame), True, death, now, outbox):
            again.append((request_id, frame))
    ledger.requeue(again)


def give_up_missing(ledger: Ledger, number: int, now: float, outbox: Outbox) -> None:
    """Nobody said what became of these requests: as if their worker had died without a trace."""
    worker = ledger.fleet.workers[number]
    lost = [
        (request_id, missing)
        for request_id, missing in ledger.missing.items()
        if missing.worker == number and missing.until <= now
    ]
    for _, missing in lost:
        if missing.pid is not None:
            # a word that comes later comes too late
            ledger.remember_end(number, missing.pid, {})
    _decide(ledger, worker, lost, {}, now, outbox)


def _decide(
    ledger: Ledger,
    worker: Worker,
    lost: Iterable[tuple[int, Missing]],
    death: Mapping[str, Any],
    now: float,
    outbox: Outbox,
) -> None:
    """Each of these is tried again, or ends with the evidence that there is."""
    again: list[Entry] = []
    replaced = ledger.replaced.get(worker.number)
    for request_id, missing in lost:
        del ledger.missing[request_id]
        # we had it killed because of another one: what ran beside that is innocent
        innocent = _was_ours(replaced, missing.pid, death)
        at_work = death.get("requests")
        has_run = request_id in at_work if isinstance(at_work, list | tuple) else missing.is_likely
        culprit = has_run and not innocent
        if request_id in ledger.adopted:
            deaths = ledger.attempts.get(request_id, 1)
            forget_placeholder(ledger, request_id)
            if culprit:
                ledger.remember_deaths(request_id, deaths)
        elif _may_retry(ledger, worker, (request_id, missing.frame), culprit, death, now, outbox):
            again.append((request_id, missing.frame))
    ledger.requeue(again)


def _was_ours(replaced: Replaced | None, pid: int | None, death: Mapping[str, Any]) -> bool:
    """Whether a process was killed because this broker wanted it."""
    if replaced is None or replaced.pid != pid:
        return False
    # the supervisor may have refused, since the request had ended by then; so its word counts,
    # and only where nobody saw the end it is taken for the one that was wanted
    return not death or (
        death.get("signal") == 9
        and not death.get("oom")
        and replaced.reason in str(death.get("reason"))
    )


def _may_retry(
    ledger: Ledger,
    worker: Worker,
    entry: Entry,
    culprit: bool,
    death: Mapping[str, Any],
    now: float,
    outbox: Outbox,
) -> bool:
    """Count the attempt that died; answer the request when it may not be tried again."""
    request_id, frame = entry
    task = task_of(frame)
    attempts = ledger.attempts.get(request_id, 1)
    allowed = ledger.tasks.max_attempts(task, ledger.limits.max_attempts)
    idempotent = ledger.tasks.idempotent(task)
    if idempotent and not culprit:
        return True
    if idempotent and attempts < allowed:
        ledger.attempts[request_id] = attempts + 1
        ledger.died_under.setdefault(request_id, set()).add(worker.number)
        return True
    how = f"died ({death['exit']})" if death.get("exit") else "was lost"
    message = f"{worker.name} {how} while it ran {ledger.tasks.name(task)}: "
    message += f"attempt {attempts} of {allowed}" if idempotent else "it is not idempotent"
    detail = evidence(ledger, task, attempts, worker.name, death)
    if idempotent:
        put_in_quarantine(ledger, entry, message, detail, now, outbox)
    else:
        ledger.answer(request_id, task, WorkerLost(message, **detail), outbox)
    return False


# ---- quarantine --------------------------------------------------------------------------------


def put_in_quarantine(
    ledger: Ledger,
    entry: Entry,
    message: str,
    detail: dict[str, Any],
    now: float,
    outbox: Outbox,
) -> None:
    """Answer a request whose attempts are used up, and keep it; perhaps stop its whole task."""
    request_id, frame = entry
    task, name = task_of(frame), str(detail["task"])
    ledger.answer(request_id, task, Quarantined(message, **detail), outbox)
    outbox.add(Note("ERROR", f"quarantined: {message}", request_id))
    body = frame[HEADER_BYTES:]
    kept = QuarantinedRequest(request_id, task, name, body, message, detail, now)
    if ledger.quarantine.add(kept, ledger.successes(task)):
        text = f"task {name} is quarantined: it has killed its workers again and again"
        outbox.add(Note("ERROR", text))
        _stop_task(ledger, task, now, outbox)


def task_quarantined(ledger: Ledger, task: int) -> Quarantined:
    """The answer to requests of a task that is not run any more."""
    name = ledger.tasks.name(task)
    text = f"task {name} is quarantined: it kills its workers (lb quarantine retry {name})"
    return Quarantined(text, **ledger.quarantine.tasks[task])


def _stop_task(ledger: Ledger, task: int, now: float, outbox: Outbox) -> None:
    """Answer what waits of a task that was quarantined."""
    waiting = [each for each, frame in ledger.suspects.items() if task_of(frame) == task]
    for request_id in [*waiting, *ledger.queued_ids(task=task)]:
        if ledger.take_out(request_id, now) is not None:
            ledger.answer(request_id, task, task_quarantined(ledger, task), outbox)
