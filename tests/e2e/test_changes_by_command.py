"""reload, scale, drain, resume and signals, while requests flow."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.conftest import Start
from tests.e2e.running import PATIENCE_S, RunningSystem, topology, wait_until
from tests.e2e.streaming import (
    LISTED,
    names,
    pids,
    save,
    streaming,
    wait_for_change,
    wait_for_workers,
)

# ---- the commands --------------------------------------------------------------------------------


def test_reload_shows_the_difference_and_makes_it(tmp_path: Path) -> None:
    lb = RunningSystem(tmp_path, topology(LISTED))
    try:
        lb.up()
        assert lb.cli("reload", "--dry-run").stdout == "no changes\n"
        # as the file's watcher does not see it: what is asked for is read at once
        text = lb.config.read_text().replace("worker-2}", "worker-2, weight: 2}")
        lb.config.write_text(text.replace("worker-3}", "worker-3, nice: 1}, {name: worker-5}"))
        diff = "+ worker-5\n~ worker-2 weight 1 → 2\n~ worker-3 restart: nice 0 → 1\n"
        assert lb.cli("reload", "--dry-run").stdout in (diff, "no changes\n")
        lb.cli("reload")
        wait_for_workers(lb, *names(1, 2, 3, 5))
        done = json.loads(lb.cli("reload", "--json").stdout)
        assert done == {"ok": True, "changes": [], "error": "", "seconds": 0.0}
        lb.down()
    finally:
        lb.clean_up()


def test_sighup_reloads(system: Start) -> None:
    lb = system(1)
    save(lb, ("workers: 1", "workers: 2"))
    lb.kill("supervisor", signal.SIGHUP)
    wait_for_workers(lb, *names(1, 2))
    lb.wait_for_log("supervisor", "SIGHUP: ")
    lb.down()


def test_scale_up_and_down_and_by_signals(system: Start) -> None:
    lb = system(2)
    before = pids(lb)
    with streaming(lb) as stream:
        assert lb.cli("scale", "4").stdout.startswith("+ worker-3\n+ worker-4\ndone in ")
        four = wait_for_workers(lb, *names(1, 2, 3, 4))
        stream.flows_to(*names(1, 2, 3, 4))
        assert lb.cli("scale", "1").stdout.startswith("- worker-2\n- worker-3\n- worker-4\ndone")
        wait_for_workers(lb, "worker-1")
        stream.flows_to("worker-1")
        assert lb.cli("scale", "1").stdout == "there is one already\n"
        # it holds until the file has another number of workers
        save(lb, ("workers: 2", "workers: {count: 2, weight: 3}"))
        wait_for_change(lb, lambda change: "~ worker-1 weight 1 → 3" in change.get("changes", ()))
        assert len(lb.state().workers) == 1
        lb.kill("supervisor", signal.SIGTTIN)
        wait_for_workers(lb, *names(1, 2))
        lb.kill("supervisor", signal.SIGTTOU)
        wait_for_workers(lb, "worker-1")
        save(lb, ("count: 2", "count: 3"))
        last = wait_for_workers(lb, *names(1, 2, 3))
        stream.flows_to(*names(1, 2, 3))
    assert before["worker-1"] == four["worker-1"] == last["worker-1"]
    # a name keeps its log over all of its lives
    log = lb.log("worker-2")
    assert all(f"pid {pid}," in log for pid in (before["worker-2"], last["worker-2"]))
    lb.down()


def test_a_drained_worker_rests_until_it_is_resumed(system: Start, tmp_path: Path) -> None:
    lb = system(2)
    before = pids(lb)
    started, release = tmp_path / "started", tmp_path / "release"
    client = lb.client()
    busy = client.submit("hold", str(started), str(release))
    wait_until(started.exists, "a request that runs")
    rows = client.status()["workers"]
    (name,) = [row["name"] for row in rows if row["pending"]]
    (other,) = set(names(1, 2)) - {name}
    with streaming(lb) as stream:
        command = lb.popen("drain", name)
        lb.wait_for(
            lambda state: any(w.state == "DRAIN" for w in state.workers), f"{name} in DRAIN"
        )
        stream.flows_to(other)
        assert command.poll() is None, "it waits for what runs there"
        release.touch()
        out, err = command.communicate(timeout=PATIENCE_S)
        assert (out, err) == (f"~ {name} drain\n{name} has nothing to do\n", "")
        busy.result(PATIENCE_S)
        stream.flows_to(other)
        assert lb.cli("status", code=1).stdout.count("DRAIN") == 1
        assert lb.cli("resume", name).stdout == f"~ {name} resume\n{name} takes work again\n"
        stream.flows_to(*names(1, 2))
    assert pids(lb) == before
    done = lb.cli("drain", "worker-7", code=2)
    assert done.stderr == (
        "lb: there is no worker 'worker-7'; there are: worker-1, worker-2; nothing is changed\n"
    )
    lb.down()


# ---- all at once ---------------------------------------------------------------------------------


def test_changes_that_come_together_are_made_one_after_the_other(system: Start) -> None:
    lb = system(LISTED)
    with streaming(lb) as stream:
        commands = [
            lb.popen(*words)
            for words in (
                ("restart", "--rolling"),
                ("reload",),
                ("restart", "worker-1"),
                ("scale", "5"),
                ("reload",),
                ("restart", "--rolling"),
                ("drain", "worker-2"),
                ("resume", "worker-2"),
            )
        ]
        save(lb, ("{name: worker-1}", "{name: worker-1, nice: 2}"))
        for command in commands:
            _, err = command.communicate(timeout=PATIENCE_S)
            assert (command.returncode, err) == (0, "")
        lb.cli("resume", "worker-2")
        lb.cli("reload")
        wait_for_workers(lb, *names(1, 2, 3, 4, 5))
        stream.flows_to(*names(1, 2, 3, 4, 5))
    lb.down()


def test_a_request_that_must_not_run_twice_runs_once_through_restarts(
    system: Start, tmp_path: Path
) -> None:
    lb = system(2)
    client, trace = lb.client(), tmp_path / "trace"
    ended = threading.Event()
    results: list[Any] = []

    def send() -> None:
        calls = (("mark_once", {"trace": str(trace), "word": f"w{n}"}) for n in range(10**9))
        replies = client.stream(_until(calls, ended), window=20)
        results.extend(reply.error() for reply in replies)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    for _ in range(4):
        lb.cli("restart", "--rolling")
        lb.cli("restart")
    ended.set()
    thread.join(PATIENCE_S)
    assert [error for error in results if error is not None] == []
    words = trace.read_text().split()
    assert len(words) == len(set(words)) == len(results)
    lb.down()


def _until(calls: Iterator[Any], ended: threading.Event) -> Iterator[Any]:
    while not ended.is_set():
        yield next(calls)


def test_a_broker_that_dies_meanwhile_goes_on_with_the_change(system: Start) -> None:
    lb = system(LISTED)
    before = pids(lb)
    client = lb.client()
    client.call("noop")
    command = lb.popen("restart", "--rolling")
    lb.wait_for(lambda state: any(w.state != "RUNNING" for w in state.workers), "a worker out")
    lb.kill("broker")
    out, err = command.communicate(timeout=PATIENCE_S)
    assert (command.returncode, err) == (0, ""), out
    lb.wait_for_restart("broker")
    after = pids(lb)
    assert not set(before.values()) & set(after.values())
    wait_until(lambda: lb.client().call("echo", 5) == 5, "an answer")
    rows = {row["name"] for row in lb.client().status()["workers"]}
    assert rows == set(names(1, 2, 3))
    lb.down()


def test_the_control_socket_is_private_and_bears_nonsense(system: Start) -> None:
    lb = system(2)
    path = lb.folder / ".lb" / "lb" / "control.sock"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    silent = socket.socket(socket.AF_UNIX)
    silent.connect(str(path))
    for data in (b"\n", b"{}\n", b"[1]\n", b'{"op": "fly"}\n', b'{"op": "scale"}\n', b"\xff" * 99):
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(PATIENCE_S)
            peer.connect(str(path))
            peer.sendall(data)
            peer.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):  # it did not even read all of it
                assert peer.makefile("rb").read() == b"", data
    assert lb.cli("reload").stdout == "no changes\n"
    silent.close()
    lb.down()
    assert os.listdir(lb.folder).count(".lb") == 0
