"""Workers that die or have to: what a client is told, what is kept, who is replaced."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lbcore.core.errors import DeadlineExceeded, Quarantined, WorkerLost
from lbcore.shell.state import SystemState
from tests.conftest import Start
from tests.e2e.running import PATIENCE_S, wait_until


@pytest.mark.parametrize(
    ("how", "end", "words"),
    [
        ("segv", ("signal 11 (SIGSEGV)", 11, None), "in die_while"),
        ("exit", ("code 7", None, 7), "this is the end"),
    ],
)
def test_a_request_that_kills_is_quarantined_with_the_evidence(
    how: str, end: tuple[object, ...], words: str, system: Start, tmp_path: Path
) -> None:
    lb = system(2)
    client = lb.client()
    poison = tmp_path / "poison"
    poison.touch()
    with pytest.raises(Quarantined, match="attempt 3 of 3") as caught:
        client.call("die_while", str(poison), how, timeout=PATIENCE_S)
    error = caught.value
    assert (error.task, error.attempts) == ("die_while", 3)
    assert (error.exit, error.signal, error.code) == end
    assert error.worker in ("worker-1", "worker-2")
    assert error.pid not in (None, lb.pid("broker"))
    assert error.peak_rss_bytes is not None
    assert error.peak_rss_bytes > 10 << 20
    assert not error.out_of_memory
    # what it printed, or what C code had to say
    assert 0 < len(error.log_lines) <= 10
    assert any(words in line for line in error.log_lines), error.log_lines
    # and so it is kept
    listed = lb.cli("quarantine", "ls").stdout
    assert max(map(len, listed.splitlines())) <= 80
    assert "die_while" in listed
    (kept,) = json.loads(lb.cli("quarantine", "ls", "--json").stdout)["requests"]
    shown = json.loads(lb.cli("quarantine", "show", kept["id"], "--json").stdout)
    assert shown["arguments"] == [[str(poison), how], {}]
    assert shown["pid"] == error.pid
    assert words in lb.cli("quarantine", "show", kept["id"]).stdout
    # somebody mends it
    poison.unlink()
    assert "done" in lb.cli("quarantine", "retry", kept["id"]).stdout
    assert lb.cli("quarantine", "ls").stdout == "nothing is in quarantine\n"


def test_a_task_that_kills_again_and_again_is_refused(system: Start, tmp_path: Path) -> None:
    lb = system(2, more="limits: {max_attempts: 1}\n")
    client = lb.client()
    poison = tmp_path / "poison"
    poison.touch()
    for _ in range(3):
        with pytest.raises(Quarantined, match="attempt 1 of 1") as caught:
            client.call("die_while", str(poison), "exit", timeout=PATIENCE_S)
        assert (caught.value.exit, caught.value.code) == ("code 7", 7)
    poison.unlink()
    with pytest.raises(Quarantined, match="is quarantined"):
        client.call("die_while", str(poison), timeout=PATIENCE_S)
    assert client.call("echo", 1) == 1
    assert "is refused until" in lb.cli("quarantine", "ls").stdout
    lb.cli("quarantine", "retry", "die_while")
    assert client.call("die_while", str(poison), timeout=PATIENCE_S) == "survived"


def test_a_request_that_is_lost_says_how(system: Start, tmp_path: Path) -> None:
    lb = system(1)
    started = tmp_path / "started"
    future = lb.client().submit("hold_once", str(started), str(tmp_path / "release"))
    wait_until(started.exists, "the task")
    pid = lb.kill("worker-1")
    with pytest.raises(WorkerLost, match="not idempotent") as caught:
        future.result(PATIENCE_S)
    error = caught.value
    assert (error.task, error.worker, error.pid) == ("hold_once", "worker-1", pid)
    assert (error.exit, error.signal) == ("signal 9 (SIGKILL)", 9)
    assert not error.reason
    lb.wait_for_restart("worker-1")
    assert started.read_text() == "x"


# ---- time is over --------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "concurrency"), [("sleep", 1), ("spin", 1), ("pause", 4)])
def test_a_deadline_ends_a_task_that_runs(task: str, concurrency: int, system: Start) -> None:
    lb = system(f"{{count: 1, concurrency: {concurrency}}}")
    client, pid = lb.client(), lb.pid("worker-1")
    with pytest.raises(DeadlineExceeded):
        client.call(task, 60.0, timeout=0.3)
    # the same process is free again
    assert client.call("echo", 1, timeout=PATIENCE_S) == 1
    wait_until(lambda: not client.status()["workers"][0]["pending"], "its end")
    assert lb.pid("worker-1") == pid


@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_task_that_does_not_end_costs_its_worker_and_nobody_else(
    concurrency: int, system: Start, tmp_path: Path
) -> None:
    lb = system(f"{{count: 1, concurrency: {concurrency}}}", more="limits: {cancel_grace_s: 0.3}\n")
    client, pid = lb.client(), lb.pid("worker-1")
    started, release = tmp_path / "started", tmp_path / "release"
    others = [
        client.submit("hold", str(tmp_path / f"other-{number}"), str(release))
        for number in range(concurrency - 1)
    ]
    with pytest.raises(DeadlineExceeded):
        client.call("cling", str(started), timeout=0.5)
    assert started.exists()
    lb.wait_for_restart("worker-1")
    assert lb.pid("worker-1") != pid
    release.touch()
    # those beside it run again, and nothing is held against them
    assert [other.result(PATIENCE_S) for other in others] == ["worker-1"] * len(others)
    lb.wait_for_log("supervisor", r"worker-1: killed: request \d+:\d+ is past its deadline")
    assert lb.cli("quarantine", "ls").stdout == "nothing is in quarantine\n"


# ---- memory --------------------------------------------------------------------------------------


def test_a_worker_that_grows_is_replaced_and_the_request_blamed(system: Start) -> None:
    lb = system(2, more="limits: {worker_memory: 150 MiB, max_attempts: 2}\n")
    client = lb.client()
    hog = client.submit("grow", 4 << 20, 0.02)
    others = [client.submit("sleep", 0.01) for _ in range(100)]
    with pytest.raises(Quarantined, match="attempt 2 of 2") as caught:
        hog.result(PATIENCE_S)
    error = caught.value
    assert error.reason.startswith("memory limit 150 MiB: ")
    assert error.signal == 9
    assert not error.out_of_memory
    assert error.peak_rss_bytes is not None
    assert error.peak_rss_bytes > 150 << 20
    assert [other.result(PATIENCE_S) for other in others] == [0.01] * 100


def test_a_worker_that_has_grown_is_replaced_while_it_is_idle(system: Start) -> None:
    lb = system(1, more="limits: {worker_memory: 150 MiB}\n")
    client = lb.client()
    pid = client.call("leak", 200 << 20)
    lb.wait_for_restart("worker-1")
    assert lb.pid("worker-1") != pid
    assert client.call("echo", 1, timeout=PATIENCE_S) == 1
    lb.wait_for_log("supervisor", r"worker-1: replaced while idle: memory limit 150 MiB")
    assert re_exit(lb.log("supervisor"), pid) == "code 0"


def re_exit(log: str, pid: int) -> str:
    """How a process ended, by the supervisor's log."""
    line = next(line for line in log.splitlines() if f"pid {pid} ended: " in line)
    return line.split("ended: ")[1].split(" (")[0].split(",")[0]


