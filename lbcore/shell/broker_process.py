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
from collections.abc import Callable, Iterable, Mapping
from time import monotonic
from typing import Any, Final

import msgspec
import uvloop

from lbcore.core.actions import (
    Action,
    CancelRequest,
    CloseClient,
    CloseWorker,
    Control,
    Drained,
    LookUp,
    Note,
    Recall,
    ReplaceWorker,
    ToClient,
    ToWorker,
    Write,
)
from lbcore.core.broker import Broker
from lbcore.core.errors import ProtocolError
from lbcore.core.frames import Kind, control_frame, decode_body
from lbcore.core.handshake import role_key
from lbcore.core.records import StoreEvent
from lbcore.core.status import answer_control
from lbcore.core.topology import Topology

from . import logs
from .broker_connections import ClientConnection
from .broker_topology import Links, first_policies, follow_topology, names_by_number
from .door import Door
from .durability import EXIT_STORE_FAILED, StoreLink
from .pace import CHECK_S as PACE_CHECK_S
from .policies import PolicyError, tell_failure
from .shared import SharedMemory, StartedLog
from .state import log_folder
from .store_file import StoreError
from .tls import server_binding, server_context

#: how often the supervisor hears the figures of its live line
STATS_S: Final = 1.0
#: the broker waits so long for the last workers before it calls itself ready with the first ones
READY_PATIENCE_S: Final = 2.0
#: a broker that follows another waits so long for the last workers before it lets clients in
RESUME_PATIENCE_S: Final = 0.5
#: an order of the supervisor is a line; one with a large topology is a long one
ORDER_BYTES_MAX: Final = 1 << 26

_json = msgspec.json.Encoder().encode


