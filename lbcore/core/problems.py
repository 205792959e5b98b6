"""What is wrong with a topology: where it stands, which key it is, what was expected and found.

Pure text and values.  ``config.py`` and ``overrides.py`` collect problems here, all of them in one
pass; the YAML reader adds its own; ``lb check`` and every command that loads a topology print them.
Nothing here may stop at the first mistake or touch a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

#: where a value stands in the topology: ``("workers", 1, "port")``
KeyPath = tuple[str | int, ...]

#: more lines than this help nobody; the rest is counted
REPORT_LINES_MAX: Final = 100
#: characters of a value or key that a message repeats
SHOWN_CHARS_MAX: Final = 40

PLAIN_KEY: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")

#: what users of similar tools type, and the key that it is here
SYNONYMS: Final[Mapping[str, str]] = {
    "affinity": "cpus",
    "address": "host",
    "bind": "host",
    "cores": "cpus",
    "directory": "folder",
    "environment": "env",
    "instances": "count",
    "listen": "port",
    "logging": "logs",
    "max_queue": "queue",
    "modules": "tasks",
    "processes": "count",
    "replicas": "count",
    "socket": "path",
    "threads": "concurrency",
    "unix": "path",
}


class Origin(NamedTuple):
    """Where a value was written: a line of a file, an environment variable or a ``--set``."""

    source: str
    line: int | None = None
    #: a scalar as it was written, before YAML made a number or a truth value of it
    text: str | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake; ``str()`` of it is one line that says where, what, and what to do."""

    origin: Origin
    #: the key's path as people write it, ``workers[1].port``; empty for the whole file
    key: str
    message: str
    expected: str | None = None
    found: str | None = None
    #: the valid key or value that was probably meant
    nearest: str | None = None

    def __str__(self) -> str:
        where = str(self.origin)
        repeats = self.origin.line is None and where.endswith(f" {self.key}")
        return ": ".join(
            part for part in (where, "" if repeats else self.key, self.message) if part
        )

    def to_json(self) -> dict[str, Any]:
        """The same as plain values, for ``lb check --json``."""
        return {
            "source": self.origin.source,
            "line": self.origin.line,
            "key": self.key,
            "message": self.message,
            "expected": self.expected,
            "found": self.found,
            "nearest": self.nearest,
        }


@dataclass(slots=True)
class Problems:
    """Collects the mistakes of one topology and knows where each key was written."""

    origins: Mapping[KeyPath, Origin]
    found: list[Problem] = field(default_factory=list)

    def origin(self, path: KeyPath) -> Origin:
        """Where the key was written, or the nearest section around it that was."""
        for length in range(len(path), -1, -1):
            origin = self.origins.get(path[:length])
            if origin is not None:
                return origin
        return Origin("topology")

    def text(self, path: KeyPath) -> str | None:
        """A scalar exactly as it was written, when that is known."""
        origin = self.origins.get(path)
        return None if origin is None else origin.text

    def add(self, path: KeyPath, message: str, **facts: str | None) -> None:
        """Note a mistake that needs its own words."""
        self.found.append(Problem(self.origin(path), spell_path(path), message, **facts))

    def refuse(self, path: KeyPath, expected: str, value: object, advice: str = "") -> None:
        """Note that a value is not what its key takes."""
        found = show(value)
        if value is None and not advice:
            advice = "give it a value or remove the line"
        message = f"expected {expected}, found {found}" + (f"; {advice}" if advice else "")
        self.add(path, message, expected=expected, found=found)

    def unknown_key(self, path: KeyPath, keys: Iterable[str], elsewhere: Sequence[str]) -> None:
        """Note a key that its section does not have; ``elsewhere`` names sections that do."""
        valid = list(keys)
        key = str(path[-1])
        nearest = nearest_name(key, valid)
        expected = "one of " + ", ".join(valid)
        if nearest is not None:
            message = f"unknown key; did you mean `{nearest}`?"
        elif elsewhere:
            places = " or ".join(f"`{section}`" for section in elsewhere)
            message = f"unknown key here; it belongs under {places}"
        else:
            message = f"unknown key; expected {expected}"
        self.add(path, message, expected=expected, found=show(key), nearest=nearest)


def nearest_name(word: str, names: Iterable[str]) -> str | None:
    """The valid name that a misspelt one was probably meant to be, or None when none is close."""
    import difflib  # only mistakes pay for it

    valid = list(names)
    synonym = SYNONYMS.get(word.lower())
    if synonym in valid:
        return synonym
    folded = {name.lower(): name for name in valid}
    close = difflib.get_close_matches(word.lower()[:100], list(folded), n=1, cutoff=0.6)
    return folded[close[0]] if close else None


def spell_path(path: KeyPath) -> str:
    """A key path as people write it: ``("workers", 1, "port")`` is ``workers[1].port``."""
    spelled = ""
    for part in path:
        if isinstance(part, int):
            spelled += f"[{part}]"
            continue
        name = part if PLAIN_KEY.fullmatch(part) else show(part)
        spelled += f".{name}" if spelled else name
    return spelled


def show(value: object) -> str:
    """A value in a message: short, on one line, with nothing in it that moves a cursor."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    if isinstance(value, str):
        short = value if len(value) <= SHOWN_CHARS_MAX else value[: SHOWN_CHARS_MAX - 3] + "..."
        return ascii(short) if not short.isprintable() else repr(short)
    if isinstance(value, int) and abs(value) >= 10**SHOWN_CHARS_MAX:
        return f"a number of more than {SHOWN_CHARS_MAX} digits"
    if isinstance(value, (int, float)):
        return repr(value)
    return f"a value of type {type(value).__name__}"


def report(source: str, problems: Sequence[Problem]) -> str:
    """The text of a ConfigError: one line for one problem, else a heading and a line for each."""
    if len(problems) == 1:
        return str(problems[0])
    lines = [f"{source} has {len(problems)} mistakes:"]
    lines += [f"  {problem}" for problem in problems[:REPORT_LINES_MAX]]
    if len(problems) > REPORT_LINES_MAX:
        lines.append(f"  and {len(problems) - REPORT_LINES_MAX} more")
    return "\n".join(lines)
