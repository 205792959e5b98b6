"""What a forked child finds itself to be."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from lbcore.shell.child import THREAD_VARIABLES
from tests.shell.systems import System


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    """A system of one worker whose settings come with the test."""
    system = System(tmp_path, workers=1)
    yield system
    system.clean_up()


def test_a_child_is_a_process_of_its_own(system: System) -> None:
    cpu = min(os.sched_getaffinity(0))
    settings = f"cpus: [{cpu}], nice: 3, env: {{OMP_NUM_THREADS: 2, LB_PROC_NAME: mine, OWN: yes}}"
    system.config.write_text(
        f"name: test\nbroker: {{port: 0}}\nworkers:\n  - {{name: worker-1, {settings}}}\n"
    )
    system.set_ways(worker_1="facts", broker="facts")
    system.started()

    worker = system.fact("facts-worker-1")
    assert worker["is_leader"], "own session and group: the terminal's signals do not reach it"
    assert worker["interrupt_ignored"]
    assert worker["terminate_default"]
    assert worker["blocked"] == 0
    assert (worker["cpus"], worker["nice"]) == ([cpu], 3)
    assert worker["threads"] == 1
    assert worker["comm"] == "lb-worker-1"
    assert worker["env"]["PYTHONUNBUFFERED"] == "1"
    assert worker["env"]["OPENBLAS_NUM_THREADS"] == "1"
    assert worker["env"]["OMP_NUM_THREADS"] == "2", "the YAML wins"
    assert worker["env"]["LB_PROC_NAME"] == "mine"

    broker = system.fact("facts-broker")
    assert broker["env"]["LB_PROC_NAME"] == "broker"
    assert all(broker["env"][name] == "1" for name in THREAD_VARIABLES)
    assert broker["nice"] == 0


def test_a_child_holds_nothing_of_the_supervisors(system: System) -> None:
    system.set_ways(worker_1="facts")
    state = system.started()
    # the second process is forked by a supervisor that holds much more
    (system.folder / "facts-worker-1").unlink()
    assert state.workers[0].pid is not None
    os.kill(state.workers[0].pid, signal.SIGKILL)
    found = system.fact("facts-worker-1")
    links = found["links"]
    assert links.pop("0") == os.devnull
    assert links.pop("1") == links.pop("2")
    rest = set(links) - {str(number) for number in found["mine"]}
    # what multiprocessing keeps to know of its parent, and the fd that listed them
    assert len([name for name in rest if links[name].startswith("pipe:")]) <= 1
    assert [links[name] for name in rest if not links[name].startswith(("pipe:", "/proc/"))] == []


def start_with(system: System, setting: str) -> str:
    """What a start says that a worker's setting spoils."""
    system.config.write_text(
        f"name: test\nbroker: {{port: 0}}\nworkers:\n  - {{name: worker-1, {setting}}}\n"
    )
    system.start()
    code, _, err = system.finish()
    assert code == 2
    assert "Traceback" not in err
    return err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do that")
def test_a_priority_that_is_refused_is_named(system: System) -> None:
    assert "worker-1 cannot start: nice: -5 is refused" in start_with(system, "nice: -5")


def test_cores_that_are_not_allowed_are_named(system: System) -> None:
    before = os.sched_getaffinity(0)
    if len(before) < 2:
        pytest.skip("needs a second core to be kept from")
    allowed, other = sorted(before)[:2]
    os.sched_setaffinity(0, {allowed})
    try:
        err = start_with(system, f"cpus: [{other}]")
    finally:
        os.sched_setaffinity(0, before)
    assert f"worker-1 cannot start: cpus: {other} cannot be used here" in err
    assert f"allows {allowed}\n" in err
