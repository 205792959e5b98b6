"""The words of ``logs.rotation`` and ``logs.retention``, and what follows from them."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbcore.core.rotation import (
    BadRotation,
    Retention,
    Rotation,
    files_to_remove,
    parse_retention,
    parse_rotation,
    rotation_is_due,
)

NOON = datetime(2026, 11, 23, 12, 0, 0)  # a Monday


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10 MB", Rotation(size_bytes=10_000_000)),
        ("1.5kib", Rotation(size_bytes=1536)),
        ("500 B", Rotation(size_bytes=500)),
        ("2 GiB", Rotation(size_bytes=2 << 30)),
        ("1 day", Rotation(age=timedelta(days=1))),
        ("1 h 30 min", Rotation(age=timedelta(minutes=90))),
        ("2 weeks", Rotation(age=timedelta(days=14))),
        ("00:00", Rotation(boundary=0)),
        ("daily", Rotation(boundary=0)),
        ("6:30", Rotation(boundary=390)),
        ("Hourly", Rotation(boundary="hourly")),
        ("weekly", Rotation(boundary="weekly")),
        (" never ", Rotation()),
    ],
)
def test_rotation_words(text: str, expected: Rotation) -> None:
    assert parse_rotation(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5", Retention(files=5)),
        ("0", Retention(files=0)),
        ("1 file", Retention(files=1)),
        ("7 days", Retention(age=timedelta(days=7))),
        ("1 month", Retention(age=timedelta(days=30))),
        ("forever", Retention()),
    ],
)
def test_retention_words(text: str, expected: Retention) -> None:
    assert parse_retention(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "10", "10 MX", "0 MB", "-1 MB", "1 fortnight", "25:00", "1 day ago", "9" * 40 + " d"],
)
def test_a_bad_rotation_names_the_forms(text: str) -> None:
    with pytest.raises(BadRotation, match=r"10 MB.*1 day.*00:00.*never"):
        parse_rotation(text)


@pytest.mark.parametrize("text", ["", "some", "-1", "10 MB", "9" * 30])
def test_a_bad_retention_names_the_forms(text: str) -> None:
    with pytest.raises(BadRotation, match=r"\"5\".*7 days.*forever"):
        parse_retention(text)


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (parse_rotation, parse_retention):
        with suppress(BadRotation):
            parse(text)


def test_size_counts_what_is_about_to_be_written() -> None:
    rotation = Rotation(size_bytes=100)
    assert not rotation_is_due(rotation, 90, 10, NOON, NOON)
    assert rotation_is_due(rotation, 90, 11, NOON, NOON)


@pytest.mark.parametrize("text", ["1 B", "1 s", "00:00", "hourly", "weekly"])
def test_an_empty_file_is_never_rotated(text: str) -> None:
    later = NOON + timedelta(days=30)
    assert not rotation_is_due(parse_rotation(text), 0, 10**9, NOON, later)


@pytest.mark.parametrize(
    ("text", "due"),
    [
        ("90 min", NOON + timedelta(minutes=90)),
        ("00:00", datetime(2026, 11, 24)),
        ("13:15", datetime(2026, 11, 23, 13, 15)),
        ("12:00", datetime(2026, 11, 24, 12)),
        ("11:00", datetime(2026, 11, 24, 11)),
        ("hourly", datetime(2026, 11, 23, 13)),
        ("weekly", datetime(2026, 11, 30)),
    ],
)
def test_time_is_due_from_its_moment_on(text: str, due: datetime) -> None:
    rotation = parse_rotation(text)
    assert not rotation_is_due(rotation, 1, 1, NOON, due - timedelta(microseconds=1))
    assert rotation_is_due(rotation, 1, 1, NOON, due)


def test_never_is_never_due() -> None:
    assert not rotation_is_due(Rotation(), 1 << 60, 1 << 60, NOON, datetime.max)


FILES = [(f"old-{index}", NOON - timedelta(days=5 - index)) for index in range(5)]


@pytest.mark.parametrize(
    ("text", "removed"),
    [("5", 0), ("9", 0), ("4", 1), ("0", 5), ("3 days", 3), ("1 h", 5), ("forever", 0)],
)
def test_the_oldest_files_go(text: str, removed: int) -> None:
    expected = [name for name, _ in FILES[:removed]]
    assert files_to_remove(parse_retention(text), FILES, NOON) == expected
