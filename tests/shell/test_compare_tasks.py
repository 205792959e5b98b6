"""The work of ``lb compare`` takes as long as the worker's plan says."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from lbcore.shell.compare_tasks import Failing, Span, WorkerPlan, _Machine


def machine(tmp_path: Path, *spans: Span, since_s: float = 0.0) -> _Machine:
    start = tmp_path / "start"
    start.write_text(repr(time.monotonic() - since_s))
    return _Machine(WorkerPlan(0, False, str(start), [], list(spans)))


def assert_takes(expected_s: float, found: _Machine, cpu: float, seconds: float) -> None:
    """Not less, and not more by what another machine might make of it."""
    began = time.monotonic()
    found.sleep(cpu, seconds)
    assert 0.98 * expected_s <= time.monotonic() - began < expected_s + 1.0


def test_a_slow_worker_takes_longer_as_far_as_it_computes(tmp_path: Path) -> None:
    assert_takes(0.1, machine(tmp_path, Span(0.0, speed=0.5)), 1.0, 0.05)
    # so slow that nobody would see the end of it, if it computed
    assert_takes(0.05, machine(tmp_path, Span(0.0, speed=0.001)), 0.0, 0.05)


def test_a_change_counts_from_its_moment(tmp_path: Path) -> None:
    changing = machine(tmp_path, Span(0.0), Span(0.05, speed=0.25))
    # of 75 ms of work 50 are done before it, unless the machine was late
    assert_takes(0.15, changing, 1.0, 0.075)


def test_what_is_stalled_goes_on_afterwards(tmp_path: Path) -> None:
    stalled = machine(tmp_path, Span(0.0, is_stalled=True), Span(0.1))
    assert_takes(0.115, stalled, 1.0, 0.02)


def test_one_that_fails_does_so_in_its_time_and_only_then(tmp_path: Path) -> None:
    spans = (Span(0.0), Span(1.0, fail_s=0.01), Span(2.0))
    with pytest.raises(Failing):
        machine(tmp_path, *spans, since_s=1.5).sleep(1.0, 0.5)
    machine(tmp_path, *spans, since_s=3.0).sleep(1.0, 0.01)


def test_a_sleep_pretends_to_compute(tmp_path: Path) -> None:
    found = machine(tmp_path, Span(0.0))
    for cpu in (1.0, 0.5, 0.0):
        before = found.clock()
        found.sleep(cpu, 0.05)
        assert found.clock() - before == pytest.approx(0.05 * cpu, abs=0.01)


def test_burning_takes_cpu_time(tmp_path: Path) -> None:
    found = machine(tmp_path, Span(0.0, speed=0.5))
    before = time.thread_time()
    found.spin(1.0, 0.01)
    assert time.thread_time() - before == pytest.approx(0.02, abs=0.015)
