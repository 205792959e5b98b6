"""A broker that answers inside the test process, behind the client that the commands import.

``FakeBroker.install`` puts a module with a ``Client`` in the place of ``lbcore.shell.client``.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import msgspec
import pytest

from lbcore.core.errors import BrokerUnavailable, RequestError, error_from_wire
from lbcore.core.topology import Topology
from lbcore.shell.builtin_tasks import checksum_of, numbers_of

Call = tuple[str, Mapping[str, Any] | None]


@dataclass(frozen=True, slots=True)
class FakeReply:
    """A reply as the contract of ``Client.stream`` has it."""

    index: int = 0
    status: int = 0
    worker: str = "worker-1"
    service_s: float = 0.001
    latency_s: float = 0.002
    body: bytes = b"\xc0"
    request_id: int = 0

    def value(self) -> Any:
        """The decoded result, or the error."""
        error = self.error()
        if error is not None:
            raise error
        return msgspec.msgpack.decode(self.body)

    def error(self) -> RequestError | None:
        """The error, if it is one."""
        if not self.status:
            return None
        return error_from_wire(self.status, msgspec.msgpack.decode(self.body))


def failed_reply(index: int, error: RequestError, worker: str = "worker-1") -> FakeReply:
    """A reply that carries an error."""
    return FakeReply(
        index=index,
        status=int(error.status or 99),
        worker=worker,
        body=msgspec.msgpack.encode(error.to_wire()),
    )


def sort_body(size: int = 10_000, seed: int = 0, /, **changes: Any) -> bytes:
    """What ``sort`` answers, with some fields changed."""
    numbers = _sorted_numbers(size, seed)
    value = {
        "size": size,
        "seed": seed,
        "first": numbers[0] if numbers else None,
        "last": numbers[-1] if numbers else None,
        "checksum": checksum_of(numbers),
        "sorted": True,
    }
    return msgspec.msgpack.encode(value | changes)


@lru_cache
def _sorted_numbers(size: int, seed: int) -> list[float]:
    return sorted(numbers_of(size, seed))


def good_reply(index: int, task: str, arguments: Mapping[str, Any] | None) -> FakeReply:
    """What a working system of three workers answers."""
    given = arguments or {}
    body = sort_body(given.get("size", 10_000), given.get("seed", 0)) if task == "sort" else b"\xc0"
    return FakeReply(
        index=index,
        worker=f"worker-{index % 3 + 1}",
        service_s=0.001 * (index % 3 + 1),
        latency_s=0.010 + 0.001 * index,
        body=body,
        request_id=7 << 32 | index,
    )


def task_facts(name: str, signature: str = "()", **more: Any) -> dict[str, Any]:
    """One entry of ``Client.tasks``."""
    facts = {
        "name": name,
        "aliases": [],
        "signature": signature,
        "doc": f"Do {name}.",
        "weight": 1.0,
        "cost": None,
        "idempotent": True,
        "max_attempts": None,
        "async": False,
        "learned_cost_s": None,
        "count": 0,
    }
    return facts | more


TASKS = [
    task_facts("sort", "(items: list | None = None, size: int = 10000, seed: int = 0)"),
    task_facts("short", "(scale: float = 1.0)", aliases=["Short"], learned_cost_s=1.002, count=7),
    task_facts("long", "(scale: float = 1.0)", aliases=["Long"], weight=3.0),
    task_facts("noop", "()"),
    task_facts("echo", "(value: Any)"),
    task_facts("sleep", "(seconds: float)"),
]


def worker_facts(name: str, **more: Any) -> dict[str, Any]:
    """One worker of ``Client.status``."""
    facts = {
        "name": name,
        "pid": 4711,
        "address": "127.0.0.1:9001",
        "state": "RUNNING",
        "pending": 2,
        "backlog_s": 0.0123,
        "cpu": 0.87,
        "cpu_age_s": 0.4,
        "speed": 1.02,
        "load": 0.0145,
        "weight": 1.0,
        "completed": 1234,
        "failed": 3,
        "restarts": 0,
        "window": 2,
        "concurrency": 1,
        "rss_bytes": 30_000_000,
        "tags": [],
    }
    return facts | more


def status_facts(*workers: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The answer of ``Client.status``."""
    facts: dict[str, Any] = {
        "name": "lb",
        "state": "RUNNING",
        "uptime_s": 3725.0,
        "broker": {
            "pid": 4710,
            "address": "127.0.0.1:8000",
            "queued": 5,
            "policy": "least_load",
        },
        "workers": list(workers) or [worker_facts(f"worker-{number}") for number in (1, 2, 3)],
    }
    return facts | more