# ---- never twice ---------------------------------------------------------------------------------


def test_what_must_not_run_twice_does_not_whoever_is_killed(system: Start, tmp_path: Path) -> None:
    """Workers and the broker are killed, again and again, under a load of such requests."""
    lb = system("{count: 3}")
    client = lb.client()
    trace = tmp_path / "trace"
    victims = ["worker-1", "broker", "worker-2", "broker", "worker-3"]
    count = 600
    done: set[str] = set()
    lost: set[str] = set()
    futures = {
        str(number): client.submit("mark_slowly", str(trace), str(number), 0.004)
        for number in range(count)
    }
    for victim in victims:
        wait_for_more(trace, 20)
        lb.kill(victim)
        lb.wait_for(all_run, f"{victim} again")
    for word, future in futures.items():
        try:
            assert future.result(PATIENCE_S) == word
            done.add(word)
        except WorkerLost:
            lost.add(word)
    begun = trace.read_text().split()
    assert len(begun) == len(set(begun)), "a request was begun twice"
    assert done <= set(begun)
    # only what ran when its worker died, or whose answer died with a broker
    assert len(lost) <= 20
    assert done | lost == set(futures)


def wait_for_more(trace: Path, count: int) -> None:
    """Until so many more requests have begun."""
    enough = begun_in(trace) + count
    wait_until(lambda: begun_in(trace) >= enough, "requests that begin")


def begun_in(trace: Path) -> int:
    return trace.read_text().count("\n") if trace.exists() else 0


def all_run(state: SystemState) -> bool:
    """Whether every process of a system runs."""
    children = [state.broker, *state.workers]
    return all(
        each.state == "RUNNING" and each.pid is not None and os.path.exists(f"/proc/{each.pid}")
        for each in children
    )
