"""When a log file is rotated and which rotated files are kept, as values read from one word or two.

It decides about sizes and moments that it is handed; it never looks at a file or a clock.  Called
by ``lbcore.shell.log_files``, which performs, and by whoever checks ``logs.rotation`` and
``logs.retention`` of a topology.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache

from lbcore.core.errors import LBError

ROTATION_FORMS = (
    'a size ("10 MB"), an age ("1 day"), a time of day ("00:00"), hourly, daily, weekly or never'
)
RETENTION_FORMS = 'a number of files ("5"), an age ("7 days") or forever'

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b", re.IGNORECASE)
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?\s*[a-z]+[\s,]*)+", re.IGNORECASE)
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)", re.IGNORECASE)
_TIME_OF_DAY = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")
_FILE_COUNT = re.compile(r"(\d{1,6})(?:\s*files?)?", re.IGNORECASE)

_UNIT_S = {
    "s": 1,
    "sec": 1,
    "second": 1,
    "m": 60,
    "min": 60,
    "minute": 60,
    "h": 3600,
    "hour": 3600,
    "d": 86_400,
    "day": 86_400,
    "w": 604_800,
    "week": 604_800,
    "month": 2_592_000,
    "y": 31_536_000,
    "year": 31_536_000,
}
#: a thousand years: beyond it ``datetime`` cannot add, and nobody meant it
_AGE_S_MAX = 31_536_000_000


class BadRotation(LBError):
    """``logs.rotation`` or ``logs.retention`` is not in a form that is understood."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """When the live file becomes an old one; all None means never."""

    size_bytes: float | None = None
    age: timedelta | None = None
    #: "hourly", "weekly", or minutes after midnight at which a new day's file starts
    boundary: str | int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Which old files are kept; both None means all."""

    files: int | None = None
    age: timedelta | None = None


@lru_cache(maxsize=64)
def parse_rotation(text: str) -> Rotation:
    """Read ``logs.rotation``.  Raises ``BadRotation`` with the forms that are understood."""
    word = text.strip().lower()
    if word == "never":
        return Rotation()
    if word in ("hourly", "weekly"):
        return Rotation(boundary=word)
    if word == "daily":
        return Rotation(boundary=0)
    if match := _TIME_OF_DAY.fullmatch(word):
        return Rotation(boundary=int(match[1]) * 60 + int(match[2]))
    if match := _SIZE.fullmatch(word):
        power = " kmgt".index(match[2].lower() or " ")
        size_bytes = float(match[1]) * (1024 if match[3] else 1000) ** power
        if size_bytes >= 1:
            return Rotation(size_bytes=size_bytes)
    if age := _parse_duration(word):
        return Rotation(age=age)
    raise BadRotation(f"{text!r} says not when to rotate; expected {ROTATION_FORMS}")


@lru_cache(maxsize=64)
def parse_retention(text: str) -> Retention:
    """Read ``logs.retention``.  Raises ``BadRotation`` with the forms that are understood."""
    word = text.strip().lower()
    if word == "forever":
        return Retention()
    if match := _FILE_COUNT.fullmatch(word):
        return Retention(files=int(match[1]))
    if age := _parse_duration(word):
        return Retention(age=age)
    raise BadRotation(f"{text!r} says not how much to keep; expected {RETENTION_FORMS}")


def rotation_is_due(
    rotation: Rotation, size_bytes: int, added_bytes: int, started: datetime, now: datetime
) -> bool:
    """Whether a file of ``size_bytes`` begun at ``started`` is full before ``added_bytes`` go in.

    Both moments are local and without offset.  An empty file is never due: a single line above
    the limit would rotate for ever.
    """
    if size_bytes == 0:
        return False
    if rotation.size_bytes is not None:
        return size_bytes + added_bytes > rotation.size_bytes
    if rotation.age is not None:
        return now - started >= rotation.age
    return rotation.boundary is not None and now >= _next_boundary(rotation.boundary, started)


def files_to_remove(
    retention: Retention, files: Sequence[tuple[str, datetime]], now: datetime
) -> list[str]:
    """The names that are not kept, of rotated ``files`` (name, last change) from old to new."""
    if retention.files is not None:
        return [name for name, _ in files[: max(0, len(files) - retention.files)]]
    if retention.age is not None:
        return [name for name, changed in files if now - changed >= retention.age]
    return []


def _next_boundary(boundary: str | int, started: datetime) -> datetime:
    if boundary == "hourly":
        return started.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    midnight = started.replace(hour=0, minute=0, second=0, microsecond=0)
    if boundary == "weekly":
        return midnight + timedelta(days=7 - started.weekday())
    candidate = midnight + timedelta(minutes=int(boundary))
    return candidate if candidate > started else candidate + timedelta(days=1)


def _parse_duration(word: str) -> timedelta | None:
    if not _DURATION.fullmatch(word):
        return None
    total_s = 0.0
    for number, unit in _DURATION_PART.findall(word):
        unit_s = _UNIT_S.get(unit) or _UNIT_S.get(unit.removesuffix("s"))
        if unit_s is None:
            return None
        total_s += float(number) * unit_s
    return timedelta(seconds=total_s) if 0 < total_s <= _AGE_S_MAX else None
