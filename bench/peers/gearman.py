"""gearmand, with two Python workers and a client that speak its binary protocol over plain sockets.

Packets are joined into one write and parsed many to a read, and workers ask for several jobs
ahead, so that what is measured is the server and not a slow client library.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

from bench.contender import WORKERS, BenchError, Contender, find_program
from bench.measure import time_each
from bench.processes import connect, end, fork, free_port, spawn, wait_for_port
from bench.work import noop

HEADER = struct.Struct(">4sII")
CAN_DO, PRE_SLEEP, NOOP, SUBMIT_JOB, JOB_CREATED = 1, 4, 6, 7, 8
GRAB_JOB, NO_JOB, JOB_ASSIGN, WORK_COMPLETE = 9, 10, 11, 13
#: jobs a worker asks for before it has done the ones it holds
GRABS_AHEAD = 32
RECEIVE_BYTES = 1 << 18
TASKS = {b"noop": noop}


def packet(kind: int, data: bytes = b"") -> bytes:
    """One packet to the server."""
    return HEADER.pack(b"\0REQ", kind, len(data)) + data


SUBMISSION = packet(SUBMIT_JOB, b"noop\0\0")
GRAB = packet(GRAB_JOB)


class Packets:
    """Cuts what the server sends into packets."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._rest = b""

    def receive(self) -> Iterator[tuple[int, bytes]]:
        """Read once; yield the kind and data of every whole packet.  Raises ``EOFError``."""
        read = self._connection.recv(RECEIVE_BYTES)
        if not read:
            raise EOFError("gearmand closed the connection")
        data = self._rest + read
        offset, end_of_data, header_bytes = 0, len(data), HEADER.size
        while offset + header_bytes <= end_of_data:
            _, kind, size = HEADER.unpack_from(data, offset)
            stop = offset + header_bytes + size
            if stop > end_of_data:
                break
            yield kind, data[offset + header_bytes : stop]
            offset = stop
        self._rest = data[offset:]


class Gearman(Contender):
    """A client that keeps a window of submitted jobs on one connection."""

    name = "gearmand"
    title = "gearmand"
    install = "apt-get install gearman-job-server"
    programs = ("gearmand",)

    def __init__(self) -> None:
        self._server: subprocess.Popen[bytes] | None = None
        self._workers: list[BaseProcess] = []
        self._connection: socket.socket | None = None

    def start(self, folder: Path) -> None:
        """Start the server, fork the workers, run a few jobs."""
        port = free_port()
        self._server = spawn(server_command(port, folder), folder)
        wait_for_port(port, self._server, "gearmand")
        self._workers = [fork(run_worker, port) for _ in range(WORKERS)]
        self._connection = connect(("127.0.0.1", port))
        self.send_many(200, 10, "")

    def stop(self) -> None:
        """End the workers and the server."""
        if self._connection is not None:
            self._connection.close()
        end(self._workers)
        if self._server is not None:
            end([self._server])

    def versions(self) -> dict[str, str]:
        """gearmand's version."""
        program = find_program("gearmand")
        if program is None:
            return {}
        answer = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
        words = (answer.stdout + answer.stderr).split()
        return {"gearmand": words[1] if len(words) > 1 else "unknown"}

    def send_many(self, count: int, in_flight: int, mode: str) -> float:
        """Seconds for ``count`` jobs in a sliding window."""
        connection = self._connection
        assert connection is not None
        packets = Packets(connection)
        done = sent = 0
        started = time.perf_counter()
        while done < count:
            more = min(count, done + in_flight) - sent
            if more:
                connection.sendall(SUBMISSION * more)
                sent += more
            for kind, _ in packets.receive():
                if kind == WORK_COMPLETE:
                    done += 1
                elif kind != JOB_CREATED:
                    raise BenchError(f"gearmand answered a job with packet {kind}")
        return time.perf_counter() - started

    def send_single(self, count: int) -> list[float]:
        """The round trip of each job, in seconds."""
        connection = self._connection
        assert connection is not None
        packets = Packets(connection)

        def call() -> None:
            connection.sendall(SUBMISSION)
            done = False
            while not done:
                for kind, _ in packets.receive():
                    done = done or kind == WORK_COMPLETE

        return time_each(call, count)


def server_command(port: int, folder: Path) -> list[str]:
    """How gearmand is started: one port on loopback, nothing kept, its log in ``folder``."""
    program = find_program("gearmand") or "gearmand"
    return [program, "--listen=127.0.0.1", f"--port={port}", f"--log-file={folder}/gearmand.log"]


def run_worker(port: int) -> None:
    """Run jobs for ever; answer all that arrived in one write.

    After a wake-up it asks for one job, and for one more with each job it gets, so that a lone job
    costs little and a stream of them keeps ``GRABS_AHEAD`` asked for.
    """
    connection = connect(("127.0.0.1", port))
    packets = Packets(connection)
    connection.sendall(packet(CAN_DO, b"noop") + GRAB)
    asked = 1
    while True:
        answer: list[bytes] = []
        for kind, data in packets.receive():
            if kind == JOB_ASSIGN:
                handle, function, _ = data.split(b"\0", 2)
                TASKS[function]()
                answer.append(packet(WORK_COMPLETE, handle + b"\0"))
                grabs = 2 if asked < GRABS_AHEAD else 1
                answer.append(GRAB * grabs)
                asked += grabs - 1
            elif kind == NO_JOB:
                asked -= 1
                if not asked:
                    answer.append(packet(PRE_SLEEP))
            elif kind == NOOP:
                answer.append(GRAB)
                asked += 1
        if answer:
            connection.sendall(b"".join(answer))
