"""lb itself as a contender: no-ops and CPU-bound work, time to ready, memory of the broker."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bench.contender import BenchError, Contender
from bench.lb_system import LbSystem, memory_of
from bench.measure import drive, time_each

if TYPE_CHECKING:
    from lbcore.shell.client import Client

#: workers of the row that measures the start, as in the default topology
BOOT_WORKERS = 3
#: a broker at rest is one that has been ready and idle for this long
REST_S = 1.0
#: how long the workers are kept busy while requests wait; longer than those take to be sent
BUSY_S = 60.0
#: how long the requests that wait may take to be accepted
ACCEPT_S = 30.0


class LbTcp(Contender):
    """lb over TCP: ``mode`` is ``stream`` (replies as they come) or ``submit`` (futures)."""

    name = "lb"
    title = "lb"
    unix: ClassVar[bool] = False
    #: what every request survives, as in the topology
    level: ClassVar[str] = "memory"

    def __init__(self) -> None:
        self._system: LbSystem | None = None
        self._connected: Client | None = None

    @property
    def _client(self) -> Client:
        assert self._connected is not None
        return self._connected

    def start(self, folder: Path) -> None:
        """Start two workers and connect."""
        system = LbSystem(folder, unix=self.unix, level=self.level)
        # ``down`` is due even when ``up`` was cut short.
        self._system = system
        system.up()
        self._connected = system.client()

    def stop(self) -> None:
        """Disconnect and stop."""
        try:
            if self._connected is not None:
                self._connected.close()
        finally:
            if self._system is not None:
                self._system.down()

    def versions(self) -> dict[str, str]:
        """lb's version."""
        import lbcore

        version = getattr(lbcore, "__version__", "unknown")
        return {"lb": f"{version}, Python {platform.python_version()}"}

    def send_many(self, count: int, in_flight: int, mode: str) -> float:
        """Seconds for ``count`` no-ops."""
        if mode == "submit":
            return drive(partial(self._client.submit, "noop"), Future.result, count, in_flight)
        done = 0
        started = time.perf_counter()
        for reply in self._client.stream(repeat(("noop", None), count), window=in_flight):
            if reply.status:
                raise BenchError(f"a no-op failed: {reply.error()}")
            done += 1
        seconds = time.perf_counter() - started
        if done != count:
            raise BenchError(f"{done} answers to {count} no-ops")
        return seconds

    def send_single(self, count: int) -> list[float]:
        """The round trip of each call, in seconds."""
        return time_each(partial(self._client.call, "noop"), count)

    def send_spin(self, count: int, seconds: float) -> float:
        """Seconds until all of ``count`` CPU-bound tasks are done."""
        started = time.perf_counter()
        futures = [self._client.submit("spin", seconds=seconds) for _ in range(count)]
        for future in futures:
            future.result()
        return time.perf_counter() - started


class LbUnix(LbTcp):
    """lb over Unix sockets, client to broker and broker to workers."""

    name = "lb-unix"
    title = "lb, Unix socket"
    unix = True


class LbProcess(LbTcp):
    """lb with every request written down: it survives the death of every process."""

    name = "lb-process"
    title = "lb, durable: process"
    level = "process"


class LbDisk(LbTcp):
    """lb with every request written down and synced: it survives the loss of power."""

    name = "lb-disk"
    title = "lb, durable: disk"
    level = "disk"


class LbBoot(Contender):
    """The time that ``up -d`` takes; ``down`` follows each time."""

    name = "lb-boot"
    title = "lb, up -d"

    def start(self, folder: Path) -> None:
        """Nothing runs yet; once up and down first, so that no round pays for compiling modules."""
        self._folder = folder
        self._boot()

    def operations(self) -> dict[str, Callable[..., dict[str, Any]]]:
        """The time until ready."""
        return {"boot": self._boot, "versions": self.versions}

    def _boot(self) -> dict[str, Any]:
        system = LbSystem(self._folder, workers=BOOT_WORKERS)
        try:
            seconds = system.up()
        finally:
            system.down()
        return {"seconds": seconds}


class LbMemory(LbTcp):
    """A fresh broker's memory: at rest, then with requests waiting behind busy workers."""

    name = "lb-memory"
    title = "lb, memory"

    def operations(self) -> dict[str, Callable[..., dict[str, Any]]]:
        """Each may be asked once, at rest first."""
        return {"rest": self._rest, "waiting": self._waiting, "versions": self.versions}

    def _rest(self) -> dict[str, Any]:
        time.sleep(REST_S)
        return memory_of(self._broker_pid())

    def _waiting(self, count: int, body_bytes: int) -> dict[str, Any]:
        client = self._client
        workers = len(client.status()["workers"])
        value = "x" * value_length(body_bytes)
        futures = [client.submit("sleep", seconds=BUSY_S) for _ in range(workers)]
        futures += [client.submit("echo", value=value) for _ in range(count)]
        deadline = time.monotonic() + ACCEPT_S
        while (held := held_requests(client.status())) < count + workers:
            if time.monotonic() > deadline:
                raise BenchError(f"the broker accepted {held} of {count + workers} requests")
            time.sleep(0.05)
        broken = next((future for future in futures if future.done()), None)
        if broken is not None:
            raise BenchError(f"a request that should wait was answered: {broken.exception()}")
        return {"held": held, **memory_of(self._broker_pid())}

    def _broker_pid(self) -> int:
        return int(self._client.status()["broker"]["pid"])


def held_requests(status: dict[str, Any]) -> int:
    """Requests that wait in the broker or are pending at its workers."""
    pending = sum(int(worker["pending"]) for worker in status["workers"])
    return pending + int(status["broker"]["queued"])


def value_length(body_bytes: int) -> int:
    """How long ``value`` must be for ``{"value": value}`` to have ``body_bytes`` in msgpack.

    Raises ``ValueError`` below 41 and above 264 bytes, where msgpack's own overhead differs.
    """
    # a byte for the map, 1 + 5 for the key, 2 before a text of 32 to 255 bytes
    length = body_bytes - 9
    if not 32 <= length <= 255:
        raise ValueError(f"no text value makes a body of {body_bytes} bytes")
    return length
