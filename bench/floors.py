"""The floor of one request at a time: client to a blocking relay to a blocking echo, and back.

Two plain Python processes that do nothing but ``recv`` and ``sendall``: what the path client,
broker, worker costs when nobody thinks on the way.  Messages are as long as lb's frame header.
"""

from __future__ import annotations

import socket
from multiprocessing.process import BaseProcess
from pathlib import Path

from bench.contender import Contender
from bench.measure import time_each
from bench.processes import connect, end, fork, listen

MESSAGE = b"x" * 24
RECEIVE_BYTES = 65536


class Relay(Contender):
    """The floor over TCP, with TCP_NODELAY on every connection."""

    name = "relay"
    title = "relay floor, TCP"

    def __init__(self) -> None:
        self._processes: list[BaseProcess] = []
        self._connection: socket.socket | None = None

    def start(self, folder: Path) -> None:
        """Fork the echo and the relay, each with its listener, and connect."""
        echo_listener, relay_listener = self._listen(folder, "echo"), self._listen(folder, "relay")
        echo_address = echo_listener.getsockname()
        self._processes.append(fork(run_echo, echo_listener))
        self._processes.append(fork(run_relay, relay_listener, echo_address))
        self._connection = connect(relay_listener.getsockname())
        echo_listener.close()
        relay_listener.close()

    def stop(self) -> None:
        """Close the client's connection, which ends both processes."""
        if self._connection is not None:
            self._connection.close()
        end(self._processes)

    def send_single(self, count: int) -> list[float]:
        """The round trips, in seconds."""
        connection = self._connection
        assert connection is not None
        send, receive = connection.sendall, connection.recv

        def call() -> None:
            send(MESSAGE)
            if len(receive(RECEIVE_BYTES)) != len(MESSAGE):
                raise ConnectionError("the relay sent back something else")

        return time_each(call, count)

    def _listen(self, folder: Path, name: str) -> socket.socket:
        return listen()


class UnixRelay(Relay):
    """The floor over Unix sockets."""

    name = "relay-unix"
    title = "relay floor, Unix"

    def _listen(self, folder: Path, name: str) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(folder / f"{name}.sock"))
        listener.listen()
        return listener


def _accept(listener: socket.socket) -> socket.socket:
    connection, _ = listener.accept()
    if connection.family == socket.AF_INET:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def run_echo(listener: socket.socket) -> None:
    """Send back what one connection sends, until it closes."""
    connection = _accept(listener)
    while data := connection.recv(RECEIVE_BYTES):
        connection.sendall(data)


def run_relay(listener: socket.socket, echo_address: tuple[str, int] | str) -> None:
    """Pass each message to the echo and its answer back, until the client closes."""
    echo = connect(echo_address)
    client = _accept(listener)
    while data := client.recv(RECEIVE_BYTES):
        echo.sendall(data)
        client.sendall(echo.recv(RECEIVE_BYTES))
