"""Quantiles of very many durations in bounded memory: exact first, then a fixed histogram.

Up to ``exact_max`` values are kept as they are.  Beyond that they are counted in buckets whose
width is at most 1/128 of their values, so a quantile is then off by less than 1 %.  A bucket is the
upper half of the value as a 32-bit float: sign, exponent and 7 bits of mantissa; so a batch becomes
buckets without a step of Python per value.

Taking values costs next to nothing; the figures are worked out when they are asked for.  Pure;
called by ``lb send`` and the benchmarks.
"""

from __future__ import annotations

import math
import struct
import sys
from array import array
from collections import Counter
from collections.abc import Iterable
from typing import Final

#: kept exactly: 8 MB of doubles
EXACT_MAX: Final = 1_000_000
#: once there is a histogram, this many values wait before they are counted into it together
_BATCH: Final = 1 << 16
#: where the upper half of a 32-bit float is, counted in 16-bit words
_UPPER_HALF: Final = 1 if sys.byteorder == "little" else 0
_SIGN: Final = 0x8000
_BITS = struct.Struct("=I")
_FLOAT = struct.Struct("=f")


class Quantiles:
    """Count, mean, maximum and quantiles of values that are finite and not negative.

    A negative value counts as 0 in a histogram; one that is not finite makes the figures useless.
    Neither raises: the values come from measurements of others.
    """

    __slots__ = ("_buckets", "_counted", "_exact_max", "_maximum", "_minimum", "_recent", "_total")

    def __init__(self, exact_max: int = EXACT_MAX) -> None:
        self._exact_max = exact_max
        #: values not in the histogram; all of them as long as there is none
        self._recent: array[float] = array("d")
        #: the histogram: bucket -> how many values
        self._buckets: Counter[int] = Counter()
        #: how many values are in the histogram, and their sum, smallest and largest
        self._counted = 0
        self._total = 0.0
        self._minimum = math.inf
        self._maximum = 0.0

    def __len__(self) -> int:
        return self._counted + len(self._recent)

    @property
    def is_exact(self) -> bool:
        """Whether every value is still kept."""
        return not self._counted

    @property
    def mean(self) -> float | None:
        """The arithmetic mean; None without values."""
        return (self._total + sum(self._recent)) / len(self) if len(self) else None

    @property
    def maximum(self) -> float | None:
        """The largest value, always exact; None without values."""
        return max(self._maximum, max(self._recent, default=0.0)) if len(self) else None

    def extend(self, values: Iterable[float]) -> None:
        """Take a batch; an ``array("d")`` is the fastest."""
        self._recent.extend(values)
        if len(self._recent) > (_BATCH if self._counted else self._exact_max):
            self._count()

    def quantiles(self, *fractions: float) -> list[float | None]:
        """The smallest value that at least ``fraction`` of all values do not exceed, for each.

        All None without values.  Raises ``ValueError`` for a fraction outside 0 to 1.
        """
        if not all(0.0 <= fraction <= 1.0 for fraction in fractions):
            raise ValueError("a fraction is between 0 and 1")
        if not len(self):
            return [None] * len(fractions)
        ranks = [max(1, math.ceil(fraction * len(self))) for fraction in fractions]
        if self.is_exact:
            ordered = sorted(self._recent)
            return [ordered[rank - 1] for rank in ranks]
        self._count()
        return [self._value_at(rank) for rank in ranks]

    def _count(self) -> None:
        """Move the recent values into the histogram."""
        recent, self._recent = self._recent, array("d")
        for start in range(0, len(recent), _BATCH):
            # one list of floats for everything: an array would make every float anew each time
            numbers = recent[start : start + _BATCH].tolist()
            self._total += sum(numbers)
            self._minimum = min(self._minimum, min(numbers))
            self._maximum = max(self._maximum, max(numbers))
            self._buckets.update(_buckets_of(numbers))
        for bucket in [bucket for bucket in self._buckets if bucket & _SIGN]:
            self._buckets[0] += self._buckets.pop(bucket)
        self._counted += len(recent)

    def _value_at(self, rank: int) -> float:
        """The middle of the bucket that holds the value of this rank, within what was seen."""
        seen = 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= rank:
                upper = _lower_bound(bucket + 1)
                if not math.isfinite(upper):
                    return self._maximum
                middle = (_lower_bound(bucket) + upper) / 2
                return min(max(middle, self._minimum), self._maximum)
        raise AssertionError("the buckets hold fewer values than were counted")


def _buckets_of(values: list[float]) -> list[int]:
    """The bucket of each value; buckets have the order of their values, which are not negative."""
    halves = memoryview(array("f", values)).cast("B").cast("H")
    return halves[_UPPER_HALF::2].tolist()


def _lower_bound(bucket: int) -> float:
    value: float = _FLOAT.unpack(_BITS.pack(bucket << 16))[0]
    return value
