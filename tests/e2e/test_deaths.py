"""Processes that are killed: what it costs, and that all comes back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from lbcore.core.errors import BrokerUnavailable, Quarantined, WorkerLost
from tests.conftest import Start
from tests.e2e.running import (
    MARK,
    PATIENCE_S,
    survivors,
    wait_until,
    workers_at_work,
)

# ---- a worker ------------------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_worker_killed_under_load_costs_no_request(concurrency: int, system: Start) -> None:
    lb = system(f"{{count: 2, concurrency: {concurrency}}}")
    client = lb.client()
    calls = [("sleep", {"seconds": 0.002})] * 400
    answered, killed = 0, 0
    for reply in client.stream(calls, window=50):
        assert reply.error() is None
        answered += 1
        if answered == 100:
            killed = lb.kill("worker-1")
    assert answered == 400
    lb.wait_for_restart("worker-1")
    assert lb.pid("worker-1") != killed

    def restarts() -> list[int]:
        return [worker["restarts"] for worker in client.status()["workers"]]

    # the supervisor tells its file first and the broker a moment later
    wait_until(lambda: restarts() == [1, 0], "one restart in the status")
    # same name, same log file, and it works again
    log = lb.log("worker-1")
    assert f"pid {killed}," in log
    assert f"pid {lb.pid('worker-1')}," in log
    ended = (
        rf"worker-1: pid {killed} ended: signal 9 \(SIGKILL\)( while it ran requests? [\d:, ]+)?,"
    )
    lb.wait_for_log("supervisor", ended)
    lb.wait_for_log("broker", "worker-1 lost with")
    both = {"worker-1", "worker-2"}
    wait_until(lambda: workers_at_work(client) == both, "work for both")


def test_status_tells_of_a_worker_that_is_down(system: Start) -> None:
    lb = system(2)
    client = lb.client()
    # a worker that dies again and again waits longer and longer, which leaves time to look
    for restarts in range(3):
        lb.kill("worker-2")
        lb.wait_for_restart("worker-2", restarts + 1)
    killed = lb.kill("worker-2")

    def seen() -> dict[str, Any] | None:
        _, second = client.status()["workers"]
        return second if second["state"] == "BACKOFF" else None

    worker = wait_until(seen, "BACKOFF in the status")
    assert worker is not None
    assert worker["pid"] != killed
    assert client.status()["workers"][0]["state"] == "RUNNING"
    assert workers_at_work(client) >= {"worker-1"}


def test_a_request_that_kills_its_workers_costs_only_itself(system: Start) -> None:
    lb = system(2)
    client = lb.client()
    deadly = client.submit("die", "kill")
    others = [client.submit("sleep", 0.01) for _ in range(60)]
    with pytest.raises(
        Quarantined, match=r"died \(signal 9 \(SIGKILL\)\) while it ran die: .* 3 of 3"
    ):
        deadly.result(PATIENCE_S)
    assert [other.result(PATIENCE_S) for other in others] == [0.01] * 60
    restarts = sum(worker.restarts for worker in lb.state().workers)
    assert 2 <= restarts <= 3
    assert client.status()["broker"]["failed"] == 1


def test_a_request_that_kills_one_worker_succeeds_elsewhere(system: Start, tmp_path: Path) -> None:
    lb = system(2)
    trace = tmp_path / "trace"
    winner = lb.client().call("die_once", str(trace))
    first, second = trace.read_text().split()
    assert winner == second
    assert first != second, "the one that died is not there yet"


def test_what_may_not_run_twice_does_not(system: Start, tmp_path: Path) -> None:
    lb = system(2)
    client = lb.client()
    started = tmp_path / "started"
    future = client.submit("hold_once", str(started), str(tmp_path / "release"))
    wait_until(started.exists, "the task")
    running = next(each["name"] for each in client.status()["workers"] if each["pending"])
    lb.kill(running)
    with pytest.raises(WorkerLost, match="it is not idempotent"):
        future.result(PATIENCE_S)
    lb.wait_for_restart(running)
    assert started.read_text() == "x"


@pytest.mark.parametrize(("how", "cause"), [("exit", "code 7"), ("segv", "signal 11")])
def test_the_cause_of_a_death_is_told(how: str, cause: str, system: Start) -> None:
    lb = system(1, more="limits: {max_attempts: 1}\n")
    with pytest.raises(Quarantined, match="attempt 1 of 1") as caught:
        lb.client().call("die", how)
    assert cause in str(caught.value)
    lb.wait_for_restart("worker-1")
    death = lb.wait_for_log("supervisor", rf"worker-1: pid \d+ ended: {cause}.* while it ran .*")
    assert re.search(r"while it ran request \d+:1\b", death[0])
    if how == "segv":
        # what C code and faulthandler wrote is in the worker's own log, with the request
        dump = lb.wait_for_log(
            "worker-1", r"RAW .*\[\d+:1\] Fatal Python error: Segmentation fault"
        )
        assert dump is not None
        assert "in die" in lb.log("worker-1")


LOOPS = """
import os
from lbcore import task
if os.path.exists("loop") and os.environ["LB_PROC_NAME"] == "worker-1":
    os._exit(5)
