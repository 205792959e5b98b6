"""The judge of ``bench/chaos``: a run that loses or repeats something must not pass."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from bench.chaos.command import Verdict, _check_once, report
from bench.chaos.load import Books, _judge
from bench.chaos.system import ChaosSystem
from lbcore.core.errors import BrokerUnavailable, TaskError, WorkerLost


@pytest.fixture
def chaos(tmp_path: Path) -> ChaosSystem:
    """A system that is never started."""
    return ChaosSystem(tmp_path, workers=1)


def test_a_start_too_many_is_found(chaos: ChaosSystem) -> None:
    verdict = Verdict(seed="x", seconds=1.0)
    (chaos.folder / "once-1.txt").write_text("1-0\n1-1\n1-0\n")
    (chaos.folder / "once-1.answered").write_text("1-0\n1-2\n")
    _check_once(chaos, verdict)
    assert verdict.violations == ["started 2 times: 1-0", "answered and never started: 1-2"]
    assert report(verdict)["violations"] == verdict.violations


def test_starts_that_are_in_order_are_only_counted(chaos: ChaosSystem) -> None:
    verdict = Verdict(seed="x", seconds=1.0)
    (chaos.folder / "once-1.txt").write_text("1-0\n1-1\n")
    (chaos.folder / "once-1.answered").write_text("1-0\n")
    _check_once(chaos, verdict)
    assert not verdict.violations
    assert verdict.answers["starts of what must not run twice"] == 2


def test_a_wrong_value_and_an_unexplained_error_are_found(tmp_path: Path) -> None:
    books = Books(tmp_path, 1)
    _judge(books, "submit", 7, None, lambda: 7)
    _judge(books, "submit", 7, TaskError("no", type="ValueError"), int)
    assert len(books.violations) == 2
    _judge(books, "submit", 7, WorkerLost("killed three times"), int)
    assert books.counts["submit, WorkerLost"] == 1
    assert len(books.violations) == 2


def test_a_lost_connection_is_excused_by_the_end_of_all_and_nothing_else(
    chaos: ChaosSystem,
) -> None:
    books = Books(chaos.folder, 1)
    began = time.monotonic()
    chaos.note("kill", name="broker", pid=1)
    assert not books.lost_all(began, BrokerUnavailable("gone"))
    assert len(books.violations) == 1
    chaos.note("kill", name="supervisor", pid=1)
    assert books.lost_all(began, BrokerUnavailable("gone"))
    assert len(books.violations) == 1
    # one that was long before explains nothing
    lines = [json.loads(line) for line in chaos.events.read_text().splitlines()]
    assert not Books(chaos.folder, 2).lost_all(lines[-1]["at"] + 5.0, BrokerUnavailable("gone"))
