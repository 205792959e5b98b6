"""What CPU reports say of the share of its cores that a worker can get."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lbcore.core.contention import (
    AVAILABILITY_MIN,
    CoreUse,
    availability_measured,
    availability_now,
    read_report,
)

GOOD: dict[str, Any] = {
    "at": 100.0,
    "wall_s": 0.25,
    "cpu_s": 0.1,
    "delay_s": 0.05,
    "cores": 2,
    "busy_s": 0.3,
    "rss_bytes": 1000,
}


def measured(**more: Any) -> float | None:
    figures: dict[str, Any] = {
        "wall_s": 1.0,
        "cpu_s": 0.5,
        "delay_s": 0.0,
        "cores": 1,
        "others_busy": 0.0,
        "own_demand": 0.5,
    }
    return availability_measured(**{**figures, **more})


def test_a_good_report_is_read() -> None:
    report = read_report(GOOD)
    assert report is not None
    assert (report.cpu, report.demand, report.busy) == pytest.approx((0.4, 0.6, 1.2))
    hidden = read_report({**GOOD, "delay_s": None, "rss_bytes": None})
    assert hidden is not None
    assert hidden.demand == hidden.cpu
    assert hidden.rss_bytes is None


@pytest.mark.parametrize("key", ["at", "wall_s", "cpu_s", "busy_s", "delay_s", "cores"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1, "1", [], 1e300, {}])
def test_a_report_with_one_impossible_figure_is_not_looked_at(key: str, value: object) -> None:
    if (key, value) == ("at", 1e300) or (key, value) == ("wall_s", 1e300):
        return  # possible in itself; that it lies in the future is for the fleet to see
    assert read_report({**GOOD, key: value}) is None


@pytest.mark.parametrize("key", ["at", "wall_s", "cpu_s", "busy_s", "cores"])
def test_a_report_without_a_figure_is_not_looked_at(key: str) -> None:
    assert read_report({name: value for name, value in GOOD.items() if name != key}) is None


@pytest.mark.parametrize("wall_s", [0.0, 1e-300, 1e-9, 0.049])
def test_too_short_an_interval_says_nothing(wall_s: float) -> None:
    assert read_report({**GOOD, "wall_s": wall_s, "cpu_s": 0.0, "busy_s": 0.0}) is None
    assert measured(wall_s=wall_s) is None


figure = st.one_of(
    st.floats(), st.integers(-10, 10**6), st.none(), st.booleans(), st.text(max_size=3)
)


@settings(deadline=None, max_examples=300)
@given(
    message=st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("at", "wall_s", "cpu_s", "delay_s", "cores", "busy_s"), figure)
    )
)
def test_whatever_is_reported_only_plain_figures_come_through(message: dict[str, Any]) -> None:
    report = read_report(message)
    if report is not None:
        for value in (report.at, report.cpu, report.demand, report.busy):
            assert 0.0 <= value < math.inf


def test_alone_on_its_core_a_worker_gets_all_of_it() -> None:
    assert measured(cpu_s=1.0, own_demand=1.0) == 1.0
    assert measured(cpu_s=0.3, own_demand=0.3) == 1.0
    assert measured(cpu_s=0.0, own_demand=0.0) == 1.0


def test_business_that_is_not_a_number_says_nothing() -> None:
    assert measured(delay_s=None, others_busy=math.nan) is None


def test_waiting_for_a_neighbour_shows() -> None:
    assert measured(cpu_s=0.5, delay_s=0.5, own_demand=1.0) == pytest.approx(0.5)
    assert measured(cpu_s=0.06, delay_s=2.0, own_demand=1.0) == AVAILABILITY_MIN


def test_waiting_for_our_own_other_workers_is_not_a_neighbours_fault() -> None:
    assert measured(cpu_s=0.5, delay_s=0.5, own_demand=2.0) == 1.0
    # two of ours and a neighbour on one core: each gets a third, half would be ours
    assert measured(cpu_s=0.33, delay_s=0.67, own_demand=2.0) == pytest.approx(0.66)


def test_of_an_idle_worker_the_business_of_its_cores_tells() -> None:
    assert measured(cpu_s=0.0, others_busy=1.0, own_demand=0.0) == pytest.approx(0.5)
    assert measured(cpu_s=0.0, others_busy=1.0, own_demand=0.0, cores=2) == 1.0
    assert measured(cpu_s=0.0, delay_s=None, others_busy=3.0, own_demand=0.0, cores=2) == 0.5


def test_where_waiting_is_hidden_the_business_of_the_cores_tells() -> None:
    assert measured(delay_s=None, others_busy=1.0) == pytest.approx(0.5)
    assert measured(delay_s=None, others_busy=0.0) == 1.0


def test_a_report_counts_in_full_then_fades() -> None:
    assert availability_now(0.4, 0.0) == 0.4
    assert availability_now(0.4, 0.5) == 0.4
    assert availability_now(0.4, 1.0) == pytest.approx(1 - 0.6 * math.exp(-1))
    assert availability_now(0.4, 2.1) == 1.0
    assert availability_now(0.4, math.inf) == 1.0
    assert availability_now(0.4, -5.0) == 0.4


def test_demand_adds_up_over_the_cores_that_workers_share() -> None:
    use = CoreUse()
    assert use.place(0, [0], 1.0, 0.5) == (1.0, 0.5)
    assert use.place(1, [0, 1], 1.0, 1.0) == (2.0, 1.5)
    assert use.place(2, [1], 0.0, 0.0) == (0.5, 0.5)


def test_a_worker_counts_once_with_what_it_said_last() -> None:
    use = CoreUse()
    use.place(0, range(4), 4.0, 4.0)
    use.place(1, [3], 0.25, 0.25)
    assert use.place(0, [3], 0.5, 0.5) == (0.75, 0.75)
    assert use.place(2, [0, 1, 2], 0.0, 0.0) == (0.0, 0.0)


def test_a_worker_that_is_gone_asks_for_nothing() -> None:
    use = CoreUse()
    use.place(0, [0], 1.0, 1.0)
    use.remove(0)
    use.remove(0)
    assert use.place(1, [0], 0.25, 0.25) == (0.25, 0.25)


@settings(deadline=None)
@given(
    reports=st.lists(
        st.tuples(
            st.integers(0, 3),
            st.lists(st.integers(0, 3), min_size=1, unique=True),
            st.floats(0, 4096),
        ),
        max_size=40,
    )
)
def test_no_history_of_reports_leaves_a_trace(
    reports: list[tuple[int, list[int], float]],
) -> None:
    use = CoreUse()
    for worker, cores, amount in reports:
        use.place(worker, cores, amount, amount / 2)
    for worker in range(4):
        use.remove(worker)
    assert use.place(0, range(4), 1.0, 0.5) == pytest.approx((1.0, 0.5), abs=1e-6)
