"""What a request and an answer are made of, on the client's side."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from lbcore.core.errors import BadArguments, RequestError, UnknownTask, error_from_wire
from lbcore.core.frames import HEADER_BYTES, decode_body

DEADLINE_MS_MAX: Final = 0xFFFFFFFF

#: what ``retry_busy=True`` means
RETRY_BUSY_S: Final = 60.0
PRIORITY_MAX: Final = 10

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


class Options(NamedTuple):
    """What a request carries beside its task and its arguments."""

    deadline_ms: int = 0
    flags: int = 0
    #: the last bytes of the header: the priority
    tail: int = 0
    #: for how long it is sent again while the broker is too busy; 0: not at all
    retry_busy_s: float = 0.0


def options_of(
    timeout: float | None, priority: int, retry_busy: float | bool, flags: int = 0
) -> Options:
    """Checked options.  Raises ``BadArguments``."""
    if not -PRIORITY_MAX <= priority <= PRIORITY_MAX or priority != int(priority):
        raise BadArguments(
            f"priority must be a whole number from -{PRIORITY_MAX} to {PRIORITY_MAX}, "
            f"not {priority!r}"
        )
    deadline_ms = 0 if timeout is None else deadline_ms_of(timeout)
    return Options(deadline_ms, flags, int(priority) & 0xFF, patience_s_of(retry_busy))


def patience_s_of(retry_busy: float | bool) -> float:
    """``retry_busy`` in seconds: True is ``RETRY_BUSY_S``.  Raises ``BadArguments``."""
    if isinstance(retry_busy, bool):
        return RETRY_BUSY_S if retry_busy else 0.0
    if not retry_busy >= 0.0:
        raise BadArguments(f"retry_busy must be True, False or seconds, not {retry_busy!r}")
    return float(retry_busy)


def encode_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
    """The body of a request.  Raises ``BadArguments`` for values that msgpack cannot carry."""
    try:
        if args:
            return _encode([args, kwargs])
        return _encode(kwargs) if kwargs else b""
    except (TypeError, OverflowError, RecursionError, ValueError) as error:
        raise BadArguments(f"arguments cannot be sent: {error}") from None


def deadline_ms_of(timeout_s: float) -> int:
    """A timeout as the header carries it: at least 1 ms.  Raises ``BadArguments``."""
    if not timeout_s > 0:
        raise BadArguments(f"timeout must be above 0 s, not {timeout_s}")
    return max(1, round(min(timeout_s * 1000, DEADLINE_MS_MAX)))


def unknown_task(task: str, known: Iterable[str]) -> UnknownTask:
    """The error for a task that no worker has, with the nearest name."""
    near = difflib.get_close_matches(str(task), list(known), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UnknownTask(f"no worker has a task {task!r}{hint}")


def reply_error(status: int, body: bytes) -> RequestError:
    """The exception that a reply carries."""
    message = decode_body(body)
    return error_from_wire(status, message if isinstance(message, dict) else {})


def value_of(frame: bytes) -> Any:
    """The value in a reply frame; raises the error that it carries."""
    status = frame[5]
    if not status:
        return _decode(frame[HEADER_BYTES:])
    raise reply_error(status, frame[HEADER_BYTES:])


def error_body(error: RequestError) -> bytes:
    """The body of a reply that the client makes itself, for a request that was never sent."""
    return _encode(error.to_wire())
