"""HAProxy with ``balance leastconn`` before two uvicorn servers that run a raw ASGI application.

HTTP/1.1 answers one request at a time on a connection, so N in flight are N keep-alive
connections, all driven by one Python client with epoll.  Every process gets its listening socket
from here; no port is guessed.
"""

from __future__ import annotations

import importlib
import resource
import select
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, MutableMapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from bench.contender import WORKERS, BenchError, Contender, find_program
from bench.measure import time_each
from bench.processes import connect, end, fork, listen, spawn, wait_for_port
from bench.work import noop

REQUEST = b"GET /noop HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
BODY = b"done"
RECEIVE_BYTES = 65536
Message = MutableMapping[str, Any]

CONFIGURATION = """\
global
    maxconn {connections}
    nbthread {threads}
defaults
    mode http
    option http-keep-alive
    http-reuse always
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend clients
    bind fd@{fd}
    default_backend workers
backend workers
    balance leastconn
{servers}
"""
#: threads of HAProxy; with one it leaves the second core to the servers
THREADS = 1
#: requests that one server gets at a time; the rest wait in HAProxy, faster than all at once
SERVER_MAX = 64
#: clients' connections that HAProxy must be able to hold; each needs two of its file descriptors
CONNECTIONS_MAX = 4000

HEAD: Message = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-length", str(len(BODY)).encode())],
}
END: Message = {"type": "http.response.body", "body": BODY}


async def application(
    scope: Message,
    receive: Callable[[], Awaitable[Message]],
    send: Callable[[Message], Awaitable[None]],
) -> None:
    """Run the no-op and answer."""
    noop()
    await send(HEAD)
    await send(END)


class Haproxy(Contender):
    """A client that keeps one request unanswered on each of N connections."""

    name = "haproxy"
    title = "HAProxy + 2 uvicorn"
    install = "apt-get install haproxy && pip install uvicorn httptools"
    modules = ("uvicorn", "httptools")
    programs = ("haproxy",)

    def __init__(self) -> None:
        self._workers: list[BaseProcess] = []
        self._proxy: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._connections: list[socket.socket] = []
        self._answer_bytes = 0

    def start(self, folder: Path) -> None:
        """Fork the servers, start HAProxy, see how long an answer is."""
        servers = []
        for number in range(WORKERS):
            listener = listen()
            port = listener.getsockname()[1]
            servers.append(f"    server worker-{number + 1} 127.0.0.1:{port} maxconn {SERVER_MAX}")
            self._workers.append(fork(run_server, listener))
            listener.close()
        with listen() as listener:
            self._port = listener.getsockname()[1]
            text = CONFIGURATION.format(
                connections=min(CONNECTIONS_MAX, raise_file_limit() // 3),
                fd=listener.fileno(),
                threads=THREADS,
                servers="\n".join(servers),
            )
            (folder / "haproxy.cfg").write_text(text)
            program = find_program("haproxy") or "haproxy"
            self._proxy = spawn([program, "-db", "-f", "haproxy.cfg"], folder, [listener.fileno()])
        wait_for_port(self._port, self._proxy, "haproxy")
        self._connections.append(connect(("127.0.0.1", self._port)))
        self._answer_bytes = self._learn_answer(self._connections[0])

    def stop(self) -> None:
        """End HAProxy and the servers."""
        for connection in self._connections:
            connection.close()
        if self._proxy is not None:
            end([self._proxy])
        end(self._workers)

    def versions(self) -> dict[str, str]:
        """Versions of HAProxy and uvicorn."""
        program = find_program("haproxy")
        if program is None:
            return {}
        answer = subprocess.run([program, "-v"], capture_output=True, text=True, check=False)
        words = answer.stdout.split()
        uvicorn = importlib.import_module("uvicorn")
        return {
            "haproxy": words[2] if len(words) > 2 else "unknown",
            "uvicorn": str(uvicorn.__version__),
        }

    def send_many(self, count: int, in_flight: int, mode: str) -> float:
        """Seconds for ``count`` requests over ``in_flight`` connections."""
        while len(self._connections) < in_flight:
            self._connections.append(connect(("127.0.0.1", self._port)))
        by_fd = {each.fileno(): each for each in self._connections[:in_flight]}
        missing_bytes = dict.fromkeys(by_fd, self._answer_bytes)
        poll = select.epoll()
        for fd in by_fd:
            poll.register(fd, select.EPOLLIN)
        sent, done = min(count, in_flight), 0
        started = time.perf_counter()
        for connection in self._connections[:sent]:
            connection.sendall(REQUEST)
        while done < count:
            for fd, _ in poll.poll():
                connection = by_fd[fd]
                data = connection.recv(RECEIVE_BYTES)
                missing_bytes[fd] -= len(data)
                if missing_bytes[fd] > 0 and data:
                    continue
                if missing_bytes[fd] or not data.endswith(BODY):
                    raise BenchError(f"HAProxy answered {data[:60]!r}")
                missing_bytes[fd] = self._answer_bytes
                done += 1
                if sent < count:
                    connection.sendall(REQUEST)
                    sent += 1
        seconds = time.perf_counter() - started
        poll.close()
        return seconds

    def send_single(self, count: int) -> list[float]:
        """The round trip of each request on one connection, in seconds."""
        connection = self._connections[0]
        answer_bytes = self._answer_bytes

        def call() -> None:
            connection.sendall(REQUEST)
            missing_bytes = answer_bytes
            while missing_bytes > 0:
                read_bytes = len(connection.recv(RECEIVE_BYTES))
                if not read_bytes:
                    raise BenchError("HAProxy closed a connection")
                missing_bytes -= read_bytes

        return time_each(call, count)

    def _learn_answer(self, connection: socket.socket) -> int:
        connection.settimeout(10)
        connection.sendall(REQUEST)
        data = b""
        while not data.endswith(b"\r\n\r\n" + BODY):
            read = connection.recv(RECEIVE_BYTES)
            data += read
            if not read or not data.startswith(b"HTTP/1.1 200 "[: len(data)]):
                raise BenchError(f"HAProxy answered {data[:60]!r}")
        connection.settimeout(None)
        return len(data)


def raise_file_limit() -> int:
    """Raise this process's limit on open files as far as is allowed; how many that is at least."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return 3 * CONNECTIONS_MAX if hard == resource.RLIM_INFINITY else hard


def run_server(listener: socket.socket) -> None:
    """One uvicorn on a listener, with its fastest parts and without optional headers."""
    uvicorn = importlib.import_module("uvicorn")
    config = uvicorn.Config(
        application,
        http="httptools",
        loop="uvloop",
        lifespan="off",
        log_level="warning",
        access_log=False,
        date_header=False,
        server_header=False,
    )
    uvicorn.Server(config).run(sockets=[listener])
