"""One record is one line, whatever it contains, and is read back as it was meant."""

from __future__ import annotations

import json
import unicodedata
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbcore.shell.log_lines import (
    CONTINUATION,
    EXCEPTION_LINES_MAX,
    LINE_CHARACTERS_MAX,
    LogLine,
    continuation_of,
    escape,
    format_json,
    format_line,
    format_text,
    parse_line,
    parse_request,
    request_text,
    shorten,
)

NOW = datetime(2026, 11, 23, 10, 0, 0, 123456).astimezone()
FORGED = "x\n2026-11-23 10:00:00.123 INFO  worker-1 [7:42] forged"

#: any text at all: lone surrogates, controls and separators included
anything = st.text(alphabet=st.characters(exclude_categories=()), max_size=200)
pieces = [
    *("\n", "\r", "\t", "\0", "\x1b[31m", "\x9b", "\x85", "\u2028", "\u2029", "\u202e", "\u2066"),
    *("\ufeff", "\ud800", "\U000e0041", "{", '"', "\\", "[7:42] ", FORGED, CONTINUATION, "ä"),
]
hostile = st.lists(st.sampled_from(pieces), max_size=12).map("".join)
texts = anything | hostile
requests = st.one_of(st.just(0), st.integers(1, (1 << 64) - 1))


def make(message: str, **fields: object) -> LogLine:
    return LogLine(
        **{"time": NOW, "level": "INFO", "process": "worker-1", "message": message, **fields}  # type: ignore[arg-type]
    )


def test_the_text_line_is_as_documented() -> None:
    line = make("hello", request=7 << 32 | 42)
    expected = f"{NOW:%Y-%m-%d %H:%M:%S}.123 INFO  worker-1 [7:42] hello\n"
    assert format_text(line) == expected
    assert format_text(make("", level="WARNING")).endswith(" WARNING worker-1 [-] \n")


def test_the_json_line_is_as_documented() -> None:
    time = datetime(2026, 11, 23, 10, 0, 0, 5, timezone(timedelta(hours=-3)))
    line = make("hello", time=time, request=7 << 32 | 42, pid=12, exception="Boom\n")
    assert json.loads(format_json(line)) == {
        "ts": "2026-11-23T10:00:00.000005-03:00",
        "level": "INFO",
        "proc": "worker-1",
        "pid": 12,
        "request": "7:42",
        "msg": "hello",
        "exception": "Boom",
    }
    assert json.loads(format_json(make("hello")))["request"] is None


@given(texts)
def test_escaped_text_is_one_harmless_line(text: str) -> None:
    shown = escape(text)
    assert len(shown.splitlines()) <= 1
    for character in shown:
        category = unicodedata.category(character)
        assert category not in ("Cc", "Cs", "Zl", "Zp"), repr(character)
        assert unicodedata.bidirectional(character) not in (
            "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI",
        )  # fmt: skip
    assert escape(shown) == shown
    shown.encode()


def test_escape_leaves_what_people_write() -> None:
    text = "Grüße, 世界 \u200c\u200d \U0001f468\u200d\U0001f469\u200d\U0001f467 C:\\new\\table"
    assert escape(text) == text


def test_escape_shows_what_it_replaced() -> None:
    assert escape("a\nb\r\t\x1b[0m\x85\u202e\ufeff\U000e0041\ud800") == (
        r"a\nb\r\t\x1b[0m\x85\u202e\ufeff\U000e0041\ud800"
    )


@given(texts, texts, requests, st.sampled_from(["INFO", "ERROR", "OUT"]))
def test_a_text_record_is_one_record(
    message: str, exception: str, request: int, level: str
) -> None:
    line = make(message, exception=exception, request=request, level=level)
    head, *below = format_text(line).removesuffix("\n").split("\n")
    parsed = parse_line(head)
    assert parsed is not None
    assert parsed.message == shorten(message)
    assert (parsed.level, parsed.process, parsed.request) == (level, "worker-1", request)
    assert parsed.time == NOW.replace(microsecond=123000)
    assert all(parse_line(row) is None for row in below)
    shown = "\n".join(str(continuation_of(row)) for row in below)
    assert shown == "\n".join(map(escape, exception.rstrip("\n").split("\n")))


