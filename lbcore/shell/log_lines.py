r"""One log record as text and back: the two line formats, and the escaping that keeps them honest.

Whatever a message contains, it becomes exactly one record: in the text format every character that
could start a new line, colour a terminal or reorder what is read is written as an escape such as
``\n`` or ``\x1b``, and the lines of a traceback start with ``CONTINUATION``.  Nothing here opens a
file.  Called by everything that writes or reads a log; it imports no loguru, so that ``lb logs``
starts fast.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

#: a longer message is cut here: one runaway print must not fill the file or a reader's memory
LINE_CHARACTERS_MAX = 8192
#: a longer traceback loses its middle
EXCEPTION_LINES_MAX = 400
#: what every line that belongs to the record above it starts with, in the text format
CONTINUATION = "    | "

#: levels of our own: a task's prints, and what arrived from outside of Python's streams
OUT, ERR, RAW = "OUT", "ERR", "RAW"

#: how much each level matters to a reader who filters; an unknown level counts as INFO
SEVERITY = {
    "TRACE": 5,
    "DEBUG": 10,
    "INFO": 20,
    OUT: 20,
    "SUCCESS": 25,
    "WARNING": 30,
    ERR: 30,
    "ERROR": 40,
    RAW: 40,
    "CRITICAL": 50,
}

# Controls (C0, DEL, C1), line and paragraph separators, bidi controls, invisible format characters
# and tags, lone surrogates (which UTF-8 cannot carry).  Zero-width joiners stay: Persian, Indic
# scripts and emoji need them, and they move nothing.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e0fff]"
)
_SHORT_ESCAPES = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}

_TEXT_LINE = re.compile(
    r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}) (\S+) +(\S+) \[(-|\d{1,10}:\d{1,10})\] ?(.*)"
)
_REQUEST = re.compile(r"(\d{1,10}):(\d{1,10})")
_HALF = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One record of a log file."""

    #: with its offset; a text line holds local time to the millisecond
    time: datetime
    level: str
    process: str
    #: id of the request that it belongs to; 0 = none
    request: int = 0
    #: escaped if it was read from a text line
    message: str = ""
    #: 0 = unknown, as in every text line
    pid: int = 0
    #: traceback or other detail, lines separated by newlines; empty = none
    exception: str = ""

    @property
    def severity(self) -> int:
        """How much it matters, on the scale of ``SEVERITY``."""
        return SEVERITY.get(self.level, SEVERITY["INFO"])


def escape(text: str) -> str:
    r"""``text`` on one line: what could forge, colour or reorder a line is written as ``\x1b``.

    Backslashes stay as they are, so that escaping twice changes nothing; the JSON format is the
    one that gives a message back exactly.
    """
    # almost every message is printable, and this test is ten times faster than the search
    return text if text.isprintable() else _UNSAFE.sub(_escape_character, text)


def _escape_character(match: re.Match[str]) -> str:
    character = match[0]
    code = ord(character)
    if code < 0x100:
        return _SHORT_ESCAPES.get(character) or f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def shorten(text: str, escaped: bool = True) -> str:
    """``text``, escaped unless told otherwise, cut at ``LINE_CHARACTERS_MAX`` with a note."""
    head = text[:LINE_CHARACTERS_MAX]
    shown = escape(head) if escaped else head
    if len(text) <= LINE_CHARACTERS_MAX and len(shown) <= LINE_CHARACTERS_MAX:
        return shown
    if len(shown) > LINE_CHARACTERS_MAX:
        head, shown = _fit(head)
    return f"{shown} ... [{len(text) - len(head)} more characters]"


def _fit(text: str) -> tuple[str, str]:
    """The longest head of ``text`` that fits once escaped, and its escaped form."""
    pieces: list[str] = []
    room = LINE_CHARACTERS_MAX
    for character in text:
        piece = escape(character)
        room -= len(piece)
        if room < 0:
            break
        pieces.append(piece)
    return text[: len(pieces)], "".join(pieces)


