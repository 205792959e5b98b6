"""Readers of one value each: a whole number, a name, a size, a list.

A reader turns one value of the YAML into the value of the topology, or notes in ``Problems`` what
was expected and what was found, and returns None (which no key takes).  ``schema.py`` says which
key has which reader.  Nothing here knows a key or compares two of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, Final, Protocol, TypeGuard

from .problems import KeyPath, Problems, nearest_name, show, spell_path
from .rotation import (
    RETENTION_FORMS,
    ROTATION_FORMS,
    BadRotation,
    parse_retention,
    parse_rotation,
)

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
MODULE: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
OCTET: Final = r"(?:0|[1-9]\d?|1\d\d|2[0-4]\d|25[0-5])"
LOOPBACK: Final = re.compile(rf"127(?:\.{OCTET}){{3}}")
SIZE: Final = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([kmgt]?)(i?)b", re.ASCII | re.IGNORECASE)
SURROGATE: Final = re.compile("[\ud800-\udfff]")
#: longer than any size, age or time
WORDS_CHARS_MAX: Final = 64
UNIT_EXPONENTS: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


class Reader(Protocol):
    """Reads the value of one key."""

    #: what the key takes, as it continues the sentence "expected ..."
    expected: str

    def read(self, problems: Problems, path: KeyPath, value: object) -> Any:
        """The checked value, or None after noting what is wrong with it."""
        ...


def has_strange_characters(text: str) -> bool:
    """Whether a name or path holds what no terminal, log line or file name should."""
    return any(ord(character) < 32 or ord(character) == 127 for character in text) or bool(
        SURROGATE.search(text)
    )


def quote_advice(value: object) -> str:
    """What to do about a number or truth value where text is needed."""
    return "write it in quotes" if isinstance(value, (bool, int, float)) else ""


class Whole:
    """A whole number within bounds; true and false are not numbers here."""

    def __init__(self, noun: str, low: int, high: int) -> None:
        self.low = low
        self.high = high
        self.expected = f"{noun} from {low} to {high}"

    def read(self, problems: Problems, path: KeyPath, value: object) -> int | None:
        if is_whole(value) and self.low <= value <= self.high:
            return value
        advice = "write it without point and exponent" if isinstance(value, float) else ""
        problems.refuse(path, self.expected, value, advice)
        return None


class Number:
    """A finite number within bounds."""

    def __init__(self, noun: str, low: float, high: float) -> None:
        self.low = low
        self.high = high
        self.expected = f"{noun} from {low:g} to {high:g}"

    def read(self, problems: Problems, path: KeyPath, value: object) -> float | None:
        # NaN is not within any bounds
        if is_number(value) and self.low <= value <= self.high:
            return float(value)
        problems.refuse(path, self.expected, value)
        return None


class Choice:
    """One of a few names; the case of the letters does not matter."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.expected = "one of " + ", ".join(names)

    def read(self, problems: Problems, path: KeyPath, value: object) -> str | None:
        if not isinstance(value, str):
            problems.refuse(path, self.expected, value)
            return None
        for name in self.names:
            if name.lower() == value.strip().lower():
                return name
        nearest = nearest_name(value, self.names)
        if nearest is None:
            problems.refuse(path, self.expected, value)
        else:
            problems.add(
                path,
                f"found {show(value)}; did you mean `{nearest}`?",
                expected=self.expected,
                found=show(value),
                nearest=nearest,
            )
        return None


