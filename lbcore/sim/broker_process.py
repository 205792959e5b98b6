"""The simulated broker process: connections and a clock around the real broker core.

It mirrors ``shell/broker_process`` and ``shell/broker_connections``, and decides as little.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Any, Final

from lbcore.core.actions import (
    Action,
    CancelRequest,
    CloseClient,
    CloseWorker,
    Control,
    Drained,
    Note,
    Recall,
    ReplaceWorker,
    ToClient,
    ToWorker,
)
from lbcore.core.broker import Broker
from lbcore.core.frames import CONTROL_BYTES_MAX, FrameBuffer, Kind, control_frame, decode_body
from lbcore.core.topology import Topology

from .network import End
from .shared import StartedLog
from .world import Process

if TYPE_CHECKING:
    from .system import System

RECONNECT_FIRST_S: Final = 0.01
RECONNECT_MAX_S: Final = 1.0
#: a client that has so much to read is paused until it is down to less; far less than in reality
WRITE_HIGH_BYTES: Final = 1 << 14
WRITE_LOW_BYTES: Final = 1 << 12
PAUSE_CHECK_S: Final = 0.01
#: clients are accepted once a worker is there, or so long after the start
READY_PATIENCE_S: Final = 2.0


def ticket(number: int) -> bytes:
    """What proves that a client number is its own."""
    return b"ticket %d" % number


class BrokerProcess(Process):
    """One life of the broker."""

    def __init__(self, system: System, pid: int) -> None:
        super().__init__(system.world, "broker")
        self.system = system
        self.pid = pid
        shared = system.shared
        names = system.names
        self._numbers = {name: number for number, name in enumerate(names)}
        self.broker = Broker(
            system.topology,
            Random(system.world.random.getrandbits(64)),
            self.world.now,
            clients_seen=shared.clients_seen,
            life=shared.life,
            history=StartedLog(shared, self._numbers),
            names=names,
        )
        # its supervisor tells that first of all
        self.broker.deaths_known(dict(system.supervisor.deaths), self.world.now)
        self.clients: dict[int, End] = {}
        self._ends: list[End] = []
        self._backlog: list[End] | None = []
        self._timer_at: float | None = None
        self._ready = False
        self.leases = 0
        self.links: dict[int, _Link] = {}
        self._follow(system.topology)
        self.later(READY_PATIENCE_S, self._serve)
        system.books.broker_since = self.world.now

    # ---- clients -------------------------------------------------------------------------------

    def accept(self, end: End) -> None:
        """A client connects; it waits until this broker knows what can be asked of it."""
        if self._backlog is not None:
            self._backlog.append(end)
            return
        self._ends.append(end)
        buffer = FrameBuffer(CONTROL_BYTES_MAX)
        end.on_data = lambda data: self._greet(end, buffer, data)
        end.on_end = lambda: self._close(end)
        end.attach(self)

    def _serve(self) -> None:
        if self._backlog is not None:
            waiting, self._backlog = self._backlog, None
            for end in waiting:
                self.accept(end)
            self.system.supervisor.broker_ready()

    def _greet(self, end: End, buffer: FrameBuffer, data: bytes) -> None:
        data = buffer.join(data)
        stop = 24 + int.from_bytes(data[:4], "little")
        if len(data) < 24 or len(data) < stop:
            buffer.keep(data)
            return
        hello = decode_body(data[24:stop])
        resume = hello.get("resume", {})
        number = resume.get("client", 0) if resume else 0
        if resume and resume["ticket"] != ticket(number):
            self.system.books.fail(f"{hello['name']} shows a wrong ticket")
        number, actions = self.broker.client_joined(
            hello["name"], self.world.now, number, ticket=ticket
        )
        self.system.shared.clients_seen = self.broker.clients_seen
        before = self.clients.get(number)
        if before is not None:
            # the client is here again: what looks alive of its old connection is not
            self._close(before)
        self.clients[number] = end
        end.on_data = lambda data: self._client_data(number, data)
        end.on_end = lambda: self._client_lost(number, end)
        self.perform(actions)
        if len(data) > stop:
            self._client_data(number, data[stop:])

    def _close(self, end: End) -> None:
        end.close()
        if end in self._ends:
            self._ends.remove(end)

    def _client_data(self, number: int, data: bytes) -> None:
        self.perform(self.broker.client_data(number, data, self.world.now))

    def _client_lost(self, number: int, end: End) -> None:
        self._close(end)
        if self.clients.get(number) is end:
            del self.clients[number]
            self.perform(self.broker.client_lost(number, self.world.now))

    def _pause(self, number: int, end: End) -> None:
        """The client does not take its answers: it is not read until it has."""
        end.reading = False
        # not at once: this is in the middle of performing something
        self.later(0.0, self._tell_pause, number, end, True)

    def _tell_pause(self, number: int, end: End, paused: bool) -> None:
        if self.clients.get(number) is not end:
            return
        if end.has_ended:
            # writing to it fails
            end.resume()
            return
        if not paused and end.peer.unread > WRITE_LOW_BYTES:
            self.later(PAUSE_CHECK_S, self._tell_pause, number, end, False)
            return
        self.perform(self.broker.client_paused(number, paused, self.world.now))
        if paused:
            self.later(PAUSE_CHECK_S, self._tell_pause, number, end, False)
        else:
            end.resume()

    # ---- performing ----------------------------------------------------------------------------

    def perform(self, actions: Iterable[Action]) -> None:
        """Do what the core decided, in order."""
        for action in actions:
            if isinstance(action, ToClient):
                end = self.clients.get(action.client)
                if end is not None:
                    end.write(b"".join(action.parts))
                    if end.peer.unread > WRITE_HIGH_BYTES and end.reading:
                        self._pause(action.client, end)
            elif isinstance(action, ToWorker):
                link = self.links.get(action.worker)
                if link is not None:
                    link.write(action.parts)
            else:
                self._perform_rare(action)
        deadline = self.broker.next_deadline()
        if deadline is not None and (self._timer_at is None or deadline < self._timer_at):
            self._timer_at = deadline
            self.world.at(deadline, self._wake, self._tick, (deadline,))

    def _perform_rare(self, action: Action) -> None:
        match action:
            case Recall(worker=number):
                self.links[number].recall()
            case CancelRequest(worker=number, request_id=request_id):
                self.links[number].cancel(request_id)
            case ReplaceWorker(worker=number, pid=pid, request_id=request_id, reason=reason):
                if self.world.tracing:
                    self.world.say(f"broker wants {self.links[number].name} replaced: {reason}")
                name = self.links[number].name
                self.system.supervisor.tell(name, pid, request_id, reason)
            case Drained(worker=number):
                self.system.supervisor.worker_drained(self.links[number].name)
            case CloseClient(reason=reason) | CloseWorker(reason=reason):
                self.system.books.fail(f"the broker closes a peer that did nothing wrong: {reason}")
            case Note(level=level, text=text):
                if self.world.tracing:
                    self.world.say(f"broker {level}: {text}")
            case Control():
                self.system.books.fail("nobody asked for anything")
            case _:
                raise TypeError(action)

    def _tick(self, deadline: float) -> None:
        if deadline == self._timer_at:
            self._timer_at = None
            self.perform(self.broker.tick(self.world.now))

    # ---- the supervisor ------------------------------------------------------------------------

    def take_fleet(self, workers: Sequence[Mapping[str, Any]]) -> None:
        """The supervisor tells which workers there are."""
        self.perform(self.broker.fleet_reported(workers, self.world.now))

    def take_topology(self, topology: Topology) -> None:
        """Another topology holds."""
        names = self.system.names
        self._numbers.update({name: number for number, name in enumerate(names)})
        actions = self.broker.topology_changed(topology, self.world.now, names)
        self._follow(topology)
        self.perform(actions)

    def _follow(self, topology: Topology) -> None:
        """Have a link to each worker of the topology, and to no other."""
        present = {self._numbers[config.name]: config.name for config in topology.workers}
        for number, name in present.items():
            if number not in self.links:
                link = self.links[number] = _Link(self, number, name)
                link.connect()
        for number in [each for each in self.links if each not in present]:
            self.links.pop(number).give_up()

    def take_death(self, name: str, death: Mapping[str, Any]) -> None:
        """The supervisor saw a worker die."""
        self.perform(self.broker.worker_died(name, death, self.world.now))

    def lose_worker(self, number: int) -> None:
        """The connections to a worker are gone: it may begin nothing more of what they brought."""
        slot = self.system.shared.slot(self.links[number].name)
        slot.lease = (0, 0)
        pid = self.broker.ledger.fleet.workers[number].pid
        running = slot.running_ids if slot.pid == pid else None
        if running and pid is not None:
            self.system.books.lose_sight(running, pid)
        self.perform(self.broker.worker_lost(number, self.world.now, running))

    def worker_joined(self) -> None:
        """A worker is connected: with one of them there is something to ask for."""
        self._serve()

    def die(self, cause: str) -> None:
        """The process ends now."""
        if not self.alive:
            return
        self.alive = False
        if self.world.tracing:
            self.world.say(f"broker dies: {cause}")
        self.system.books.broker_died(self.broker)
        for end in self._ends:
            end.abort()
        for link in self.links.values():
            link.close(dying=True)
        if self._backlog:
            # their connections are the listener's: the next broker takes them
            self.system.backlogs["broker"].extend(self._backlog)
        self.system.supervisor.child_ended(self, cause)


class _Link:
    """The two connections to one worker, made anew for ever."""

    def __init__(self, process: BrokerProcess, number: int, name: str) -> None:
        self.process = process
        self.number = number
        self.name = name
        self._pause_s = RECONNECT_FIRST_S
        self.requests: End | None = None
        self.control: End | None = None
        self._joined = False
        self._is_over = False
        self._lease = (0, 0)

    def connect(self) -> None:
        """Greet the worker on both connections."""
        if self._is_over:
            return
        process = self.process
        process.leases += 1
        self._lease = (process.broker.life, process.leases)
        process.system.shared.slot(self.name).lease = self._lease
        self.control = self._open("control", self._read_control)
        self.requests = self._open("requests", self._read_requests)

    def _open(self, channel: str, read: Any) -> End:
        process = self.process
        near = process.system.connect(process, self.name, f"{channel} of {self.name}")
        buffer = FrameBuffer(CONTROL_BYTES_MAX)
        near.on_data = lambda data: read(buffer, data)
        near.on_end = self._lost
        hello = {"channel": channel, "worker": self.number, "lease": self._lease}
        near.write(control_frame(Kind.HELLO, hello))
        return near

    def _read_requests(self, buffer: FrameBuffer, data: bytes) -> None:
        process = self.process
        broker, now = process.broker, process.world.now
        if self._joined:
            process.perform(broker.worker_data(self.number, data, now))
            return
        for _, _, body in buffer.feed(data):
            actions = broker.worker_joined(self.number, decode_body(body), now)
            self._joined = True
            self._pause_s = RECONNECT_FIRST_S
            process.perform(actions)
            process.worker_joined()

    def _read_control(self, buffer: FrameBuffer, data: bytes) -> None:
        process = self.process
        for kind, _, body in buffer.feed(data):
            message, now = decode_body(body), process.world.now
            if kind == Kind.REPORT:
                process.perform(process.broker.worker_report(self.number, message, now))
            elif kind == Kind.RECALLED:
                process.perform(process.broker.worker_recalled(self.number, message, now))

    def _lost(self) -> None:
        """One of the two is gone: the other one is closed, and both are made anew."""
        process = self.process
        self.close()
        if self._joined:
            self._joined = False
            process.lose_worker(self.number)
        else:
            self._pause_s = min(RECONNECT_MAX_S, self._pause_s * 2)
        process.later(self._pause_s, self.connect)

    def write(self, parts: list[bytes]) -> None:
        """Send these frames on the request connection."""
        if self.requests is not None:
            self.requests.write(b"".join(parts))

    def recall(self) -> None:
        """Ask for what the worker has not begun."""
        if self.control is not None:
            self.control.write(control_frame(Kind.RECALL, None))

    def cancel(self, request_id: int) -> None:
        """Tell it that nobody wants this request any more."""
        if self.control is not None:
            self.control.write(control_frame(Kind.CANCEL, None, request_id))

    def give_up(self) -> None:
        """The topology has this worker no longer."""
        self._is_over = True
        self.process.system.shared.slot(self.name).lease = (0, 0)
        self.close()

    def close(self, dying: bool = False) -> None:
        """Close both connections."""
        for end in (self.requests, self.control):
            if end is not None and dying:
                end.abort()
            elif end is not None:
                end.close()
        self.requests = self.control = None
