"""The future of one submitted request: settled by the thread that reads, taken back by ``cancel``.

Used by ``client.py`` only.
"""

from __future__ import annotations

from concurrent.futures import Future, InvalidStateError
from time import monotonic
from typing import TYPE_CHECKING, Any

from lbcore.core.errors import Cancelled, LBError, Status
from lbcore.core.frames import HEADER_BYTES

from .client_busy import Patience
from .client_calls import Options, value_of

if TYPE_CHECKING:
    from .client_connection import Connection

_BUSY = int(Status.BUSY)


class RequestFuture(Future[Any]):
    """As ``concurrent.futures`` has them, but ``cancel`` also reaches a task that runs."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection
        #: the request's id, for ``Client.explain``
        self.request_id = 0

    def settle(self, answer: bytes | None) -> None:
        """The sink: take the answer."""
        try:
            try:
                if answer is None:
                    raise self._connection.failure()
                value = value_of(answer)
            except Exception as error:
                self.set_exception(error)
            else:
                self.set_result(value)
        except InvalidStateError:
            self._end_cancelled()

    def _fail(self, error: LBError) -> None:
        try:
            self.set_exception(error)
        except InvalidStateError:
            self._end_cancelled()

    def _end_cancelled(self) -> None:
        """It takes no result any more, but whoever waits for it has to know."""
        if self.cancelled():
            self.set_running_or_notify_cancel()

    def cancel(self) -> bool:
        """Take the request back, wherever it is: a task that runs is interrupted.

        False when it is finished; then nothing happens.
        """
        if not super().cancel():
            return False
        if self._take_back():
            # who finds it gone leaves this to the one who took it
            self.set_running_or_notify_cancel()
        return True

    def _take_back(self) -> bool:
        return self._connection.withdraw([self.request_id])


class PatientFuture(RequestFuture):
    """One whose request is sent again while the broker is too busy for it."""

    def __init__(self, connection: Connection, task: str, body: bytes, options: Options) -> None:
        super().__init__(connection)
        self._task, self._body, self._options = task, body, options
        now = monotonic()
        self._until = now + options.deadline_ms / 1000.0 if options.deadline_ms else None
        ends_at = now + options.retry_busy_s
        self._patience = Patience(
            now, ends_at if self._until is None else min(ends_at, self._until)
        )
        self._handle = 0

    def settle(self, answer: bytes | None) -> None:
        """The sink: take the answer, or wait and ask again."""
        if answer is not None and answer[5] == _BUSY:
            due = self._patience.next_at(answer[HEADER_BYTES:], monotonic())
            if due is not None:
                self._handle = self._connection.clock.at(due, self._again)
                self._give_up_if_cancelled()
                return
        super().settle(answer)

    def _again(self) -> None:
        deadline_ms = 0
        if self._until is not None:
            deadline_ms = max(1, round((self._until - monotonic()) * 1000.0))
        try:
            if self.cancelled():
                raise Cancelled("taken back")
            self.request_id = self._connection.post(
                self._task,
                self._body,
                self.settle,
                flags=self._options.flags,
                deadline_ms=deadline_ms,
                tail=self._options.tail,
                soon=True,
            )
        except LBError as error:
            self._fail(error)
        else:
            self._give_up_if_cancelled()

    def _give_up_if_cancelled(self) -> None:
        """``cancel`` may have come while there was nothing to take back."""
        if self.cancelled() and self._take_back():
            self.set_running_or_notify_cancel()

    def _take_back(self) -> bool:
        return super()._take_back() or self._connection.clock.take(self._handle)