class Exactly:
    """The one whole number that is known."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.expected = str(number)

    def read(self, problems: Problems, path: KeyPath, value: object) -> int | None:
        if is_whole(value) and value == self.number:
            return value
        problems.refuse(path, self.expected, value, "this lb reads no other version")
        return None


class Name:
    """A name that is safe as a file name, because log files and state folders bear it."""

    expected = "a name of at most 64 letters, digits, `.`, `_`, `-`"

    def __init__(self, reserved: tuple[str, ...] = ()) -> None:
        self.reserved = reserved

    def read(self, problems: Problems, path: KeyPath, value: object) -> str | None:
        if not isinstance(value, str):
            problems.refuse(path, self.expected, value, quote_advice(value))
            return None
        if not NAME.fullmatch(value):
            starts_badly = value[:1] in (".", "_", "-") and NAME.fullmatch("x" + value[1:])
            advice = "it must start with a letter or digit" if starts_badly else ""
            problems.refuse(path, self.expected, value, advice)
            return None
        if value.lower() in self.reserved:
            advice = "that name is taken by lb's own process"
            problems.refuse(path, "a name for a worker", value, advice)
            return None
        return value


class Tag:
    """A short text."""

    expected = "a text of 1 to 64 characters"

    def read(self, problems: Problems, path: KeyPath, value: object) -> str | None:
        if isinstance(value, str) and 1 <= len(value) <= 64 and not has_strange_characters(value):
            return value
        problems.refuse(path, self.expected, value, quote_advice(value))
        return None


class PathText:
    """A path of a file or folder, as text; whether it exists is not asked here."""

    def __init__(self, noun: str) -> None:
        self.expected = noun

    def read(self, problems: Problems, path: KeyPath, value: object) -> str | None:
        if not isinstance(value, str) or not value.strip() or has_strange_characters(value):
            problems.refuse(path, self.expected, value, quote_advice(value))
            return None
        if value.startswith("~"):
            problems.refuse(path, self.expected, value, "write the whole path, `~` is not expanded")
            return None
        return value


class Host:
    """An address that only this machine can reach."""

    expected = "127.0.0.1, another 127.x.x.x, ::1 or localhost"

    def read(self, problems: Problems, path: KeyPath, value: object) -> str | None:
        host = value.strip().lower() if isinstance(value, str) else ""
        if host == "localhost":
            # one spelling, so that two names of one address are seen to be the same
            return "127.0.0.1"
        if host in ("::1", "[::1]"):
            return "::1"
        if LOOPBACK.fullmatch(host):
            return host
        advice = "lb binds loopback addresses only" if isinstance(value, str) else ""
        problems.refuse(path, self.expected, value, advice)
        return None


class AnyHost(Host):
    """An address of this machine; whether others may reach it is decided elsewhere."""

    expected = "an address of this machine, such as 127.0.0.1, ::1 or 0.0.0.0"

    def read(self, problems: Problems, path: KeyPath, value: object) -> str | None:
        host = value.strip().lower() if isinstance(value, str) else ""
        if is_loopback(host):
            return super().read(problems, path, value)
        try:
            return str(ip_address(host.removeprefix("[").removesuffix("]")))
        except ValueError:
            problems.refuse(path, self.expected, value)
            return None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    return host in ("localhost", "::1", "[::1]") or LOOPBACK.fullmatch(host) is not None


class Files:
    """A few files by fixed keys, all of which are needed."""

    def __init__(self, keys: Mapping[str, Reader]) -> None:
        self.keys = keys
        self.expected = " and ".join(f"`{key}`" for key in keys)

    def read(self, problems: Problems, path: KeyPath, value: object) -> dict[str, str] | None:
        if not is_mapping(value):
            form = ", ".join(f"{key}: FILE" for key in self.keys)
            problems.refuse(path, f"{self.expected}, as in {{{form}}}", value)
            return None
        for key in value:
            if key not in self.keys:
                name = key if isinstance(key, str) else show(key)
                problems.unknown_key((*path, name), self.keys, ())
        read: dict[str, str] = {}
        for key, reader in self.keys.items():
            if key not in value:
                problems.add(path, f"expected {self.expected}; `{key}` is not there")
            elif (text := reader.read(problems, (*path, key), value[key])) is not None:
                read[key] = text
        return read if len(read) == len(self.keys) else None


def size_bytes(text: str) -> int | None:
    """The bytes that a size such as "64 MiB" or "10 MB" means; None when it is not a size."""
    match = SIZE.fullmatch(text.strip())
    if match is None:
        return None
    number, unit, binary = match.groups()
    if binary and not unit:
        return None
    return int(float(number) * (1024 if binary else 1000) ** UNIT_EXPONENTS[unit.lower()])


class Size:
    """A number of bytes, plain or with a unit."""

    def __init__(self, low: int, high: int) -> None:
        self.low = low
        self.high = high
        self.expected = f"bytes from {low} to {high}, or a size such as 64 MiB"

    def read(self, problems: Problems, path: KeyPath, value: object) -> int | None:
        size = size_bytes(value) if isinstance(value, str) else value
        if is_whole(size) and self.low <= size <= self.high:
            return size
        problems.refuse(path, self.expected, value)
        return None


class SizeOrNone(Size):
    """A number of bytes, or the word none, which is read as 0."""

    def __init__(self, low: int, high: int) -> None:
        super().__init__(low, high)
        self.expected += ", or none"

    def read(self, problems: Problems, path: KeyPath, value: object) -> int | None:
        if value == "none" or (is_whole(value) and value == 0):
            return 0
        return super().read(problems, path, value)


class RotationText:
    """When a log file is rotated, in loguru's words."""

    expected = ROTATION_FORMS

    def read(self, problems: Problems, path: KeyPath, value: object) -> str | None:
        if isinstance(value, str) and len(value) <= WORDS_CHARS_MAX:
            try:
                parse_rotation(value)
                return value.strip()
            except BadRotation:
                pass  # refused below, as anything else
        advice = "add a unit, such as MB" if is_number(value) else ""
        problems.refuse(path, self.expected, value, advice)
        return None


