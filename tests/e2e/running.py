"""A real system, started and used through the real command line, in a folder of its own.

Everything that a test starts through here carries a mark in its environment, so that whatever is
left of it can be found, however far it ran away.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil

from lbcore import Client
from lbcore.core.errors import ConfigError
from lbcore.core.topology import Address
from lbcore.shell.config_file import load
from lbcore.shell.state import SystemState, parse_address, read_state, running_topology
from tests.core import wire_spec

REPOSITORY = Path(__file__).resolve().parent.parent.parent
LB = (sys.executable, str(REPOSITORY / "lb.py"))
#: tasks for the systems of tests, which any topology may name
TASKS = Path(__file__).with_name("tasks_for_tests.py")
MARK = "SYSTEM_OF_A_TEST"
#: far more than anything takes, even on a machine that does other things
PATIENCE_S = 30.0

Found = TypeVar("Found")


def wait_until(condition: Callable[[], Found], what: str, patience_s: float = PATIENCE_S) -> Found:
    """Poll until it gives something true, and return that."""
    give_up_at = time.monotonic() + patience_s
    while not (found := condition()):
        assert time.monotonic() < give_up_at, f"waited in vain: {what}"
        time.sleep(0.005)
    return found


def together(*actions: Callable[[], Any], patience_s: float = PATIENCE_S) -> list[Any]:
    """Run them at once, each in a thread; their results, or the first error."""
    results: list[Any] = [None] * len(actions)
    errors: list[BaseException] = []

    def run(index: int, action: Callable[[], Any]) -> None:
        try:
            results[index] = action()
        except BaseException as error:  # told in the main thread
            errors.append(error)

    threads = [
        # a daemon, so that one that hangs fails its test and does not hang the suite
        threading.Thread(target=run, args=(index, action), daemon=True)
        for index, action in enumerate(actions)
    ]
    give_up_at = time.monotonic() + patience_s
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, give_up_at - time.monotonic()))
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    return results


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be reaped does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_listening(address: str) -> bool:
    """Whether somebody accepts connections there."""
    try:
        connect(address).close()
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    return True


def connect(address: str) -> socket.socket:
    """A bare connection to an address as the state file has it."""
    where: Address = parse_address(address)
    if where.path is None:
        return socket.create_connection((where.host, where.port), timeout=PATIENCE_S)
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(PATIENCE_S)
    try:
        peer.connect(where.path)
    except OSError:
        peer.close()
        raise
    return peer


def survivors(mark: str, value: str) -> list[psutil.Process]:
    """Every living process that has this in its environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(mark) == value and is_alive(process.pid):
                found.append(process)
        except psutil.Error:
            continue
    return found


