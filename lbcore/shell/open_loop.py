"""Requests sent at given moments, whether or not those before them are answered.

What a request takes counts from the moment at which it was *due*: a sender that comes late, because
the system or it itself was busy, must not make the system look faster.  Other things that are to
happen at given moments happen in the same loop.  Called by ``lb compare``.
"""

from __future__ import annotations

import heapq
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import count
from time import monotonic
from typing import Any, Final, NamedTuple, Protocol

from lbcore.core.errors import BrokerUnavailable, LBError

#: the longest that the loop sleeps: a broken connection is seen that late
_NAP_S: Final = 0.5


class Call(NamedTuple):
    """One request and when it is due, in seconds from the start."""

    due_s: float
    task: str
    arguments: Mapping[str, Any]


@dataclass(slots=True)
class Answer:
    """How one request ended."""

    #: from the moment it was due; NaN for one that failed, or was never answered
    response_s: float = math.nan
    is_answered: bool = False
    #: attempts that failed
    failures: int = 0
    #: what it returned
    value: Any = None


class Submitter(Protocol):
    """What is needed of a client."""

    def submit(self, task: str, /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Start a task."""
        ...


class OpenLoop:
    """One stream of requests; ``run`` sends it all and waits for its answers."""

    def __init__(
        self,
        client: Submitter,
        calls: Sequence[Call],
        events: Sequence[tuple[float, Callable[[], None]]] = (),
        *,
        retries: int = 0,
        retry_s: float = 0.0,
    ) -> None:
        """A request that fails is sent again up to ``retries`` times, ``retry_s`` later each."""
        self.answers = [Answer() for _ in calls]
        self._client = client
        self._calls = calls
        self._retries, self._retry_s = retries, retry_s
        self._left = len(calls)
        self._begin = 0.0
        self._changed = threading.Condition()
        #: (moment, order among equals, what to do); requests and events alike
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        for moment, action in events:
            self._plan(moment, action)
        for index, call in enumerate(calls):
            self._plan(call.due_s, partial(self._send, index))
        self._error: LBError | None = None

    def _plan(self, moment: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._due, (moment, next(self._order), action))

    def run(self, begin: float, patience_s: float) -> None:
        """Send from ``begin`` (monotonic) on, until all is answered or ``patience_s`` has passed.

        Raises ``BrokerUnavailable`` when the broker is lost, and whatever an event raises.
        """
        self._begin = begin
        while self._left:
            now = monotonic() - begin
            if now > patience_s:
                return
            action = self._next_action(now, patience_s)
            if self._error is not None:
                raise self._error
            if action is not None:
                action()

    def _next_action(self, now: float, patience_s: float) -> Callable[[], None] | None:
        """What is due; or None after a while, or after an answer."""
        with self._changed:
            if self._due and self._due[0][0] <= now:
                return heapq.heappop(self._due)[2]
            until = min(patience_s + 1e-3, self._due[0][0] if self._due else math.inf)
            if self._left:
                self._changed.wait(min(_NAP_S, until - now))
            return None

    def _send(self, index: int) -> None:
        call = self._calls[index]
        future = self._client.submit(call.task, **call.arguments)
        future.add_done_callback(partial(self._take, index))

    def _take(self, index: int, future: Future[Any]) -> None:
        """An answer is there; called in the client's reading thread."""
        now = monotonic() - self._begin
        answer, error = self.answers[index], future.exception()
        with self._changed:
            if isinstance(error, BrokerUnavailable):
                self._error = error
            elif error is not None:
                answer.failures += 1
                if answer.failures <= self._retries:
                    self._plan(now + self._retry_s, partial(self._send, index))
                    self._changed.notify()
                    return
            else:
                answer.value = future.result()
                answer.response_s = now - self._calls[index].due_s
            answer.is_answered = True
            self._left -= 1
            if not self._left or self._error is not None:
                self._changed.notify()
