"""One policy on real processes: a topology of its own, a scenario's requests, what was measured.

Called by ``compare.py`` for each policy.  Everything that is started here has ended, and its folder
is gone, when ``run_policy`` returns or raises.
"""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import msgspec

from lbcore.core.errors import BrokerUnavailable
from lbcore.lab.measures import GRID, figures, quantile, worst_share
from lbcore.lab.real import SPIN, RealPlan
from lbcore.shell.client import Client
from lbcore.shell.compare_tasks import MODULE, VARIABLE, Span, TaskPlan, WorkerPlan
from lbcore.shell.control import ask
from lbcore.shell.hogs import Hogs
from lbcore.shell.open_loop import Call, OpenLoop
from lbcore.shell.state import state_folder

from .private_system import running, temporary_folder

if TYPE_CHECKING:
    from lbcore.core.topology import PolicyConfig
    from lbcore.lab.traffic import Traffic

#: the requests begin so long after all is ready
_LEAD_S: Final = 0.2
#: how long all workers may take to be there
_READY_MAX_S: Final = 20.0
_POLL_S: Final = 0.02
#: requests from which the way to a worker and back is measured
_PROBES: Final = 100
_PROBE_EVERY_S: Final = 0.005
#: a run that is not over after so many times its span, and some seconds, is hopeless
_PATIENCE: Final = 4.0
_PATIENCE_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerShare:
    """What one worker got."""

    name: str
    requests: int
    #: seconds of work at speed 1, and the part of all of it
    work_s: float
    share: float
    #: that part relative to its part of the capacity
    relative: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The figures of one policy on real processes; named as in ``lab.measures``."""

    mean: float
    p50: float
    p99: float
    p999: float
    slowdown: float
    slowdown_p99: float
    makespan: float
    worst_share: float
    #: part of the requests that ended in an error; attempts that failed, for each request
    failed: float
    wasted: float
    lost: int
    #: seconds on the way from the client to a worker and back, with nothing else to do
    transit_s: float
    #: (part of the requests, seconds that they took at most)
    quantiles: tuple[tuple[float, float], ...]
    workers: tuple[WorkerShare, ...]


def task_name(name: str) -> str:
    """What a scenario's task is called there: the built-in ones keep their names."""
    return f"scenario.{name}"


def run_policy(plan: RealPlan, policy: PolicyConfig, traffic: Traffic) -> Measured:
    """Start, send, measure, stop.  Raises ``BrokerUnavailable`` when it does not start."""
    with temporary_folder("lb-compare-") as folder, Hogs(_hogs(plan)) as hogs:
        topology = _topology(plan, policy, folder)
        with running(folder, topology, "topology") as target:
            assert target.topology is not None
            with Client.from_topology(target.topology, reconnect=0.0) as client:
                pids = _wait_until_ready(client)
                around = _Surroundings(plan, hogs, pids, state_folder(target.topology))
                return _send(plan, traffic, client, around, folder)


def _hogs(plan: RealPlan) -> dict[int, int]:
    """How many are needed on each core."""
    counts: dict[int, int] = {}
    for change in plan.scenario.changes:
        for number in change.workers if change.core < 1.0 else ():
            core = plan.core_of(number - 1)
            assert core is not None
            counts[core] = max(counts.get(core, 0), round(1.0 / change.core) - 1)
    return counts


def _topology(plan: RealPlan, policy: PolicyConfig, folder: Path) -> str:
    """The YAML; every value in it is one of JSON, too."""
    scenario, workers = plan.scenario, []
    tasks = [
        TaskPlan(task_name(task.name), task.service_s, task.cpu if _counts(plan) else 0.0)
        for task in scenario.tasks
    ]
    shapes = [shape for shape in scenario.workers for _ in range(shape.count)]
    for number, shape in enumerate(shapes):
        spans = [
            Span(at_s, found.speed, found.is_stalled, found.fail_s)
            for at_s, found in plan.periods(number)
        ]
        mine = WorkerPlan(number, plan.work == SPIN, str(folder / "start"), tasks, spans)
        core = plan.core_of(number)
        workers.append(
            {
                "name": f"worker-{number + 1}",
                "weight": shape.weight,
                "concurrency": shape.concurrency,
                "cpus": [] if core is None else [core],
                "env": {VARIABLE: msgspec.json.encode(mine).decode()},
            }
        )
    found = {
        "name": "compare",
        "broker": {"port": 0},
        "workers": workers,
        "policy": {
            **asdict(policy),
            "prefetch": policy.prefetch if policy.prefetch >= 0 else "auto",
        },
        "tasks": [MODULE],
        # what is left over when it is stopped interests nobody
        "limits": {"drain_s": 0},
    }
    return json.dumps(found)


def _counts(plan: RealPlan) -> bool:
    """Whether any request needs a core; else none pretends to."""
    return any(task.cpu for task in plan.scenario.tasks)


def _wait_until_ready(client: Client) -> list[int]:
    """Until every worker takes work; their processes."""
    give_up_at = time.monotonic() + _READY_MAX_S
    while True:
        workers = client.status()["workers"]
        if all(worker["state"] == "RUNNING" and worker["pid"] for worker in workers):
            return [worker["pid"] for worker in workers]
        if time.monotonic() > give_up_at:
            missing = next(each["name"] for each in workers if each["state"] != "RUNNING")
            raise BrokerUnavailable(f"{missing} was not ready after {_READY_MAX_S:.0f} s")
        time.sleep(_POLL_S)


