"""Requests that killed every worker that ran them, and tasks that do so again and again.

A request whose attempts are used up is kept here, so that somebody can look at it, mend the task
and send it once more.  After ``STRIKES_MAX`` such requests of one task without a success in between
the task itself is quarantined: its requests are refused until somebody lifts that.  In memory only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from .errors import BadRequest

#: requests that are kept, and the bytes of their arguments; the oldest go first
REQUESTS_MAX: Final = 1000
BYTES_MAX: Final = 64 << 20
#: quarantined requests of one task in a row, and the task itself is
STRIKES_MAX: Final = 3

#: what the list leaves out of a request's evidence
_LONG: Final = ("log_lines",)


class QuarantinedRequest(NamedTuple):
    """One request that is not tried again."""

    id: int
    #: number and name of its task
    number: int
    task: str
    #: its arguments, as its client sent them
    body: bytes
    message: str
    #: what is known of the last death; see ``losses``
    detail: Mapping[str, Any]
    #: when, monotonic
    at: float


class Quarantine:
    """All of them, oldest first."""

    def __init__(self) -> None:
        self.requests: dict[int, QuarantinedRequest] = {}
        self.bytes = 0
        #: tasks whose requests are refused, by number -> the detail of the last strike
        self.tasks: dict[int, Mapping[str, Any]] = {}
        #: task number -> strikes in a row, and the task's successes at the last one
        self._strikes: dict[int, tuple[int, int]] = {}

    def add(self, request: QuarantinedRequest, successes: int) -> bool:
        """Keep a request; True when that makes its task quarantined, too.

        ``successes`` is how many requests of the task have ever succeeded.
        """
        task = request.number
        self.drop(request.id)
        self.requests[request.id] = request
        self.bytes += len(request.body)
        while len(self.requests) > REQUESTS_MAX or self.bytes > BYTES_MAX:
            self.drop(next(iter(self.requests)))
        strikes, before = self._strikes.get(task, (0, successes))
        strikes = strikes + 1 if before == successes else 1
        self._strikes[task] = (strikes, successes)
        if strikes < STRIKES_MAX or task in self.tasks:
            return False
        self.tasks[task] = request.detail
        return True

    def drop(self, request_id: int) -> bool:
        """Keep a request no longer; False when it was not there."""
        request = self.requests.pop(request_id, None)
        if request is None:
            return False
        self.bytes -= len(request.body)
        return True

    def lift(self, task: int) -> bool:
        """Run a task's requests again; False when it was not quarantined."""
        self._strikes.pop(task, None)
        return self.tasks.pop(task, None) is not None

    def check(self) -> None:
        """Assert what must always hold."""
        assert self.bytes == sum(len(request.body) for request in self.requests.values())
        assert len(self.requests) <= REQUESTS_MAX
        assert self.bytes <= BYTES_MAX


def answer_quarantine(
    quarantine: Quarantine, numbers: Mapping[str, int], message: Mapping[str, Any], now: float
) -> dict[str, Any]:
    """Answer the operation ``quarantine``: ``{"action": "ls" | "show" | "retry" | "drop", "id"}``.

    ``id`` is a request's id, or the name of a task for ``retry`` and ``drop``.  ``retry`` of a
    request gives its task and arguments to the caller, who sends them as a request of its own and
    then drops it here.
    """
    action, wanted = message.get("action"), message.get("id")
    if action == "ls":
        requests = [_summary(request, now) for request in quarantine.requests.values()]
        names = {number: name for name, number in reversed(list(numbers.items()))}
        tasks = [names.get(number, f"task {number}") for number in quarantine.tasks]
        return {"ok": {"requests": requests, "tasks": tasks}}
    if isinstance(wanted, str) and action in ("retry", "drop"):
        return _answer_task(quarantine, numbers.get(wanted), wanted, action)
    if not isinstance(wanted, int) or action not in ("show", "retry", "drop"):
        what = f"{action!r:.100} of {wanted!r:.100}"
        return {"error": BadRequest(f"the quarantine does not know {what}").to_wire()}
    request = quarantine.requests.get(wanted)
    if request is None:
        text = f"{wanted >> 32}:{wanted & 0xFFFFFFFF}"
        return {"error": BadRequest(f"request {text} is not in quarantine").to_wire()}
    if action == "drop":
        quarantine.drop(wanted)
        return {"ok": {"task": request.task, "ids": [wanted]}}
    if action == "retry":
        return {"ok": {"task": request.task, "ids": [wanted], "body": request.body}}
    detail = dict(request.detail)
    return {"ok": {**_summary(request, now), **detail, "body": request.body}}


def _answer_task(
    quarantine: Quarantine, number: int | None, name: str, action: str
) -> dict[str, Any]:
    """Lift a task's quarantine; ``drop`` also drops its requests, ``retry`` names them."""
    ids = [request.id for request in quarantine.requests.values() if request.number == number]
    lifted = number is not None and quarantine.lift(number)
    if not lifted and not ids:
        return {"error": BadRequest(f"nothing of task {name!r:.100} is in quarantine").to_wire()}
    if action == "drop":
        for request_id in ids:
            quarantine.drop(request_id)
    return {"ok": {"task": name, "ids": ids}}


def _summary(request: QuarantinedRequest, now: float) -> dict[str, Any]:
    short = {key: value for key, value in request.detail.items() if key not in _LONG}
    return {
        **short,
        "id": request.id,
        "task": request.task,
        "message": request.message,
        "bytes": len(request.body),
        "age_s": max(0.0, now - request.at),
    }
