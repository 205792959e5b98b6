"""The supervisor with real processes: stand-ins that behave, crash, hang, shout and multiply."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.shell.systems import System, ask, is_alive, is_listening, wait_until


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    """A system of two workers that is not started yet."""
    system = System(tmp_path)
    yield system
    system.clean_up()


def assert_nothing_is_left(system: System) -> None:
    wait_until(lambda: not system.survivors(), f"the end of {system.survivors()}")
    assert not (system.folder / ".lb").exists()


def test_everything_runs_and_everything_stops(system: System) -> None:
    state = system.started()
    pids = [state.broker.pid, *(worker.pid for worker in state.workers)]
    assert all(pid is not None and os.getsid(pid) == pid for pid in pids)
    assert [ask(each.address) for each in (state.broker, *state.workers)] == pids
    assert system.process is not None
    assert state.pid == system.process.pid
    system.signal(signal.SIGTERM)
    code, out, err = system.finish()
    assert (code, err) == (143, "")
    assert out.endswith("stopped\n")
    assert "\x1b" not in out, "no control characters where there is no terminal"
    assert system.told("worker-1")[-1] == {"event": "stop"}
    assert [m["event"] for m in system.told("broker") if m["event"] != "fleet"] == ["drain", "stop"]
    assert_nothing_is_left(system)
    assert not is_listening(state.broker.address)


def test_ctrl_c_exits_with_130(system: System) -> None:
    system.started()
    system.signal(signal.SIGINT)
    assert system.finish()[0] == 130
    assert_nothing_is_left(system)


def test_nothing_outlives_a_killed_supervisor(system: System) -> None:
    system.set_ways(worker_1="family", worker_2="stubborn")
    state = system.started()
    near, far = system.fact("family-worker-1")
    assert is_alive(near)
    system.signal(signal.SIGKILL)
    system.finish()
    os.kill(far, signal.SIGKILL)  # it chose a session of its own: out of everyone's reach
    wait_until(lambda: not system.survivors(), "the end of all")
    # a process that is ending gives up its memory, and so its mark, before its sockets
    wait_until(lambda: not is_listening(state.broker.address), "a free port")
    assert system.state() is None

    system.set_ways()
    again = system.started()
    assert again.pid != state.pid
    system.signal(signal.SIGTERM)
    assert system.finish()[0] == 143
    assert_nothing_is_left(system)


def test_a_killed_guard_is_replaced(system: System) -> None:
    system.set_ways(worker_1="family")
    system.started()
    near, far = system.fact("family-worker-1")

    def guard() -> int:
        return next((p.pid for p in system.survivors() if p.name() == "lb-guard"), 0)

    wait_until(lambda: guard() != 0, "the guard")
    first = guard()
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: guard() not in (0, first), "another guard")
    wait_until(lambda: "guard process ended" in system.log(), "the log line")
    system.signal(signal.SIGKILL)
    os.kill(far, signal.SIGKILL)
    wait_until(lambda: not is_alive(near), "the end of the grandchild")
    wait_until(lambda: not system.survivors(), "the end of all")


def test_a_killed_worker_comes_back_as_itself(system: System) -> None:
    before = system.started().workers[0]
    assert before.pid is not None
    os.kill(before.pid, signal.SIGKILL)
    after = system.wait_for(
        lambda state: state.workers[0].state == "RUNNING" and state.workers[0].restarts == 1,
        "the restart",
    ).workers[0]
    assert after.pid != before.pid
    assert (after.name, after.address, after.log) == (before.name, before.address, before.log)
    assert ask(after.address) == after.pid
    log = system.log()
    assert re.search(
        rf"pid {before.pid} ended: signal 9 \(SIGKILL\), up [\d.]+ s, peak memory \d+ MiB\n", log
    )
    assert re.search(r"WARNING .*worker-1: died: signal 9 \(SIGKILL\); restart in 0.02 s\n", log)


def test_a_connection_made_while_a_process_is_down_is_served_by_the_next(system: System) -> None:
    broker = system.started(
        timing={"broker_backoff_first_s": 0.5, "broker_backoff_max_s": 0.5}
    ).broker
    assert broker.pid is not None
    os.kill(broker.pid, signal.SIGKILL)
    system.wait_for(lambda state: state.broker.state == "BACKOFF", "BACKOFF")
    assert ask(broker.address) not in (0, broker.pid)
    assert "broker: ready after" in system.log()


def test_a_crash_loop_is_parked_and_the_rest_goes_on(system: System) -> None:
    state = system.started()
    system.set_ways(worker_1="crashes_later")
    assert state.workers[0].pid is not None
    os.kill(state.workers[0].pid, signal.SIGKILL)
    state = system.wait_for(lambda state: state.workers[0].state == "FATAL", "FATAL")
    assert (state.state, state.workers[0].restarts, state.workers[0].pid) == ("RUNNING", 5, None)
    assert ask(state.workers[1].address) == state.workers[1].pid
    assert "signal 11 (SIGSEGV)" in system.log()
    assert re.search(r"ERROR .*worker-1: died .* after 5 restarts in .*; given up", system.log())

    def told() -> list[str]:
        fleet = [m for m in system.told("broker") if m["event"] == "fleet"][-1]
        return [worker["state"] for worker in fleet["workers"]]

    wait_until(lambda: told() == ["FATAL", "RUNNING"], "the broker's knowledge of it")
    system.signal(signal.SIGTERM)
    assert system.finish()[0] == 143


def test_without_any_worker_left_the_system_stops(system: System) -> None:
    state = system.started()
    system.set_ways(worker_1="crashes", worker_2="crashes")
    for worker in state.workers:
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
    code, _, err = system.finish()
    assert code == 3
    assert "every worker is given up" in err
    assert_nothing_is_left(system)


def test_a_failed_start_says_why_and_stops_all(system: System) -> None:
    system.set_ways(worker_2="fails")
    system.start()
    code, out, err = system.finish()
    assert code == 2
    assert err.splitlines()[0] == "lb: worker-2 cannot start: tasks.py:3: no module named numpi"
    assert err.splitlines()[1:] == ["    more in logs/supervisor.log"]
    assert "Traceback" not in err + out
    assert "    | Traceback" in system.log()
    assert_nothing_is_left(system)


def test_a_crash_loop_at_the_start_says_so(system: System) -> None:
    system.set_ways(worker_2="crashes")
    system.start()
    code, _, err = system.finish()
    assert code == 3
    assert "worker-2 cannot start: died (code 7) after 5 restarts in " in err
    assert_nothing_is_left(system)


def test_a_child_that_never_gets_ready_is_not_waited_for(system: System) -> None:
    system.set_ways(worker_1="mute")
    system.start(timing={"start_limit_s": 1.0})
    code, _, err = system.finish()
    assert code == 3
    assert "worker-1 cannot start: not ready within 1 s" in err
    assert_nothing_is_left(system)


def test_a_worker_that_does_not_stop_is_killed(system: System) -> None:
    system.set_ways(worker_1="stubborn")
    system.started()
    system.signal(signal.SIGTERM)
    assert system.finish()[0] == 143
    assert "worker-1: does not end by itself: killed" in system.log()
    assert "worker-1: stopped: signal 9 (SIGKILL)" in system.log()
    assert_nothing_is_left(system)


@pytest.mark.parametrize(
    ("first", "second"), [(signal.SIGINT, signal.SIGINT), (None, signal.SIGQUIT)]
)
def test_a_second_wish_is_granted_at_once(
    system: System, first: signal.Signals | None, second: signal.Signals
) -> None:
    (system.folder / "no-drain").touch()
    system.set_ways(worker_1="stubborn")
    system.started(timing={"kill_after_s": 1000.0, "drain_s": 1000.0})
    if first is not None:
        system.signal(first)
        system.wait_for(lambda state: state.state == "DRAIN", "DRAIN")
        # the same wish twice within a moment is one: give the second its own moment
        wait_until(_clock_moved_on(0.25), "a quarter of a second")
    system.signal(second)
    code, _, _ = system.finish()
    assert code == 128 + (first or second)
    assert "stopping at once" in system.log()
    assert_nothing_is_left(system)


def _clock_moved_on(seconds: float) -> Callable[[], bool]:
    start = time.monotonic()
    return lambda: time.monotonic() - start > seconds


def test_hangup_without_a_terminal_is_kept_for_reloading(system: System) -> None:
    system.started()
    system.signal(signal.SIGHUP)
    line = "SIGHUP, nothing is changed: this system was not started from a file"
    wait_until(lambda: line in system.log(), "the line")
    state = system.state()
    assert state is not None
    assert state.state == "RUNNING"


def test_last_words_land_in_the_childs_own_log(system: System) -> None:
    system.started()
    system.set_ways(worker_1="last_words")
    state = system.state()
    assert state is not None
    assert state.workers[0].pid is not None
    os.kill(state.workers[0].pid, signal.SIGKILL)
    wait_until(lambda: "Fatal Python error: Aborted" in system.log("worker-1"), "the dump")
    log = system.log("worker-1")
    assert re.search(r"worker-1 \[7:42\] .*a print\n", log)
    assert "\\x1b[31mred" in log, "escaped: nothing forges a line or colours a terminal"
    assert " and no end of line" in log
    wait_until(lambda: "while it ran request 7:42" in system.log(), "the request's name")

    def deaths() -> list[dict[str, object]]:
        fleets = [m for m in system.told("broker") if m["event"] == "fleet"]
        workers = [worker for message in fleets for worker in message["workers"]]
        return [worker for worker in workers if worker["lost_request"] is not None]

    wait_until(lambda: bool(deaths()), "the broker's knowledge of it")
    assert deaths()[0]["lost_request"] == 7 << 32 | 42
    assert deaths()[0]["exit"] == "signal 6"
    assert deaths()[0]["name"] == "worker-1"


def test_the_broker_is_told_figures_from_outside(system: System) -> None:
    system.started()

    def figures() -> list[dict[str, object]]:
        fleets = [m for m in system.told("broker") if m["event"] == "fleet"]
        return list(fleets[-1]["workers"]) if fleets else []

    wait_until(lambda: bool(figures()) and figures()[0].get("wall_s", 0.0) != 0.0, "figures")
    worker = figures()[0]
    assert worker["name"] == "worker-1"
    assert isinstance(worker["at"], float)
    assert isinstance(worker["cpu_s"], float)
    assert isinstance(worker["rss_bytes"], int)
    assert worker["rss_bytes"] > 1 << 20


def test_nonsense_on_the_leash_harms_nobody(system: System) -> None:
    system.set_ways(worker_1="nonsense")
    state = system.started()
    wait_until(lambda: "unknown: \"not a message: b'not json'\"" in system.log(), "the complaint")
    assert ask(state.workers[1].address) == state.workers[1].pid


def test_grandchildren_end_with_their_worker_or_with_the_system(system: System) -> None:
    system.set_ways(worker_1="family")
    state = system.started()
    near, far = system.fact("family-worker-1")
    assert state.workers[0].pid is not None
    os.kill(state.workers[0].pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(near), "the end of the one in the group")
    assert is_alive(far)
    system.signal(signal.SIGTERM)
    system.finish()
    assert not is_alive(far)
    assert_nothing_is_left(system)