@task
def loops() -> None: ...
"""


def test_a_crash_loop_ends_in_a_clear_state(system: Start) -> None:
    """Of one that ran before, and of one that never got that far: side by side, as each waits."""
    yaml = "broker: {port: 0}\nworkers: 2\ntasks: [loops.py]\n"
    never, ran = system(yaml=yaml, start=False), system(yaml=yaml, start=False)
    for lb in (never, ran):
        (lb.folder / "loops.py").write_text(LOOPS)
    (never.folder / "loop").touch()
    starting = never.popen("up", "-d")
    ran.up()
    (ran.folder / "loop").touch()
    ran.kill("worker-1")
    ran.wait_for(lambda state: state.workers[0].state == "FATAL", "FATAL")
    restarts = ran.restarts("worker-1")
    assert restarts == 5
    shown = ran.cli("status", code=1).stdout
    assert re.search(r"^worker-1 +FATAL .* 5$", shown, re.MULTILINE)
    assert "given up" in ran.log("supervisor")
    # the rest goes on
    assert workers_at_work(ran.client()) == {"worker-2"}
    assert ran.restarts("worker-1") == restarts
    out, error = starting.communicate(timeout=PATIENCE_S)
    assert (starting.returncode, out) == (3, "")
    assert re.match(r"lb: worker-1 cannot start: died \(code 5\) after 5 restarts", error)
    never.check_gone()


# ---- the broker ----------------------------------------------------------------------------------


def test_a_broker_that_is_killed_comes_back(system: Start, tmp_path: Path) -> None:
    lb = system(2)
    old, state = lb.client(reconnect=0), lb.state()
    started, release = tmp_path / "started", tmp_path / "release"
    lost = old.submit("hold", str(started), str(release))
    wait_until(started.exists, "the task")
    lb.kill("broker")
    with pytest.raises(BrokerUnavailable):
        lost.result(PATIENCE_S)
    with pytest.raises(BrokerUnavailable):
        old.call("noop")
    # whoever connects meanwhile waits: the supervisor holds the socket
    lb.cli("send", "--task", "noop", "--n", "10")
    new = lb.client()
    # the worker that still runs the old request gets nothing new until it is done
    assert len(workers_at_work(new)) == 1
    release.touch()
    lb.wait_for_restart("broker")
    after = lb.state()
    assert after.broker.address == state.broker.address
    assert [worker.pid for worker in after.workers] == [worker.pid for worker in state.workers]
    both = {"worker-1", "worker-2"}
    wait_until(lambda: workers_at_work(new) == both, "work for both")
    assert lb.cli("status").returncode == 0


def test_answers_of_an_earlier_broker_reach_nobody(system: Start, tmp_path: Path) -> None:
    """What an earlier broker sent is still running when the next one has begun."""
    lb = system("{count: 1, concurrency: 2}")
    old = lb.client(reconnect=0)
    first = tmp_path / "first", tmp_path / "first-release"
    lost = old.submit("hold", *map(str, first))
    wait_until(first[0].exists, "the first task")
    lb.kill("broker")
    with pytest.raises(BrokerUnavailable):
        lost.result(PATIENCE_S)
    lb.wait_for_restart("broker")
    new = lb.client()
    second = tmp_path / "second", tmp_path / "second-release"
    waiting = new.submit("say_and_hold", "second", *map(str, second))
    wait_until(second[0].exists, "the second task")
    first[1].touch()
    # it waits for the thread that has the old request, so the old answer would be before this one
    assert new.call("echo", "x") == "x"
    assert not waiting.done()
    second[1].touch()
    assert waiting.result(PATIENCE_S) is None


# ---- the supervisor ------------------------------------------------------------------------------


@pytest.mark.parametrize("busy", [False, True])
def test_nothing_outlives_a_killed_supervisor(busy: bool, system: Start, tmp_path: Path) -> None:
    lb = system(2)
    if busy:
        client, started = lb.client(), tmp_path / "started"
        client.submit("spin", 60)
        client.submit("spawn", str(started))
        wait_until(started.exists, "the task")
    # supervisor, guard, broker, two workers, and the child of a task
    assert len(survivors(MARK, lb.mark)) >= 5 + busy
    lb.kill("supervisor")
    lb.wait_gone(patience_s=2.0)
    lb.cli("status", code=3)
    # and nothing of it is in the way
    lb.up()
    assert lb.client().call("echo", 1) == 1
