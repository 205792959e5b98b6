"""Whether a task did what it promises: for the built-in tasks whose result can be checked.

A check must cost next to nothing beside the request: it looks at fields, and a result that equals
the last right one is not even decoded.  Called by send and demo.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from .connection import Reply
from .tally import Check

#: up to this size the checksum is worked out here, before the clock starts; above it the first
#: result is the reference for all others
_SIZE_RECOMPUTED_MAX: Final = 20_000
_SORT_SIZE_DEFAULT: Final = 10_000

_decode = msgspec.msgpack.Decoder().decode


class SortCheck:
    """Checks the results of ``sort``, all requested with the same arguments."""

    __slots__ = ("_checksum", "_expected_items", "_right_body", "_seed", "_size")

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self._size = arguments.get("size", _SORT_SIZE_DEFAULT)
        self._seed = arguments.get("seed", 0)
        self._expected_items = _sorted_or_none(arguments.get("items"))
        #: CRC of the sorted numbers; None until known
        self._checksum: int | None = None
        self._right_body: bytes | None = None
        if arguments.get("items") is None and self._is_small():
            from lbcore.shell.builtin_tasks import checksum_of, numbers_of

            self._checksum = checksum_of(sorted(numbers_of(self._size, self._seed)))

    def __call__(self, reply: Reply) -> str | None:
        """What is wrong with the result; None when nothing is."""
        body = reply.body
        if body == self._right_body:
            return None
        try:
            value = _decode(body)
        except (msgspec.DecodeError, RecursionError) as error:
            return f"the result cannot be decoded: {error}"
        wrong = self._compare(value)
        if wrong is None:
            self._right_body = bytes(body)
        return wrong

    def _compare(self, value: Any) -> str | None:
        if self._expected_items is not None:
            if value != self._expected_items:
                return "what came back is not the given items in order"
            return None
        if not isinstance(value, dict):
            return f"the result is a {type(value).__name__}"
        if value.get("sorted") is not True:
            return "the numbers are not sorted"
        if value.get("size") != self._size:
            return f"{value.get('size')!r:.40} numbers came back, not {self._size}"
        checksum = value.get("checksum")
        if not isinstance(checksum, int):
            return "there is no checksum"
        if self._checksum is None:
            self._checksum = checksum
        if checksum != self._checksum:
            return f"the checksum is {checksum}, not {self._checksum}: other numbers were sorted"
        return None

    def _is_small(self) -> bool:
        whole = isinstance(self._size, int) and isinstance(self._seed, int)
        return whole and 0 <= self._size <= _SIZE_RECOMPUTED_MAX


def _sorted_or_none(items: Any) -> list[Any] | None:
    """What ``sort(items)`` must answer; None when that is an error, or nothing was given."""
    try:
        return sorted(items) if isinstance(items, list) else None
    except TypeError:
        return None


#: task -> makes the check for the arguments with which all its requests are sent
CHECKS: Final[Mapping[str, Callable[[Mapping[str, Any]], Check]]] = {"sort": SortCheck}
