"""The cost of one choice, the core alone: 4,096 workers against 4, half their capacity used.

Two figures for each policy and fleet.  *A choice*: ``choose``, then filing the worker anew when the
request goes out and when its answer comes, which is all that depends on the policy.  *A request*:
the same through the broker's own door, from the bytes of one request to the bytes of its answer.
Time is simulated and the random source seeded, so every run makes the same choices.
"""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Callable
from typing import Any

from bench.contender import Contender
from bench.measure import calibrate

FEW, MANY = 4, 4096
#: what a request takes on a worker of weight 1: so long that each is chosen for by itself, too
#: short for the broker to write down the reasons of every choice
COST_S = 0.004
#: declared speeds in a mixed fleet, dealt out in turn; learned ones would spread likewise
MIXED_WEIGHTS = (1.0, 0.5, 2.0, 0.75, 1.5, 1.25)
#: steps before anything is measured
WARM_UP_STEPS = 5 * MANY
#: one alternation of a few workers and many takes this long on each side
SLICE_S = 0.2


class Driver:
    """A fleet of which half the capacity is used, in simulated time.  Subclasses know what a
    request is; here are the clock and the moments at which requests will be done."""

    def __init__(self, topology: Any) -> None:
        self.now = 0.0
        self._weights = [worker.weight for worker in topology.workers]
        #: when each worker will be done with all it was sent
        self._free_at = [0.0] * len(self._weights)
        #: (moment, worker, request) of everything that runs or waits at a worker
        self._running: list[tuple[float, int, int]] = []
        self._pace_s = COST_S / (sum(self._weights) / 2)

    def step(self) -> None:
        """One request comes in, after the answers that are due by then."""
        self.now += self._pace_s
        running = self._running
        while running and running[0][0] <= self.now:
            _, worker, request = heapq.heappop(running)
            self.finish(worker, request, COST_S / self._weights[worker])
        self.request()

    def sent(self, worker: int, request: int) -> None:
        """A request went out to a worker."""
        done_at = max(self._free_at[worker], self.now) + COST_S / self._weights[worker]
        self._free_at[worker] = done_at
        heapq.heappush(self._running, (done_at, worker, request))

    def request(self) -> None:
        """A request comes in."""
        raise NotImplementedError

    def finish(self, worker: int, request: int, service_s: float) -> None:
        """A worker is done with a request."""
        raise NotImplementedError


class ChoiceDriver(Driver):
    """The policy and its fleet without a broker around them."""

    def __init__(self, policy_name: str, workers: int, mixed: bool) -> None:
        from lbcore.core.costs import TaskCost
        from lbcore.core.fleet import Fleet
        from lbcore.core.policies import POLICIES

        topology = make_topology(policy_name, workers, mixed)
        super().__init__(topology)
        self._fleet = Fleet(topology.workers, topology.policy)
        self._fleet.costs[0] = TaskCost(COST_S)
        self._policy = POLICIES[policy_name](self._fleet, random.Random(1))
        for worker in self._fleet.workers:
            worker.tasks = frozenset({0})
            self._fleet.set_ready(worker, True)
            self._policy.changed(worker, 0.0)
        self._frame = make_frame(0)
        self._requests = 0

    def request(self) -> None:
        """Choose, and file the chosen worker anew."""
        now, fleet = self.now, self._fleet
        worker = self._policy.choose(0, now)
        assert worker is not None
        self._requests += 1
        if not worker.inflight:
            worker.head_at = now
        worker.inflight[self._requests] = self._frame
        worker.counts[0] = worker.counts.get(0, 0) + 1
        fleet.free_count -= len(worker.inflight) == worker.concurrency
        worker.refresh(now)
        self._policy.changed(worker, now)
        self.sent(worker.number, self._requests)

    def finish(self, worker: int, request: int, service_s: float) -> None:
        """File the worker anew."""
        fleet, record = self._fleet, self._fleet.workers[worker]
        fleet.free_count += len(record.inflight) == record.concurrency
        del record.inflight[request]
        record.counts[0] -= 1
        if not record.counts[0]:
            del record.counts[0]
        record.head_at = self.now
        record.refresh(self.now)
        self._policy.changed(record, self.now)


