"""``up`` as a person meets it: its output, its background, its refusals."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lbcore.cli.live import live_line, process_table
from lbcore.core.plan import with_workers
from lbcore.core.topology import Address, Topology, WorkerConfig
from lbcore.shell.state import ProcessState, SystemState
from tests.shell.systems import MARK, PATIENCE_S, SCRIPT, System, wait_until

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    """A system of two workers that is not started yet."""
    system = System(tmp_path)
    yield system
    system.clean_up()


def test_the_table_shows_every_process(system: System) -> None:
    state = system.started()
    system.signal(signal.SIGTERM)
    _, out, _ = system.finish()
    lines = out.splitlines()
    assert re.fullmatch(r"NAME +PID +ADDRESS +LOG", lines[0])
    for line, name, pid, address in (
        (lines[1], "supervisor", state.pid, "-"),
        (lines[2], "broker", state.broker.pid, state.broker.address),
        (lines[3], "worker-1", state.workers[0].pid, state.workers[0].address),
        (lines[4], "worker-2", state.workers[1].pid, state.workers[1].address),
    ):
        assert line.split() == [name, str(pid), address, f"logs/{name}.log"]
        assert len(line) < 80
    assert re.search(r"^ready in \d+\.\d\d s", out, re.MULTILINE)
    assert "in flight" not in out, "the live line is for terminals"


def test_in_the_background_it_returns_when_all_is_ready(system: System) -> None:
    system.start("-d")
    code, out, err = system.finish()
    assert (code, err) == (0, "")
    state = system.state()
    assert state is not None
    assert state.state == "RUNNING"
    assert str(state.broker.pid) in out
    assert "down` stops it" in out
    assert os.getsid(state.pid) == state.pid
    for number in (0, 1, 2):
        assert os.readlink(f"/proc/{state.pid}/fd/{number}") == os.devnull
    os.kill(state.pid, signal.SIGTERM)
    wait_until(lambda: not system.survivors(), "the end")
    assert system.state() is None


def test_a_start_that_fails_in_the_background_fails_in_the_foreground(system: System) -> None:
    system.set_ways(worker_1="fails")
    system.start("-d")
    code, out, err = system.finish()
    assert (code, out) == (2, "")
    assert err.startswith("lb: worker-1 cannot start: tasks.py:3: no module named numpi")
    assert not system.survivors(), "when it returns, nothing is left"
    assert not (system.folder / ".lb").exists()


def test_a_background_that_is_killed_while_it_starts_is_noticed(system: System) -> None:
    system.set_ways(worker_1="mute")
    system.start("-d")
    state = system.wait_for(lambda state: state.broker.state == "RUNNING", "the broker")
    os.kill(state.pid, signal.SIGKILL)
    code, _, err = system.finish()
    assert code == 3
    assert "the supervisor ended while it started; see its log" in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_whoever_does_not_wait_for_the_background_ends_it(
    system: System, number: signal.Signals, code: int
) -> None:
    system.set_ways(worker_1="mute")
    system.start("-d")
    system.wait_for(lambda state: state.broker.state == "RUNNING", "the broker")
    system.signal(number)
    assert system.finish()[0] == code
    wait_until(lambda: not system.survivors(), "the end")


def test_a_second_up_says_that_it_runs_already(system: System) -> None:
    state = system.started()
    again = lb(system, "up")
    assert again.returncode == 4
    assert re.fullmatch(
        rf"lb: already running \(pid {state.pid}, since \d{{4}}-.*, "
        rf"broker at {state.broker.address}\)\n",
        again.stderr,
    )
    assert system.state() == state


def test_a_port_in_use_names_port_holder_and_line(system: System) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        system.config.write_text(f"name: test\nbroker:\n  port: {port}\n")
        done = lb(system, "up", "--workers", "1", "-d")
    assert done.returncode == 3
    assert done.stdout == ""
    assert f"port {port} is in use\n    by pid {os.getpid()} (" in done.stderr
    assert "    change broker.port in line 3 of config.yaml\n" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (system.folder / ".lb").exists()


def lb(system: System, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the real command in the system's folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), MARK: system.mark}
    return subprocess.run(
        [sys.executable, "-m", "lbcore", *arguments],
        cwd=system.folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


class Screen:
    """A system in the foreground of a terminal of its own."""

    def __init__(self, system: System) -> None:
        self.text = ""
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.chdir(system.folder)
            os.environ.update({MARK: system.mark, "COLUMNS": "60", "NO_COLOR": "1"})
            os.execv(sys.executable, [sys.executable, str(SCRIPT), str(system.config)])

    def read_until(self, pattern: str) -> None:
        """Read what is shown until it matches."""
        give_up_at = time.monotonic() + PATIENCE_S
        while not re.search(pattern, self.text):
            assert time.monotonic() < give_up_at, self.text
            if select.select([self._terminal], [], [], 0.1)[0]:
                self.text += os.read(self._terminal, 4096).decode()

    def type(self, keys: bytes) -> None:
        os.write(self._terminal, keys)

    def close(self) -> None:
        os.close(self._terminal)

    def wait(self) -> int:
        """Its exit code."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_a_terminal_shows_a_live_line_and_obeys_ctrl_c(system: System) -> None:
    screen = Screen(system)
    screen.read_until(r"\r\x1b\[K2/2 workers running  queued 3  in flight 2  ")
    shown = re.findall(r"\x1b\[K(2/2 [^\r]*)", screen.text)
    assert len(shown[0]) <= 59, "one line stays one line"
    state = system.state()
    assert state is not None
    assert state.workers[0].pid is not None
    os.kill(state.workers[0].pid, signal.SIGKILL)
    screen.read_until(r"\r\x1b\[K\d\d:\d\d:\d\d worker-1: died: signal 9")
    screen.read_until(r"worker-1: ready after")
    screen.type(b"\x03")
    screen.read_until(r"stopped\r\n$")
    assert screen.wait() == 130
    screen.close()
    assert not system.survivors()


