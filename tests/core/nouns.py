"""What the driver and the tests of the core speak of: tasks, workers, requests, answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lbcore.core.frames import decode_body
from lbcore.core.topology import Address, Limits, PolicyConfig, Topology, WorkerConfig

#: seconds on the virtual clock at which every test begins
START_S = 1000.0

Spec = Mapping[str, Any]


def spec(name: str, cost: float = 1.0, **more: Any) -> dict[str, Any]:
    """What a worker says of a task."""
    return {"name": name, "aliases": [], "cost": cost, **more}


#: what the workers of a test can run unless it says otherwise
TASKS: tuple[Spec, ...] = (
    spec("short", 0.5, aliases=["Short"]),
    spec("long", 10.0),
    spec("tiny", 1e-6),
    spec("frail", 0.5, idempotent=False),
)


class Held(NamedTuple):
    """A request that a virtual worker has received and not answered."""

    id: int
    task: int
    body: bytes
    flags: int


class Answer(NamedTuple):
    """A reply frame that a virtual client has received."""

    id: int
    status: int
    body: bytes
    task: int
    worker: int
    service_s: float

    @property
    def error(self) -> dict[str, Any]:
        """The body of an answer that is an error."""
        value = decode_body(self.body)
        assert isinstance(value, dict), value
        return value


def weighted(*weights: float, **more: Any) -> list[WorkerConfig]:
    """Workers of these declared weights."""
    return [
        WorkerConfig(name=f"worker-{number + 1}", weight=weight, **more)
        for number, weight in enumerate(weights)
    ]


def topology(
    workers: int | Sequence[WorkerConfig] = 2,
    policy: str | PolicyConfig = "least_load",
    limits: Limits | None = None,
    concurrency: int = 1,
) -> Topology:
    """A topology of that many equal workers, or of these."""
    if isinstance(workers, int):
        workers = weighted(*[1.0] * workers, concurrency=concurrency)
    return Topology(
        name="tested",
        broker=Address(port=8000),
        workers=tuple(workers),
        policy=PolicyConfig(name=policy) if isinstance(policy, str) else policy,
        limits=limits or Limits(),
    )