def decision_facts(**more: Any) -> dict[str, Any]:
    """One entry of ``Client.explain``."""
    shared = {
        "state": "RUNNING",
        "cpu": 0.5,
        "cpu_age_s": 0.25,
        "availability": 0.95,
        "speed": 1.0,
        "service_s": 0.004,
        "excluded": None,
    }
    facts = {
        "request": "7:42",
        "task": "sort",
        "policy": "least_load",
        "at_s_ago": 1.5,
        "winner": "worker-2",
        "reason": "worker-2 would be done soonest: it starts at once, takes 0.004 s",
        "cost_s": 0.004,
        "workers": [
            shared | {"name": "worker-1", "pending": 2, "backlog_s": 0.008, "load": 0.012},
            shared | {"name": "worker-2", "pending": 0, "backlog_s": 0.0, "load": 0.004},
            shared
            | {
                "name": "worker-3",
                "pending": 0,
                "backlog_s": 0.0,
                "load": 0.004,
                "state": "BACKOFF",
                "excluded": "backoff",
            },
        ],
    }
    return facts | more


@dataclass
class FakeBroker:
    """What the fake answers, and what it was asked."""

    answer: Callable[[int, str, Mapping[str, Any] | None], FakeReply] = good_reply
    tasks: list[dict[str, Any]] = field(default_factory=lambda: list(TASKS))
    statuses: list[dict[str, Any]] = field(default_factory=lambda: [status_facts()])
    decisions: list[dict[str, Any]] = field(default_factory=lambda: [decision_facts()])
    #: nobody answers at the address
    absent: bool = False
    #: raised by the stream after that many replies
    breaks_after: tuple[int, BaseException] | None = None
    #: (task, arguments) of every request
    sent: list[Call] = field(default_factory=list)
    #: keyword arguments of ``stream``
    options: dict[str, Any] = field(default_factory=dict)
    #: (host, port, path) of every connection
    connections: list[tuple[str, int, str | None]] = field(default_factory=list)
    explained: list[Any] = field(default_factory=list)
    #: (action, wanted) -> answer; an exception is raised
    quarantined: dict[tuple[str, Any], Any] = field(default_factory=dict)
    #: (action, wanted) of every question about the quarantine
    asked: list[tuple[str, Any]] = field(default_factory=list)
    closed: int = 0

    def install(self, monkeypatch: pytest.MonkeyPatch | None = None) -> FakeBroker:
        """Take the place of ``lbcore.shell.client``."""
        module = types.ModuleType("lbcore.shell.client")
        module.__dict__["Client"] = _client_class(self)
        if monkeypatch is None:
            sys.modules["lbcore.shell.client"] = module
        else:
            monkeypatch.setitem(sys.modules, "lbcore.shell.client", module)
        return self

    def stream(self, calls: Iterable[Call]) -> Iterator[FakeReply]:
        """Answer one call after the other."""
        for index, (task, arguments) in enumerate(calls):
            if self.breaks_after is not None and index == self.breaks_after[0]:
                raise self.breaks_after[1]
            self.sent.append((task, arguments))
            yield self.answer(index, task, arguments)


def _client_class(broker: FakeBroker) -> type:
    class Client:
        """The client of the contract, answered by ``broker``."""

        def __init__(
            self,
            host: str = "127.0.0.1",
            port: int = 8000,
            *,
            path: str | None = None,
            connect_timeout: float = 5.0,
            **_: Any,
        ) -> None:
            if broker.absent:
                raise BrokerUnavailable("connection refused")
            broker.connections.append((host, port, path))

        @classmethod
        def from_topology(
            cls, topology: Topology, *, connect_timeout: float = 5.0, **_: Any
        ) -> Client:
            address = topology.broker
            return cls(address.host, address.port, path=address.path)

        def stream(self, calls: Iterable[Call], **options: Any) -> Iterator[FakeReply]:
            broker.options = options
            return broker.stream(calls)

        def status(self) -> dict[str, Any]:
            if broker.absent:
                raise BrokerUnavailable("connection lost")
            return broker.statuses.pop(0) if len(broker.statuses) > 1 else broker.statuses[0]

        def tasks(self) -> list[dict[str, Any]]:
            return broker.tasks

        def explain(self, ids: Sequence[int] | None = None, *, last: int = 10) -> Any:
            broker.explained.append(last if ids is None else list(ids))
            return broker.decisions

        def quarantine(self, action: str = "ls", wanted: Any = None) -> Any:
            broker.asked.append((action, wanted))
            answer = broker.quarantined.get((action, wanted))
            if isinstance(answer, Exception):
                raise answer
            return answer

        def call(self, task: str, /, *arguments: Any, **keywords: Any) -> Any:
            given = {"positional": list(arguments)} if arguments else keywords
            broker.sent.append((task, given))
            return broker.answer(0, task, given).value()

        def close(self) -> None:
            broker.closed += 1

    return Client
