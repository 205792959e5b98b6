"""Starts stand-in systems for tests, watches them by their state file, leaves nothing behind."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from lbcore.core.topology import Address, Topology, WorkerConfig
from lbcore.shell.state import SystemState, read_state

SCRIPT = Path(__file__).with_name("stand_in_system.py")
#: every process of a system has this variable, also one that escaped its group
MARK = "STAND_IN_SYSTEM"
#: far more than anything takes, even on a machine that does other things
PATIENCE_S = 30.0


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Poll until it holds."""
    give_up_at = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up_at, f"waited in vain: {what}"
        time.sleep(0.005)


class System:
    """One topology in a folder of its own."""

    def __init__(self, folder: Path, workers: int = 2, more: str = "") -> None:
        self.folder = folder
        self.config = folder / "config.yaml"
        self.mark = uuid.uuid4().hex
        names = "".join(f"  - {{name: worker-{n}}}\n" for n in range(1, workers + 1))
        self.config.write_text(f"name: test\nbroker: {{port: 0}}\nworkers:\n{names}{more}")
        self.topology = Topology(
            name="test",
            broker=Address(),
            workers=tuple(WorkerConfig(name=f"worker-{n}") for n in range(1, workers + 1)),
            source=str(self.config),
        )
        self.process: subprocess.Popen[str] | None = None

    def set_ways(self, **ways: str) -> None:
        """How children behave from their next start on; ``worker_1`` means ``worker-1``."""
        text = json.dumps({name.replace("_", "-"): way for name, way in ways.items()})
        (self.folder / "ways.json").write_text(text)

    def start(self, *options: str, timing: Mapping[str, float] | None = None) -> None:
        """Start it in the foreground; ``-d`` lets it go into the background."""
        self.process = subprocess.Popen(
            [
                sys.executable,
                str(SCRIPT),
                str(self.config),
                *options,
                f"--timing={json.dumps(timing or {})}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env={**os.environ, MARK: self.mark},
        )

    def started(self, **options: Any) -> SystemState:
        """Start it and wait until it runs."""
        self.start(**options)
        return self.wait_for(lambda state: state.state == "RUNNING", "RUNNING")

    def state(self) -> SystemState | None:
        return read_state(self.topology)

    def wait_for(self, condition: Callable[[SystemState], bool], what: str) -> SystemState:
        """The first state in which the condition holds."""
        found: list[SystemState] = []

        def holds() -> bool:
            state = self.state()
            if state is not None and condition(state):
                found.append(state)
            return bool(found)

        wait_until(holds, what)
        return found[0]

    def finish(self) -> tuple[int, str, str]:
        """Wait for its end: exit code, stdout, stderr."""
        assert self.process is not None
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, out, err

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def log(self, name: str = "supervisor") -> str:
        path = self.folder / "logs" / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def told(self, name: str) -> list[dict[str, Any]]:
        """What the supervisor said to a child."""
        path = self.folder / f"told-{name}"
        text = path.read_text() if path.exists() else ""
        # the last line may still be on its way
        return [json.loads(line) for line in text.splitlines(True) if line.endswith("\n")]

    def fact(self, what: str) -> Any:
        """What a child left for us, as soon as it is there."""
        wait_until((self.folder / what).exists, what)
        return json.loads((self.folder / what).read_text())

    def survivors(self) -> list[psutil.Process]:
        """Every living process that this system started."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark:
                    found.append(process)
            except psutil.Error:
                continue
        return [each for each in found if is_alive(each.pid)]

    def clean_up(self) -> None:
        """End whatever a failed test left."""
        for process in self.survivors():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
        if self.process is not None:
            self.process.communicate()


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be reaped does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_listening(address: str) -> bool:
    """Whether somebody accepts connections there."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE_S).close()
    except ConnectionRefusedError:
        return False
    return True


def ask(address: str) -> int:
    """The pid of the good child that answers there."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as peer:
        return int(peer.makefile().read())
