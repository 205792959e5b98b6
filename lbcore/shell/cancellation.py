"""How a task that runs is told that nobody wants it any more.

``TaskCancelled`` is raised inside of it: by a signal's handler in the main thread, by the
interpreter in another thread; a coroutine is cancelled as asyncio does it.  Only ever inside of the
task's own call, and only while that request runs: the code around it never sees it.  A task may
also ask, with ``cancelled()``.  One that does not end is not this module's business: the broker has
its process replaced.  Called by the worker
process.
"""

from __future__ import annotations

import ctypes
import signal
import threading
from collections.abc import Callable, Collection
from types import FrameType
from typing import Any, Final, TypeVar

from .log_capture import printing_request
from .tasks import Task

#: what the side thread sends the main thread: a number that programs leave alone
CANCEL_SIGNAL: Final[int] = getattr(signal, "SIGRTMIN", signal.SIGUSR2 - 8) + 8

Result = TypeVar("Result")

#: ids of the requests that run and are not wanted
_unwanted: set[int] = set()
#: the code of the calls inside of which a task may be interrupted
_CALLS: Final = frozenset({Task.run.__code__, Task.run_async.__code__})


class TaskCancelled(BaseException):
    """Raised inside a task whose request was cancelled, or whose deadline has passed.

    A task may catch it to clean up, and should raise it again: it has ``limits.cancel_grace_s`` to
    come to its end, then its process is replaced.
    """


def cancelled() -> bool:
    """Whether the request that this task runs is not wanted any more.

    For tasks that check now and then, also in threads of their own; False outside of a task.
    """
    return bool(_unwanted) and printing_request() in _unwanted


def note_unwanted(request_id: int, running: Collection[int]) -> None:
    """A running request is not wanted; of earlier ones those are forgotten that have ended."""
    _unwanted.intersection_update(running)
    _unwanted.add(request_id)


def take_unwanted(request_id: int) -> bool:
    """Whether a request that has ended was not wanted; forgets it."""
    if request_id not in _unwanted:
        return False
    _unwanted.discard(request_id)
    return True


def is_in_task(frame: FrameType | None) -> bool:
    """Whether this is a frame of a task, or of what it called."""
    while frame is not None:
        if frame.f_code in _CALLS:
            return True
        frame = frame.f_back
    return False


class MainThreadInterrupt:
    """Raises ``TaskCancelled`` in the main thread, inside of the request that it runs."""

    def __init__(self, running: memoryview) -> None:
        """``running[0]`` is the id of the request that the main thread runs."""
        self._running = running
        self._wanted = 0
        self._thread = threading.main_thread().ident or 0

    def install(self) -> None:
        """Handle the signal; in the main thread only."""
        signal.signal(CANCEL_SIGNAL, self._handle)

    @property
    def wanted(self) -> int:
        """The request that is to end and was not told yet; 0 for none."""
        return self._wanted

    def want(self, request_id: int) -> None:
        """This request is to end; 0 takes that back."""
        self._wanted = request_id

    def repeat(self) -> bool:
        """Try once; False when nothing is to be done any more.

        Where the main thread is not in the task just now, nothing happens: to be tried again.
        """
        if self._wanted and self._wanted == self._running[0]:
            signal.pthread_kill(self._thread, CANCEL_SIGNAL)
            return True
        self._wanted = 0
        return False

    def _handle(self, _: int, frame: FrameType | None) -> None:
        wanted = self._wanted
        if wanted and self._running[0] == wanted and is_in_task(frame):
            # once: what the task does about it is not to be disturbed again
            self._wanted = 0
            raise TaskCancelled("the request was cancelled")


class ThreadInterrupt:
    """The same in a thread of the pool: ``run`` there, ``interrupt`` from any other thread."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._request_id = 0
        self._thread = 0
        self._raised = False

    def run(self, request_id: int, call: Callable[[], Result]) -> Result:
        """Call it, and return or raise what it does; ``TaskCancelled`` only from inside of it."""
        outcome: list[Any] = []
        error: BaseException | None = None
        try:
            with self._lock:
                self._thread = threading.get_ident()
                self._raised = False
                self._request_id = request_id
            try:
                outcome.append(call())
            except BaseException as failure:
                error = failure
            self._close()
        except TaskCancelled as late:
            # it came between two lines of this function; it cannot come twice
            self._close()
            error = error if outcome or error is not None else late
        if error is not None:
            raise error
        return outcome[0]  # type: ignore[no-any-return]

    def _close(self) -> None:
        """From here on nothing is raised in this thread any more."""
        with self._lock:
            self._request_id = 0
            if self._raised:
                _raise_in_thread(self._thread, None)

    def interrupt(self, request_id: int) -> bool:
        """End this request, if it runs here; once it leaves C code, that is."""
        with self._lock:
            if self._request_id != request_id or self._raised:
                return False
            self._raised = True
            _raise_in_thread(self._thread, TaskCancelled)
            return True


def _raise_in_thread(thread: int, error: type[BaseException] | None) -> None:
    """Have the interpreter raise it there; None takes back what was not raised yet."""
    what = None if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), what)
