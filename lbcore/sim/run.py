"""One run: a seed becomes a system, its traffic and its faults; then it must come to rest.

First everything goes wrong while clients send; then everything heals, and what was accepted has to
be answered; at last nothing may be left in anybody's books.
"""

from __future__ import annotations

import gc
import traceback
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any, Final, NamedTuple

from lbcore.core.dispatch import BOUND_MAX
from lbcore.core.topology import Address, Limits, PolicyConfig, Topology, WorkerConfig

from .broker_process import BrokerProcess
from .catalogue import Deed
from .client_process import ClientProcess, Habits
from .fairness import check_fairness
from .faults import SHARES, UNUSUAL_SHARES, draw_faults, strike
from .oracles import Violation, text
from .supervisor import BROKER
from .system import System
from .world import START_S, World

#: requests of one run, unless something else is asked for
REQUESTS: Final = 20_000
#: faults for each hundred requests
FAULTS_PER_HUNDRED: Final = 1.2
#: virtual seconds of traffic for each request
SECONDS_EACH: Final = 0.0015
#: once all is healed, everything must be answered within this
HEAL_S: Final = 60.0
#: and nobody remembers anything of it after that
FORGET_S: Final = 25.0
#: a worker that dies under a request is away for so long, at most
START_AGAIN_S: Final = 0.5
_DEADLY: Final = (Deed.KILL, Deed.FLAKY)
#: how often the broker's own books are checked, in virtual seconds
CHECK_S: Final = 0.4

POLICIES: Final = ("least_load",) * 6 + ("least_pending", "round_robin", "random", "power_of_two")
#: shares of bursts by task, before a run leaves some of them out
MIX: Final[dict[str, float]] = {
    "tiny": 50,
    "small": 30,
    "short": 16,
    "medium": 3,
    "long": 1,
    "once": 8,
    "once_tiny": 2,
    "fail": 1,
    "poison": 0.7,
    "poison_once": 0.7,
    "poison_twice": 0.4,
    "flaky": 1,
    "hang": 0.5,
}


class Plan(NamedTuple):
    """What decides a run, and nothing else does."""

    seed: int
    requests: int = REQUESTS
    #: the faults that are kept, by index; None: all
    keep: tuple[int, ...] | None = None
    #: clients send no more than so many requests, though they meant to; None: all
    limit: int | None = None


class Outcome(NamedTuple):
    """What became of one run."""

    plan: Plan
    requests: int
    #: faults that struck, deaths by tasks included
    faults: int
    #: the same by kind
    kinds: dict[str, int]
    #: visible answers by status
    answers: dict[int, int]
    virtual_s: float
    events: int
    #: what was broken, with the traceback; empty when nothing was
    violation: str = ""


