"""``lb compare``: a scenario on real processes, and beside it what the simulation says of it."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from lbcore.core.errors import LBError

from .exit_codes import ExitCode
from .options import Number, WholeNumber, json_option
from .render import Column, console, duration_text, make_table, print_json, printable

if TYPE_CHECKING:
    from lbcore.lab.real import RealPlan
    from lbcore.lab.traffic import Traffic

    from .compare_run import Measured
    from .compare_view import Comparison, Wish

#: measured when none are named
POLICIES: Final = "least_load,least_pending,round_robin"


class CompareError(LBError):
    """A comparison cannot be made, or not be written down."""

    exit_code = 2


@click.command("compare")
@click.option(
    "--scenario", required=True, metavar="NAME|FILE", help="One that comes with lb, or a YAML file."
)
@click.option(
    "--policy",
    "policies",
    default=POLICIES,
    show_default=True,
    metavar="A,B,...",
    help="Which ones, each on its own.",
)
@click.option(
    "--workers",
    type=WholeNumber(1, 64),
    help="So many (default: as the scenario; where each needs a core, as many as there are).",
)
@click.option(
    "--requests",
    type=WholeNumber(1, 1_000_000),
    help="So many (default: what comes in 15 s, at most the scenario's).",
)
@click.option("--load", type=Number(100.0), help="Work that comes ÷ work possible.")
@click.option("--seed", type=WholeNumber(0), default=1, show_default=True, help="Of the requests.")
@click.option(
    "--seeds",
    type=WholeNumber(1, 1000),
    default=1,
    show_default=True,
    help="So many, from --seed on, for intervals.",
)
@click.option(
    "--scale",
    type=Number(1000.0),
    help="Multiply all times by this (default: so that a request takes 20 ms on average).",
)
@click.option(
    "--work",
    type=click.Choice(["sleep", "spin"]),
    help="What a request does: sleep as long as it would compute, so that one machine stands for "
    "many, or compute (default: sleep; spin where a neighbour takes the core).",
)
@json_option("One JSON object instead of text.")
@click.option("--save", metavar="FILE", help="Write that JSON object to a file as well.")
def compare(
    scenario: str,
    policies: str,
    workers: int | None,
    requests: int | None,
    load: float | None,
    seed: int,
    seeds: int,
    scale: float | None,
    work: str | None,
    as_json: bool,
    save: str | None,
) -> int:
    """Run a scenario on real processes, beside its simulation.

    For each policy a topology of its own is started, gets the same requests at the same moments,
    and is stopped.  What a request takes counts from when it was due.  Workers that are slow,
    stand still or fail do so for real; the broker is not told.

    \b
    Examples:
      lb compare --scenario equal
      lb compare --scenario quarter --policy least_load,round_robin,random
      lb compare --scenario noisy_neighbour        real neighbours on a core
      lb compare --scenario batch --scale 0.1 --save batch.json
      lb compare --scenario equal --seeds 10       with intervals

    Exit code 1: requests were never answered.
    """
    from .compare_seeds import as_json as ratios_as_json
    from .compare_view import Wish, again, view

    wish = Wish(
        scenario=scenario,
        policies=list(dict.fromkeys(each.strip() for each in policies.split(",") if each.strip())),
        workers=workers,
        requests=requests,
        load=load,
        scale=scale,
        work=work,
        seed=seed,
    )
    if not wish.policies:
        raise click.UsageError("--policy names none")
    if save is not None and not Path(save).resolve().parent.is_dir():
        raise CompareError(f"--save {save}: there is no such folder")
    plan = make_plan(wish)
    if note := _busy_note(plan):
        plan = replace(plan, notes=(*plan.notes, note))
    found = _run_seeds(plan, wish, seeds, as_json)
    result = view(found[0])
    if seeds > 1:
        result |= {
            "again": again(found[0], seeds),
            "ratios": ratios_as_json(found),
            "runs": [view(each) for each in found],
        }
    if as_json:
        print_json(result)
    if save is not None:
        _write(save, result)
    return ExitCode.FAILED if any(each.has_lost for each in found) else ExitCode.OK


def _run_seeds(plan: RealPlan, wish: Wish, seeds: int, as_json: bool) -> list[Comparison]:
    """One comparison for each seed, told to a person as they come."""
    from .compare_seeds import print_ratios
    from .compare_view import again

    if not as_json:
        _print_head(plan, wish, seeds)
    progress = _Progress(as_json)
    found: list[Comparison] = []
    for place in range(seeds):
        progress.prefix = f"seed {wish.seed + place}, " if seeds > 1 else ""
        found.append(run_comparison(plan, replace(wish, seed=wish.seed + place), progress))
        if not as_json and not place:
            _print(found[0])
    if as_json:
        return found
    if seeds > 1:
        print_ratios(found)
        click.echo()
    click.echo(f"again: {again(found[0], seeds)}")
    return found


def make_plan(wish: Wish) -> RealPlan:
    """The scenario as it is going to be run.  Raises ``ScenarioError``."""
    from lbcore.lab.real import default_scale, default_work, default_workers, plan_real
    from lbcore.lab.study import read_policy

    from .study import Question, find_scenario

    for policy in wish.policies:
        read_policy(policy)
    question = Question(
        scenarios=[wish.scenario],
        policies=wish.policies,
        workers=wish.workers,
        requests=wish.requests,
        load=wish.load,
    )
    scenario = find_scenario(wish.scenario, question)
    work, cores = wish.work or default_work(scenario), _pinnable_cores()
    if wish.workers is None:
        count = default_workers(scenario, work, len(cores))
        if count is not None:
            scenario = find_scenario(wish.scenario, replace(question, workers=count))
    scale = wish.scale or default_scale(scenario)
    return plan_real(scenario, work=work, scale=scale, requests=wish.requests, cores=cores)


def _busy_note(plan: RealPlan) -> str:
    """What to say where other processes use this machine already."""
    cores = len(_pinnable_cores()) or os.cpu_count() or 1
    load = os.getloadavg()[0]
    if load < (0.25 if plan.work == "spin" else 1.0) * cores:
        return ""
    return f"this machine is busy already (load average {load:.1f}, {cores} cores): expect slower"


def _pinnable_cores() -> tuple[int, ...]:
    if not hasattr(os, "sched_getaffinity"):
        return ()
    return tuple(sorted(os.sched_getaffinity(0)))


def run_comparison(plan: RealPlan, wish: Wish, progress: _Progress) -> Comparison:
    """Measure every policy, then simulate the same requests."""
    from lbcore.lab.reference import references
    from lbcore.lab.study import read_policy
    from lbcore.lab.traffic import draw_traffic
    from lbcore.lab.trial import Trial

    from .compare_run import run_policy
    from .compare_view import Comparison

    traffic: Traffic = draw_traffic(plan.scenario, wish.seed)
    measured: dict[str, Measured] = {}
    try:
        for place, name in enumerate(wish.policies, 1):
            progress.show(f"{name}: measuring, {place} of {len(wish.policies)}")
            measured[name] = run_policy(plan, read_policy(name), traffic)
        transit_s = min(found.transit_s for found in measured.values())
        scenario = replace(plan.scenario, transit_s=transit_s)
        progress.show("simulating")
        simulated = dict(references(scenario, traffic))
        for name in wish.policies:
            simulated[name] = Trial(scenario, traffic, read_policy(name), wish.seed).run()
    finally:
        progress.clear()
    return Comparison(
        wish=wish, plan=plan, transit_s=transit_s, simulated=simulated, measured=measured
    )


def _write(path: str, result: dict[str, Any]) -> None:
    try:
        with open(path, "w", encoding="utf-8") as file:
            print_json(result, file)
    except OSError as error:
        raise CompareError(f"cannot write {path}: {error.strerror}") from None


# ---- for people ----------------------------------------------------------------------------------


def _print_head(plan: RealPlan, wish: Wish, seeds: int) -> None:
    scenario = plan.scenario
    click.echo(f"{scenario.name}: {printable(scenario.about)}")
    work = {"sleep": "sleep", "spin": "compute"}[plan.work]
    facts = [
        f"times multiplied by {plan.scale:g}",
        f"{scenario.workers_count} workers that {work}",
        f"{scenario.requests:,} requests",
        f"seed {wish.seed}" if seeds == 1 else f"{seeds} seeds",
    ]
    if scenario.arrivals != "batch":
        facts.insert(2, f"load {scenario.load:g}")
    click.echo(", ".join(facts))
    seconds = duration_text(plan.span_s)
    each = f"{len(wish.policies)} policies" + (" and seed" if seeds > 1 else "")
    click.echo(f"on real processes, about {seconds} for each of {each}\n")
    for note in plan.notes:
        click.echo(f"note: {note}\n")


def _print(found: Comparison) -> None:
    from .compare_view import ratios, tail_key, tail_title

    key, title = tail_key(found), tail_title(found)
    fails = any(real.wasted or real.lost for real in found.measured.values())
    titles = ["mean", title, "real mean", f"real {title}", "÷ mean", f"÷ {title}"]
    titles += ["share", "real"] + ["failed"] * fails
    table = make_table([Column("policy", "left"), *map(Column, titles)], 1)
    for name, simulated in found.simulated.items():
        cells = [duration_text(simulated.mean), duration_text(getattr(simulated, key))]
        real = found.measured.get(name)
        if real is None:
            cells += ["", "", "", "", f"{simulated.worst_share:.2f}", ""] + [""] * fails
        else:
            parts = ratios(simulated, real)
            cells += [duration_text(real.mean), duration_text(getattr(real, key))]
            cells += [_ratio_text(parts["mean"]), _ratio_text(parts[key])]
            cells += [f"{simulated.worst_share:.2f}", f"{real.worst_share:.2f}"]
            if fails:
                cells.append(f"{real.lost} lost" if real.lost else f"{real.wasted:.2f}")
        table.add_row(name, *cells)
    console().print(table)
    click.echo(
        "\nfirst what is simulated, then what was measured (real) and measured ÷ simulated;\n"
        "share: the largest of one worker's share of the work ÷ its share of the capacity"
    )
    _print_workers(found)
    click.echo(f"\na request's way there and back: {duration_text(found.transit_s)}")


def _print_workers(found: Comparison) -> None:
    """Who did what part of the work, where that can be read."""
    count = found.plan.scenario.workers_count
    if count > 8:
        return
    click.echo("\nshare of the work as measured, by worker")
    table = make_table([Column("policy", "left"), *(Column(str(n + 1)) for n in range(count))])
    for name, real in found.measured.items():
        table.add_row(name, *(f"{100 * each.share:.1f}%" for each in real.workers))
    console().print(table)


def _ratio_text(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


class _Progress:
    """One line that is renewed, for a person who waits."""

    def __init__(self, as_json: bool) -> None:
        self._is_on = not as_json and sys.stderr.isatty()
        self._width = 0
        #: what stands before each text
        self.prefix = ""

    def show(self, text: str) -> None:
        """Say what happens now."""
        self.clear()
        text = self.prefix + text
        if self._is_on:
            self._width = len(text)
            sys.stderr.write(text)
            sys.stderr.flush()

    def clear(self) -> None:
        """Take the line away."""
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()
            self._width = 0
