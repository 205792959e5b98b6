"""Rows of the store's file: checksums, ids as SQLite has them, statements for many rows at once."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cache
from typing import Any, Final
from zlib import crc32

#: rows that one statement writes: each statement costs a hand-over of the interpreter's lock
CHUNKS: Final = (1024, 512, 256, 128, 64, 32, 16, 8, 4, 2, 1)
#: rows that are written twice rather than in a statement of their own
PADDING_MAX: Final = 8

_AT: Final = struct.Struct("<d")


def crc_of(at: float, task: str) -> int:
    """Where the checksum of a request's row begins; its frame, with its id, comes behind."""
    return crc32(task.encode(), crc32(_AT.pack(at)))


def is_whole(request_id: object, at: object, task: object, frame: object, crc: object) -> bool:
    """Whether a row holds what was written; a damaged one may have values of any type."""
    if not isinstance(at, float) or not isinstance(task, str) or not isinstance(frame, bytes):
        return False
    return crc == crc32(frame, crc_of(at, task)) and id_of(frame) == request_id


def id_of(frame: bytes) -> int:
    """The id in a frame's header."""
    return int.from_bytes(frame[8:16], "little")


def chunks(values: list[Any], width: int) -> Iterator[tuple[int, list[Any]]]:
    """``values``, rows of ``width`` each, as (rows, values) of parts that have a statement.

    The last row may come again, which changes nothing: so there are few parts.
    """
    begin, count = 0, len(values) // width
    for size in CHUNKS:
        while begin < count:
            missing = size - (count - begin)
            if missing > 0 and (missing > PADDING_MAX or 2 * missing > size):
                break
            part = values[begin * width : (begin + size) * width]
            yield size, part + values[-width:] * max(0, missing)
            begin += size


@cache
def insertion(table: str, width: int, count: int) -> str:
    """The statement that writes so many rows of so many values."""
    row = f"({', '.join('?' * width)})"
    # what is written twice, after a failure, is the same
    return f"INSERT OR REPLACE INTO {table} VALUES {', '.join([row] * count)}"


@cache
def deletion(table: str, count: int) -> str:
    """The statement that deletes so many rows."""
    return f"DELETE FROM {table} WHERE id IN ({', '.join('?' * count)})"