def request_text(request: int) -> str:
    """``client:sequence`` of a request id, ``-`` for 0."""
    return f"{request >> 32}:{request & _HALF}" if request else "-"


def parse_request(text: str) -> int | None:
    """The request id of ``7:42``; None when ``text`` is not of that form."""
    match = _REQUEST.fullmatch(text)
    if match is None:
        return None
    client, sequence = int(match[1]), int(match[2])
    return client << 32 | sequence if client <= _HALF and sequence <= _HALF else None


def format_line(line: LogLine, style: str = "text") -> str:
    """The record as it is written in a file, in ``style`` "text" or "json", newline included."""
    return format_json(line) if style == "json" else format_text(line)


def format_text(line: LogLine) -> str:
    """The record as one text line, plus one line per line of its exception."""
    stamp = line.time.isoformat(" ", "milliseconds")[:23]
    text = (
        f"{stamp} {_one_word(line.level):<5} {_one_word(line.process)} "
        f"[{request_text(line.request)}] {shorten(line.message)}\n"
    )
    if line.exception:
        text += "".join(f"{CONTINUATION}{row}\n" for row in exception_rows(line.exception))
    return text


def format_json(line: LogLine) -> str:
    """The record as one line with one JSON object."""
    record: dict[str, Any] = {
        "ts": line.time.isoformat(timespec="microseconds"),
        "level": line.level,
        "proc": line.process,
        "pid": line.pid or None,
        "request": request_text(line.request) if line.request else None,
        "msg": shorten(line.message, escaped=False),
    }
    if line.exception:
        record["exception"] = "\n".join(exception_rows(line.exception, escaped=False))
    text = json.dumps(record, ensure_ascii=False)
    if not text.isprintable():
        text = _UNSAFE.sub(_escape_for_json, text)
    return text + "\n"


def _escape_for_json(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


def _one_word(text: str) -> str:
    return "_".join(escape(text).split()) or "?"


def exception_rows(text: str, escaped: bool = True) -> list[str]:
    """The lines of a traceback, each shortened; the middle of a very long one is left out."""
    rows = text.rstrip("\n").split("\n")
    left_out = len(rows) - EXCEPTION_LINES_MAX
    if left_out > 0:
        half = EXCEPTION_LINES_MAX // 2
        rows[half:-half] = [f"... [{left_out} more lines]"]
    return [shorten(row, escaped) for row in rows]


def parse_line(line: str) -> LogLine | None:
    """Read one line of either format; None for a continuation line and for anything foreign."""
    line = line.removesuffix("\n")
    if line.startswith("{"):
        return _parse_json(line)
    match = _TEXT_LINE.fullmatch(line)
    if match is None:
        return None
    stamp, level, process, request, message = match.groups()
    request_id = 0 if request == "-" else parse_request(request)
    if request_id is None:
        return None
    try:
        now = datetime.fromisoformat(stamp).astimezone()
    except (ValueError, OverflowError):
        return None
    return LogLine(time=now, level=level, process=process, request=request_id, message=message)


def _parse_json(text: str) -> LogLine | None:
    try:
        record = json.loads(text)
        now = datetime.fromisoformat(record["ts"])
        level, process, message = record["level"], record["proc"], record["msg"]
        pid, request = record.get("pid") or 0, record.get("request")
        exception = record.get("exception") or ""
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    words = (level, process, message, exception, request or "")
    if not all(isinstance(word, str) for word in words) or type(pid) is not int:
        return None
    request_id = parse_request(request) if request else 0
    if request_id is None or now.tzinfo is None:
        return None
    return LogLine(
        time=now,
        level=level,
        process=process,
        request=request_id,
        message=message,
        pid=pid,
        exception=exception,
    )


def continuation_of(line: str) -> str | None:
    """The text of a continuation line; None when it is not one."""
    line = line.removesuffix("\n")
    return line.removeprefix(CONTINUATION) if line.startswith(CONTINUATION) else None