@dataclass
class RunningSystem:
    """One topology in a folder of its own; most of it needs ``up`` to have been called."""

    folder: Path
    yaml: str
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        self.config = self.folder / "config.yaml"
        self.config.write_text(self.yaml)
        #: addresses that the processes of it had
        self.addresses: set[str] = set()
        self._clients: list[Client] = []
        self._foreground: list[subprocess.Popen[str]] = []

    # ---- the command line ----------------------------------------------------------------------

    def cli(
        self,
        *arguments: str,
        code: int | None = 0,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run one command to its end; ``code`` is the exit code that it must have."""
        done = subprocess.run(
            [*LB, *arguments],
            cwd=self.folder,
            env=self._environment(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        report = f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert code is None or done.returncode == code, report
        # that of a task is shown below such a line, or logged; any other is a bug
        for text in (done.stdout, done.stderr) if arguments[0] != "logs" else ():
            assert "Traceback" not in text.partition("\nthe first ")[0], report
        return done

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command that goes on; ended with the system at the latest."""
        process = subprocess.Popen(
            [*LB, *arguments],
            cwd=self.folder,
            env=self._environment({"PYTHONUNBUFFERED": "1"}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._foreground.append(process)
        return process

    def _environment(self, more: Mapping[str, str] | None) -> dict[str, str]:
        mine = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith("LB_") or key == "LB_RUNTIME_DIR"
        }
        return {**mine, "NO_COLOR": "1", "COLUMNS": "80", MARK: self.mark, **(more or {})}

    def up(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Start it in the background."""
        done = self.cli("up", "-d", *options)
        self.state()
        return done

    def up_in_foreground(self, *options: str) -> subprocess.Popen[str]:
        """Start it as a child and wait until it runs."""
        process = self.popen("up", *options)
        self.wait_for(lambda state: state.state == "RUNNING", "RUNNING")
        self.state()
        return process

    # ---- what there is -------------------------------------------------------------------------

    def find_state(self) -> SystemState | None:
        """What its supervisor says; None when it has none."""
        try:
            return read_state(running_topology(self.config) or load(self.config, environ={}))
        except ConfigError:
            return None  # of a topology that no command accepts

    def state(self) -> SystemState:
        """What its supervisor says."""
        state = self.find_state()
        assert state is not None, "it does not run"
        self.addresses.update(each.address for each in (state.broker, *state.workers))
        return state

    def wait_for(self, condition: Callable[[SystemState], bool], what: str) -> SystemState:
        """The first state in which the condition holds."""

        def holds() -> SystemState | None:
            state = self.find_state()
            return state if state is not None and condition(state) else None

        found = wait_until(holds, what)
        assert found is not None
        return found

    def pid(self, name: str) -> int:
        """The process of that name."""
        state = self.state()
        if name == "supervisor":
            return state.pid
        pid = next(each.pid for each in (state.broker, *state.workers) if each.name == name)
        assert pid is not None, f"{name} has no process now"
        return pid

    def restarts(self, name: str) -> int:
        """How often it was started again."""
        state = self.state()
        return next(each.restarts for each in (state.broker, *state.workers) if each.name == name)

    def wait_for_restart(self, name: str, restarts: int = 1) -> None:
        """Until it runs again, after so many restarts."""

        def restarted(state: SystemState) -> bool:
            each = next(each for each in (state.broker, *state.workers) if each.name == name)
            return each.state == "RUNNING" and each.restarts >= restarts

        self.wait_for(restarted, f"{restarts} restarts of {name}")

    def kill(self, name: str, number: int = signal.SIGKILL) -> int:
        """Send one of its processes a signal; returns the pid."""
        pid = self.pid(name)
        os.kill(pid, number)
        return pid

    def log(self, name: str) -> str:
        """What that process has logged so far."""
        path = self.folder / "logs" / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def wait_for_log(self, name: str, pattern: str) -> re.Match[str]:
        """The first place in a log that matches."""
        what = f"{pattern!r} in the log of {name}"
        found = wait_until(lambda: re.search(pattern, self.log(name), re.MULTILINE), what)
        assert found is not None
        return found

    def client(self, **options: Any) -> Client:
        """A new client of its broker; closed with the system at the latest."""
        address = parse_address(self.state().broker.address)
        client = Client(address.host, address.port, path=address.path, **options)
        self._clients.append(client)
        return client

    def secret(self) -> bytes:
        """What all its keys are made from."""
        (path,) = self.folder.glob(".lb/*/secret")
        return path.read_bytes()

    def prove(self, peer: socket.socket, role: str = "client", **more: Any) -> None:
        """The handshake on a bare connection, as far as the answer of the other side."""
        owner = "worker" if role == "broker" else role
        wire_spec.prove(peer, wire_spec.key_of(self.secret(), owner), role, **more)

    # ---- its end -------------------------------------------------------------------------------

    def down(self) -> None:
        """Stop it and see that nothing is left."""
        if self.find_state() is not None:
            self.state()
            self.cli("down", "-t", "5")
        self.check_gone()

    def wait_gone(self, patience_s: float = PATIENCE_S) -> None:
        """Until nothing of it runs or listens."""
        wait_until(lambda: not survivors(MARK, self.mark), "the end of all", patience_s)
        # the kernel closes what a process had a moment after its environment is gone
        wait_until(lambda: not any(map(is_listening, self.addresses)), "free ports", patience_s)

    def check_gone(self) -> None:
        """Nothing of it runs, listens, or says that it does."""
        self.wait_gone()
        assert not (self.folder / ".lb").exists()

    def clean_up(self) -> None:
        """End whatever a test left, in any state."""
        for client in self._clients:
            threading.Thread(target=client.close, daemon=True).start()
        for process in survivors(MARK, self.mark):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        for child in self._foreground:
            child.kill()
            child.communicate()


def workers_at_work(client: Client) -> set[str]:
    """The workers that get something when several requests come at once."""
    calls = [("sleep", {"seconds": 0.005})] * 12
    return {reply.worker for reply in client.stream(calls, window=6, timeout=PATIENCE_S)}


def topology(
    workers: int | str = 2, *, more: str = "", broker: str = "{port: 0}", tasks: bool = True
) -> str:
    """The YAML of a system on free ports; ``workers`` is their number or their own YAML."""
    text = f"broker: {broker}\nworkers: {workers}\n"
    if tasks:
        text += f"tasks: [{TASKS}]\n"
    return text + more
