"""The logs of a real system: one file per process, told as one story, and never forged."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import time
from collections.abc import Mapping
from subprocess import Popen

import pytest

from lbcore.core.errors import LBError
from lbcore.core.frames import Kind, control_frame
from tests.conftest import Start
from tests.e2e.running import PATIENCE_S, RunningSystem, connect

#: what a line of a log may look like, or begin with when it goes on
LINE = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} [A-Z]+ +[\w-]+ \[(-|\d+:\d+)\] .*|    \| .*"
)
#: and one that `logs` shows
SHOWN = re.compile(
    r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}| {23}) (broker|supervisor|worker-\d) +\| .*"
)
FORGED = "2026-01-01 00:00:00.000 ERROR supervisor [-] all is lost"


def read_until(process: Popen[str], pattern: str) -> str:
    """What a command prints, until it matches."""
    assert process.stdout is not None
    text, give_up_at = "", time.monotonic() + PATIENCE_S
    while not re.search(pattern, text, re.MULTILINE):
        assert time.monotonic() < give_up_at, text
        if select.select([process.stdout], [], [], 0.1)[0]:
            data = os.read(process.stdout.fileno(), 1 << 16)
            assert data, f"it ended: {text}"
            text += data.decode()
    return text


def test_one_file_per_process(shared: RunningSystem) -> None:
    files = sorted(path.name for path in (shared.folder / "logs").iterdir())
    assert files == ["broker.log", "supervisor.log", "worker-1.log", "worker-2.log"]
    assert f"pid {shared.pid('worker-1')}" in shared.log("worker-1")


def test_logs_follow_all_processes(shared: RunningSystem) -> None:
    process = shared.popen("logs", "-f", "-n", "5")
    read_until(process, "\n")
    shared.client().call("say", "followed one")
    read_until(process, r"worker-[12] +\| OUT +\[\d+:\d+\] followed one$")
    shared.client().call("say", "followed two")
    read_until(process, "followed two$")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130


def test_the_logs_of_one_request(shared: RunningSystem) -> None:
    (reply,) = shared.client().stream([("say", {"text": "mine", "error": "also mine"})])
    name = f"{reply.request_id >> 32}:{reply.request_id & 0xFFFFFFFF}"
    lines = shared.cli("logs", "--request", name, "--json").stdout.splitlines()
    told = [json.loads(line) for line in lines]
    assert [(line["msg"], line["request"]) for line in told] == [
        ("mine", name),
        ("also mine", name),
    ]
    assert {line["proc"] for line in told} == {reply.worker}


def test_logs_of_some_processes(shared: RunningSystem) -> None:
    out = shared.cli("logs", "-n", "all", "worker-1", "--raw").stdout
    assert out == shared.log("worker-1")
    assert "worker-9" in shared.cli("logs", "worker-9", code=2).stderr


def test_nothing_that_a_client_sends_forges_a_line(system: Start) -> None:
    lb = system(2, more="logs: {level: DEBUG}\n")
    client = lb.client()
    evil = f"x\n{FORGED}\r\x1b[2J\u202e\u2028{FORGED}\x00"
    client.call("say", evil)
    client.call("echo", evil)
    for task in (evil, "fail"):
        with pytest.raises(LBError):
            client.call(task, evil)
    # a name in the greeting, a task number that there is not, and no greeting at all
    greeting = {"lb": 2, "role": "client", "nonce": bytes(16)}
    greetings: list[dict[str, object]] = [
        {**greeting, "name": evil},
        {**greeting, "role": evil},
        {**greeting, "lb": evil},
        {evil: evil},
    ]
    for hello in greetings:
        wire_hello(lb, hello)
    with connect(lb.state().broker.address) as peer:
        lb.prove(peer, name=evil)
        assert peer.recv(1 << 16)
    with connect(lb.state().broker.address) as peer:
        peer.sendall(evil.encode() * 10)
        peer.recv(1 << 16)
    with connect(lb.state().workers[0].address) as peer:
        peer.sendall(evil.encode() * 10)
        peer.recv(1 << 16)
    client.status()
    for name in ("broker", "worker-1", "worker-2", "supervisor"):
        for line in lb.log(name).split("\n")[:-1]:
            assert LINE.fullmatch(line), repr(line)
            assert not line.startswith(FORGED)
            assert line.isprintable()
    out = lb.cli("logs", "-n", "all").stdout
    assert "\x1b" not in out
    for line in out.split("\n")[:-1]:
        assert SHOWN.fullmatch(line), repr(line)


def wire_hello(lb: RunningSystem, message: Mapping[str, object]) -> None:
    """Greet the broker with anything, and wait for its answer."""
    with connect(lb.state().broker.address) as peer:
        peer.sendall(control_frame(Kind.HELLO, message))
        assert peer.recv(1 << 16)


def test_logs_as_json(system: Start) -> None:
    lb = system(1, more="logs: {format: json}\n")
    lb.client().call("say", f"a\n{FORGED}")
    lb.down()
    for name in ("broker", "worker-1", "supervisor"):
        records = [json.loads(line) for line in lb.log(name).splitlines()]
        assert {record["proc"] for record in records} == {name}
    prints = [json.loads(line) for line in lb.log("worker-1").splitlines()]
    assert [record["msg"] for record in prints if record["level"] == "OUT"][-2:] == ["a", FORGED]
    lb.up()


def test_info_is_silent_about_requests(shared: RunningSystem) -> None:
    before = {name: shared.log(name) for name in ("broker", "worker-1", "worker-2")}
    shared.cli("send", "--task", "noop", "--n", "500")
    for name, text in before.items():
        assert not re.search(r" INFO |noop|\[\d+:\d+\]", shared.log(name).removeprefix(text))
