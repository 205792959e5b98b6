"""Every way a request or a configuration can go wrong, under one name everywhere.

An error has the same name in Python (the class), on the wire (the ``Status`` code and the ``kind``
in the body), in ``send --json`` (the key under ``errors``) and in the logs.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any


class Status(IntEnum):
    """The status byte of a reply frame; 0 is success, the rest are the errors below."""

    OK = 0
    TASK_ERROR = 1
    UNKNOWN_TASK = 2
    BAD_ARGUMENTS = 3
    BUSY = 4
    DEADLINE_EXCEEDED = 5
    CANCELLED = 6
    WORKER_LOST = 7
    QUARANTINED = 8
    TOO_LARGE = 9
    SHUTTING_DOWN = 10
    BAD_REQUEST = 11


class LBError(Exception):
    """The root of every error that lb raises on purpose; ``kind`` is its name everywhere."""

    status: Status | None = None

    @property
    def kind(self) -> str:
        """The name shown on the wire, in logs and in JSON: the class name."""
        return type(self).__name__

    def to_wire(self) -> dict[str, Any]:
        """The body of the reply frame that carries this error."""
        return {"kind": self.kind, "message": str(self)}


class RequestError(LBError):
    """One request was answered with an error; ``detail`` holds what the broker or worker added."""

    def __init__(self, message: str = "", **detail: Any) -> None:
        super().__init__(message)
        self.detail = detail

    def to_wire(self) -> dict[str, Any]:
        """The body of the reply frame that carries this error."""
        return {"kind": self.kind, "message": str(self), **self.detail}


class TaskError(RequestError):
    """The task raised.  ``type_name`` is the exception's type, ``traceback`` the worker's text."""

    status = Status.TASK_ERROR

    @property
    def type_name(self) -> str:
        """Name of the exception type raised in the worker, such as ``ValueError``."""
        return str(self.detail.get("type", "Exception"))

    @property
    def traceback(self) -> str:
        """The worker's formatted traceback."""
        return str(self.detail.get("traceback", ""))


class UnknownTask(RequestError):
    """No running worker has a task of this name."""

    status = Status.UNKNOWN_TASK


class BadArguments(RequestError):
    """The arguments do not fit the task's signature, or do not decode."""

    status = Status.BAD_ARGUMENTS


class Busy(RequestError):
    """The broker's queue is full; ``detail["retry_after_s"]`` says when to try again."""

    status = Status.BUSY


class DeadlineExceeded(RequestError):
    """The request was not done when its deadline passed."""

    status = Status.DEADLINE_EXCEEDED


class Cancelled(RequestError):
    """The client took the request back."""

    status = Status.CANCELLED


class WorkerLost(RequestError):
    """Workers died while they ran the request, as often as it may be attempted."""

    status = Status.WORKER_LOST


class Quarantined(RequestError):
    """The task kills its workers and is no longer run."""

    status = Status.QUARANTINED


class TooLarge(RequestError):
    """A request or a result is larger than the limit in the topology."""

    status = Status.TOO_LARGE


class ShuttingDown(RequestError):
    """The system is stopping and accepts no new request."""

    status = Status.SHUTTING_DOWN


class BadRequest(RequestError):
    """The request frame itself is not acceptable (an id or a field out of its range)."""

    status = Status.BAD_REQUEST


ERRORS_BY_STATUS: dict[int, type[RequestError]] = {
    int(cls.status): cls
    for cls in (
        TaskError,
        UnknownTask,
        BadArguments,
        Busy,
        DeadlineExceeded,
        Cancelled,
        WorkerLost,
        Quarantined,
        TooLarge,
        ShuttingDown,
        BadRequest,
    )
    if cls.status is not None
}


def error_from_wire(status: int, body: dict[str, Any]) -> RequestError:
    """Rebuild the exception that a reply frame carries.

    An unknown status (a newer broker) becomes a plain ``RequestError`` with the same message.
    """
    detail = {key: value for key, value in body.items() if key not in ("kind", "message")}
    cls = ERRORS_BY_STATUS.get(status, RequestError)
    return cls(str(body.get("message", "")), **detail)


class ProtocolError(LBError):
    """A peer broke the wire protocol; its connection is closed, nobody else is disturbed."""


class BrokerUnavailable(LBError):
    """No broker answers at the address, or the connection to it was lost."""


class ConfigError(LBError):
    """The topology is not usable; the message lists every mistake, one a line."""
