"""No descriptors left, logs that cannot be written: what runs goes on, the rest comes back."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psutil
import pytest

from lbcore.core.handshake import HANDSHAKE_S
from tests.conftest import Start
from tests.e2e.running import connect, wait_until
from tests.e2e.streaming import save, streaming
from tests.e2e.test_bad_company import ended_after


@contextmanager
def few_descriptors(pid: int, more: int) -> Iterator[None]:
    """A process that may open so many more, and no more than these; with 0 none at all, even when
    it closes some."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = max(int(name) for name in os.listdir(f"/proc/{pid}/fd")) + 1
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + more if more else 3, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("name", ["broker", "worker-1"])
def test_without_descriptors_those_who_are_in_go_on(name: str, system: Start) -> None:
    lb = system(2)
    state = lb.state()
    address = next(each.address for each in (state.broker, *state.workers) if each.name == name)
    process = psutil.Process(lb.pid(name))
    with ExitStack() as stack:
        stack.enter_context(few_descriptors(process.pid, 4))
        cpu = process.cpu_times()
        peers = [stack.enter_context(connect(address)) for _ in range(40)]
        # most are closed at once, the few others when their time is over
        for peer in peers:
            ended_after(peer, HANDSHAKE_S)
        lb.wait_for_log(name, "cannot accept connections: Too many open files")
        spent = process.cpu_times()
        if name != "broker":
            assert spent.user + spent.system - cpu.user - cpu.system < 2.0, "it spins"
    with lb.client() as client:
        assert client.call("echo", "in") == "in"
    lb.down()


def test_a_supervisor_without_descriptors_goes_on(system: Start) -> None:
    lb = system(2)
    supervisor = lb.pid("supervisor")
    with streaming(lb) as stream:
        with few_descriptors(supervisor, 0):
            lb.kill("worker-1")
            # often enough for everything that is looked at now and then, and for a worker that
            # dies so often to be given up
            wait_until(lambda: len(re.findall("cannot fork", lb.log("supervisor"))) > 5, "attempts")
            save(lb, ("workers: 2", "workers: 3"))
            lb.wait_for_log("supervisor", "nothing is changed: .*Too many open files")
            stream.flows_to("worker-2")
        lb.wait_for(lambda state: state.workers[0].state == "RUNNING", "worker-1")
        assert lb.cli("reload").stdout.startswith("+ worker-3")
        stream.flows_to("worker-1", "worker-2", "worker-3")
    assert lb.pid("supervisor") == supervisor
    assert "Traceback" not in lb.log("supervisor")
    lb.down()


def test_all_come_back_while_their_logs_cannot_be_written(system: Start) -> None:
    lb = system(2)
    logs, kept = lb.folder / "logs", lb.folder / "logs.kept"
    with streaming(lb) as stream:
        logs.rename(kept)
        logs.write_text("this is no folder\n")
        for name in ("worker-1", "broker"):
            lb.kill(name)
            lb.wait_for_restart(name)
        stream.flows_to("worker-1", "worker-2")
        logs.unlink()
        kept.rename(logs)
        for name in ("worker-1", "broker"):
            lb.kill(name)
            lb.wait_for_restart(name, 2)
        stream.flows_to("worker-1", "worker-2")
    assert f"pid {lb.pid('worker-1')}," in lb.log("worker-1")
    lb.down()


def test_a_log_that_cannot_be_written_is_said_before_anything_starts(system: Start) -> None:
    lb = system(2, start=False)
    (lb.folder / "logs" / "worker-2.log").mkdir(parents=True)
    done = lb.cli("up", "-d", code=3)
    assert done.stderr.startswith("lb: cannot write logs to ")
    assert "worker-2.log: Is a directory; change logs.folder" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    lb.check_gone()
