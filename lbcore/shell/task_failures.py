"""What is told about an exception: its type, its message, and a traceback fit to send.

The traceback starts at the user's own first frame, has a bounded size, and comes out whatever the
exception does when it is asked about itself.  Called by the worker for a failed task and by
``task_modules`` for a module that cannot be imported.  Never raises.
"""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Final

TRACEBACK_BYTES_MAX: Final = 16 << 10
MESSAGE_BYTES_MAX: Final = 4 << 10
#: more than Python's usual recursion limit, so that only a raised limit loses frames
FRAMES_MAX: Final = 1100

_PACKAGE: Final = str(Path(__file__).parent.parent) + "/"
_TASKS: Final = str(Path(__file__).with_name("tasks.py"))
#: the methods of ``Task`` that call the user's function
_CALLERS: Final = ("run", "run_async")
#: the one file of the package whose frames belong to tasks
_BUILTIN_TASKS: Final = str(Path(__file__).with_name("builtin_tasks.py"))


def describe_failure(error: BaseException) -> dict[str, str]:
    """``{"type", "message", "traceback"}`` of an exception, all valid UTF-8 and bounded."""
    return {
        "type": _bounded(type(error).__name__, MESSAGE_BYTES_MAX),
        "message": message_of(error),
        "traceback": format_failure(error),
    }


def message_of(error: BaseException) -> str:
    """``str(error)``, or what went wrong in getting it."""
    try:
        text = str(error)
    except BaseException as broken:  # also a SystemExit raised in __str__: it would end the worker
        text = f"<the message is not available: __str__ raised {type(broken).__name__}>"
    return _bounded(text, MESSAGE_BYTES_MAX)


def format_failure(error: BaseException) -> str:
    """The traceback with its causes, contexts and groups, without the frames of lb before it."""
    try:
        report = traceback.TracebackException(
            type(error), error, error.__traceback__, limit=FRAMES_MAX, compact=True
        )
        _drop_machinery(report)
        text = "".join(report.format())
    except Exception as broken:  # an exception class can break any attribute that is read here
        text = (
            f"{type(error).__name__}: {message_of(error)}\n"
            f"(no traceback: formatting it raised {type(broken).__name__})\n"
        )
    return _bounded(text, TRACEBACK_BYTES_MAX)


def is_machinery(filename: str) -> bool:
    """Whether a frame of this file is lb's or the import system's, not the user's."""
    if filename.startswith("<frozen "):
        return True
    return filename.startswith(_PACKAGE) and filename != _BUILTIN_TASKS


def _drop_machinery(report: traceback.TracebackException) -> None:
    """Cut the leading frames that are not the user's, in the whole chain."""
    waiting: list[traceback.TracebackException] = [report]
    seen: set[int] = set()
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        del part.stack[: _first_own(part.stack)]
        waiting.extend(item for item in (part.__cause__, part.__context__) if item is not None)
        waiting.extend(part.exceptions or ())


def _first_own(stack: traceback.StackSummary) -> int:
    """Index of the first frame that is the user's."""
    start = 0
    # What stands before the call of the task (a thread pool, an event loop) is not lb's code, but
    # not the user's either.
    for index, frame in enumerate(stack):
        if frame.name in _CALLERS and frame.filename == _TASKS:
            start = index + 1
            break
    while start < len(stack) and is_machinery(stack[start].filename):
        start += 1
    return start


def _bounded(text: str, bytes_max: int) -> str:
    """Text that encodes to at most ``bytes_max`` bytes of UTF-8: its beginning and its end."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= bytes_max:
        return data.decode()
    mark = f"\n... {len(data) - bytes_max} bytes left out ...\n".encode()
    # The end names the error, so it gets most of the room.
    room = bytes_max - len(mark)
    head, tail = data[: room // 4], data[-(room - room // 4) :]
    return (head.decode("utf-8", "ignore") + mark.decode()) + tail.decode("utf-8", "ignore")
