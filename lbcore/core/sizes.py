"""Requests of one task by size: what tells a sort of ten numbers from one of ten million.

A task may declare which of its arguments says how much there is to do.  Its requests are then told
apart by the magnitude of that argument, in steps of a half octave, and each step has a cost of its
own.  What a request is counted as is its *kind*: the task's number, and above that the size class.

Only for such tasks the broker looks into a body, and takes nothing from it but this one figure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from .costs import TaskCost
from .frames import HEADER_BYTES, task_of

TASK_BITS: Final = 16
TASK_MASK: Final = (1 << TASK_BITS) - 1
#: class 0 stands for requests whose size nobody knows
SIZE_CLASSES: Final = 64
#: classes for each doubling of the size
CLASSES_PER_OCTAVE: Final = 2.0
#: larger bodies are not decoded: their length has to do
DECODED_BYTES_MAX: Final = 1 << 12

_decode = msgspec.msgpack.Decoder().decode


def size_class(size: float) -> int:
    """The class of a size: 1 for 0, one more for each half octave, at most 63."""
    return min(SIZE_CLASSES - 1, 1 + round(CLASSES_PER_OCTAVE * math.log2(1.0 + size)))


def size_of(body: bytes, name: str, place: int) -> float | None:
    """What the argument ``name``, at ``place`` of the positional ones, says in a request's body.

    A number counts as itself, anything with a length as that.  None where it is left out, or is
    neither, or where the body makes no sense: that is for the worker to say.
    """
    if len(body) > DECODED_BYTES_MAX:
        return float(len(body))
    try:
        arguments = _decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    positional: Any = ()
    if isinstance(arguments, list) and len(arguments) == 2:
        positional, arguments = arguments
    value: Any = None
    if isinstance(arguments, dict) and name in arguments:
        value = arguments[name]
    elif isinstance(positional, list) and 0 <= place < len(positional):
        value = positional[place]
    if isinstance(value, list | dict | str | bytes):
        return float(len(value))
    if isinstance(value, int | float) and not isinstance(value, bool):
        size = abs(float(value)) if abs(value) < 1e300 else math.inf
        return size if math.isfinite(size) else None
    return None


class SizedTasks:
    """The tasks that declare a size, by number: the argument's name and place."""

    __slots__ = ("arguments",)

    def __init__(self) -> None:
        self.arguments: dict[int, tuple[str, int]] = {}

    def note(self, number: int, spec: Mapping[str, Any]) -> None:
        """Take in what a worker says of a task."""
        size = spec.get("size")
        self.arguments.pop(number, None)
        if isinstance(size, Mapping):
            name, place = size.get("name"), size.get("place")
            if isinstance(name, str) and isinstance(place, int):
                self.arguments[number] = name, place

    def kinds(self, number: int) -> list[int]:
        """Everything that a request of that task may be counted as."""
        if number not in self.arguments:
            return [number]
        return [number | each << TASK_BITS for each in range(SIZE_CLASSES)]

    def kind(self, frame: bytes) -> int:
        """What a request is counted as."""
        task = task_of(frame)
        argument = self.arguments.get(task)
        if argument is None or len(frame) == HEADER_BYTES:
            return task
        size = size_of(frame[HEADER_BYTES:], *argument)
        return task if size is None else task | size_class(size) << TASK_BITS


class CostTable(dict[int, TaskCost]):
    """The cost of each kind of request; that of a size that was never seen is made when asked."""

    def __missing__(self, kind: int) -> TaskCost:
        """Guessed from the nearest size that is known, as if the cost went with the size."""
        base = self.get(kind & TASK_MASK)
        if base is None or kind <= TASK_MASK:
            raise KeyError(kind)
        cost = TaskCost(base.declared_s)
        known = [
            (abs(other - kind) >> TASK_BITS, other)
            for other, found in self.items()
            if other > TASK_MASK and (other ^ kind) & TASK_MASK == 0 and found.count
        ]
        if known:
            _, nearest = min(known)
            octaves = ((kind >> TASK_BITS) - (nearest >> TASK_BITS)) / CLASSES_PER_OCTAVE
            cost.guess(self[nearest], 2.0**octaves)
        elif base.count:
            cost.guess(base, 1.0)
        self[kind] = cost
        return cost
