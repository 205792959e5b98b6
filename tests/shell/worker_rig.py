"""One real worker process, and a broker that does what a test says."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from lbcore.core.frames import (
    HEADER_BYTES,
    REPLY_HEADER,
    FrameBuffer,
    Kind,
    control_frame,
    decode_body,
    request_frame,
)
from lbcore.core.handshake import NONCE_BYTES, Initiator
from lbcore.core.topology import Address, LogsConfig, Topology, WorkerConfig
from lbcore.shell.shared import SharedMemory

PATIENCE_S = 30.0
KEY = b"k" * 32
TASKS = Path(__file__).with_name("tasks_of_rig.py")


class Reply:
    """One answer of the worker."""

    def __init__(self, frame: bytes) -> None:
        _, _, self.status, self.task, self.id, _, self.worker, _ = REPLY_HEADER.unpack_from(frame)
        self.body: Any = decode_body(frame[HEADER_BYTES:]) if frame[HEADER_BYTES:] else None

    def __repr__(self) -> str:
        return f"<Reply {self.id} status {self.status} {self.body!r:.80}>"


class Channel:
    """One connection to the worker, greeted."""

    def __init__(self, rig: Rig, name: str, worker: int, lease: int | None) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(str(rig.address))
        hello: dict[str, Any] = {"role": "broker", "channel": name, "worker": worker}
        if lease is not None:
            hello["lease"] = lease
        initiator = Initiator(KEY, hello, os.urandom(NONCE_BYTES))
        self.socket.sendall(initiator.greeting)
        self._buffer = FrameBuffer(1 << 26)
        self._frames: list[tuple[int, int, bytes]] = []
        while not initiator.done:
            self.socket.sendall(initiator.feed(self._receive()))
        self._rest = initiator.rest
        self._data = b""
        kind, _, body = self._read_control()
        assert kind == Kind.WELCOME
        self.welcome: dict[str, Any] = decode_body(body)

    def _receive(self) -> bytes:
        data = self.socket.recv(1 << 16)
        assert data, "the worker closed the connection"
        return data

    def _next_frame(self) -> bytes:
        """The next whole frame."""
        self._data += self._rest
        self._rest = b""
        while True:
            if len(self._data) >= HEADER_BYTES:
                stop = HEADER_BYTES + int.from_bytes(self._data[:4], "little")
                if len(self._data) >= stop:
                    frame, self._data = self._data[:stop], self._data[stop:]
                    return frame
            self._data += self._receive()

    def _read_control(self) -> tuple[int, int, bytes]:
        frame = self._next_frame()
        return frame[4], int.from_bytes(frame[8:16], "little"), frame[HEADER_BYTES:]

    def number(self, **numbers: int) -> Channel:
        """Send the table of tasks."""
        self.socket.sendall(control_frame(Kind.TASKS, numbers))
        return self

    def send(self, request_id: int, task: int, *arguments: Any, flags: int = 0) -> None:
        """Send one request."""
        body = msgspec.msgpack.encode([arguments, {}]) if arguments else b""
        self.socket.sendall(request_frame(request_id, task, body, flags=flags))

    def cancel(self, request_id: int) -> None:
        """Take one back; on a control channel."""
        self.socket.sendall(control_frame(Kind.CANCEL, None, request_id))

    def reply(self) -> Reply:
        """The next answer."""
        frame = self._next_frame()
        assert frame[4] == Kind.REPLY, frame[:HEADER_BYTES]
        return Reply(frame)

    def is_silent(self) -> bool:
        """Whether nothing has come so far."""
        self.socket.settimeout(0.0)
        try:
            self._data += self.socket.recv(1 << 16)
        except BlockingIOError:
            pass
        finally:
            self.socket.settimeout(PATIENCE_S)
        return not self._data

    def close(self) -> None:
        self.socket.close()


class Rig:
    """The worker, and what its supervisor would have made."""

    def __init__(self, folder: Path, concurrency: int = 1) -> None:
        self.folder = folder
        self.address = folder / "w.sock"
        self.shared = SharedMemory(4)
        self.slot = self.shared.assign("worker-1")
        self.shared.begin_life()
        self._connections = 0
        self._channels: list[Channel] = []
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.address))
        listener.listen(16)
        ours, theirs = socket.socketpair()
        self._leash = ours
        config = WorkerConfig(
            name="worker-1", address=Address(path=str(self.address)), concurrency=concurrency
        )
        topology = Topology(
            name="rig",
            broker=Address(),
            workers=(config,),
            tasks=(str(TASKS),),
            logs=LogsConfig(folder=str(folder / "logs")),
            source=str(folder / "config.yaml"),
        )
        self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            self._be_worker(topology, config, listener, theirs)
        theirs.close()
        listener.close()
        assert b"ready" in ours.recv(4096)

    def _be_worker(
        self, topology: Topology, config: WorkerConfig, listener: socket.socket, leash: Any
    ) -> None:
        try:
            from lbcore.shell.worker_process import run_worker

            signal.signal(signal.SIGINT, signal.SIG_IGN)
            run_worker(topology, config, listener, leash, self.shared, self.slot, KEY)
        finally:
            os._exit(0)

    def channel(self, name: str = "requests", worker: int = 0, lease: int | None = None) -> Channel:
        """A connection as given, without care for the lease."""
        made = Channel(self, name, worker, lease)
        self._channels.append(made)
        return made

    def broker(self, worker: int = 0) -> tuple[Channel, Channel]:
        """Both connections, requests and control, as a broker makes them."""
        self._connections += 1
        self.slot.lease = lease = self.shared.lease_of(self._connections)
        control = self.channel("control", worker, lease)
        return self.channel("requests", worker, lease), control

    def wait_running(self, *ids: int) -> None:
        """Until exactly these run."""
        give_up_at = time.monotonic() + PATIENCE_S
        while set(self.slot.running_ids()) != set(ids):
            assert time.monotonic() < give_up_at, (self.slot.running_ids(), ids)
            time.sleep(0.002)

    @property
    def log(self) -> str:
        return (self.folder / "logs" / "worker-1.log").read_text()

    def is_alive(self) -> bool:
        return os.waitpid(self.pid, os.WNOHANG) == (0, 0)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        self._leash.close()
        for channel in self._channels:
            channel.close()


@contextlib.contextmanager
def rig(folder: Path, concurrency: int = 1) -> Iterator[Rig]:
    """A worker for the time of a test."""
    made = Rig(folder, concurrency)
    try:
        yield made
    finally:
        made.close()
