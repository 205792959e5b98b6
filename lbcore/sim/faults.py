"""What goes wrong in a run: a list that the seed decides, each fault with a seed of its own.

A fault picks its victim when it happens, from its own chance only: so any of them can be left out
and the others stay what they were, which is how a failing run is shrunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Final, NamedTuple

from lbcore.core.children import (
    ChildAdded,
    ChildRemoved,
    HoldRequested,
    RestartRequested,
    Role,
    Wish,
)
from lbcore.core.topology import WorkerConfig

from .broker_process import BrokerProcess
from .network import End, swizzle
from .supervisor import BROKER
from .worker_process import WorkerProcess

if TYPE_CHECKING:
    from .run import Run


#: no more than so many workers at once
WORKERS_MAX: Final = 6
#: what a policy is changed to; one more would make other runs of the seeds that are kept
POLICIES: Final = ("least_load", "least_pending", "round_robin", "random", "power_of_two")


class Fault(NamedTuple):
    """One thing that goes wrong."""

    number: int
    #: seconds after the start of the traffic
    at: float
    kind: str
    seed: int


def draw_faults(random: Random, kinds: dict[str, float], count: int, seconds: float) -> list[Fault]:
    """``count`` faults of these kinds (name -> share), spread over that time."""
    names, shares = list(kinds), list(kinds.values())
    moments = sorted(random.random() * seconds for _ in range(count))
    return [
        Fault(number, at, random.choices(names, shares)[0], random.getrandbits(32))
        for number, at in enumerate(moments)
    ]


def strike(run: Run, fault: Fault) -> None:
    """Let one fault happen now."""
    if run.world.tracing:
        run.world.say(f"FAULT {fault.number}: {fault.kind}")
    FAULTS[fault.kind](run, Random(fault.seed))


# ---- victims -----------------------------------------------------------------------------------


def _worker(run: Run, random: Random) -> WorkerProcess | None:
    workers = [
        process
        for process in run.system.supervisor.processes.values()
        if isinstance(process, WorkerProcess)
    ]
    # those that work are the interesting ones
    busy = [worker for worker in workers if worker.is_busy]
    if busy and random.random() < 0.7:
        workers = busy
    return random.choice(workers) if workers else None


def _broker(run: Run) -> BrokerProcess | None:
    process = run.system.supervisor.processes.get(BROKER)
    return process if isinstance(process, BrokerProcess) else None


def _connection(run: Run, random: Random, label: str) -> tuple[End, End] | None:
    found = [
        (near, far)
        for name, near, far in run.system.connections
        if near.open and name.startswith(label)
    ]
    return random.choice(found) if found else None


def _duration(random: Random) -> float:
    return float(random.choice((0.002, 0.02, 0.1, 0.5, 1.5)) * (0.5 + random.random()))


# ---- processes ---------------------------------------------------------------------------------


def _crash_worker(run: Run, random: Random) -> None:
    worker = _worker(run, random)
    if worker is not None:
        worker.die(random.choice(("signal 9 (SIGKILL)", "signal 11 (SIGSEGV)", "code 1")))


def _hang_worker(run: Run, random: Random) -> None:
    worker = _worker(run, random)
    if worker is not None:
        worker.freeze(run.world.now + _duration(random))


def _slow_worker(run: Run, random: Random) -> None:
    worker = _worker(run, random)
    if worker is not None:
        worker.slowness = random.choice((2.0, 10.0, 50.0))
        worker.later(_duration(random), worker.recover)


def _sour_worker(run: Run, random: Random) -> None:
    """Whatever it runs fails for a while: long enough that it is ejected, and its trials fail."""
    worker = _worker(run, random)
    if worker is not None:
        worker.is_sour = True
        worker.later(random.choice((0.1, 1.0, 12.0)) * (0.5 + random.random()), worker.recover)


def _crash_broker(run: Run, random: Random) -> None:
    broker = _broker(run)
    if broker is not None:
        broker.die("signal 9 (SIGKILL)")


def _hang_broker(run: Run, random: Random) -> None:
    broker = _broker(run)
    if broker is not None:
        broker.freeze(run.world.now + _duration(random))


def _crash_both(run: Run, random: Random) -> None:
    """A worker and the broker, one soon after the other."""
    first, second = (
        (_crash_worker, _crash_broker)
        if random.random() < 0.5
        else (
            _crash_broker,
            _crash_worker,
        )
    )
    first(run, random)
    run.world.after(random.random() * 0.05, second, run, random)


# ---- connections -------------------------------------------------------------------------------


def _cut_client(run: Run, random: Random) -> None:
    found = _connection(run, random, "of client")
    if found is not None:
        found[0].cut()


def _cut_worker(run: Run, random: Random) -> None:
    found = _connection(run, random, random.choice(("requests", "control")))
    if found is not None:
        found[0].cut()


def _half_open_client(run: Run, random: Random) -> None:
    found = _connection(run, random, "of client")
    if found is not None:
        # mostly the client's side goes, and the broker does not notice
        found[0 if random.random() < 0.8 else 1].half_open()


def _half_open_worker(run: Run, random: Random) -> None:
    found = _connection(run, random, random.choice(("requests", "control")))
    if found is not None:
        found[0 if random.random() < 0.5 else 1].half_open()


def _delay(run: Run, random: Random) -> None:
    found = _connection(run, random, "")
    if found is not None:
        random.choice(found).clog(run.world.now + _duration(random))


def _shred(run: Run, random: Random) -> None:
    found = _connection(run, random, "")
    if found is not None:
        random.choice(found).shred(run.world.now + 0.01 * random.random())


def _swizzle(run: Run, random: Random) -> None:
    ends = [end for _, near, far in run.system.connections for end in (near, far) if end.open]
    chosen = [end for end in ends if random.random() < 0.5]
    swizzle(run.world, random, chosen, _duration(random))


# ---- the rest ----------------------------------------------------------------------------------


def _leap(run: Run, random: Random) -> None:
    run.leap(random.choice((0.01, 0.3, 3.0, 10.0)) * random.random())


def _client_dies(run: Run, random: Random) -> None:
    clients = [client for client in run.system.clients if client.alive and client.books]
    if clients:
        client = random.choice(clients)
        if random.random() < 0.5:
            client.die()
        else:
            client.leave()
        run.replace(client)


def _deaf_client(run: Run, random: Random) -> None:
    found = _connection(run, random, "of client")
    if found is not None:
        found[0].clog(run.world.now + 2 * _duration(random))


def _flood(run: Run, random: Random) -> None:
    clients = [client for client in run.system.clients if client.alive and client.books]
    if clients:
        client = random.choice(clients)
        for _ in range(random.randint(1, 4)):
            client.send(random.choice(("tiny", "small", "short")), random.randint(50, 300))


# ---- the topology ------------------------------------------------------------------------------


def _change_topology(run: Run, random: Random) -> None:
    """A worker comes, goes, rests for a while, or all are started anew; or settings change."""
    system, machine = run.system, run.system.supervisor
    topology = system.topology
    here = [
        config.name
        for config in topology.workers
        if (child := machine.machine.children.get(config.name)) and child.wish is Wish.NONE
    ]
    what = random.choice(("add", "remove", "hold", "restart", "roll", "policy", "weights"))
    name = random.choice(here) if here else ""
    if run.world.tracing:
        run.world.say(f"topology: {what} {name}")
    if what == "add" and len(here) < WORKERS_MAX:
        config = WorkerConfig(name=f"worker-{len(system.names) + 1}")
        system.change(replace(topology, workers=(*topology.workers, config)))
        machine.handle(ChildAdded(name=config.name, role=Role.WORKER))
    elif what == "remove" and len(here) > 1:
        machine.handle(ChildRemoved(name=name))
    elif what == "hold" and name:
        machine.handle(HoldRequested(name=name))
        run.world.after(_duration(random), machine.release, name)
    elif what == "restart" and name:
        machine.handle(RestartRequested(names=(name,)))
    elif what == "roll" and here:
        machine.handle(RestartRequested(names=tuple(here), rolling=True))
    elif what == "policy":
        policy = replace(topology.policy, name=random.choice(POLICIES))
        system.change(replace(topology, policy=policy))
    elif what == "weights":
        workers = tuple(
            replace(config, weight=random.choice((0.5, 1.0, 3.0))) for config in topology.workers
        )
        system.change(replace(topology, workers=workers))


FAULTS: Final[dict[str, Callable[[Run, Random], None]]] = {
    "crash_worker": _crash_worker,
    "hang_worker": _hang_worker,
    "slow_worker": _slow_worker,
    "sour_worker": _sour_worker,
    "crash_broker": _crash_broker,
    "hang_broker": _hang_broker,
    "crash_both": _crash_both,
    "cut_client": _cut_client,
    "cut_worker": _cut_worker,
    "half_open_client": _half_open_client,
    "half_open_worker": _half_open_worker,
    "delay": _delay,
    "shred": _shred,
    "swizzle": _swizzle,
    "leap": _leap,
    "client_dies": _client_dies,
    "deaf_client": _deaf_client,
    "flood": _flood,
    "topology": _change_topology,
}

#: how often each happens, before a run leaves some of them out
SHARES: Final[dict[str, float]] = {
    "crash_worker": 8,
    "hang_worker": 6,
    "slow_worker": 5,
    "crash_broker": 4,
    "hang_broker": 4,
    "crash_both": 2,
    "cut_client": 12,
    "cut_worker": 6,
    "half_open_client": 3,
    "half_open_worker": 1,
    "delay": 20,
    "shred": 10,
    "swizzle": 4,
    "leap": 2,
    "client_dies": 4,
    "deaf_client": 4,
    "flood": 5,
    "topology": 5,
}
#: and what happens besides in the runs that have what is off by default: one kind more would make
#: other runs of the seeds that are kept
UNUSUAL_SHARES: Final[dict[str, float]] = {**SHARES, "sour_worker": 8}
