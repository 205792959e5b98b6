"""The broker process: sockets and a clock around the broker core.

Wait, read, hand the bytes to the core, perform what it returns: nothing here decides.  One event
loop (uvloop), one thread.  Started by the supervisor, which bound the listening socket; connects
to every worker and stays connected.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import signal
import socket
from collections.abc import Iterable, Mapping, Sequence
from time import monotonic
from typing import Any, Final

import msgspec
import uvloop

from lbcore.core.actions import (
    Action,
    CloseClient,
    CloseWorker,
    Control,
    Note,
    Recall,
    ToClient,
    ToWorker,
)
from lbcore.core.broker import Broker
from lbcore.core.errors import ProtocolError
from lbcore.core.frames import Kind, control_frame, decode_body
from lbcore.core.status import answer_control
from lbcore.core.topology import Topology

from . import logs
from .broker_connections import ClientConnection, WorkerLink
from .state import log_folder

#: how often the supervisor hears the figures of its live line
STATS_S: Final = 1.0
#: the broker waits so long for the last workers before it calls itself ready with the first ones
READY_PATIENCE_S: Final = 2.0

_json = msgspec.json.Encoder().encode


class BrokerServer:
    """Performs what the broker core decides."""

    def __init__(
        self, topology: Topology, leash: socket.socket, slots: Sequence[memoryview]
    ) -> None:
        self.topology = topology
        self.logger = logs.setup_logging(topology.logs, log_folder(topology), "broker")
        logs.capture_output(self.logger)
        self.broker = Broker(topology, random.Random(), monotonic())
        self.broker.ledger.journal.trace = self.logger_is_tracing()
        self.links = [
            WorkerLink(self, number, config) for number, config in enumerate(topology.workers)
        ]
        self.clients: dict[int, ClientConnection] = {}
        self.connections: set[ClientConnection] = set()
        self._leash = leash
        self._slots = slots
        self._leash_writer: asyncio.StreamWriter | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._stopping: asyncio.Future[int] | None = None
        self._has_worker = asyncio.Event()
        self._ready = False
        self._patient = True
        self._drained = False

    def logger_is_tracing(self) -> bool:
        """Whether each choice is logged."""
        return self.topology.logs.level in ("DEBUG", "TRACE")

    async def run(self, listener: socket.socket) -> int:
        """Serve until the supervisor says stop; returns the exit code."""
        loop = asyncio.get_running_loop()
        self._stopping = loop.create_future()
        loop.add_signal_handler(signal.SIGTERM, self.stop)
        listener.setblocking(False)
        reader, self._leash_writer = await asyncio.open_connection(sock=self._leash)
        if listener.family == socket.AF_UNIX:
            server: asyncio.Server = await loop.create_unix_server(
                lambda: ClientConnection(self), sock=listener, start_serving=False
            )
        else:
            server = await loop.create_server(
                lambda: ClientConnection(self), sock=listener, start_serving=False
            )
        chores = [
            loop.create_task(self._obey(reader)),
            loop.create_task(self._report()),
            *(loop.create_task(link.keep_connected()) for link in self.links),
            loop.create_task(self._serve(server)),
        ]
        loop.call_later(READY_PATIENCE_S, self._lose_patience)
        self.logger.info(f"listening on {self.topology.broker}, policy {self.topology.policy.name}")
        # what exists now stays; the hot path makes no cycles, so collections only cost time
        gc.collect()
        gc.freeze()
        gc.set_threshold(200_000, 20, 100)
        code = await self._stopping
        server.close()
        for chore in chores:
            chore.cancel()
        for connection in list(self.connections):
            connection.close()
        for link in self.links:
            link.close()
        # one turn of the loop, so that what was written last leaves
        await asyncio.sleep(0)
        self.logger.info("stopped")
        return code

    async def _serve(self, server: asyncio.Server) -> None:
        """Accept clients, once there is a worker: before that nobody knows a task.

        They wait in the listener's backlog, though not longer than for a status that explains why.
        """
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._has_worker.wait(), READY_PATIENCE_S)
        await server.start_serving()

    def stop(self) -> None:
        """End ``run``."""
        if self._stopping is not None and not self._stopping.done():
            self._stopping.set_result(0)

    def worker_lost(self, number: int) -> None:
        """A worker's request connection broke: what it ran is still written in its slot."""
        running: int | None = None
        if number < len(self._slots) and self.topology.workers[number].concurrency == 1:
            running = int.from_bytes(self._slots[number], "little")
        self.perform(self.broker.worker_lost(number, monotonic(), running))

    # ---- performing ----------------------------------------------------------------------------

    def perform(self, actions: Iterable[Action]) -> None:
        """Do what the core decided, in order, and see to it that it is asked again in time."""
        for action in actions:
            if isinstance(action, ToClient):
                client = self.clients.get(action.client)
                if client is not None:
                    client.write(action.parts)
            elif isinstance(action, ToWorker):
                self.links[action.worker].write(action.parts)
            else:
                self._perform_rare(action)
        deadline = self.broker.next_deadline()
        if deadline is not None and (self._timer is None or deadline < self._timer_at):
            self._arm(deadline)
        if self.broker.ledger.draining and self.broker.drained and not self._drained:
            self._drained = True
            self.tell({"event": "drained"})

    def _perform_rare(self, action: Action) -> None:
        match action:
            case Control(client=number, request_id=request_id, body=body):
                self._answer(number, request_id, body)
            case CloseClient(client=number, reason=reason):
                connection = self.clients.get(number)
                if connection is not None:
                    connection.refuse(reason)
            case CloseWorker(worker=number, reason=reason):
                self.logger.error("{}", reason)
                self.links[number].close()
            case Recall(worker=number):
                self.links[number].recall()
            case Note(level=level, text=text, request_id=request_id):
                self.logger.bind(request=request_id).log(level, "{}", text)
            case _:
                raise TypeError(action)

    def _answer(self, number: int, request_id: int, body: bytes) -> None:
        connection = self.clients.get(number)
        if connection is None:
            return
        try:
            answer = answer_control(self.broker, decode_body(body), monotonic())
        except ProtocolError as error:
            connection.refuse(str(error))
            return
        value = answer.get("ok")
        if isinstance(value, dict) and "broker" in value:
            value["broker"]["pid"] = os.getpid()
        connection.write([control_frame(Kind.CONTROL_REPLY, answer, request_id)])

    def _arm(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(0.0, deadline - monotonic()), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.perform(self.broker.tick(monotonic()))

    # ---- the supervisor ------------------------------------------------------------------------

    def tell(self, message: Mapping[str, Any]) -> None:
        """Say one thing to the supervisor."""
        if self._leash_writer is not None:
            self._leash_writer.write(_json(message) + b"\n")

    def worker_joined(self) -> None:
        """A worker is connected; the system is ready when all of them are, or late, with some."""
        joined = sum(link.joined for link in self.links)
        if joined:
            self._has_worker.set()
        if not self._ready and (joined == len(self.links) or (joined and not self._patient)):
            self._ready = True
            self.tell({"event": "ready"})

    def _lose_patience(self) -> None:
        self._patient = False
        self.worker_joined()

    async def _obey(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                self._take_order(msgspec.json.decode(line))
        except OSError:
            self.logger.error("the supervisor's connection broke")
        # the supervisor is gone: nobody would restart or stop this process
        os._exit(1)

    def _take_order(self, message: Mapping[str, Any]) -> None:
        match message.get("event"):
            case "fleet":
                self.perform(self.broker.fleet_reported(message["workers"], monotonic()))
            case "drain":
                self.logger.info("draining: no new requests are accepted")
                self.broker.drain()
                self.perform([])
            case "stop":
                self.stop()

    async def _report(self) -> None:
        ledger = self.broker.ledger
        before, at = ledger.completed + ledger.failed, monotonic()
        while True:
            await asyncio.sleep(STATS_S)
            done, now = ledger.completed + ledger.failed, monotonic()
            self.tell(
                {
                    "event": "stats",
                    "queued": ledger.queue.count,
                    "in_flight": ledger.in_flight,
                    "completed": ledger.completed,
                    "failed": ledger.failed,
                    "rate": (done - before) / (now - at),
                }
            )
            before, at = done, now


def run_broker(
    topology: Topology,
    listener: socket.socket,
    leash: socket.socket,
    slots: Sequence[memoryview] = (),
) -> int:
    """The broker process from its first to its last line; returns the exit code.

    ``slots`` is shared memory in which each worker keeps the id of the request that it runs.
    """
    server = BrokerServer(topology, leash, slots)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(server.run(listener))
