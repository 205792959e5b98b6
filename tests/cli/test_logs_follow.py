"""``lb logs`` as a process: following files that change, signals, pipes, and a terminal."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import click
import pytest

from lbcore.shell.log_files import rotated_paths
from tests.cli.log_system import NOW, System, command

PATIENCE_S = 30.0


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System(tmp_path)


class Follower:
    """``lb logs -f`` as a process, whose lines the test waits for."""

    def __init__(self, process: subprocess.Popen[bytes], fd: int) -> None:
        self.process = process
        self._fd = fd
        self._rest = b""

    def line(self) -> str:
        """The next line; fails the test when none comes."""
        deadline = time.monotonic() + PATIENCE_S
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._fd], [], [], deadline - time.monotonic())
            assert ready, "no line came"
            block = os.read(self._fd, 4096)
            assert block, "the output ended"
            self._rest += block
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode().rstrip("\r")

    def end(self, number: signal.Signals | None = None) -> int:
        """Send a signal, if any, and wait for the exit code."""
        if number is not None:
            self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


@pytest.fixture
def follow(system: System) -> Iterator[Callable[..., Follower]]:
    started: list[subprocess.Popen[bytes]] = []

    def follow(*arguments: str) -> Follower:
        process = subprocess.Popen(
            command(*system.arguments("-f", *arguments)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        started.append(process)
        assert process.stdout is not None
        return Follower(process, process.stdout.fileno())

    yield follow
    for process in started:
        process.kill()
        process.communicate()


Follow = Callable[..., Follower]


def test_following_shows_what_is_added_over_rotations(system: System, follow: Follow) -> None:
    system.log("broker", "number old")
    follower = follow()
    assert follower.line().endswith("number old")
    for number in range(60):
        system.log("broker", f"number {number}")
    assert len(rotated_paths(system.folder / "broker.log")) > 2
    for number in range(60):
        assert follower.line().endswith(f"| INFO  number {number}")


def test_following_finds_processes_that_appear_later(system: System, follow: Follow) -> None:
    system.log("broker", "hello")
    follower = follow("-n", "1")
    assert follower.line().endswith("hello")
    system.log("worker-9", "new here")
    assert follower.line().endswith("worker-9   | INFO  new here")


def test_following_survives_truncation_and_removal(system: System, follow: Follow) -> None:
    system.log("broker", "a message that is long enough")
    follower = follow()
    follower.line()
    path = system.folder / "broker.log"
    os.truncate(path, 0)
    system.log("broker", "truncated")
    assert follower.line().endswith("truncated")
    path.unlink()
    system.log("broker", "removed")
    assert follower.line().endswith("removed")


def test_a_named_process_is_waited_for(system: System, follow: Follow) -> None:
    system.log("broker", "hello")
    follower = follow("worker-2", "--level", "WARNING")
    system.log("worker-2", "not shown")
    system.log("broker", "not shown", level="ERROR")
    system.log("worker-2", "shown", level="ERROR")
    assert follower.line().endswith("worker-2   | ERROR shown")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_signals_end_following_quietly(
    system: System, follow: Follow, number: signal.Signals, code: int
) -> None:
    system.log("broker", "hello")
    follower = follow()
    follower.line()
    assert follower.end(number) == code
    assert follower.process.communicate() == (b"", b"")


def test_a_reader_that_leaves_ends_following_quietly(system: System, follow: Follow) -> None:
    system.log("broker", "hello")
    follower = follow()
    follower.line()
    assert follower.process.stdout is not None
    follower.process.stdout.close()
    assert follower.end() == 141
    assert follower.process.stderr is not None
    assert follower.process.stderr.read() == b""


def test_a_reader_of_the_first_lines_is_served_quietly(system: System) -> None:
    for number in range(3000):
        system.log("broker", f"{number} " + "x" * 100)
    pipeline = subprocess.run(
        ["sh", "-c", '"$@" | head -1', "sh", *command(*system.arguments("-n", "all"))],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert len(pipeline.stdout.splitlines()) == 1
    assert pipeline.stderr == ""


# on a terminal


@pytest.fixture
def on_terminal(system: System) -> Callable[..., list[str]]:
    """Run the command with a terminal as its stdout and return what it printed."""

    def on_terminal(*arguments: str, **environment: str) -> list[str]:
        master, slave = pty.openpty()
        plain = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
        try:
            process = subprocess.Popen(
                command(*system.arguments(*arguments)),
                stdout=slave,
                env={**plain, "TERM": "xterm", **environment},
            )
            assert process.wait(PATIENCE_S) == 0
            os.write(slave, b"<end>")
            text = b""
            while not text.endswith(b"<end>"):
                text += os.read(master, 4096)
        finally:
            os.close(master)
            os.close(slave)
        return text.decode().removesuffix("<end>").splitlines()

    return on_terminal


def test_a_terminal_gets_colours_and_short_times(
    system: System, on_terminal: Callable[..., list[str]]
) -> None:
    system.log("broker", "yesterday", at_s=-86_400)
    system.log("broker", "careful", level="WARNING")
    system.log("worker-1", "hello", at_s=1)
    rows = on_terminal()
    yesterday = NOW - timedelta(days=1)
    assert [click.unstyle(row) for row in rows][:4] == [
        f"--- {yesterday:%Y-%m-%d} ---",
        "12:00:00.000 broker     | INFO  yesterday",
        f"--- {NOW:%Y-%m-%d} ---",
        "12:00:00.000 broker     | WARNING careful",
    ]
    assert rows[3].endswith("\x1b[33mcareful\x1b[0m")
    colors = {row.split("\x1b[")[1][:2] for row in rows[3:]}
    assert len(colors) == 2
    assert rows[4].endswith("|\x1b[0m INFO  hello")


def test_colours_can_be_refused(system: System, on_terminal: Callable[..., list[str]]) -> None:
    system.log("broker", "careful", level="WARNING")
    expected = "12:00:00.000 broker     | WARNING careful"
    assert on_terminal("--no-color")[-1] == expected
    assert on_terminal(NO_COLOR="1")[-1] == expected
    assert on_terminal(NO_COLOR="")[-1] != expected
