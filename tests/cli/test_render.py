"""Numbers, durations, colours: what every table is made of."""

from __future__ import annotations

import io
import json
import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbcore.cli.render import (
    Column,
    console,
    count_of,
    count_text,
    duration_text,
    join_words,
    make_table,
    number_text,
    print_json,
    printable,
    share_text,
    shorten,
    state_text,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.0, "0 s"),
        (1e-9, "0.00 µs"),
        (12.3e-6, "12.3 µs"),
        (870e-6, "870 µs"),
        (0.00099994, "1.00 ms"),
        (4.123e-3, "4.12 ms"),
        (0.09999, "100 ms"),
        (0.9996, "1.00 s"),
        (3.0, "3.00 s"),
        (59.96, "60.0 s"),
        (99.96, "1 min 40 s"),
        (3599.7, "1 h 0 min"),
        (7500.0, "2 h 5 min"),
        (200_000.0, "2 d 7 h"),
        (-0.004, "-4.00 ms"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration_text(seconds) == text


@given(st.floats(min_value=1e-7, max_value=99.0))
def test_a_short_duration_reads_as_what_it_is(seconds: float) -> None:
    number, unit = duration_text(seconds).split()
    factor = {"µs": 1e-6, "ms": 1e-3, "s": 1.0}[unit]
    assert float(number) * factor == pytest.approx(seconds, rel=0.006, abs=0.006e-6)
    assert len(number) <= 4


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0, "0"), (0.8712, "0.87"), (12.34, "12.3"), (2, "2"), (12345.6, "12,346")],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number_text(value) == text


def test_counts_and_shares() -> None:
    assert count_text(None) == "-"
    assert count_text(1234567) == "1,234,567"
    assert count_of(1, "request") == "1 request"
    assert count_of(2000, "request") == "2,000 requests"
    assert share_text(None) == "-"
    assert share_text(0.874) == "87%"
    assert share_text(1 / 3, 1) == "33.3%"


def test_words_are_joined() -> None:
    assert join_words(["a"]) == "a"
    assert join_words(["a", "b"]) == "a and b"
    assert join_words(["a", "b", "c"]) == "a, b and c"


def test_text_from_the_wire_cannot_move_the_cursor() -> None:
    assert printable("a\x1b[31mb\nc\u202ed") == r"a\x1b[31mb\nc\u202ed"
    assert printable("a\x1b[2J\n\tb", lines=True) == "a\\x1b[2J\n        b"
    assert printable(5) == "5"


def test_long_text_is_cut() -> None:
    assert shorten("abcdef", 6) == "abcdef"
    assert shorten("abcdefg", 6) == "abc..."
    assert len(shorten("\n" * 50, 20)) == 20


def test_what_json_cannot_say_becomes_null() -> None:
    stream = io.StringIO()
    print_json({"a": math.inf, "b": [math.nan, 1.5], "c": (1, "x")}, stream)
    assert json.loads(stream.getvalue()) == {"a": None, "b": [None, 1.5], "c": [1, "x"]}


def test_compact_json_is_one_line() -> None:
    stream = io.StringIO()
    print_json({"a": [1, 2]}, stream, compact=True)
    assert stream.getvalue() == '{"a": [1, 2]}\n'


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def _painted(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> str:
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("TERM", "xterm-256color")
    table = make_table([Column("state", "left")])
    table.add_row(state_text("FATAL"))
    console().print(table)
    return stream.getvalue()


def test_colours_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in _painted(monkeypatch, Terminal())


def test_no_colours_and_no_other_escapes_with_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    painted = _painted(monkeypatch, Terminal())
    assert "FATAL" in painted
    assert "\x1b" not in painted


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "CLICOLOR_FORCE"])
def test_no_colours_into_a_file_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv(variable, "1")
    assert "\x1b" not in _painted(monkeypatch, io.StringIO())


def test_markup_in_a_name_is_only_text(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    table = make_table([Column("worker", "left")])
    table.add_row("[red]x[/red] :smile:")
    console().print(table)
    assert "[red]x[/red] :smile:" in stream.getvalue()
