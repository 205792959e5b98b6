"""How much of its cores a worker can get: what CPU reports say of everything that is not our work.

A report comes from the worker's side thread, or from the supervisor, which sees it from outside.
Reports may be late, missing or wrong: whatever is not a plain finite figure is not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

#: CPU reports count in full for this long after they were measured, then fade by this constant
REPORT_FRESH_S: Final = 0.5
REPORT_FADE_S: Final = 0.5
#: older reports are not looked at
REPORT_AGE_MAX_S: Final = 2.0
#: even a starved worker gets a little
AVAILABILITY_MIN: Final = 0.1
#: no machine has more cores, and no worker more threads that wait for one
CORES_MAX: Final = 4096
#: a report over less time, or with less CPU than this share of it, says nothing about waiting
INTERVAL_MIN_S: Final = 0.05
BUSY_SHARE_MIN: Final = 0.05


class Report(NamedTuple):
    """One CPU report: figures over the ``wall_s`` seconds before ``at``."""

    at: float
    wall_s: float
    cpu_s: float
    delay_s: float | None
    cores: int
    busy_s: float
    rss_bytes: int | None

    @property
    def cpu(self) -> float:
        """Cores' worth of CPU that the worker used."""
        return self.cpu_s / self.wall_s

    @property
    def demand(self) -> float:
        """Cores' worth of CPU that it asked for: used plus waited."""
        return (self.cpu_s + (self.delay_s or 0.0)) / self.wall_s

    @property
    def busy(self) -> float:
        """How many of its cores were busy, for anybody."""
        return self.busy_s / self.wall_s


def read_report(message: Mapping[str, Any]) -> Report | None:
    """The figures of a report, or None when one is missing or cannot be."""
    figures = [message.get(key) for key in ("at", "wall_s", "cpu_s", "busy_s")]
    if not all(_is_amount(figure) for figure in figures):
        return None
    at, wall_s, cpu_s, busy_s = (float(figure) for figure in figures)  # type: ignore[arg-type]
    delay_s, cores, rss_bytes = (message.get(key) for key in ("delay_s", "cores", "rss_bytes"))
    if not (delay_s is None or _is_amount(delay_s)) or wall_s < INTERVAL_MIN_S:
        return None
    if not isinstance(cores, int) or not 1 <= cores <= CORES_MAX:
        return None
    if max(cpu_s, busy_s, delay_s or 0.0) > CORES_MAX * wall_s:
        return None
    return Report(
        at, wall_s, cpu_s, delay_s, cores, busy_s, rss_bytes if isinstance(rss_bytes, int) else None
    )


def _is_amount(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value >= 0


class CoreUse:
    """What our workers ask for and use on each core; one on many cores counts evenly on them."""

    def __init__(self) -> None:
        self._demand: dict[int, float] = {}
        self._cpu: dict[int, float] = {}
        #: worker number -> the cores it counts on, and its demand and CPU on each of them
        self._placed: dict[int, tuple[list[int], float, float]] = {}

    def place(
        self, worker: int, cores: Iterable[int], demand: float, cpu: float
    ) -> tuple[float, float]:
        """A worker asks for and uses so much of these cores; returns all our demand and CPU there.

        What the same worker was said to do before no longer counts.
        """
        self.remove(worker)
        cores = list(cores)
        demand, cpu = demand / len(cores), cpu / len(cores)
        self._placed[worker] = cores, demand, cpu
        for core in cores:
            self._demand[core] = self._demand.get(core, 0.0) + demand
            self._cpu[core] = self._cpu.get(core, 0.0) + cpu
        return sum(self._demand[core] for core in cores), sum(self._cpu[core] for core in cores)

    def remove(self, worker: int) -> None:
        """That worker does nothing any more."""
        cores, demand, cpu = self._placed.pop(worker, ([], 0.0, 0.0))
        for core in cores:
            self._demand[core] = max(0.0, self._demand[core] - demand)
            self._cpu[core] = max(0.0, self._cpu[core] - cpu)


def availability_measured(
    *,
    wall_s: float,
    cpu_s: float,
    delay_s: float | None,
    cores: int,
    others_busy: float,
    own_demand: float,
) -> float | None:
    """The share of its cores that a worker could get during one report interval, in [0.1, 1].

    ``cpu_s`` is the worker's CPU time (with children), ``delay_s`` how long it was ready to run but
    waited (None where the kernel hides it), ``others_busy`` how many of its ``cores`` were busy for
    processes that are not ours, ``own_demand`` how many cores all our workers there asked for.

    While it works, its waiting tells: cpu / (cpu + delay), less what our own other workers caused.
    While it idles, the cores' business tells what a request would find: cores / (1 + others).
    None for figures that say nothing (too short an interval, or impossible ones).
    """
    if not (wall_s >= INTERVAL_MIN_S and cpu_s >= 0.0 and cores >= 1):
        return None
    if delay_s is not None and delay_s >= 0.0 and cpu_s >= BUSY_SHARE_MIN * wall_s:
        share = cpu_s / (cpu_s + delay_s)
        own_share = min(1.0, cores / own_demand) if own_demand > 0.0 else 1.0
        share /= own_share
    else:
        if not others_busy >= 0.0:
            return None
        share = cores / (1.0 + others_busy)
    return min(1.0, max(AVAILABILITY_MIN, share))


def availability_now(measured: float, age_s: float) -> float:
    """The share of its cores a worker can get, as a report of that age still tells it.

    ``A = 1 - (1 - a) * exp(-max(0, age - 0.5 s) / 0.5 s)``: an old report fades to "all of them",
    so that a missing or late one can do no harm.  The age counts from measurement, not arrival.
    """
    if measured >= 1.0 or age_s > REPORT_AGE_MAX_S:
        return 1.0
    if age_s <= REPORT_FRESH_S:
        return measured
    return 1.0 - (1.0 - measured) * math.exp(-(age_s - REPORT_FRESH_S) / REPORT_FADE_S)
