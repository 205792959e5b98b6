"""Logging of one process: ``setup_logging`` opens its file, loguru carries every message there.

The front door of the log modules: ``log_lines`` is the format, ``log_files`` the file,
``log_capture`` the prints and exceptions, ``log_reader`` the way back for ``lb logs``.  loguru is
imported here and nowhere else, once, before the supervisor forks; each child then calls
``setup_logging`` for itself.  A message must never be trusted to be one line or printable, and a
failing log must never stop a process.  Called by the supervisor, broker and worker processes.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from loguru import logger

from lbcore.core.rotation import BadRotation, parse_retention, parse_rotation
from lbcore.core.topology import LogsConfig

from .log_capture import (
    LineWriter,
    OutputCapture,
    RequestContext,
    capture_output,
    request_context,
    request_id,
)
from .log_files import (
    COMPLAINT_INTERVAL_S,
    FILE_FLAGS,
    FILE_MODE,
    LogFile,
    LogSetupError,
    append_raw,
    format_note,
    live_path,
    remove_expired,
)
from .log_lines import (
    ERR,
    OUT,
    RAW,
    LogLine,
    escape,
    exception_rows,
    format_line,
    parse_line,
    parse_request,
    request_text,
    shorten,
)

if TYPE_CHECKING:
    from loguru import Logger, Message, Record

__all__ = [
    "LineWriter",
    "LogLine",
    "LogSetupError",
    "OutputCapture",
    "RequestContext",
    "append_raw",
    "capture_output",
    "change_logging",
    "check_log_files",
    "escape",
    "parse_line",
    "parse_request",
    "request_context",
    "request_id",
    "request_text",
    "setup_logging",
]

LEVELS = ("TRACE", "DEBUG", "INFO", "SUCCESS", "WARNING", "ERROR", "CRITICAL")
#: prints are written whatever level is asked for, so their number is above every other
_PRINT_LEVEL_NUMBER = 60
_STYLES = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[1;31m"}
_PLAIN = "\x1b[0m"


def setup_logging(
    topology_logs: LogsConfig,
    folder: Path,
    process: str,
    *,
    console: bool = False,
    patient: bool = False,
) -> Logger:
    """Make loguru write to ``folder``/``process``.log and nowhere else; return its logger.

    ``console`` adds short lines on the real stderr, for a process in the foreground.  The standard
    library's ``logging`` is led into the same file.  Call it again in every forked child.

    ``logger.bind(request=ID)`` gives a line another request than the current one, and
    ``logger.bind(detail=TEXT)`` adds lines below it, as an exception does.
    Raises ``LogSetupError`` when the folder or file cannot be written or a setting is not usable.
    With ``patient`` a file that cannot be opened now is tried again with every record: a process
    that comes back while the disk is away must do its work.
    """
    level = _check_level(topology_logs)
    file = _open_file(topology_logs, folder, process, patient)
    logger.remove()
    for name in (OUT, ERR, RAW):
        _add_level(name)
    _write_to(file, process, topology_logs.format, level)
    if console and sys.__stderr__ is not None:
        write = partial(_write_console, sys.__stderr__, process)
        logger.add(write, level=level, format=_no_format, backtrace=False, diagnose=False)
    _lead_standard_logging(level)
    return logger


def change_logging(topology_logs: LogsConfig, folder: Path, process: str) -> None:
    """Other settings for a process that logs already; no line is lost meanwhile.

    Settings that cannot be used are logged and change nothing.
    """
    try:
        level = _check_level(topology_logs)
        file = _open_file(topology_logs, folder, process)
    except LogSetupError as error:
        logger.error("{}", error)
        return
    before = _handlers.pop()
    _write_to(file, process, topology_logs.format, level)
    with suppress(ValueError):  # somebody has removed it
        logger.remove(before)
    _lead_standard_logging(level)


#: the number that loguru has given to the present file
_handlers: list[int] = []


def _write_to(file: LogFile, process: str, style: str, level: str) -> None:
    sink = _FileSink(file, process, style)
    # loguru must not format the exception itself: the sink does it, so ask for nothing
    number = logger.add(sink, level=level, format=_no_format, backtrace=False, diagnose=False)
    _handlers[:] = [number]


def _check_level(logs: LogsConfig) -> str:
    level = logs.level.upper()
    if level not in LEVELS:
        raise LogSetupError(f"logs.level is {logs.level!r}; it must be one of {', '.join(LEVELS)}")
    if logs.format not in ("text", "json"):
        raise LogSetupError(f"logs.format is {logs.format!r}; it must be text or json")
    return level


def check_log_files(folder: Path, processes: Iterable[str]) -> None:
    """Open, or make, the file of each process.  Raises ``LogSetupError``."""
    for process in processes:
        path = live_path(folder, process)
        try:
            os.close(os.open(path, FILE_FLAGS, FILE_MODE))
        except OSError as error:
            raise _refusal(folder, path, error) from None


def _open_file(logs: LogsConfig, folder: Path, process: str, patient: bool = False) -> LogFile:
    path = live_path(folder, process)
    try:
        rotation, retention = parse_rotation(logs.rotation), parse_retention(logs.retention)
    except BadRotation as error:
        raise LogSetupError(f"logs: {error}") from None
    file = LogFile(path, rotation, retention, partial(format_note, process, logs.format))
    what = folder
    try:
        # only the last part: a missing parent is more likely a typing mistake than a wish
        folder.mkdir(exist_ok=True)
        what = path
        file.open()
    except OSError as error:
        if not patient:
            raise _refusal(folder, what, error) from None
        return file
    remove_expired(path, retention, datetime.now())
    return file


def _refusal(folder: Path, what: Path, error: OSError) -> LogSetupError:
    reason = error.strerror or str(error)
    if isinstance(error, FileNotFoundError):
        reason = f"there is no folder {folder.parent}"
    elif isinstance(error, FileExistsError):
        reason = "it is not a folder"
    return LogSetupError(
        f"cannot write logs to {what}: {reason}; change logs.folder or the folder's rights"
    )


def _add_level(name: str) -> None:
    try:
        logger.level(name)
    except ValueError:
        logger.level(name, no=_PRINT_LEVEL_NUMBER)


def _no_format(_: Record) -> str:
    return ""


class _FileSink:
    """What loguru writes to: turns its records into our lines."""

    def __init__(self, file: LogFile, process: str, style: str) -> None:
        self._file = file
        self._process = process
        self._style = style
        self._complaint_due = 0.0

    def write(self, message: Message) -> None:
        """Write one record; whatever goes wrong is one line on the raw stderr a minute."""
        try:
            self._file.write(format_line(_line_of(message.record, self._process), self._style))
        except Exception as error:
            # loguru would print the record and a traceback, for every record
            if time.monotonic() < self._complaint_due:
                return
            self._complaint_due = time.monotonic() + COMPLAINT_INTERVAL_S
            with suppress(OSError):
                os.write(2, f"lb: a log record could not be written: {error!r}\n".encode())

    def stop(self) -> None:
        """Close the file; loguru calls this when the sink is removed."""
        self._file.close()


def _line_of(record: Record, process: str) -> LogLine:
    extra = record["extra"]
    request = extra.get("request")
    return LogLine(
        time=record["time"],
        level=record["level"].name,
        process=process,
        request=request if isinstance(request, int) else request_id.get(),
        message=record["message"],
        pid=record["process"].id,
        exception=_exception_text(record),
    )


def _exception_text(record: Record) -> str:
    detail = str(record["extra"].get("detail", ""))
    exception = record["exception"]
    if exception is None or exception.type is None:
        return detail
    lines = traceback.format_exception(exception.type, exception.value, exception.traceback)
    return "".join([*([detail.rstrip("\n"), "\n"] if detail else []), *lines])


def _write_console(stream: TextIO, process: str, message: Message) -> None:
    """One short line for a person: time, process, message; warnings in colour on a terminal."""
    line = _line_of(message.record, process)
    terminal = stream.isatty()
    style = _STYLES.get(line.level, "") if terminal and not os.environ.get("NO_COLOR") else ""
    rows = [shorten(line.message)]
    if line.exception:
        rows += [f"    {row}" for row in exception_rows(line.exception)]
    # a live state line may stand there: it is redrawn by whoever draws it
    start = "\r\x1b[K" if terminal else ""
    prefix = f"{line.time:%H:%M:%S} {process} | "
    end = f"{_PLAIN}\n" if style else "\n"
    text = "".join(f"{prefix}{style}{row}{end}" for row in rows)
    with suppress(OSError, ValueError):  # the terminal is gone, or the stream closed
        stream.write(start + text)
        stream.flush()


_STANDARD_LEVELS = (
    (logging.CRITICAL, "CRITICAL"),
    (logging.ERROR, "ERROR"),
    (logging.WARNING, "WARNING"),
    (logging.INFO, "INFO"),
    (logging.DEBUG, "DEBUG"),
)


class _StandardHandler(logging.Handler):
    """Carries records of the standard library's ``logging`` over to loguru."""

    def __init__(self, carry: Callable[[str, str, Any], None]) -> None:
        super().__init__()
        self._carry = carry

    def emit(self, record: logging.LogRecord) -> None:
        """Pass one record on, under the nearest level that loguru has."""
        try:
            message = record.getMessage()
        except Exception as error:
            message = f"{record.msg!r} with arguments that do not fit: {error!r}"
        reached = (name for number, name in _STANDARD_LEVELS if record.levelno >= number)
        self._carry(next(reached, "TRACE"), f"{record.name}: {message}", record.exc_info)


def _lead_standard_logging(level: str) -> None:
    def carry(name: str, message: str, exception: Any) -> None:
        logger.opt(exception=exception).log(name, message)

    root = logging.getLogger()
    for handler in [one for one in root.handlers if isinstance(one, _StandardHandler)]:
        root.removeHandler(handler)
    root.addHandler(_StandardHandler(carry))
    root.setLevel(logger.level(level).no)
