"""``lb simulate --scenario``: policies compared on the same requests, in virtual time."""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from .exit_codes import ExitCode
from .options import program_name
from .render import Column, console, make_table, print_json, printable, seconds_text

if TYPE_CHECKING:
    from lbcore.lab.scenario import Scenario
    from lbcore.lab.study import Study

#: the seed of a comparison, unless another one is asked for: so that two people see the same
SEED: Final = 1
PROGRESS_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is to be compared."""

    scenarios: Sequence[str]
    policies: Sequence[str]
    workers: int | None = None
    requests: int | None = None
    load: float | None = None
    seed: int = SEED
    seeds: int = 1
    jobs: int = 1


def run_studies(question: Question, as_json: bool, save: str | None, report: str | None) -> int:
    """Compare, print what came of it, and keep it where that is wanted."""
    studies = [_study(name, question) for name in question.scenarios]
    progress = Progress(as_json)
    views = []
    for study in studies:
        from lbcore.lab.pool import run_study

        run_study(study, question.jobs, progress.show)
        progress.clear()
        if as_json:
            views.append(study_view(study, question))
        else:
            print_study(study, question)
    if as_json:
        print_json(views[0] if len(views) == 1 else views)
    if save is not None or report is not None:
        from .run_files import run_of_study, write_runs

        write_runs([run_of_study(study, again(study, question)) for study in studies], save, report)
    lost = any(study.mean(name).lost for study in studies for name in study.policies)
    return ExitCode.FAILED if lost else ExitCode.OK


def _study(name: str, question: Question) -> Study:
    from lbcore.lab.study import Study, read_policy

    scenario = find_scenario(name, question)
    for policy in question.policies:
        read_policy(policy)
    seeds = range(question.seed, question.seed + question.seeds)
    return Study(scenario, list(dict.fromkeys(question.policies)), list(seeds))


def find_scenario(name: str, question: Question) -> Scenario:
    """The scenario of that name or file, with what the command line changes."""
    from lbcore.lab.scenario import ScenarioError, read_scenario
    from lbcore.shell.scenario_files import load_scenario

    scenario = read_scenario(load_scenario(name), Path(name).stem)
    changes: dict[str, Any] = {}
    if question.requests is not None:
        changes["requests"] = question.requests
    if question.load is not None:
        changes["load"] = question.load
    if question.workers is not None:
        if len(scenario.workers) > 1:
            text = "--workers is for scenarios whose workers are equal; copy the YAML file for"
            raise ScenarioError(f"scenario {scenario.name}: {text} others")
        changes["workers"] = (replace(scenario.workers[0], count=question.workers),)
        if any(max(change.workers) > question.workers for change in scenario.changes):
            raise ScenarioError(f"scenario {scenario.name}: it needs more workers than that")
    return replace(scenario, **changes)


def list_scenarios(as_json: bool) -> int:
    """Which scenarios come with lb."""
    from lbcore.lab.scenario import read_scenario
    from lbcore.shell.scenario_files import load_scenario, scenario_names, scenario_path

    found = [(name, read_scenario(load_scenario(name), name).about) for name in scenario_names()]
    if as_json:
        print_json([{"scenario": name, "about": about} for name, about in found])
        return ExitCode.OK
    table = make_table([Column("scenario", "left"), Column("what", "left", wraps=True)])
    for name, about in found:
        table.add_row(name, about)
    console().print(table)
    click.echo(f"\nto copy and change: {scenario_path(found[0][0]).parent}")
    return ExitCode.OK


# ---- for people ----------------------------------------------------------------------------------


def print_study(study: Study, question: Question) -> None:
    """One table, and the ratios where there are several seeds."""
    scenario = study.scenario
    click.echo(f"{scenario.name}: {printable(scenario.about)}")
    first, count = study.seeds[0], len(study.seeds)
    seeds = f"seed {first}" if count == 1 else f"seeds {first} to {first + count - 1}"
    facts = [f"{scenario.workers_count:,} workers", f"{scenario.requests:,} requests", seeds]
    if scenario.arrivals != "batch":
        facts.insert(1, f"load {scenario.load:g}")
    click.echo(", ".join(facts) + "\n")
    print_figures(study)
    if count > 1:
        _print_ratios(study)
    click.echo(f"\nagain: {again(study, question)}\n")


def print_figures(study: Study) -> None:
    """The table: a row for each policy, the references first."""
    rows = {name: study.mean(name) for name in study.names}
    fails = any(row.wasted or row.lost for row in rows.values())
    titles = ["mean", "p50", "p99", "p99.9", "slow", "span", "share", "wrong", "idle"]
    table = make_table([Column("policy", "left"), *map(Column, titles + ["failed"] * fails)], 1)
    for name, row in rows.items():
        cells = [seconds_text(each) for each in (row.mean, row.p50, row.p99, row.p999)]
        cells += [f"{row.slowdown:.2f}", f"{row.makespan:,.0f} s", f"{row.worst_share:.2f}"]
        cells += [_part(row.misroutes), _part(row.idle)]
        if fails:
            cells.append(f"{row.lost} lost" if row.lost else f"{row.wasted:.2f}")
        table.add_row(name.replace(":", "\n "), *cells)
    console().print(table)


def _part(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{100 * value:.1f}%" if value < 0.0995 or value > 1 else f"{100 * value:.0f}%"


def _print_ratios(study: Study) -> None:
    first = study.names[0]
    click.echo(f"\nrelative to the {first}, seed by seed, with 95 % intervals")
    table = make_table([Column("policy", "left"), Column("p99"), Column("mean")])
    for name in study.names[1:]:
        cells = []
        for key in ("p99", "mean"):
            ratio = study.ratio(name, key, first)
            cells.append(f"{ratio.mean:.3f} ± {ratio.half:.3f}")
        table.add_row(name.replace(":", "\n "), *cells)
    console().print(table)


def again(study: Study, question: Question) -> str:
    """The command that gives the same figures."""
    from lbcore.core.policies import POLICIES

    parts = [program_name(), "simulate", "--scenario", study.scenario.name]
    for name in question.scenarios:
        if Path(name).stem == study.scenario.name:
            parts[-1] = shlex.quote(name)
    if study.policies != list(POLICIES):
        parts += ["--policy", shlex.quote(",".join(study.policies))]
    parts += ["--seed", str(study.seeds[0])]
    if len(study.seeds) > 1:
        parts += ["--seeds", str(len(study.seeds))]
    for key in ("workers", "requests", "load"):
        value = getattr(question, key)
        if value is not None:
            parts += [f"--{key}", f"{value:g}" if isinstance(value, float) else str(value)]
    return " ".join(parts)


def study_view(study: Study, question: Question) -> dict[str, Any]:
    """For programs: times in seconds."""
    return {
        "scenario": study.scenario.name,
        "seed": study.seeds[0],
        "seeds": list(study.seeds),
        "workers": study.scenario.workers_count,
        "requests": study.scenario.requests,
        "load": study.scenario.load,
        "policies": study.view(),
        "again": again(study, question),
    }


class Progress:
    """One line that is renewed, for a person who waits."""

    def __init__(self, as_json: bool) -> None:
        self._is_on = not as_json and sys.stderr.isatty()
        self._due = 0.0
        self._width = 0

    def show(self, done: int, of: int) -> None:
        """Renew it, if it is time."""
        now = time.monotonic()
        if self._is_on and now >= self._due:
            self._due = now + PROGRESS_S
            self._width = 30
            sys.stderr.write(f"\r{done} of {of} runs ")
            sys.stderr.flush()

    def clear(self) -> None:
        """Take the line away."""
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            self._width = 0
