"""What a process says besides its log calls: prints, uncaught exceptions, crash dumps.

``sys.stdout`` and ``sys.stderr`` become writers that log each line at once with the request it
belongs to, the exception hooks log through loguru, faulthandler writes to the raw stderr, whose
other end the supervisor reads.  A print must never fail, block or recurse because of the log.
Called by the worker and broker processes right after ``setup_logging``.
"""

from __future__ import annotations

import atexit
import codecs
import faulthandler
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from contextvars import ContextVar, Token
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from .log_lines import ERR, LINE_CHARACTERS_MAX, OUT

if TYPE_CHECKING:
    from loguru import Logger

#: id of the request that this thread or coroutine runs; 0 = none
request_id: ContextVar[int] = ContextVar("request_id", default=0)

#: beyond so many unfinished lines (threads that died within a line) all are written out
PARTIAL_LINES_MAX = 1024

_capture: OutputCapture | None = None
#: the requests that are inside of a ``RequestContext`` now, in any thread
_running: set[int] = set()
#: ``now`` is True while a thread is inside of the logger because of a print
_entered = threading.local()


class RequestContext:
    """While it is entered, every line of this thread or coroutine carries the request's id."""

    __slots__ = ("_request", "_token")

    def __init__(self, request: int) -> None:
        self._request = request
        self._token: Token[int] | None = None

    def __enter__(self) -> None:
        self._token = request_id.set(self._request)
        _running.add(self._request)

    def __exit__(self, *_: object) -> None:
        if _capture is not None:
            _capture.finish_lines(self._request)
        if self._token is not None:
            request_id.reset(self._token)
        _running.discard(self._request)


def only_running_request() -> int:
    """The request inside of a ``RequestContext`` when there is just one; 0 otherwise."""
    running = tuple(_running)
    return running[0] if len(running) == 1 else 0


def printing_request() -> int:
    """The request that a print belongs to: this context's, else the only one that runs.

    Threads that a task starts have a context of their own, which knows no request.
    """
    request = request_id.get()
    if request:
        return request
    return only_running_request() if _capture is None else _capture.running_request()


def request_context(request: int) -> RequestContext:
    """``with request_context(id):`` around the work of one request; ends its unfinished line."""
    return RequestContext(request)


