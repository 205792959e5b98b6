"""Requests that the broker was too busy for, sent again when it expects to have room.

Those of a stream stay in its window and keep their place in its order while they wait.  Used by
``client_stream.py`` and ``client_future.py``.
"""

from __future__ import annotations

import heapq
import random
import threading
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from lbcore.core.frames import REQUEST_HEADER, decode_body
from lbcore.core.session import Book, Entry, busy_pause_s

if TYPE_CHECKING:
    from .client_connection import Connection
    from .client_stream import Reply

#: the thread that sends again ends after so long without anything to do
IDLE_S: Final = 5.0


class Patience:
    """How one request bears with a busy broker."""

    __slots__ = ("ends_at", "first_at", "tries")

    def __init__(self, first_at: float, ends_at: float) -> None:
        self.first_at = first_at
        #: it is not sent again after that
        self.ends_at = ends_at
        self.tries = 0

    def next_at(self, answer: bytes, now: float) -> float | None:
        """When to send it again, by the body of its answer; None when that would be too late."""
        detail = decode_body(answer)
        said = detail.get("retry_after_s") if isinstance(detail, dict) else None
        retry_after_s = float(said) if isinstance(said, int | float) else 0.0
        due = now + busy_pause_s(retry_after_s, self.tries, random.random())
        self.tries += 1
        return due if due < self.ends_at else None


class BusyRequests:
    """Those of one stream; false when there are none."""

    def __init__(self, connection: Connection, book: Book, patience_s: float) -> None:
        self._connection = connection
        self._book = book
        self._patience_s = patience_s
        #: position -> its patience, of requests that were answered ``Busy`` at least once
        self._again: dict[int, Patience] = {}
        #: (when to send it again, id, number of the connection)
        self._waiting: list[tuple[float, int, int]] = []

    def __len__(self) -> int:
        return len(self._again)

    @property
    def oldest(self) -> int:
        """The first position among them."""
        return min(self._again)

    def keep(self, request_id: int, entry: Entry, answer: bytes) -> bool:
        """``Busy`` came for this one: it stays in the book and waits; False when it has to end."""
        frame, sent_at, position = entry
        now = monotonic()
        patience = self._again.get(position)
        if patience is None:
            deadline_ms = REQUEST_HEADER.unpack_from(frame)[5]
            most_s = min(self._patience_s, deadline_ms / 1000.0 if deadline_ms else 1e9)
            patience = Patience(sent_at, sent_at + most_s)
        due = patience.next_at(answer, now)
        if due is None:
            return False
        self._again[position] = patience
        self._book[request_id] = entry
        heapq.heappush(self._waiting, (due, request_id, self._connection.session.generation))
        return True

    def send_due(self) -> None:
        """Send those whose time has come."""
        now = monotonic()
        ids: list[tuple[int, int]] = []
        while self._waiting and self._waiting[0][0] <= now:
            _, request_id, generation = heapq.heappop(self._waiting)
            ids.append((request_id, generation))
        if ids:
            self._connection.post_again(ids, self._book, now)

    def until_due(self, timeout_s: float | None) -> float | None:
        """The shorter of this and what is left until the next one is sent again."""
        if not self._waiting:
            return timeout_s
        left_s = max(0.0, self._waiting[0][0] - monotonic())
        return left_s if timeout_s is None else min(left_s, timeout_s)

    def settled(self, reply: Reply, now: float) -> Reply:
        """The same reply; its latency counts from the first time that it was sent."""
        patience = self._again.pop(reply.index, None)
        if patience is None:
            return reply
        return type(reply)(
            reply.index,
            reply.status,
            reply.worker,
            reply.service_s,
            now - patience.first_at,
            reply.body,
            reply.request_id,
        )


def with_deadline(frame: bytes, deadline_ms: int) -> bytes:
    """The same request with another deadline."""
    return b"".join((frame[:16], deadline_ms.to_bytes(4, "little"), frame[20:]))


class Clock:
    """Calls functions at their time, in a thread of its own, which is there while it is needed."""

    def __init__(self, ended: threading.Event) -> None:
        self._ended = ended
        self._actions: dict[int, Callable[[], Any]] = {}
        self._due: list[tuple[float, int]] = []
        self._count = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def at(self, due: float, action: Callable[[], Any]) -> int:
        """Call ``action`` at this moment (monotonic seconds), or when all is over; its handle."""
        with self._changed:
            self._count += 1
            self._actions[self._count] = action
            heapq.heappush(self._due, (due, self._count))
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="lb-client-clock", daemon=True
                )
                self._thread.start()
            self._changed.notify()
            return self._count

    def take(self, handle: int) -> bool:
        """Do not call it; False when it is called already."""
        return self._actions.pop(handle, None) is not None

    def wake(self) -> None:
        """All is over: whatever waits is called now."""
        with self._changed:
            self._changed.notify()

    def join(self) -> None:
        """Wait until the thread has ended; after ``wake``."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                now, ended = monotonic(), self._ended.is_set()
                if not self._due:
                    idle = ended or not self._changed.wait(IDLE_S)
                    if idle and not self._due:
                        self._thread = None
                        return
                    continue
                if self._due[0][0] > now and not ended:
                    self._changed.wait(self._due[0][0] - now)
                    continue
                _, handle = heapq.heappop(self._due)
            action = self._actions.pop(handle, None)
            if action is not None:
                action()