class BrokerServer:
    """Performs what the broker core decides."""

    def __init__(
        self,
        topology: Topology,
        listener: socket.socket,
        leash: socket.socket,
        shared: SharedMemory,
        secret: bytes,
    ) -> None:
        self.topology = topology
        self.shared = shared
        folder = log_folder(topology)
        self.logger = logs.setup_logging(topology.logs, folder, "broker", patient=True)
        logs.capture_output(self.logger)
        self.history = StartedLog(shared)
        names = names_by_number(shared)
        self.history.numbers = {name: number for number, name in enumerate(names)}
        self.broker = Broker(
            topology,
            random.Random(),
            monotonic(),
            clients_seen=shared.clients_seen,
            life=shared.life,
            history=self.history,
            names=names,
            policies=first_policies(topology, self.logger, shared.life),
        )
        self.broker.ledger.journal.trace = self.logger_is_tracing()
        self.secret = secret
        self._store = StoreLink(topology, shared.run, self._take_stored, self._lose_store)
        self.client_keys = {role: role_key(secret, role) for role in ("client", "admin")}
        self.worker_key = role_key(secret, "worker")
        #: what TLS adds to the proofs of clients
        self.binding = b"" if topology.tls is None else server_binding(topology.tls)
        context = None if topology.tls is None else server_context(topology.tls)
        self.door = Door(listener, lambda peer: ClientConnection(self, peer), context, self.logger)
        self._listener = listener
        self.links = Links(self, topology)
        self.clients: dict[int, ClientConnection] = {}
        self.connections: set[ClientConnection] = set()
        self._leash = leash
        self._leash_writer: asyncio.StreamWriter | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._stopping: asyncio.Future[int] | None = None
        self._has_worker = asyncio.Event()
        self._has_workers = asyncio.Event()
        self._ready = False
        self._patient = True
        self._drained = False
        #: the supervisor said so; else another broker will follow this one
        self._ends_for_good = False

    def logger_is_tracing(self) -> bool:
        """Whether each choice is logged."""
        return self.topology.logs.level in ("DEBUG", "TRACE")

    async def run(self) -> int:
        """Serve until the supervisor says stop; returns the exit code."""
        loop = asyncio.get_running_loop()
        self._stopping = loop.create_future()
        loop.add_signal_handler(signal.SIGTERM, self.stop)
        reader, self._leash_writer = await asyncio.open_connection(
            sock=self._leash, limit=ORDER_BYTES_MAX
        )
        try:
            recovered = self._store.open()
        except StoreError as error:
            self.tell({"event": "failed", "error": str(error), "code": error.exit_code})
            await self._leash_writer.drain()
            return error.exit_code
        if recovered is not None:
            self._take_stored(recovered)
        chores = [
            loop.create_task(self._obey(reader)),
            loop.create_task(self._report()),
            loop.create_task(self._serve()),
            loop.create_task(self._check_pace()),
        ]
        self.links.connect()
        loop.call_later(READY_PATIENCE_S, self._lose_patience)
        self.logger.info(
            f"listening on {self.topology.broker}, policy {self.topology.policy.label}"
        )
        # what exists now stays; the hot path makes no cycles, so collections only cost time
        gc.collect()
        gc.freeze()
        gc.set_threshold(200_000, 20, 100)
        code = await self._stopping
        self.door.close()
        for chore in chores:
            chore.cancel()
        for connection in list(self.connections):
            if self._ends_for_good:
                connection.dismiss("the system was stopped")
            else:
                connection.abandon()
        self.links.close()
        # one turn of the loop, so that what was written last leaves
        await asyncio.sleep(0)
        self._store.close()
        self.logger.info("stopped")
        return code

    async def _serve(self) -> None:
        """Accept clients, once there is a worker: before that nobody knows a task.

        They wait in the listener's backlog, though not longer than for a status that explains why.
        The clients of an earlier broker send again what it had; so the workers first say what they
        have of that.
        """
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._has_worker.wait(), READY_PATIENCE_S)
        if self.broker.life > 1:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._has_workers.wait(), RESUME_PATIENCE_S)
        self.door.open()

    async def _check_pace(self) -> None:
        """Close connections of clients whose frames come in too slowly."""
        before = monotonic()
        while True:
            await asyncio.sleep(PACE_CHECK_S)
            now = monotonic()
            for connection in list(self.clients.values()):
                if now - before < 2 * PACE_CHECK_S:
                    connection.check_pace(now)
                else:
                    connection.pace.forget()
            before = now

    def stop(self, code: int = 0) -> None:
        """End ``run``."""
        if self._stopping is not None and not self._stopping.done():
            self._stopping.set_result(code)

    def _take_stored(self, event: StoreEvent) -> None:
        self.perform(self.broker.stored(event, monotonic()))

    def _lose_store(self, reason: str) -> None:
        """Nobody knows what is written: accept nothing more, and let the next broker read it."""
        self.logger.critical("the store of durable requests failed: {}", reason)
        os._exit(EXIT_STORE_FAILED)

    def worker_lost(self, number: int) -> None:
        """A worker's request connection broke: what it ran is still written in its slot."""
        link = self.links.get(number)
        if link is None:
            return  # of a worker that the topology does not have any more
        # first: from here on it begins nothing more that must not run twice
        slot = link.slot
        slot.lease = 0
        # a broker that is late to see this may find another process there already
        pid = self.broker.ledger.fleet.workers[number].pid
        running = slot.running_ids() if slot.pid == pid else None
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
            case CancelRequest(worker=number, request_id=request_id):
                self.links[number].cancel(request_id)
            case ReplaceWorker(worker=number, pid=pid, request_id=request_id, reason=reason):
                name = self.broker.ledger.fleet.workers[number].name
                order = {"event": "replace", "name": name, "pid": pid, "request": request_id}
                self.tell({**order, "reason": reason})
            case Drained(worker=number):
                name = self.broker.ledger.fleet.workers[number].name
                self.tell({"event": "worker drained", "name": name})
            case Write() | LookUp():
                self._store.perform(action)
            case Note(level=level, text=text, request_id=request_id):
                self.logger.bind(request=request_id).log(level, "{}", text)
            case _:
                raise TypeError(action)

    def _answer(self, number: int, request_id: int, body: bytes) -> None:
        connection = self.clients.get(number)
        if connection is None:
            return
        try:
            message, now = decode_body(body), monotonic()
            if isinstance(message, dict) and message.get("op") == "result":
                self.perform(self.broker.result_asked(number, request_id, message, now))
                return
            answer = answer_control(self.broker, message, now, connection.rights)
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
        joined = sum(link.joined for link in self.links.values())
        if joined:
            self._has_worker.set()
        if joined == len(self.links):
            self._has_workers.set()
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
            case "topology":
                follow_topology(self, message)
            case "fleet":
                self.broker.last_change = message.get("last_change")
                self.perform(self.broker.fleet_reported(message["workers"], monotonic()))
            case "death":
                self.perform(
                    self.broker.worker_died(str(message["name"]), message["death"], monotonic())
                )
            case "deaths":
                deaths = {int(number): count for number, count in message["requests"].items()}
                self.perform(self.broker.deaths_known(deaths, monotonic()))
            case "drain":
                self.logger.info("draining: no new requests are accepted")
                self.broker.drain()
                self.perform([])
            case "stop":
                self._ends_for_good = True
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
    shared: SharedMemory,
    secret: bytes,
    make: Callable[..., BrokerServer] = BrokerServer,
) -> int:
    """The broker process from its first to its last line; returns the exit code.

    From ``secret``, which is the system's, the keys of all roles are made.
    """
    try:
        server = make(topology, listener, leash, shared, secret)
    except PolicyError as error:
        return tell_failure(leash, error)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(server.run())