class RetentionText:
    """How many rotated files are kept, or for how long; a number is a count."""

    expected = RETENTION_FORMS

    def read(self, problems: Problems, path: KeyPath, value: object) -> str | None:
        text = str(value) if is_whole(value) and 0 <= value < 10**6 else value
        if isinstance(text, str) and len(text) <= WORDS_CHARS_MAX:
            try:
                parse_retention(text)
                return text.strip()
            except BadRotation:
                pass  # refused below, as anything else
        problems.refuse(path, self.expected, value)
        return None


class ListOf:
    """A list whose items are all read by one reader, each item once."""

    def __init__(self, item: Reader, noun: str) -> None:
        self.item = item
        self.expected = noun

    def read(self, problems: Problems, path: KeyPath, value: object) -> tuple[Any, ...] | None:
        if not isinstance(value, (list, tuple)):
            advice = "put it in brackets" if value is not None and not is_mapping(value) else ""
            problems.refuse(path, self.expected, value, advice)
            return None
        items: dict[Any, int] = {}
        for index, entry in enumerate(value):
            item = self.item.read(problems, (*path, index), entry)
            if item is None:
                continue
            if item in items:
                first = spell_path((*path, items[item]))
                problems.add((*path, index), f"{show(entry)} is already {first}; remove one")
            items.setdefault(item, index)
        return tuple(items)


class Environment:
    """Environment variables; numbers and truth values are taken exactly as they were written."""

    expected = "a mapping of variable names to texts"

    def read(self, problems: Problems, path: KeyPath, value: object) -> dict[str, str] | None:
        if not is_mapping(value):
            problems.refuse(path, self.expected, value)
            return None
        texts: dict[str, str] = {}
        for key, entry in value.items():
            where = (*path, str(key))
            if not isinstance(key, str) or not VARIABLE.fullmatch(key):
                problems.add(
                    where, f"expected a variable name such as OMP_NUM_THREADS, found {show(key)}"
                )
                continue
            text = self._text(problems, where, entry)
            if text is not None:
                texts[key] = text
        return texts

    def _text(self, problems: Problems, path: KeyPath, value: object) -> str | None:
        if isinstance(value, str):
            if "\0" not in value and not SURROGATE.search(value):
                return value
            problems.refuse(path, "a text without NUL and surrogate characters", value)
            return None
        if isinstance(value, (bool, int, float)):
            written = problems.text(path)
            return show(value) if written is None else written
        advice = 'write "" for an empty value' if value is None else ""
        problems.refuse(path, "a text or a number", value, advice)
        return None


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is a number; true and false are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value is a whole number; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_mapping(value: object) -> TypeGuard[Mapping[Any, Any]]:
    """Whether a value of the YAML is a mapping."""
    return isinstance(value, Mapping)
