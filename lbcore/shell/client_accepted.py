"""The client's side of durable requests: who is told that they are accepted, and later results.

Used by ``client_connection.py`` and ``client.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any, Final

from lbcore.core.errors import BadRequest, DeadlineExceeded
from lbcore.core.frames import REQUEST_HEADER, Flag
from lbcore.core.session import Session

#: the longest that one question for a result waits at the broker
WAIT_S: Final = 5.0

_DETACHED: Final = int(Flag.DETACHED)


def take_accepted(session: Session, frame: bytes) -> None:
    """An ACCEPTED frame: for requests that nobody waits for here, it is the answer."""
    first, count = REQUEST_HEADER.unpack_from(frame)[4:6]
    for request_id in range(first, first + min(count, len(session.open) + 1)):
        entry = session.open.get(request_id)
        if entry is not None and entry[0][5] & _DETACHED:
            del session.open[request_id]
            entry[2](frame)


def wait_for_result(
    ask: Callable[[dict[str, Any]], Any], request_id: int, timeout_s: float | None
) -> bytes:
    """The reply frame of a durable request, asked for with ``ask`` until it is there.

    Raises ``DeadlineExceeded`` when it is not there in time, and ``BadRequest`` when the broker
    knows of no such request.
    """
    until = None if timeout_s is None else monotonic() + timeout_s
    while True:
        left_s = WAIT_S if until is None else min(WAIT_S, until - monotonic())
        answer = ask({"op": "result", "id": request_id, "wait_s": max(0.0, left_s)})
        state = answer["state"]
        if state == "done":
            return bytes(answer["reply"])
        name = f"{request_id >> 32}:{request_id & 0xFFFFFFFF}"
        if state == "unknown":
            raise BadRequest(f"no durable request {name}, or its result is not kept any more")
        if until is not None and monotonic() >= until:
            raise DeadlineExceeded(f"request {name} is not done so far: it is {state}")
