"""``up`` and ``down``: starting, stopping, and what stops a start."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from lbcore.core.errors import BrokerUnavailable, ShuttingDown
from tests.conftest import Start
from tests.e2e.running import PATIENCE_S, REPOSITORY, RunningSystem, is_alive, wait_until

#: stop signals within 0.2 s count as one, because wrappers pass them on twice
ANOTHER_WISH_S = 0.3


def begin_work(system: RunningSystem, folder: Path) -> Future[Any]:
    """A request that runs until ``folder``/release is there."""
    started, release = folder / "started", folder / "release"
    future = system.client().submit("hold", str(started), str(release))
    wait_until(started.exists, "the task")
    return future


def test_the_foreground_shows_where_everything_is(system: Start) -> None:
    lb = system(start=False)
    process = lb.up_in_foreground()
    state = lb.state()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err) == (143, "")
    lines = out.splitlines()
    assert re.fullmatch(r"NAME +PID +ADDRESS +LOG", lines[0])
    assert [line.split() for line in lines[1:5]] == [
        ["supervisor", str(state.pid), "-", "logs/supervisor.log"],
        *(
            [each.name, str(each.pid), each.address, f"logs/{each.name}.log"]
            for each in (state.broker, *state.workers)
        ),
    ]
    assert re.search(r"^ready in \d+\.\d\d s; Ctrl-C stops it", out, re.MULTILINE)
    assert lines[-1] == "stopped"
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopping_finishes_what_was_accepted(
    number: int, code: int, system: Start, tmp_path: Path
) -> None:
    lb = system(1, start=False)
    process = lb.up_in_foreground()
    running = begin_work(lb, tmp_path)
    client = lb.client()
    waiting = [client.submit("echo", n) for n in range(5)]
    # the broker has them: it answers in order
    client.status()
    process.send_signal(number)
    lb.wait_for_log("broker", "draining")
    with pytest.raises((ShuttingDown, BrokerUnavailable)):
        client.call("noop")
    assert not running.done()
    (tmp_path / "release").touch()
    assert running.result(PATIENCE_S) == "worker-1"
    assert [future.result(PATIENCE_S) for future in waiting] == list(range(5))
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code


def test_a_second_signal_does_not_wait(system: Start, tmp_path: Path) -> None:
    lb = system(1, start=False)
    process = lb.up_in_foreground()
    running = begin_work(lb, tmp_path)
    process.send_signal(signal.SIGINT)
    lb.wait_for_log("broker", "draining")
    time.sleep(ANOTHER_WISH_S)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    with pytest.raises(BrokerUnavailable):
        running.result(PATIENCE_S)


def test_the_background_is_ready_when_the_command_returns(system: Start) -> None:
    lb = system(3, start=False)
    out = lb.up().stdout
    # no waiting here: that is the point
    assert lb.client().call("echo", "at once") == "at once"
    state = lb.state()
    assert state.state == "RUNNING"
    assert [worker.state for worker in state.workers] == ["RUNNING"] * 3
    for name in ("broker", "worker-1", "worker-2", "worker-3"):
        assert re.search(rf"^{name} +{lb.pid(name)} ", out, re.MULTILINE)
    assert re.search(r"^ready in \d+\.\d\d s; `.*down` stops it$", out, re.MULTILINE)
    assert lb.cli("status").returncode == 0


def test_down_finishes_what_was_accepted(system: Start, tmp_path: Path) -> None:
    lb = system(1)
    running = begin_work(lb, tmp_path)
    stopping = lb.popen("down")
    lb.wait_for_log("broker", "draining")
    assert stopping.poll() is None
    (tmp_path / "release").touch()
    assert running.result(PATIENCE_S) == "worker-1"
    out, _ = stopping.communicate(timeout=PATIENCE_S)
    assert stopping.returncode == 0
    assert out.startswith("lb stopped in ")
    lb.check_gone()


def test_down_in_a_hurry(system: Start, tmp_path: Path) -> None:
    lb = system(1)
    running = begin_work(lb, tmp_path)
    assert "stopped at once, after 0.1 s" in lb.cli("down", "-t", "0.1").stdout
    with pytest.raises(BrokerUnavailable):
        running.result(PATIENCE_S)
    lb.check_gone()


def test_down_of_nothing_is_done_already(system: Start) -> None:
    lb = system(start=False)
    assert lb.cli("down").stdout == "lb is not running\n"


def test_a_second_up_is_refused(shared: RunningSystem) -> None:
    before = shared.state()
    error = shared.cli("up", "-d", code=4).stderr
    assert re.fullmatch(
        rf"lb: already running \(pid {before.pid}, since .*, broker at {before.broker.address}\)\n",
        error,
    )
    assert shared.state() == before


def test_a_port_in_use_names_port_holder_and_line(system: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        lb = system(yaml=f"name: taken\nbroker:\n  port: {port}\nworkers: 2\n", start=False)
        error = lb.cli("up", code=3).stderr
    assert f"port {port} is in use" in error
    assert f"by pid {os.getpid()} (" in error
    assert "change broker.port in line 3 of config.yaml" in error
    lb.check_gone()


def test_a_worker_that_cannot_import_its_tasks_stops_the_start(system: Start) -> None:
    lb = system(yaml="broker: {port: 0}\nworkers: 2\ntasks: [broken.py]\n", start=False)
    (lb.folder / "broken.py").write_text("import math\nimport no_such_module\n")
    error = lb.cli("up", "-d", code=2).stderr
    assert "broken.py" in error
    assert "no_such_module" in error
    lb.check_gone()


def test_the_number_of_workers_can_be_overridden(system: Start) -> None:
    lb = system(1, start=False)
    lb.up("--workers", "3")
    assert [worker.name for worker in lb.state().workers] == ["worker-1", "worker-2", "worker-3"]


def test_overrides_from_flags_and_environment(system: Start) -> None:
    lb = system(2, start=False)
    done = lb.cli(
        "up",
        "-d",
        "--set",
        "policy=round_robin",
        "--set",
        "workers.worker-2.weight=2",
        environment={"LB_POLICY": "random", "LB_WORKERS__WORKER_1__WEIGHT": "3"},
    )
    assert done.returncode == 0
    status = lb.client().status()
    assert status["broker"]["policy"] == "round_robin", "a flag wins over a variable"
    assert [worker["weight"] for worker in status["workers"]] == [3.0, 2.0]


def test_more_work_than_cores_is_a_note(system: Start) -> None:
    cores = len(os.sched_getaffinity(0))
    lb = system(f"{{count: 1, concurrency: {cores + 1}}}", start=False)
    out = lb.up().stdout
    note = re.search(rf"^.*concurrency = {cores + 1}, on \d+ cores?: .*$", out, re.MULTILINE)
    assert note is not None
    assert note[0] in lb.log("supervisor")
    assert note[0] not in system(1, start=False).up().stdout


def test_names_and_logs_of_an_earlier_run_are_taken_up_again(system: Start) -> None:
    lb = system(1)
    first = lb.pid("worker-1")
    lb.down()
    lb.up()
    assert [worker.name for worker in lb.state().workers] == ["worker-1"]
    log = lb.log("worker-1")
    assert f"pid {first}," in log
    assert f"pid {lb.pid('worker-1')}," in log
    assert sorted(path.name for path in (lb.folder / "logs").iterdir()) == [
        "broker.log",
        "supervisor.log",
        "worker-1.log",
    ]
    assert not is_alive(first)


def test_the_topology_of_the_repository_runs(system: Start) -> None:
    text = (REPOSITORY / "config.yaml").read_text()
    on_free_ports, changed = re.subn(r"port: (8000|900[123])\b", "port: 0", text)
    assert changed == 4
    lb = system(yaml=on_free_ports)
    assert [worker.name for worker in lb.state().workers] == ["worker-1", "worker-2", "worker-3"]
    assert lb.client().call("sort", items=[2, 1]) == [1, 2]
