"""What ``lb compare`` found, for programs: one run, as ``lbcore/lab/runfile.py`` has them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from lbcore.lab.measures import Measures
from lbcore.lab.real import RealPlan
from lbcore.lab.runfile import plain
from lbcore.lab.scenario import WorkerShape

from .compare_run import Measured
from .options import program_name
from .run_files import new_run

#: the figures whose ratio is given
COMPARED: Final = ("mean", "p50", "p99", "p999", "makespan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the command line asks for; None: whatever fits."""

    scenario: str
    policies: Sequence[str]
    workers: int | None
    requests: int | None
    load: float | None
    scale: float | None
    work: str | None
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What came of it."""

    wish: Wish
    plan: RealPlan
    #: the way to a worker and back that the simulation was given
    transit_s: float
    #: the references first
    simulated: Mapping[str, Measures]
    measured: Mapping[str, Measured]

    @property
    def has_lost(self) -> bool:
        """Whether some requests were never answered."""
        return any(real.lost for real in self.measured.values())


def tail_key(found: Comparison) -> str:
    """What is compared besides the mean: of a batch when the last one is done."""
    return "makespan" if found.plan.scenario.arrivals == "batch" else "p99"


def tail_title(found: Comparison) -> str:
    """What that is called in a table."""
    return "span" if tail_key(found) == "makespan" else "p99"


def view(found: Comparison) -> dict[str, Any]:
    """The object that is printed and saved; times in seconds."""
    scenario, shapes = found.plan.scenario, _shapes(found.plan)
    run = replace(
        new_run("compare", f"{scenario.name}: {scenario.about}", again(found)),
        settings=_settings(found),
        topology={
            "policy": found.wish.policies[0],
            "mean_service_s": scenario.mean_service_s,
            "workers": [
                {
                    "name": f"worker-{number}",
                    "weight": shape.weight,
                    "concurrency": shape.concurrency,
                    "speed": shape.speed,
                }
                for number, shape in enumerate(shapes, 1)
            ],
            "tasks": [
                {"name": task.name, "service_s": task.service_s, "share": task.share}
                for task in scenario.tasks
            ],
        },
        policies=[_row(found, name) for name in found.simulated],
        quantiles={name: list(real.quantiles) for name, real in found.measured.items()},
        requests={
            name: {each.name: each.requests for each in real.workers}
            for name, real in found.measured.items()
        },
        shares={
            name: {each.name: each.relative for each in real.workers}
            for name, real in found.measured.items()
        },
    )
    return plain(run)


def _shapes(plan: RealPlan) -> list[WorkerShape]:
    return [shape for shape in plan.scenario.workers for _ in range(shape.count)]


def _settings(found: Comparison) -> dict[str, Any]:
    plan, scenario = found.plan, found.plan.scenario
    return {
        "scenario": scenario.name,
        "seed": found.wish.seed,
        "scale": plan.scale,
        "work": plan.work,
        "workers": scenario.workers_count,
        "requests": scenario.requests,
        "load": scenario.load,
        "arrivals": scenario.arrivals,
        "transit_s": found.transit_s,
        "notes": list(plan.notes),
    }


def _row(found: Comparison, name: str) -> dict[str, Any]:
    simulated, real = found.simulated[name], found.measured.get(name)
    row: dict[str, Any] = {"policy": name, **simulated._asdict(), "measured": None, "ratio": None}
    if real is not None:
        figures = asdict(real)
        del figures["quantiles"], figures["workers"]
        row |= {"measured": figures, "ratio": ratios(simulated, real)}
    return row


def ratios(simulated: Measures, real: Measured) -> dict[str, float | None]:
    """Measured ÷ simulated."""
    pairs = {key: (getattr(real, key), getattr(simulated, key)) for key in COMPARED}
    return {key: mine / other if other else None for key, (mine, other) in pairs.items()}


def again(found: Comparison, seeds: int = 1) -> str:
    """The command that sends the same requests; ``found`` is the first of so many ``seeds``."""
    wish, plan = found.wish, found.plan
    parts = [program_name(), "compare --scenario", shlex.quote(wish.scenario)]
    parts += ["--policy", shlex.quote(",".join(wish.policies)), f"--scale {plan.scale:g}"]
    parts += [f"--requests {plan.scenario.requests}", f"--seed {wish.seed} --work {plan.work}"]
    if len(plan.scenario.workers) == 1:
        parts.append(f"--workers {plan.scenario.workers_count}")
    if wish.load is not None:
        parts.append(f"--load {wish.load:g}")
    if seeds > 1:
        parts.append(f"--seeds {seeds}")
    return " ".join(parts)
