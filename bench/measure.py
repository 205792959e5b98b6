"""Arithmetic of measuring: medians, ratios pair by pair, and how many requests make one round.

Pure: whoever calls hands in the numbers, or the function that takes the time.  Called by the rows,
by the report and, inside each agent, for calibration.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

Handle = TypeVar("Handle")

#: no round of a no-op row sends more than this, however fast the machine
COUNT_MAX = 4_000_000


@dataclass(frozen=True, slots=True)
class Spread:
    """Smallest, middle and largest of some figures."""

    minimum: float
    median: float
    maximum: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """The spread of ``values``; None when there are none."""
        if not values:
            return None
        return cls(min(values), statistics.median(values), max(values))

    def to_json(self) -> dict[str, float]:
        """The three figures by name."""
        return {"min": self.minimum, "median": self.median, "max": self.maximum}


@dataclass(frozen=True, slots=True)
class Pair:
    """One alternation: lb's figure and, directly after it, the peer's; None where not measured."""

    lb: float | None
    peer: float | None

    @property
    def ratio(self) -> float | None:
        """``lb / peer``, or None when either is missing or the peer's figure is zero."""
        if self.lb is None or not self.peer:
            return None
        return self.lb / self.peer


def pair_ratios(pairs: Sequence[Pair]) -> list[float]:
    """The ratio of each complete pair, in the order measured."""
    return [ratio for pair in pairs if (ratio := pair.ratio) is not None]


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which ``share`` (0..1) of ``ordered`` lies, by nearest rank.

    Raises ``ValueError`` when ``ordered`` is empty.
    """
    if not ordered:
        raise ValueError("no values to take a percentile of")
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def summarize_latencies(latencies_s: Sequence[float]) -> dict[str, float]:
    """Mean and percentiles, in microseconds, of latencies in seconds."""
    ordered = sorted(latencies_s)
    return {
        "mean_us": statistics.fmean(ordered) * 1e6,
        "p50_us": percentile(ordered, 0.5) * 1e6,
        "p90_us": percentile(ordered, 0.9) * 1e6,
        "p99_us": percentile(ordered, 0.99) * 1e6,
    }


def calibrate(
    run: Callable[[int], float], *, target_s: float, start: int, maximum: int = COUNT_MAX
) -> int:
    """How many requests ``run`` does in about ``target_s`` seconds; at least ``start``.

    ``run(count)`` returns the seconds it took.  It is called with growing counts until one takes
    long enough to tell a rate from; these calls are also the warm-up.
    """
    count = start
    while True:
        seconds = max(run(count), 1e-9)
        if seconds >= target_s / 4 or count >= maximum:
            return max(start, min(maximum, round(count / seconds * target_s)))
        count = min(maximum, max(count * 2, round(count / seconds * target_s / 3)))


def drive(
    submit: Callable[[], Handle], wait: Callable[[Handle], object], count: int, window: int
) -> float:
    """Seconds for ``count`` submissions with at most ``window`` of them unanswered.

    The same loop for every pool of futures, so that what differs is the pool and not the loop.
    """
    pending: deque[Handle] = deque()
    started = time.perf_counter()
    for _ in range(min(count, window)):
        pending.append(submit())
    for _ in range(count - window):
        wait(pending.popleft())
        pending.append(submit())
    while pending:
        wait(pending.popleft())
    return time.perf_counter() - started


def time_each(call: Callable[[], object], count: int) -> list[float]:
    """The seconds that each of ``count`` calls took, one after the other."""
    clock = time.perf_counter
    latencies_s = []
    for _ in range(count):
        started = clock()
        call()
        latencies_s.append(clock() - started)
    return latencies_s
