"""``down``: what it stops, what it says, how far it goes."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from lbcore.cli.down import Stranger
from tests.cli.test_up import lb
from tests.shell.systems import System, wait_until


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    """A system of two workers that is not started yet."""
    system = System(tmp_path)
    yield system
    system.clean_up()


def test_down_stops_a_system_and_says_so(system: System) -> None:
    system.start("-d")
    assert system.finish()[0] == 0
    state = system.state()
    assert state is not None
    done = lb(system, "down")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(
        rf"test stopped in \d+\.\d\d s \(supervisor pid {state.pid}\)\n", done.stdout
    )
    assert not system.survivors(), "when it returns, nothing is left"
    assert not (system.folder / ".lb").exists()


def test_down_of_nothing_is_no_error(system: System) -> None:
    done = lb(system, "down")
    assert (done.returncode, done.stdout) == (0, "test is not running\n")
    assert not (system.folder / ".lb").exists()


def test_down_after_a_kill_tidies_up(system: System) -> None:
    system.started()
    system.signal(signal.SIGKILL)
    system.finish()
    done = lb(system, "down")
    assert done.returncode == 0
    assert "not running; what a killed supervisor left was removed" in done.stdout
    assert not (system.folder / ".lb").exists()


@pytest.mark.parametrize("limit", ["0", "0.3"])
def test_down_with_a_limit_does_not_wait_for_requests(system: System, limit: str) -> None:
    (system.folder / "no-drain").touch()
    system.started(timing={"drain_s": 1000.0})
    done = lb(system, "down", "-t", limit)
    assert done.returncode == 0
    assert f"stopped at once, after {limit} s: requests may have been lost" in done.stdout
    # which of two signals that wait together is seen first is the kernel's choice
    assert system.finish()[0] in (128 + signal.SIGTERM, 128 + signal.SIGQUIT)
    assert not system.survivors()


def test_a_supervisor_that_hangs_is_killed(system: System) -> None:
    state = system.started()
    system.signal(signal.SIGSTOP)
    wait_until(lambda: psutil.Process(state.pid).status() == "stopped", "the standstill")
    done = lb(system, "down", "-t", "0")
    assert "was killed" in done.stdout
    assert system.finish()[0] == -signal.SIGKILL
    wait_until(lambda: not system.survivors(), "the end of all")


def test_a_pid_that_is_somebody_elses_now_is_left_alone() -> None:
    with Stranger(os.getpid(), lambda: False) as stranger:
        assert not stranger.is_there
        stranger.signal(signal.SIGKILL)
        assert stranger.wait(0)
    with Stranger(os.getpid(), lambda: True) as me:
        assert me.is_there
        assert not me.wait(0.01)


def test_a_pid_that_is_nobodys_is_gone() -> None:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(pid, 0)
    with Stranger(pid, lambda: True) as stranger:
        assert not stranger.is_there
