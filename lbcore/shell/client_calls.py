"""What a request and an answer are made of, on the client's side."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from lbcore.core.errors import BadArguments, RequestError, UnknownTask, error_from_wire
from lbcore.core.frames import decode_body

DEADLINE_MS_MAX: Final = 0xFFFFFFFF

_encode = msgspec.msgpack.Encoder().encode


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


def error_body(error: RequestError) -> bytes:
    """The body of a reply that the client makes itself, for a request that was never sent."""
    return _encode(error.to_wire())
