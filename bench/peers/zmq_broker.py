"""A least-pending broker on pyzmq: ROUTER to clients, ROUTER to workers, tuned as far as it goes.

Each worker has credit for a number of unanswered requests; the broker gives each request to the
worker with the fewest, and queues the rest.  Every process empties its sockets without blocking
before it polls again, so that a burst costs one poll.  A request is one frame: an id and the name
of the task.  pyzmq is imported by name so that the rest type-checks without it.
"""

from __future__ import annotations

import contextlib
import importlib
import time
from collections import deque
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from bench.contender import START_S, WORKERS, BenchError, Contender
from bench.measure import time_each
from bench.processes import end, fork
from bench.work import noop

#: unanswered requests a worker may have; enough to keep it busy across a turn of the broker
CREDIT = 100
#: messages taken from one socket before the other side gets its turn
TURN = 200
READY = b"ready"
TASKS = {b"noop": noop}
BrokerLoop = Callable[[Any, Any, Any, dict[bytes, int]], None]
WorkerLoop = Callable[[Any, Any], None]
#: eight bytes of id, then the task's name
REQUEST = (0).to_bytes(8, "little") + b"noop"


class ZmqBroker(Contender):
    """A DEALER client that keeps a window of requests unanswered."""

    name = "zmq"
    title = "pyzmq broker, tuned"
    install = "pip install pyzmq"
    modules = ("zmq",)

    def __init__(self) -> None:
        self._processes: list[BaseProcess] = []
        self._socket: Any = None

    def start(self, folder: Path) -> None:
        """Fork the broker and the workers; connect when all of them answer."""
        front, back = f"ipc://{folder}/front-address", f"ipc://{folder}/back"
        self._processes.append(fork(run_broker, front, back, self._broker_loop()))
        for _ in range(WORKERS):
            self._processes.append(fork(run_worker, back, self._worker_loop()))
        zmq = importlib.import_module("zmq")
        ask = zmq.Context.instance().socket(zmq.DEALER)
        ask.connect(front)
        ask.send(READY)
        if not ask.poll(START_S * 1000):
            raise BenchError("the pyzmq broker was not ready in time")
        self._socket = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.set_hwm(0)
        self._socket.connect(ask.recv().decode())
        ask.close(0)
        self.send_many(200, 10, "")

    def stop(self) -> None:
        """End all processes."""
        if self._socket is not None:
            self._socket.close(0)
        end(self._processes)

    def versions(self) -> dict[str, str]:
        """Versions of pyzmq and libzmq."""
        zmq = importlib.import_module("zmq")
        return {"pyzmq": str(zmq.__version__), "libzmq": str(zmq.zmq_version())}

    def send_many(self, count: int, in_flight: int, mode: str) -> float:
        """Seconds for ``count`` requests in a sliding window."""
        zmq = importlib.import_module("zmq")
        dont_wait, nothing_there = zmq.NOBLOCK, zmq.Again
        send, receive = self._socket.send, self._socket.recv
        done = sent = 0
        started = time.perf_counter()
        while done < count:
            more = min(count, done + in_flight) - sent
            for _ in range(more):
                send(REQUEST, dont_wait)
            sent += more
            receive()
            done += 1
            with contextlib.suppress(nothing_there):
                for _ in range(min(TURN, sent - done)):
                    receive(dont_wait)
                    done += 1
        return time.perf_counter() - started

    def send_single(self, count: int) -> list[float]:
        """The round trips, in seconds."""
        send, receive = self._socket.send, self._socket.recv

        def call() -> None:
            send(REQUEST)
            receive()

        return time_each(call, count)

    def _broker_loop(self) -> BrokerLoop:
        return route_tuned

    def _worker_loop(self) -> WorkerLoop:
        return work_tuned


def run_worker(address: str, loop: WorkerLoop) -> None:
    """Connect to the broker and answer what it sends, for ever."""
    zmq = importlib.import_module("zmq")
    connection = zmq.Context().socket(zmq.DEALER)
    connection.set_hwm(0)
    connection.connect(address)
    connection.send(READY)
    loop(zmq, connection)


def run_broker(front_address: str, back_address: str, loop: BrokerLoop) -> None:
    """Wait for the workers, listen for clients, pass requests and answers for ever."""
    zmq = importlib.import_module("zmq")
    context = zmq.Context()
    front, back, asked = (context.socket(kind) for kind in (zmq.ROUTER, zmq.ROUTER, zmq.ROUTER))
    for socket in (front, back):
        socket.set_hwm(0)
    back.bind(back_address)
    pending: dict[bytes, int] = {}
    while len(pending) < WORKERS:
        pending[back.recv()] = 0
        back.recv()
    # Clients use TCP, as lb's do; the port is any free one, told over a Unix socket.
    front.bind("tcp://127.0.0.1:*")
    asked.bind(front_address)
    asker = asked.recv()
    asked.recv()
    asked.send(asker, zmq.SNDMORE)
    asked.send(front.getsockopt(zmq.LAST_ENDPOINT))
    loop(zmq, front, back, pending)


def work_tuned(zmq: Any, connection: Any) -> None:
    """Answer everything that has arrived before waiting again."""
    dont_wait, more, nothing_there = zmq.NOBLOCK, zmq.SNDMORE, zmq.Again
    send, receive = connection.send, connection.recv
    flags = 0
    while True:
        try:
            client = receive(flags)
        except nothing_there:
            flags = 0
            continue
        request = receive()
        TASKS[request[8:]]()
        send(client, more)
        send(request[:8])
        flags = dont_wait


def route_tuned(zmq: Any, front: Any, back: Any, pending: dict[bytes, int]) -> None:
    """Empty each socket, up to a bound, between two polls."""
    dont_wait, more, nothing_there = zmq.NOBLOCK, zmq.SNDMORE, zmq.Again
    send_front, receive_front = front.send, front.recv
    send_back, receive_back = back.send, back.recv
    queue: deque[tuple[bytes, bytes]] = deque()
    poller = zmq.Poller()
    poller.register(front, zmq.POLLIN)
    poller.register(back, zmq.POLLIN)
    while True:
        ready = dict(poller.poll())
        if back in ready:
            with contextlib.suppress(nothing_there):
                for _ in range(TURN):
                    worker = receive_back(dont_wait)
                    client = receive_back()
                    pending[worker] -= 1
                    send_front(client, more)
                    send_front(receive_back())
        if front in ready:
            with contextlib.suppress(nothing_there):
                for _ in range(TURN):
                    client = receive_front(dont_wait)
                    queue.append((client, receive_front()))
        while queue:
            worker = min(pending, key=pending.__getitem__)
            if pending[worker] >= CREDIT:
                break
            pending[worker] += 1
            client, request = queue.popleft()
            send_back(worker, more)
            send_back(client, more)
            send_back(request)
