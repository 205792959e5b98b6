"""The same least-pending broker on pyzmq as most people would write it, after zmq's own guide.

One poll a turn, one whole message from each socket that has one, multipart calls throughout.  It
stands beside the tuned one because a bare "pyzmq broker" may mean either.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from .zmq_broker import CREDIT, TASKS, BrokerLoop, WorkerLoop, ZmqBroker


class ZmqPlain(ZmqBroker):
    """The tuned broker's client, with a plain broker and plain workers."""

    name = "zmq-plain"
    title = "pyzmq broker, plain"

    def _broker_loop(self) -> BrokerLoop:
        return route_plain

    def _worker_loop(self) -> WorkerLoop:
        return work_plain


def work_plain(zmq: Any, connection: Any) -> None:
    """One message in, one message out."""
    while True:
        client, request = connection.recv_multipart()
        TASKS[request[8:]]()
        connection.send_multipart([client, request[:8]])


def route_plain(zmq: Any, front: Any, back: Any, pending: dict[bytes, int]) -> None:
    """One message from each ready socket, then poll again."""
    queue: deque[tuple[bytes, bytes]] = deque()
    poller = zmq.Poller()
    poller.register(front, zmq.POLLIN)
    poller.register(back, zmq.POLLIN)
    while True:
        ready = dict(poller.poll())
        if back in ready:
            worker, client, answer = back.recv_multipart()
            pending[worker] -= 1
            front.send_multipart([client, answer])
        if front in ready:
            client, request = front.recv_multipart()
            queue.append((client, request))
        while queue:
            worker = min(pending, key=pending.__getitem__)
            if pending[worker] >= CREDIT:
                break
            pending[worker] += 1
            client, request = queue.popleft()
            back.send_multipart([worker, client, request])