class Run:
    """One run of one plan."""

    def __init__(self, plan: Plan, trace: Callable[[str], None] | None = None) -> None:
        self.plan = plan
        random = Random(plan.seed)
        self.world = World(random.getrandbits(64), trace)
        unusual = _UNUSUAL.get(plan.seed % 10, {})
        shares = UNUSUAL_SHARES if unusual else SHARES
        topology = _draw_topology(random, unusual)
        seconds = max(1.0, plan.requests * SECONDS_EACH)
        self.traffic_s = seconds
        clients = random.randint(1, 5)
        self._habits = [
            _draw_habits(random, plan.requests // clients + 1, seconds) for _ in range(clients)
        ]
        kinds = {kind: share for kind, share in shares.items() if random.random() < 0.7}
        count = int(plan.requests / 100 * FAULTS_PER_HUNDRED)
        self.faults = draw_faults(random, kinds or shares, count, seconds)
        if plan.keep is not None:
            self.faults = [fault for fault in self.faults if fault.number in plan.keep]
        #: faults that happened, by kind
        self.struck: Counter[str] = Counter()
        #: a policy that binds at once was in force
        self._bound_early = False
        #: whether it ends with a check of fairness
        self._is_fair = random.random() < 0.2 and plan.limit is None
        self.system = System(self.world, topology, plan.limit)
        self._until = START_S + 0.5 + seconds

    # ---- the two phases ------------------------------------------------------------------------

    def execute(self) -> None:
        """Run it all.  Raises ``Violation``, or whatever the code under test raises."""
        world, system = self.world, self.system
        system.supervisor.start()
        for habits in self._habits:
            system.add_client(habits)
        if self.faults:
            world.at(START_S + 0.5 + self.faults[0].at, self._strike, 0)
        world.after(CHECK_S, self._check)
        while world.now < self._until:
            # a leap of the clock moves the end
            world.run(self._until)
        self._heal()
        end = world.now + HEAL_S + 4.0 * self._work_left_s
        while not self._is_quiet:
            world.run(world.now + 0.25)
            if world.now > end:
                self._complain()
        world.run(world.now + FORGET_S)
        self._check_rest()
        if self._is_fair:
            check_fairness(self)
            world.run(world.now + FORGET_S)
            self._check_rest()

    def _strike(self, index: int) -> None:
        fault = self.faults[index]
        self.struck[fault.kind] += 1
        if index + 1 < len(self.faults):
            # one after the other, so that a leap of the clock does not bring all at once
            self.world.after(self.faults[index + 1].at - fault.at, self._strike, index + 1)
        strike(self, fault)

    def leap(self, seconds: float) -> None:
        """The clock jumps; the traffic goes on as long as it would have."""
        self.world.leap(seconds)
        self._until += seconds

    def _heal(self) -> None:
        world = self.world
        if world.tracing:
            world.say("HEAL")
        for client in self.system.clients:
            # they have sent enough: what is left is to be answered
            client.left = 0
        for process in list(self.system.supervisor.processes.values()):
            process.thaw()
            if not isinstance(process, BrokerProcess):
                process.recover()
        for name in list(self.system.supervisor.machine.children):
            self.system.supervisor.release(name)
        for _, near, far in self.system.connections:
            for end in (near, far):
                end.heal()

    @property
    def _work_left_s(self) -> float:
        """Seconds of work in what is unanswered, for one worker, with a start for each death."""
        books = self.system.books
        profiles = [books.profile(each) for each in books.unanswered()]
        deaths = sum(books.allowed(each) for each in profiles if each.deed in _DEADLY)
        return sum(each.service_s for each in profiles) + deaths * START_AGAIN_S

    @property
    def _is_quiet(self) -> bool:
        return all(client.idle for client in self.system.clients if client.alive)

    def replace(self, client: ClientProcess) -> None:
        """Another client comes for one that is gone, and does what that one had left to do."""
        left = client.left
        seconds = self._until - self.world.now
        if left and seconds > 0.1:
            self.system.add_client(client.habits._replace(requests=left, seconds=seconds))

    # ---- looking at the broker's books ---------------------------------------------------------

    @property
    def broker(self) -> BrokerProcess | None:
        """The broker process that lives now."""
        process = self.system.supervisor.processes.get(BROKER)
        return process if isinstance(process, BrokerProcess) else None

    def _check(self) -> None:
        process = self.broker
        if process is not None:
            ledger = process.broker.ledger
            if ledger.queue.count < 2000:
                ledger.check()
            limits = self.system.topology.limits
            # what comes back from a worker that is gone was accepted, and is not refused; a policy
            # that binds at once has sent everything to workers before
            queue, is_late = ledger.queue, ledger.policy.late_binding
            self._bound_early |= not is_late
            slack = (BOUND_MAX if self._bound_early else 600) * len(ledger.fleet.workers)
            most, bytes_most = limits.queue + slack, limits.queue_bytes + slack * 40
            if is_late and (queue.count > most or queue.bytes > bytes_most):
                self.system.books.fail(f"{queue.count} requests wait, {queue.bytes} bytes")
        self.world.after(CHECK_S, self._check)

    def _complain(self) -> None:
        books = self.system.books
        ids = books.unanswered()
        some = ", ".join(f"{text(each)} ({books.profile(each).name})" for each in ids[:10])
        left = [f"{c.name}: {c.left} to send" for c in self.system.clients if c.alive and c.left]
        process = self.broker
        state = "no broker"
        if process is not None:
            ledger = process.broker.ledger
            state = f"queue {ledger.queue.count}, in flight {ledger.in_flight}, "
            pending = {worker.name: worker.pending for worker in ledger.fleet.workers}
            state += f"pending {pending}"
        books.fail(
            f"long after all is healed {len(ids)} requests have no answer: {some}; {left}; {state}"
        )

    def _check_rest(self) -> None:
        """All is quiet: nothing may be left anywhere."""
        process, books = self.broker, self.system.books
        if process is None:
            books.fail("there is no broker")
            return
        ledger = process.broker.ledger
        ledger.check()
        rest = {
            "queue": ledger.queue.count,
            "bytes": ledger.queue.bytes,
            "in flight": ledger.in_flight,
            "attempts": len(ledger.attempts),
            "deadlines": len(ledger.timed),
            "answered": len(ledger.answered),
            "loaded": len(ledger.loaded),
            "recalled": len(ledger.recalled),
            "of clients": sum(client.in_flight for client in ledger.clients.values()),
            "of workers": sum(len(worker.inflight) for worker in ledger.fleet.workers),
        }
        if left := {what: count for what, count in rest.items() if count}:
            books.fail(f"when all is quiet the broker still remembers {left}")
        for worker in ledger.fleet.by_name.values():
            # the trial of one that is ejected waits for a request
            if worker.position < 0 and not ledger.ejected_s(worker.number, self.world.now):
                books.fail(f"{worker.name} is not ready")


#: seeds that end like this run with what is off by default; the others keep the history they had
_UNUSUAL: Final[dict[int, dict[str, Any]]] = {
    9: {"hedge": 0.8, "order": "shortest"},
}


def _draw_topology(random: Random, unusual: dict[str, Any]) -> Topology:
    count = random.randint(1, 5)
    concurrency = random.choice((1, 1, 1, 2, 4))
    workers = tuple(
        WorkerConfig(
            name=f"worker-{number + 1}",
            weight=random.choice((1.0, 1.0, 1.0, 2.0, 0.5)),
            concurrency=concurrency if random.random() < 0.7 else 1,
        )
        for number in range(count)
    )
    limits = Limits(
        queue=random.choice((50, 500, 5000, 1_000_000, 1_000_000, 1_000_000)),
        queue_bytes=random.choice((10_000, *[1 << 30] * 7)),
        frame_bytes=1 << 16,
        max_attempts=random.choice((1, 2, 3, 3, 3, 5)),
    )
    policy = PolicyConfig(name=random.choice(POLICIES), **unusual)
    return Topology(
        name="simulated", broker=Address(), workers=workers, policy=policy, limits=limits
    )


def _draw_habits(random: Random, requests: int, seconds: float) -> Habits:
    mix = [(name, share * random.random()) for name, share in MIX.items() if random.random() < 0.7]
    return Habits(
        requests=requests,
        seconds=seconds,
        burst_max=random.choice((2, 16, 64, 64, 64, 64)),
        mix=tuple(mix or MIX.items()),
        deadlines=random.choice((0.0, 0.0, 0.02, 0.1)),
        priorities=random.choice((0.0, 0.0, 0.1, 0.3)),
        cancels=random.choice((0.0, 0.0, 0.02, 0.1)),
        window=random.choice((50, 200, 200, 2000)),
    )


def execute(plan: Plan, trace: Callable[[str], None] | None = None) -> Outcome:
    """Run one plan and say what became of it; nothing is raised."""
    run = Run(plan, trace)
    violation = ""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        run.execute()
    except Violation as error:
        violation = str(error)
    except Exception:
        violation = f"at {run.world.now - START_S:.6f} s: {traceback.format_exc()}"
    finally:
        if was_enabled:
            gc.enable()
    books = run.system.books
    return Outcome(
        plan=plan,
        requests=sum(client.count for client in books.clients.values()),
        faults=run.struck.total() + books.task_deaths,
        kinds=dict(run.struck) | {"task kills worker": books.task_deaths},
        answers=dict(sorted(books.answers.items())),
        virtual_s=run.world.now - START_S,
        events=run.world.count,
        violation=violation,
    )
