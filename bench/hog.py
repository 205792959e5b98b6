"""``python lb.py bench hog``: a batch beside a hog, with lb's policies and without lb.

The requests of the scenario ``hog`` compute for real, on two workers pinned to two cores; on the
first core something else wants to compute as well.  Beside it: ``ProcessPoolExecutor`` with two
processes pinned alike.  The bound is all the work, divided by the core and a half that there is.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, Final

from lbcore.cli.compare import make_plan
from lbcore.cli.compare_run import run_policy
from lbcore.cli.compare_view import Wish
from lbcore.lab.study import read_policy
from lbcore.lab.traffic import Traffic, draw_traffic
from lbcore.shell.hogs import Hogs

SCENARIO: Final = "hog"
POLICIES: Final = ("least_load", "round_robin")
EXECUTOR: Final = "ProcessPoolExecutor"


def _pin(cores: Any) -> None:
    os.sched_setaffinity(0, {cores.get()})


def _spin(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def _executor(traffic: Traffic, cores: Sequence[int]) -> float:
    """Makespan of the same work with the standard library, in seconds."""
    context = get_context("spawn")
    queue = context.Queue()
    for core in cores:
        queue.put(core)
    with (
        Hogs({cores[0]: 1}) as hogs,
        ProcessPoolExecutor(
            len(cores), mp_context=context, initializer=_pin, initargs=(queue,)
        ) as pool,
    ):
        list(pool.map(_spin, [0.3] * 2 * len(cores)))  # all processes are there
        hogs.run(cores[0], True)
        began = time.perf_counter()
        list(pool.map(_spin, traffic.sizes))
        return time.perf_counter() - began


def run_command(arguments: Sequence[str]) -> int:
    """Measure in turn, so often, and print medians."""
    parser = argparse.ArgumentParser(prog="lb.py bench hog", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    wanted = parser.parse_args(arguments)
    wish = Wish(
        scenario=SCENARIO,
        policies=list(POLICIES),
        workers=None,
        requests=None,
        load=None,
        scale=None,
        work="spin",
        seed=1,
    )
    plan = make_plan(wish)
    cores = sorted(os.sched_getaffinity(0))[:2]
    found: dict[str, list[float]] = {}
    for seed in range(1, wanted.rounds + 1):
        traffic = draw_traffic(plan.scenario, seed)
        bound_s = traffic.work_s / 1.5
        contenders: dict[str, Callable[[Traffic], float]] = {
            name: lambda traffic, name=name: (  # type: ignore[misc]
                run_policy(plan, read_policy(name), traffic).makespan
            )
            for name in POLICIES
        }
        contenders[EXECUTOR] = lambda traffic: _executor(traffic, cores)
        for name, measure in contenders.items():
            found.setdefault(name, []).append(measure(traffic) / bound_s)
    medians = {name: statistics.median(values) for name, values in found.items()}
    if wanted.json:
        print(json.dumps({"rounds": wanted.rounds, "of_bound": medians, "all": found}))
        return 0
    print(f"makespan ÷ bound, median of {wanted.rounds} rounds in turn")
    for name, value in medians.items():
        spread = f"{min(found[name]):.3f} to {max(found[name]):.3f}"
        print(f"  {name:<20} {value:.3f}  ({spread})")
    return 0
