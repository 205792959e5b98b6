"""The tasks that the workers of a system can run, and their numbers on the wire."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from .errors import ProtocolError
from .sizes import TASK_MASK, SizedTasks

#: task numbers are 16 bits in a header
TASKS_MAX: Final = 1 << 16


class TaskTable:
    """Task numbers by name; a number once given out keeps its meaning while the broker lives."""

    def __init__(self) -> None:
        #: what a worker said of each task (``Task.describe``), by number; aliases share the entry
        self.specs: list[dict[str, Any]] = []
        #: name or alias -> number
        self.numbers: dict[str, int] = {}
        #: those whose requests are told apart by size
        self.sized = SizedTasks()
        #: changes with every task that is new or described anew
        self.version = 0

    def declared_s(self, number: int) -> float:
        """The cost a task declares, in seconds: ``cost``, or else its ``weight``."""
        spec = self.specs[number]
        for key in ("cost", "weight"):
            value = spec.get(key)
            if isinstance(value, int | float) and math.isfinite(value) and value > 0:
                return float(value)
        return 1.0

    def idempotent(self, number: int) -> bool:
        """Whether the task may be run again after a worker died under it."""
        return bool(self.specs[number & TASK_MASK].get("idempotent", True))

    def max_attempts(self, number: int, default: int) -> int:
        """How many workers may die under one request of that task."""
        value = self.specs[number & TASK_MASK].get("max_attempts")
        return value if isinstance(value, int) and value > 0 else default

    def name(self, number: int) -> str:
        """The name of a task number, or of a kind, for people."""
        number &= TASK_MASK
        return str(self.specs[number]["name"]) if number < len(self.specs) else f"task {number}"

    def merge(self, specs: Sequence[Mapping[str, Any]]) -> frozenset[int]:
        """Take in what a worker can run; returns the numbers, and the kinds of those with sizes.

        A newer description of a known task replaces the older one.  Raises ``ProtocolError`` when a
        description has no name, or when there are too many tasks.
        """
        new = set()
        for spec in specs:
            name, aliases = spec.get("name"), spec.get("aliases", ())
            if not isinstance(name, str) or not name:
                raise ProtocolError("a worker described a task without a name")
            if not isinstance(aliases, list | tuple):
                raise ProtocolError(f"the aliases of task {name!r:.100} are not a list")
            new.add(name)
        # nothing is taken in unless all of it can be
        if len(self.specs) + len(new - self.numbers.keys()) > TASKS_MAX:
            raise ProtocolError(f"more than {TASKS_MAX} tasks")
        numbers = set()
        for spec in specs:
            name = str(spec["name"])
            number = self.numbers.get(name)
            if number is None:
                number = len(self.specs)
                self.specs.append(dict(spec))
                self.version += 1
            elif self.specs[number] != spec:
                self.specs[number] = dict(spec)
                self.version += 1
            for known in (name, *spec.get("aliases", ())):
                self.numbers.setdefault(str(known), number)
            self.sized.note(number, spec)
            numbers.update(self.sized.kinds(number))
        return frozenset(numbers)

    def wire(self) -> dict[str, int]:
        """Name or alias -> number: the body of a TASKS frame."""
        return dict(self.numbers)