class RequestDriver(Driver):
    """The whole broker core, through its own door."""

    def __init__(self, policy_name: str, workers: int, mixed: bool) -> None:
        from lbcore.core.actions import ToWorker
        from lbcore.core.broker import Broker
        from lbcore.core.frames import REQUEST_HEADER, Kind, reply_frame

        topology = make_topology(policy_name, workers, mixed)
        super().__init__(topology)
        self._to_worker, self._request_kind = ToWorker, int(Kind.REQUEST)
        self._unpack, self._reply_frame = REQUEST_HEADER.unpack_from, reply_frame
        self._broker = Broker(topology, random.Random(1), 0.0)
        hello = {"pid": 1, "tasks": [{"name": "work", "aliases": [], "weight": COST_S}]}
        for number in range(workers):
            self._broker.worker_joined(number, hello, 0.0)
        self._client, _ = self._broker.client_joined("bench", 0.0)
        self._requests = 0

    def request(self) -> None:
        """The bytes of a request come in."""
        deadline = self._broker.next_deadline()
        if deadline is not None and deadline <= self.now:
            self._note(self._broker.tick(self.now))
        self._requests += 1
        frame = make_frame((self._client << 32) | self._requests)
        self._note(self._broker.client_data(self._client, frame, self.now))

    def finish(self, worker: int, request: int, service_s: float) -> None:
        """The bytes of its answer come in."""
        reply = self._reply_frame(request, 0, service_s=service_s, cpu=1000)
        self._note(self._broker.worker_data(worker, reply, self.now))

    def _note(self, actions: list[Any]) -> None:
        """Remember which worker got what."""
        for action in actions:
            if not isinstance(action, self._to_worker):
                continue
            for part in action.parts:
                _, kind, _, _, request_id, _, _ = self._unpack(part)
                if kind == self._request_kind:
                    self.sent(action.worker, request_id)


def make_topology(policy_name: str, workers: int, mixed: bool) -> Any:
    """A topology of that many workers, of equal or of mixed declared speed."""
    from lbcore.core.topology import Address, PolicyConfig, Topology, WorkerConfig

    weights = MIXED_WEIGHTS if mixed else (1.0,)
    return Topology(
        name="choice",
        broker=Address(),
        workers=tuple(
            WorkerConfig(name=f"worker-{number + 1}", weight=weights[number % len(weights)])
            for number in range(workers)
        ),
        policy=PolicyConfig(name=policy_name),
    )


def make_frame(request_id: int) -> bytes:
    """A request of task 0 without arguments."""
    from lbcore.core.frames import request_frame

    return request_frame(request_id, 0)


def seconds_per_step(driver: Driver, steps: int) -> float:
    """How long one step takes, over ``steps`` of them."""
    step = driver.step
    started = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - started) / steps


def choice_cost(
    policy_name: str = "least_load",
    *,
    mixed: bool = False,
    whole_request: bool = False,
    rounds: int = 5,
    slice_s: float = SLICE_S,
) -> list[tuple[float, float]]:
    """Seconds per choice (or request) with few workers and with many, in turn, ``rounds`` times."""
    make: Callable[[str, int, bool], Driver] = RequestDriver if whole_request else ChoiceDriver
    few, many = make(policy_name, FEW, mixed), make(policy_name, MANY, mixed)

    for driver in (few, many):
        # past the time in which costs are not yet known and workers count as new
        seconds_per_step(driver, WARM_UP_STEPS)

    def steps_of(driver: Driver) -> int:
        def run(count: int) -> float:
            return seconds_per_step(driver, count) * count

        return calibrate(run, target_s=slice_s, start=200)

    few_steps, many_steps = steps_of(few), steps_of(many)
    return [
        (seconds_per_step(few, few_steps), seconds_per_step(many, many_steps))
        for _ in range(rounds)
    ]


class Choice(Contender):
    """The core alone; starts nothing."""

    name = "choice"
    title = "lb, cost per choice"

    def operations(self) -> dict[str, Callable[..., dict[str, Any]]]:
        """The cost with few workers and with many."""
        return {"cost": self._cost, "policies": self._policies, "versions": self.versions}

    def _policies(self) -> dict[str, Any]:
        from lbcore.core.policies import POLICIES

        return {"policies": list(POLICIES)}

    def _cost(
        self, policy: str, mixed: bool, whole_request: bool, rounds: int, slice_s: float
    ) -> dict[str, Any]:
        costs = choice_cost(
            policy, mixed=mixed, whole_request=whole_request, rounds=rounds, slice_s=slice_s
        )
        return {
            "few_us": [few * 1e6 for few, _ in costs],
            "many_us": [many * 1e6 for _, many in costs],
            "ratio": [many / few for few, many in costs],
        }
