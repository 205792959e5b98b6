"""Quantiles: exact while few, within one per cent when many, never unbounded."""

from __future__ import annotations

import math
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbcore.core.quantiles import EXACT_MAX, Quantiles

durations = st.floats(min_value=0.0, max_value=1e9, allow_subnormal=False)
normal_durations = st.one_of(st.just(0.0), st.floats(min_value=1e-12, max_value=1e9))
fractions = st.floats(min_value=0.0, max_value=1.0)


def nearest_rank(values: list[float], fraction: float) -> float:
    """The definition, written plainly."""
    ordered = sorted(values)
    return ordered[max(1, math.ceil(fraction * len(values))) - 1]


def filled(values: list[float], exact_max: int = EXACT_MAX) -> Quantiles:
    quantiles = Quantiles(exact_max)
    quantiles.extend(values)
    return quantiles


def test_nothing_is_known_without_values() -> None:
    quantiles = Quantiles()
    assert len(quantiles) == 0
    assert quantiles.mean is None
    assert quantiles.maximum is None
    assert quantiles.quantiles(0.5, 0.99) == [None, None]


def test_percentiles_of_one_to_a_hundred() -> None:
    quantiles = filled([float(value) for value in range(1, 101)])
    assert quantiles.quantiles(0.0, 0.5, 0.9, 0.99, 1.0) == [1.0, 50.0, 90.0, 99.0, 100.0]
    assert quantiles.mean == 50.5
    assert quantiles.maximum == 100.0


@given(st.lists(durations, min_size=1, max_size=50), fractions)
def test_few_values_give_the_exact_quantile(values: list[float], fraction: float) -> None:
    quantiles = filled(values)
    assert quantiles.is_exact
    assert quantiles.quantiles(fraction) == [nearest_rank(values, fraction)]


@given(st.lists(normal_durations, min_size=4, max_size=200), fractions)
def test_many_values_give_a_quantile_within_one_per_cent(
    values: list[float], fraction: float
) -> None:
    quantiles = filled(values, exact_max=3)
    assert not quantiles.is_exact
    (found,) = quantiles.quantiles(fraction)
    assert found == pytest.approx(nearest_rank(values, fraction), rel=0.01)
    assert quantiles.maximum == max(values)
    assert quantiles.mean == pytest.approx(math.fsum(values) / len(values))


@given(st.lists(normal_durations, min_size=1, max_size=100))
def test_quantiles_never_decrease_and_stay_within_what_was_seen(values: list[float]) -> None:
    quantiles = filled(values, exact_max=10)
    found = quantiles.quantiles(0.0, 0.25, 0.5, 0.75, 1.0)
    assert found == sorted(found, key=lambda value: value or 0.0)
    assert all(value is not None and min(values) <= value <= max(values) for value in found)


@given(st.lists(st.lists(normal_durations, max_size=20), max_size=10), st.integers(1, 30))
def test_batches_count_as_one_sequence(batches: list[list[float]], exact_max: int) -> None:
    in_parts, at_once = Quantiles(exact_max), Quantiles(exact_max)
    for batch in batches:
        in_parts.extend(batch)
    at_once.extend([value for batch in batches for value in batch])
    assert len(in_parts) == len(at_once)
    assert in_parts.quantiles(0.1, 0.5, 0.9) == at_once.quantiles(0.1, 0.5, 0.9)


@pytest.mark.parametrize("exact_max", [1, 100])
@pytest.mark.parametrize("odd", [-0.0, -1.0, math.nan, math.inf, -math.inf, 1e300])
def test_a_value_that_is_no_duration_raises_nothing(odd: float, exact_max: int) -> None:
    quantiles = filled([1.0, odd, 2.0], exact_max)
    assert len(quantiles) == 3
    assert len(quantiles.quantiles(0.0, 0.5, 1.0)) == 3
    assert quantiles.mean is not None
    assert quantiles.maximum is not None


def test_a_negative_value_counts_as_nought() -> None:
    quantiles = filled([-0.0, -5.0, 1.0, 2.0], exact_max=1)
    assert quantiles.quantiles(0.5, 1.0) == pytest.approx([0.0, 2.0], abs=1e-30)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, math.nan])
def test_a_fraction_is_between_nought_and_one(fraction: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        filled([1.0]).quantiles(fraction)


def test_memory_does_not_grow_with_the_number_of_values() -> None:
    quantiles = Quantiles(exact_max=1000)
    for start in range(0, 200_000, 10_000):
        quantiles.extend(array("d", (1e-6 * (value + 1) for value in range(start, start + 10_000))))
    assert len(quantiles) == 200_000
    # 1 microsecond to 0.2 s are 18 powers of two
    assert len(quantiles._buckets) <= 19 * 128
    (median,) = quantiles.quantiles(0.5)
    assert median == pytest.approx(0.1, rel=0.01)
