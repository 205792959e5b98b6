"""The CPU column of ``send``: of this run, or empty."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lbcore.cli.connection import Target
from lbcore.cli.run_cpu import RunCpu
from lbcore.core.topology import Address
from lbcore.shell.config_file import load
from tests.cli.fake_broker import status_facts, worker_facts

ELSEWHERE = Target(address=Address(port=8000))
#: burns 0.2 s of CPU, then says so and waits
BURN = """
import sys, time
while time.process_time() < 0.2:
    pass
print("burnt", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def burner() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", BURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    """A topology whose supervisor lives on this machine."""
    config = tmp_path / "config.yaml"
    config.write_text("name: there\n")
    monkeypatch.setattr("lbcore.shell.state.read_state", lambda topology: object())
    return Target(config=str(config), topology=load(config, (), {}))


def facts_of(**worker: Any) -> dict[str, Any]:
    return status_facts(worker_facts("worker-1", **worker))


def test_the_processes_of_a_system_that_runs_here_are_measured(
    here: Target, burner: subprocess.Popen[str]
) -> None:
    cpu = RunCpu(here, facts_of(pid=burner.pid))
    started = time.monotonic()
    assert burner.stdout is not None
    assert burner.stdout.readline() == "burnt\n"
    share = cpu.shares(facts_of(pid=burner.pid))["worker-1"]
    took_s = time.monotonic() - started
    assert share is not None
    # what it burnt before the measurement began is not in it; what it burnt meanwhile is
    assert 0.0 < share <= 1.1
    assert share * took_s <= 0.4


def test_a_worker_that_was_restarted_or_is_gone_has_no_figure(
    here: Target, burner: subprocess.Popen[str]
) -> None:
    cpu = RunCpu(here, facts_of(pid=burner.pid))
    assert cpu.shares(facts_of(pid=burner.pid + 1)) == {"worker-1": None}
    cpu = RunCpu(here, facts_of(pid=burner.pid))
    burner.kill()
    burner.wait()
    assert cpu.shares({}) == {"worker-1": None}
    assert RunCpu(here, facts_of(pid=burner.pid)).shares({}) == {}


def test_pids_of_a_broker_known_by_its_address_are_not_touched(
    monkeypatch: pytest.MonkeyPatch, burner: subprocess.Popen[str]
) -> None:
    clock = iter([100.0, 102.5])
    monkeypatch.setattr("lbcore.cli.run_cpu.time.monotonic", lambda: next(clock))
    cpu = RunCpu(ELSEWHERE, facts_of(pid=burner.pid))
    assert cpu.shares(facts_of(cpu=0.75, cpu_age_s=0.3)) == {"worker-1": 0.75}


@pytest.mark.parametrize(
    ("took_s", "cpu_age_s"), [(0.5, 0.1), (5.0, 3.0), (5.0, None)], ids=["short", "old", "never"]
)
def test_a_report_that_does_not_cover_the_run_is_not_shown(
    took_s: float, cpu_age_s: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([100.0, 100.0 + took_s])
    monkeypatch.setattr("lbcore.cli.run_cpu.time.monotonic", lambda: next(clock))
    cpu = RunCpu(ELSEWHERE, facts_of())
    assert cpu.shares(facts_of(cpu=0.75, cpu_age_s=cpu_age_s)) == {"worker-1": None}


def test_without_a_last_answer_nothing_is_known() -> None:
    assert RunCpu(ELSEWHERE, facts_of()).shares({}) == {}