class LineWriter(io.TextIOBase):
    """A text stream that logs each line as soon as it is complete.

    Lines end at ``\\n``, ``\\r\\n`` or, as in progress bars, a bare ``\\r``.  Each thread and
    request has its own unfinished line, so prints of several threads do not mix within a line.
    """

    def __init__(self, logger: Logger, level: str, fd: int) -> None:
        """``fd`` is what ``fileno`` answers and where lines go that cannot be logged."""
        super().__init__()
        self._log = logger.log
        self._level = level
        self._fd = fd
        self._partial: dict[tuple[int, int], str] = {}
        self.name = "<stdout>" if level == OUT else "<stderr>"
        self.buffer = _ByteWriter(self)

    encoding = "utf-8"
    errors = "backslashreplace"
    line_buffering = True
    write_through = True
    mode = "w"

    def fileno(self) -> int:
        """The real descriptor, for subprocesses; what they write arrives as RAW lines."""
        return self._fd

    def isatty(self) -> bool:
        """Never: no colours, no progress bars that redraw."""
        return False

    def writable(self) -> bool:
        """Always."""
        return True

    def reconfigure(self, **_: Any) -> None:
        """Accepted and ignored: every line is written at once as it is."""

    def flush(self) -> None:
        """Nothing waits here but a line without end, which waits for its end."""

    def close(self) -> None:
        """Ignored: the rest of the process still prints here."""

    def write(self, text: str) -> int:
        """Take ``text`` and log every line that it completes.  Raises ``TypeError`` for bytes."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        request = printing_request()
        key = (threading.get_ident(), request)
        whole = self._partial.pop(key, "") + text if self._partial else text
        rows, rest = _split(whole)
        if len(rest) > LINE_CHARACTERS_MAX:
            rows.append(rest)
            rest = ""
        if rest:
            if len(self._partial) >= PARTIAL_LINES_MAX:
                self.finish_lines()
            self._partial[key] = rest
        for row in rows:
            self._emit(row, request)
        return len(text)

    @property
    def has_partial(self) -> bool:
        """Whether a line waits for its end."""
        return bool(self._partial)

    def finish_lines(self, request: int | None = None) -> None:
        """Log the unfinished lines of ``request``, or all of them."""
        for key in list(self._partial):
            if request is None or key[1] == request:
                rest = self._partial.pop(key, "").removesuffix("\r")
                if rest:
                    self._emit(rest, key[1])

    def _emit(self, row: str, request: int) -> None:
        if getattr(_entered, "now", False):
            # loguru is complaining about a failure of its own, a sink prints, or this is a fork
            with suppress(OSError):
                os.write(2, f"{row[:LINE_CHARACTERS_MAX]}\n".encode("utf-8", "backslashreplace"))
            return
        _entered.now = True
        token = request_id.set(request)
        try:
            self._log(self._level, row)
        finally:
            _entered.now = False
            request_id.reset(token)


def _split(text: str) -> tuple[list[str], str]:
    """The complete lines in ``text``, and what follows the last line end."""
    if "\r" not in text:
        rows = text.split("\n")
        return rows[:-1], rows[-1]
    # a last \r may be half of \r\n, so it stays with the rest
    held = "\r" if text.endswith("\r") else ""
    rows = text.removesuffix("\r").replace("\r\n", "\n").split("\n")
    complete: list[str] = []
    for row in rows[:-1]:
        *redrawn, last = row.split("\r")
        # an empty piece is a progress bar going back to the start of its line
        complete += [*filter(None, redrawn), last]
    *redrawn, last = rows[-1].split("\r")
    return [*complete, *filter(None, redrawn)], last + held


class _ByteWriter(io.BufferedIOBase):
    """``sys.stdout.buffer``: bytes become text, whatever they are."""

    def __init__(self, text: LineWriter) -> None:
        super().__init__()
        self._text = text
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._text.fileno()

    def close(self) -> None:
        """Ignored, as in ``LineWriter``."""

    def write(self, data: Any) -> int:
        with memoryview(data) as view:
            self._text.write(self._decoder.decode(view.tobytes()))
            return view.nbytes


class OutputCapture:
    """The two writers of this process, and the way back."""

    def __init__(self, logger: Logger, running_request: Callable[[], int]) -> None:
        self.running_request = running_request
        self.stdout = LineWriter(logger, OUT, 1)
        self.stderr = LineWriter(logger, ERR, 2)
        self._saved = (sys.stdout, sys.stderr, sys.excepthook, threading.excepthook)
        self._saved_unraisable = sys.unraisablehook

    @property
    def has_partial(self) -> bool:
        """Whether any line waits for its end: cheap enough to ask after every request."""
        return self.stdout.has_partial or self.stderr.has_partial

    def finish_lines(self, request: int | None = None) -> None:
        """Log the unfinished lines of ``request``, or all of them; call it before ``os._exit``."""
        self.stdout.finish_lines(request)
        self.stderr.finish_lines(request)

    def restore(self) -> None:
        """Put back the streams and hooks of before."""
        global _capture
        self.finish_lines()
        sys.stdout, sys.stderr, sys.excepthook, threading.excepthook = self._saved
        sys.unraisablehook = self._saved_unraisable
        atexit.unregister(self.finish_lines)
        if _capture is self:
            _capture = None


def capture_output(
    logger: Logger, running_request: Callable[[], int] = only_running_request
) -> OutputCapture:
    """Send everything that this process says to ``logger``; what Python cannot, to descriptor 2.

    ``running_request`` names the one request that runs now (0 = none, or several) for prints whose
    own context knows none, such as those of a thread that a task started.

    Replaces ``sys.stdout`` and ``sys.stderr``, the hooks for uncaught exceptions (main thread,
    other threads, destructors) and enables faulthandler; SIGUSR2 then dumps every thread's stack.
    """
    global _capture
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # None, closed, or its reader is gone
            stream.flush()
    capture = OutputCapture(logger, running_request)
    sys.stdout = cast("Any", capture.stdout)
    sys.stderr = cast("Any", capture.stderr)
    _install_hooks(logger)
    _watch_forks()
    faulthandler.enable(file=2, all_threads=True)
    faulthandler.register(signal.SIGUSR2, file=2, all_threads=True)
    atexit.register(capture.finish_lines)
    _capture = capture
    return capture


@cache
def _watch_forks() -> None:
    """While this thread forks, its prints go to the raw stderr.

    Python 3.12 warns of a fork with threads while loguru's locks are held for the fork: a warning
    that went through loguru would wait for ever.
    """

    def begin() -> None:
        _entered.before_fork = getattr(_entered, "now", False)
        _entered.now = True

    def end() -> None:
        _entered.now = getattr(_entered, "before_fork", False)

    os.register_at_fork(before=begin, after_in_parent=end, after_in_child=end)


def _install_hooks(logger: Logger) -> None:
    def log_uncaught(
        kind: type[BaseException], value: BaseException, traceback: TracebackType | None
    ) -> None:
        if issubclass(kind, KeyboardInterrupt):
            logger.info("interrupted")
            return
        with_exception = logger.opt(exception=(kind, value, traceback))
        with_exception.critical("uncaught " + kind.__name__)

    def log_thread(arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_type is SystemExit:
            return
        name = arguments.thread.name if arguments.thread is not None else "unknown"
        _log_error(
            logger.bind(request=printing_request()),
            f"uncaught {arguments.exc_type.__name__} in thread {name}",
            (arguments.exc_type, arguments.exc_value, arguments.exc_traceback),
        )

    def log_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
        what = unraisable.err_msg or "exception ignored in"
        _log_error(
            logger,
            f"{what}: {_describe(unraisable.object)}",
            (unraisable.exc_type, unraisable.exc_value, unraisable.exc_traceback),
        )

    sys.excepthook = log_uncaught
    threading.excepthook = log_thread
    sys.unraisablehook = log_unraisable


def _log_error(logger: Logger, message: str, exception: Iterable[Any]) -> None:
    logger.opt(exception=cast("Any", tuple(exception))).error(message)


def _describe(value: object) -> str:
    try:
        return repr(value)
    except Exception as error:
        return f"<{type(value).__qualname__} whose repr raises {type(error).__name__}>"