class _Surroundings:
    """What happens to the workers from outside: they join, are stopped, lose their cores."""

    def __init__(self, plan: RealPlan, hogs: Hogs, pids: Sequence[int], state: Path) -> None:
        """``state`` is the folder in which the supervisor is found."""
        self._plan = plan
        self._hogs = hogs
        self._pids = pids
        self._state = state

    def begin(self) -> None:
        """Who is to join later gets nothing yet: its process is there, and drained."""
        late = [
            f"worker-{number + 1}"
            for number in range(len(self._pids))
            if self._plan.periods(number)[0].condition.is_absent
        ]
        if late:
            self._ask("drain", late)

    def _ask(self, op: str, names: list[str]) -> None:
        *_, last = ask(self._state, {"op": op, "names": names})
        if last.get("event") != "done":
            raise BrokerUnavailable(f"cannot {op} {', '.join(names)}: {last.get('error')}")

    def _join(self, number: int) -> None:
        """Beside the requests: it must not hold them up."""
        names = [f"worker-{number + 1}"]
        threading.Thread(target=self._ask, args=("resume", names), daemon=True).start()

    def events(self) -> list[tuple[float, Callable[[], None]]]:
        """When what is to be done."""
        found: list[tuple[float, Callable[[], None]]] = []
        for number in range(len(self._pids)):
            periods, core = self._plan.periods(number), self._plan.core_of(number)
            stalled = crowded = False
            absent = periods[0].condition.is_absent
            for at_s, condition in periods:
                if absent and not condition.is_absent:
                    absent = False
                    found.append((at_s, partial(self._join, number)))
                if condition.is_stalled != stalled:
                    stalled = condition.is_stalled
                    found.append((at_s, partial(self._stop, number, stalled)))
                if core is not None and (condition.core < 1.0) != crowded:
                    crowded = condition.core < 1.0
                    found.append((at_s, partial(self._hogs.run, core, crowded)))
        return found

    def _stop(self, number: int, stops: bool) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._pids[number], signal.SIGSTOP if stops else signal.SIGCONT)

    def settle(self) -> None:
        """Let every worker run again: one that is stopped could not end by itself."""
        for number in range(len(self._pids)):
            self._stop(number, False)


def _send(
    plan: RealPlan, traffic: Traffic, client: Client, around: _Surroundings, folder: Path
) -> Measured:
    scenario = plan.scenario
    around.begin()
    transit_s = _measure_way(client)
    names = [task_name(task.name) for task in scenario.tasks]
    calls = [
        Call(moment, names[task], {"seconds": size})
        for moment, task, size in zip(*traffic, strict=True)
    ]
    begin = time.monotonic() + _LEAD_S
    (folder / "start").write_text(repr(begin))
    loop = OpenLoop(
        client, calls, around.events(), retries=scenario.retries, retry_s=scenario.retry_s
    )
    try:
        loop.run(begin, _PATIENCE * max(plan.span_s, traffic.moments[-1]) + _PATIENCE_S)
    finally:
        around.settle()
    return _measured(plan, traffic, loop, transit_s)


def _measure_way(client: Client) -> float:
    """Seconds that a request takes which has nothing to do: there, back, and what its sender
    comes late by.  In the pace of a scenario, since a process that sleeps is slower than one that
    is busy."""
    probes = [Call(number * _PROBE_EVERY_S, "noop", {}) for number in range(_PROBES)]
    loop = OpenLoop(client, probes)
    loop.run(time.monotonic(), _PATIENCE_S)
    return median(answer.response_s for answer in loop.answers)


def _measured(plan: RealPlan, traffic: Traffic, loop: OpenLoop, transit_s: float) -> Measured:
    shapes = [shape for shape in plan.scenario.workers for _ in range(shape.count)]
    counts, work = [0] * len(shapes), [0.0] * len(shapes)
    answers, first = loop.answers, traffic.moments[0]
    for answer, size in zip(answers, traffic.sizes, strict=True):
        if not math.isnan(answer.response_s):
            counts[answer.value] += 1
            work[answer.value] += size
    failed = sum(answer.is_answered and math.isnan(answer.response_s) for answer in answers)
    # as the simulation counts: to the last answer, whatever it was
    ends = [
        moment + answer.response_s
        for answer, moment in zip(answers, traffic.moments, strict=True)
        if not math.isnan(answer.response_s)
    ]
    done, able = math.fsum(work) or 1.0, [shape.concurrency * shape.speed for shape in shapes]
    times = sorted(each.response_s for each in answers if not math.isnan(each.response_s))
    found: dict[str, Any] = figures([answer.response_s for answer in answers], traffic)
    return Measured(
        **found,
        makespan=max(ends, default=first) - first,
        worst_share=worst_share(work, able),
        failed=failed / len(answers),
        wasted=sum(answer.failures for answer in answers) / len(answers),
        lost=sum(not answer.is_answered for answer in answers),
        transit_s=transit_s,
        quantiles=tuple((q, quantile(times, q)) for q in GRID),
        workers=tuple(
            WorkerShare(
                name=f"worker-{number + 1}",
                requests=counts[number],
                work_s=work[number],
                share=work[number] / done,
                relative=work[number] / done / (able[number] / math.fsum(able)),
            )
            for number in range(len(shapes))
        ),
    )
