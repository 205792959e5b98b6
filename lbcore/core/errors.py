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
    FORBIDDEN = 12


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


class LostToWorkers(RequestError):
    """A request ended because of the workers that ran it; says what is known of the last one.

    What nobody knows is None or empty.
    """

    @property
    def task(self) -> str:
        """Name of the request's task."""
        return str(self.detail.get("task") or "")

    @property
    def attempts(self) -> int:
        """How often the request had begun."""
        return int(self.detail.get("attempts") or 0)

    @property
    def worker(self) -> str:
        """Name of the worker that ran it last."""
        return str(self.detail.get("worker") or "")

    @property
    def pid(self) -> int | None:
        """That worker's process."""
        return self._number("pid")

    @property
    def exit(self) -> str:
        """How that process ended: ``signal 9 (SIGKILL)`` or ``code 1``."""
        return str(self.detail.get("exit") or "")

    @property
    def signal(self) -> int | None:
        """The signal that ended it; None when it was none."""
        return self._number("signal")

    @property
    def code(self) -> int | None:
        """Its exit code; None when a signal ended it."""
        return self._number("code")

    @property
    def peak_rss_bytes(self) -> int | None:
        """The most memory that it ever had."""
        return self._number("peak_rss_bytes")

    @property
    def out_of_memory(self) -> bool:
        """Whether it looks as if the kernel killed it because memory ran out."""
        return bool(self.detail.get("out_of_memory"))

    @property
    def log_lines(self) -> list[str]:
        """The last lines of its log."""
        return [str(line) for line in self.detail.get("log_lines") or ()]

    @property
    def reason(self) -> str:
        """Why lb ended the process, when lb did: ``memory limit 512 MiB: 540 MiB``."""
        return str(self.detail.get("reason") or "")

    def _number(self, key: str) -> int | None:
        value = self.detail.get(key)
        return value if isinstance(value, int) else None


class WorkerLost(LostToWorkers):
    """A worker was lost while it ran, or may have run, a request that cannot be tried again."""

    status = Status.WORKER_LOST


class Quarantined(LostToWorkers):
    """The request, or its whole task, kills its workers and is no longer run."""

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


class Forbidden(RequestError):
    """The client's key does not have the right to this."""

    status = Status.FORBIDDEN


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
        Forbidden,
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


def error_of_kind(body: dict[str, Any]) -> RequestError:
    """The exception that an answer to a CONTROL frame carries: there is no status, only a kind."""
    statuses = {cls.__name__: status for status, cls in ERRORS_BY_STATUS.items()}
    return error_from_wire(statuses.get(str(body.get("kind")), Status.BAD_REQUEST), body)


class ProtocolError(LBError):
    """A peer broke the wire protocol; its connection is closed, nobody else is disturbed."""


class BrokerUnavailable(LBError):
    """No broker answers at the address, or the connection to it was lost."""


class AccessDenied(BrokerUnavailable):
    """The broker and this client do not have the same key, or no key was found."""


class ConfigError(LBError):
    """The topology is not usable; the message lists every mistake, one a line."""
