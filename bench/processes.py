"""Starting and ending the processes of a contender; called by contenders inside an agent.

Forked children get their sockets ready made, so that no port is guessed and then lost to another.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import subprocess
import time
import traceback
from collections.abc import Callable, Iterable
from multiprocessing.process import BaseProcess
from pathlib import Path

from bench.contender import START_S, BenchError

#: how long a process may take to end on SIGTERM before it is killed
END_S = 3.0


def fork(target: Callable[..., None], *args: object) -> BaseProcess:
    """Run ``target(*args)`` in a forked child that dies with the agent's process group."""
    process = multiprocessing.get_context("fork").Process(
        target=_run_child, args=(target, args), daemon=True
    )
    process.start()
    return process


def _run_child(target: Callable[..., None], args: tuple[object, ...]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    try:
        target(*args)
    except (KeyboardInterrupt, ConnectionError, EOFError):
        pass
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def spawn(
    command: list[str], folder: Path, pass_fds: Iterable[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a program in ``folder``; what it prints goes to a file there."""
    with open(folder / f"{Path(command[0]).name}.out", "ab") as output:
        return subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=tuple(pass_fds),
        )


def end(processes: Iterable[BaseProcess | subprocess.Popen[bytes]]) -> None:
    """Ask every process to end, wait for them, kill those that do not."""
    running = list(processes)
    for process in running:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
    deadline = time.monotonic() + END_S
    for process in running:
        if not _wait(process, max(0.0, deadline - time.monotonic())):
            process.kill()
            _wait(process, END_S)


def _wait(process: BaseProcess | subprocess.Popen[bytes], timeout_s: float) -> bool:
    if isinstance(process, BaseProcess):
        process.join(timeout_s)
        return process.exitcode is not None
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return False
    return True


def listen() -> socket.socket:
    """A listening TCP socket on any free loopback port."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen(4096)
    return listener


def free_port() -> int:
    """A port that was free a moment ago, for servers that cannot be handed a socket."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def connect(address: tuple[str, int] | str) -> socket.socket:
    """A blocking connection: TCP with TCP_NODELAY for a pair, a Unix socket for a path."""
    if isinstance(address, str):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(address)
        return connection
    connection = socket.create_connection(address, timeout=START_S)
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def wait_for_port(port: int, process: subprocess.Popen[bytes], what: str) -> None:
    """Return when ``port`` accepts.  Raises ``BenchError`` if it does not or ``process`` ends."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BenchError(f"{what} ended at start with code {process.returncode}")
        try:
            connect(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.01)
        else:
            return
    raise BenchError(f"{what} does not listen on port {port} after {START_S:.0f} s")