@given(texts, texts, requests)
def test_a_json_record_comes_back_exactly(message: str, exception: str, request: int) -> None:
    line = make(message, exception=exception.rstrip("\n"), request=request, pid=7)
    text = format_json(line)
    assert len(text.splitlines()) == 1
    assert escape(text.removesuffix("\n")) == text.removesuffix("\n")
    text.encode()
    assert parse_line(text) == line


@given(texts)
def test_nothing_in_a_process_or_level_name_breaks_the_line(name: str) -> None:
    parsed = parse_line(format_text(make("m", process=name, level=name)))
    assert parsed is not None
    assert parsed.message == "m"


@given(texts)
def test_any_line_is_read_or_refused(text: str) -> None:
    parse_line(text)
    parse_line("{" + text)


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_long_message_is_cut_with_a_note(style: str) -> None:
    line = parse_line(format_line(make("x" * 100_000), style))
    assert line is not None
    rest = 100_000 - LINE_CHARACTERS_MAX
    assert line.message == "x" * LINE_CHARACTERS_MAX + f" ... [{rest} more characters]"


def test_escapes_count_for_the_length() -> None:
    shown = shorten("\x1b" * LINE_CHARACTERS_MAX)
    shown, _, note = shown.partition(" ... ")
    assert shown == r"\x1b" * (LINE_CHARACTERS_MAX // 4)
    assert note == f"[{LINE_CHARACTERS_MAX - LINE_CHARACTERS_MAX // 4} more characters]"


def test_a_long_traceback_loses_its_middle() -> None:
    rows = [f"row {number}" for number in range(1000)]
    text = format_text(make("m", exception="\n".join(rows)))
    shown = [str(continuation_of(row)) for row in text.splitlines()[1:]]
    assert len(shown) == EXCEPTION_LINES_MAX + 1
    assert shown[0] == "row 0"
    assert shown[-1] == "row 999"
    assert f"... [{1000 - EXCEPTION_LINES_MAX} more lines]" in shown


@given(requests)
def test_request_ids_come_back(request: int) -> None:
    text = request_text(request)
    assert (parse_request(text) or 0) == request


@pytest.mark.parametrize(
    "text", ["", "-", "7", "7:", ":42", "a:b", "4294967296:0", "-1:2", "7:42 "]
)
def test_what_is_not_a_request_id(text: str) -> None:
    assert parse_request(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        CONTINUATION + FORGED.splitlines()[1],
        "2026-13-23 10:00:00.123 INFO  worker-1 [7:42] month 13",
        "2026-11-23 10:00:00.123 INFO  worker-1 [7:4294967296] request too large",
        "{}",
        "[]",
        '{"ts": "2026-11-23T10:00:00", "level": "INFO", "proc": "w", "msg": "no offset"}',
        '{"ts": 5, "level": "INFO", "proc": "w", "msg": "m"}',
        '{"ts": "2026-11-23T10:00:00+00:00", "level": "INFO", "proc": "w", "msg": 5}',
        '{"ts": "2026-11-23T10:00:00+00:00", "level": "I", "proc": "w", "msg": "", "pid": "x"}',
        '{"ts": "2026-11-23T10:00:00+00:00", "level": "I", "proc": "w", "msg": "", "request": "x"}',
        "{" + '"a":{' * 100_000,
    ],
)
def test_foreign_lines_are_refused(text: str) -> None:
    assert parse_line(text) is None


def test_severity_orders_our_own_levels() -> None:
    order = ["DEBUG", "OUT", "ERR", "RAW", "CRITICAL"]
    severities = [make("", level=level).severity for level in order]
    assert severities == sorted(severities)
    assert make("", level="CUSTOM").severity == make("", level="INFO").severity


def test_times_with_any_offset_compare() -> None:
    early = make("a", time=datetime(2026, 11, 23, 9, tzinfo=UTC))
    line = parse_line(format_json(early))
    assert line is not None
    assert line.time == early.time