def test_closing_the_terminal_stops_the_system(system: System) -> None:
    screen = Screen(system)
    screen.read_until("ready in")
    screen.close()
    assert screen.wait() == 129
    assert not system.survivors()


def test_a_stopped_terminal_does_not_stop_the_supervisor(system: System) -> None:
    screen = Screen(system)
    screen.read_until("ready in")
    screen.type(b"\x13")  # Ctrl-S
    state = system.state()
    assert state is not None
    assert state.workers[0].pid is not None
    os.kill(state.workers[0].pid, signal.SIGKILL)
    system.wait_for(
        lambda state: state.workers[0].state == "RUNNING" and state.workers[0].restarts == 1,
        "the restart",
    )
    os.kill(screen.pid, signal.SIGTERM)
    assert screen.wait() == 143
    screen.close()


def test_a_reader_that_leaves_does_not_end_the_system(system: System) -> None:
    state = system.started()
    assert system.process is not None
    assert system.process.stdout is not None
    system.process.stdout.close()
    system.process.stdout = None
    assert state.workers[0].pid is not None
    os.kill(state.workers[0].pid, signal.SIGKILL)
    system.wait_for(lambda state: state.workers[0].restarts == 1, "the restart")
    system.signal(signal.SIGTERM)
    assert system.finish()[0] == 143


def some_state(workers: int = 2) -> SystemState:
    def process(name: str, state: str = "RUNNING") -> ProcessState:
        return ProcessState(
            name=name, pid=1, address="127.0.0.1:1", state=state, restarts=0, log=f"/l/{name}.log"
        )

    return SystemState(
        pid=1,
        started_at=0.0,
        create_time=0.0,
        name="test",
        config="",
        state="RUNNING",
        broker=process("broker"),
        workers=[process("worker-1", "FATAL"), *(process(f"w{n}") for n in range(1, workers))],
    )


def test_the_live_line_counts_and_fits() -> None:
    stats = {"queued": 12, "in_flight": 3, "rate": 1234.5, "completed": 1_234_567, "failed": 0}
    line = live_line(some_state(), stats, 120)
    assert line.startswith("1/2 workers running  queued 12  in flight 3  ")
    assert "failed 0" in line
    for width in (10, 40, 79):
        assert len(live_line(some_state(), stats, width)) <= width
    assert "queued -" in live_line(some_state(), {"queued": "\x1b[31m"}, 120)


def test_a_table_is_aligned_and_has_no_control_characters() -> None:
    state = some_state(workers=12)
    lines = process_table(state, "/l/supervisor.log")
    assert len(lines) == 1 + 2 + 12
    assert len({line.index("/l/") for line in lines[1:]}) == 1


@pytest.mark.parametrize(
    ("number", "names"),
    [
        (1, ["alpha"]),
        (2, ["alpha", "worker-1"]),
        (4, ["alpha", "worker-1", "worker-2", "worker-3"]),
    ],
)
def test_the_number_of_workers_keeps_names(number: int, names: list[str]) -> None:
    topology = Topology(
        name="test",
        broker=Address(),
        workers=(
            WorkerConfig(name="alpha", address=Address(port=9001)),
            WorkerConfig(name="worker-1", address=Address(port=9002)),
        ),
    )
    changed = with_workers(topology, number)
    assert [worker.name for worker in changed.workers] == names
    assert [worker.address.port for worker in changed.workers] == [9001, 9002, 0, 0][:number]


def test_the_number_of_workers_is_checked(system: System) -> None:
    done = lb(system, "up", "--workers", "0")
    assert done.returncode == 2
    assert "--workers" in done.stderr


def test_help_has_examples(system: System) -> None:
    done = lb(system, "up", "--help")
    assert done.returncode == 0
    assert "lb up -d" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
