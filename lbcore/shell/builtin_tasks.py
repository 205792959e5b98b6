"""The tasks that every worker has: sorting, sleeping, counting, and what measures lb itself.

Loaded by ``load_tasks``.  ``numbers_of`` and ``checksum_of`` are for clients, which can work out
what ``sort`` must answer.  Nothing here knows that it runs in a worker.
"""

from __future__ import annotations

import random
import sys
import time
import zlib
from array import array
from collections.abc import Iterable
from itertools import pairwise
from typing import Annotated, Any

from msgspec import Meta

from .tasks import task

#: bounds that keep a typing mistake from filling a worker's memory or holding it for days
Size = Annotated[int, Meta(ge=0, le=10_000_000)]
Limit = Annotated[int, Meta(ge=0, le=100_000_000)]
Seconds = Annotated[float, Meta(ge=0, le=86_400)]
Scale = Annotated[float, Meta(ge=0, le=86_400)]

SHORT_S = 1.0
LONG_S = 3.0


def numbers_of(size: int, seed: int) -> list[float]:
    """The numbers that ``sort(size=..., seed=...)`` sorts, in their first order, each in [0, 1)."""
    draw = random.Random(seed).random
    return [draw() for _ in range(size)]


def checksum_of(numbers: Iterable[float]) -> int:
    """CRC-32 of numbers as little-endian doubles; another order gives another value."""
    packed = array("d", numbers)
    if sys.byteorder == "big":
        packed.byteswap()
    return zlib.crc32(packed.tobytes())


@task(cost=0.003)
def sort(items: list[Any] | None = None, size: Size = 10_000, seed: int = 0) -> Any:
    """Sort the items, or `size` seeded random numbers.

    Given items come back sorted.  Of generated numbers comes back what proves the order:
    ``{"size", "seed", "first", "last", "checksum", "sorted"}``, where ``checksum`` is
    ``checksum_of`` the sorted numbers and ``sorted`` the outcome of comparing all neighbours.
    """
    if items is not None:
        return sorted(items)
    numbers = numbers_of(size, seed)
    numbers.sort()
    return {
        "size": len(numbers),
        "seed": seed,
        "first": numbers[0] if numbers else None,
        "last": numbers[-1] if numbers else None,
        "checksum": checksum_of(numbers),
        "sorted": all(left <= right for left, right in pairwise(numbers)),
    }


@task(aliases=("Short",), weight=1.0)
def short(scale: Scale = 1.0) -> float:
    """Sleep 1 s times scale, and return the seconds."""
    time.sleep(SHORT_S * scale)
    return SHORT_S * scale


@task(aliases=("Long",), weight=3.0)
def long(scale: Scale = 1.0) -> float:
    """Sleep 3 s times scale, and return the seconds."""
    time.sleep(LONG_S * scale)
    return LONG_S * scale


@task(cost=0.00001)
def noop() -> None:
    """Do nothing: what a request costs by itself."""


@task(cost=0.00001)
def echo(value: Any) -> Any:
    """Return the value."""
    return value


@task
def sleep(seconds: Seconds) -> float:
    """Sleep, without using the CPU, and return the seconds."""
    time.sleep(seconds)
    return seconds


@task
def spin(seconds: Seconds) -> float:
    """Burn that many seconds of CPU time, however long it takes, and return what was burnt."""
    clock = time.thread_time
    start = clock()
    end = start + seconds
    while (now := clock()) < end:
        pass
    return now - start


@task
def primes(limit: Limit) -> int:
    """Count the primes below the limit."""
    if limit <= 2:
        return 0
    # Odd numbers only: index i stands for 2i + 1, and index 0, the 1, for the prime 2.
    sieve = bytearray(b"\x01") * (limit // 2)
    for index in range(1, (int((limit - 1) ** 0.5) + 1) // 2 + 1):
        if index < len(sieve) and sieve[index]:
            step = 2 * index + 1
            first = 2 * index * (index + 1)
            sieve[first::step] = bytes(len(range(first, len(sieve), step)))
    return sieve.count(1)
