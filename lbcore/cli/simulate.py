"""``lb simulate``: a whole system in virtual time, broken on purpose; or policies compared."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from .exit_codes import ExitCode
from .options import Number, WholeNumber, program_name

if TYPE_CHECKING:
    from lbcore.sim.campaign import Tally
    from lbcore.sim.run import Outcome, Plan

    from .replay import Replay
    from .study import Question

#: without any bound, this many seconds are simulated
SECONDS_DEFAULT: Final = 10.0
#: how often the line of a running campaign is renewed, on a terminal
PROGRESS_S: Final = 1.0


@click.command()
@click.option("--faults", is_flag=True, help="Break processes and connections at random.")
@click.option(
    "--scenario",
    "scenarios",
    metavar="NAME|FILE",
    help="Compare policies: a scenario that comes with lb, a YAML file of yours, several with "
    "commas, or all.",
)
@click.option("--replay", metavar="FILE", help="Replay what `lb up --record FILE` wrote down.")
@click.option(
    "--policy",
    "policies",
    metavar="A,B,...",
    help="Which ones (default: all; of a recording its own).",
)
@click.option("--workers", type=WholeNumber(1, 100_000), help="So many, and of a recording equal.")
@click.option(
    "--load",
    type=Number(100.0),
    help="Work that comes ÷ work possible; of a recording: come so many times as fast.",
)
@click.option("--seeds", type=WholeNumber(1, 10_000), help="Of a scenario: so many, for intervals.")
@click.option("--save", metavar="FILE", help="Of a comparison: keep what came of it, for `report`.")
@click.option("--report", metavar="FILE", help="Of a comparison: draw it (.html or .pdf).")
@click.option(
    "--seed",
    type=WholeNumber(0),
    help="The first seed (default: the clock; of a scenario 1); with --faults alone: this one run.",
)
@click.option("--requests", type=Number(1e12), help="So many; with --faults: at least.")
@click.option("--seconds", type=Number(1e7), help="Stop after this many real seconds.")
@click.option("--jobs", type=WholeNumber(1, 1024), help="Processes (default: one per core).")
@click.option("--each", type=WholeNumber(1, 10_000_000), help="Requests of one run.")
@click.option("--limit", type=WholeNumber(0), help="Of one run: send only so many requests.")
@click.option("--keep", help="Of one run: keep only these faults, such as 3,17 (none: '').")
@click.option("--trace", is_flag=True, help="Of one run: tell every step.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def simulate(
    faults: bool,
    scenarios: str | None,
    replay: str | None,
    policies: str | None,
    workers: int | None,
    load: float | None,
    seeds: int | None,
    save: str | None,
    report: str | None,
    seed: int | None,
    requests: float | None,
    seconds: float | None,
    jobs: int | None,
    each: int | None,
    limit: int | None,
    keep: str | None,
    trace: bool,
    as_json: bool,
) -> int:
    """Run the real broker in virtual time: to compare policies, or to break it.

    One seed decides everything: who sends what, what takes how long, what breaks when.

    \b
    Examples:
      lb simulate --scenario equal            every policy on eight equal workers
      lb simulate --scenario quarter --policy least_load,round_robin --seeds 10
      lb simulate --scenario mine.yaml        one of yours (docs/balancing.md)
      lb simulate --scenario list             which ones there are
      lb simulate --replay today.rec          what `lb up --record` wrote down
      lb simulate --faults                    new seeds for 10 seconds
      lb simulate --faults --requests 1e8     a long run
      lb simulate --faults --seed 7 --trace   one run, step by step

    Exit code 1: a promise was broken, or requests were never answered.
    """
    if replay is not None:
        of_others = (scenarios, seeds, requests, seconds, jobs, each, limit, keep)
        if faults or trace or any(option is not None for option in of_others):
            fitting = "--policy, --workers, --load, --seed, --save and --report"
            raise click.UsageError(f"--replay goes with {fitting} only")
        from .replay import run_replay

        wish = _wish(replay, policies, workers, load, seed)
        return run_replay(wish, as_json, save, report)
    if scenarios is not None:
        if faults or seconds is not None or each or limit or keep or trace:
            raise click.UsageError("--scenario compares policies; the faults' options do not apply")
        question = _question(scenarios, policies, workers, load, seed, seeds, requests, jobs)
        return _compare(question, as_json, save, report)
    if policies or workers or load or seeds or save or report:
        what = "--policy, --workers, --load, --seeds, --save and --report"
        raise click.UsageError(f"{what} need --scenario or, but for --seeds, --replay")
    from lbcore.sim.run import REQUESTS, Plan

    if not faults:
        raise click.UsageError("say what to simulate: --scenario equal, or --faults")
    each = each or REQUESTS
    if seed is not None and requests is None and seconds is None:
        plan = Plan(seed, each, _indexes(keep), limit)
        return _run_one(plan, trace, as_json)
    if trace or keep is not None or limit is not None:
        raise click.UsageError("--trace, --keep and --limit are for one run: give its --seed alone")
    return _run_many(seed, each, requests, seconds, jobs, as_json)


def _run_many(
    seed: int | None,
    each: int,
    requests: float | None,
    seconds: float | None,
    jobs: int | None,
    as_json: bool,
) -> int:
    """A campaign of faults: one seed after the other."""
    from lbcore.shell.cores import usable_cores
    from lbcore.sim.campaign import Wish, run_campaign

    if requests is None and seconds is None:
        seconds = SECONDS_DEFAULT
    wish = Wish(
        seed=int(time.time()) % 1_000_000 * 1000 if seed is None else seed,
        each=each,
        requests=None if requests is None else int(requests),
        seconds=seconds,
        jobs=jobs or max(1, int(usable_cores().number)),
    )
    if not as_json:
        click.echo(f"seeds from {wish.seed}, {wish.each:,} requests each, {wish.jobs} processes")
    tally = run_campaign(wish, _Progress(as_json).show)
    return _report(tally, wish.seed, as_json)


def _question(
    scenarios: str,
    policies: str | None,
    workers: int | None,
    load: float | None,
    seed: int | None,
    seeds: int | None,
    requests: float | None,
    jobs: int | None,
) -> Question:
    from lbcore.core.policies import POLICIES
    from lbcore.shell.cores import usable_cores
    from lbcore.shell.scenario_files import scenario_names

    from .study import SEED, Question

    return Question(
        scenarios=scenario_names() if scenarios == "all" else _parts(scenarios),
        policies=_parts(policies) if policies else list(POLICIES),
        workers=workers,
        requests=None if requests is None else int(requests),
        load=load,
        seed=SEED if seed is None else seed,
        seeds=seeds or 1,
        jobs=jobs or max(1, int(usable_cores().number)),
    )


def _wish(
    file: str, policies: str | None, workers: int | None, load: float | None, seed: int | None
) -> Replay:
    from .replay import Replay
    from .study import SEED

    return Replay(
        file=file,
        policies=_parts(policies) if policies else (),
        workers=workers,
        load=load or 1.0,
        seed=SEED if seed is None else seed,
    )


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _compare(question: Question, as_json: bool, save: str | None, report: str | None) -> int:
    from .study import list_scenarios, run_studies

    if list(question.scenarios) == ["list"]:
        return list_scenarios(as_json)
    return run_studies(question, as_json, save, report)


def _indexes(keep: str | None) -> tuple[int, ...] | None:
    if keep is None:
        return None
    try:
        return tuple(int(part) for part in keep.split(",") if part.strip())
    except ValueError:
        raise click.UsageError(f"--keep {keep!r} is not a list of numbers") from None


class _Progress:
    """One line that is renewed, for a person who waits."""

    def __init__(self, as_json: bool) -> None:
        self._is_on = not as_json and sys.stderr.isatty()
        self._due = 0.0

    def show(self, tally: Tally) -> None:
        """Renew it, if it is time."""
        now = time.monotonic()
        if self._is_on and now >= self._due:
            self._due = now + PROGRESS_S
            text = f"\r{tally.requests:,} requests, {tally.faults:,} faults, "
            sys.stderr.write(text + f"{len(tally.failures)} failed runs of {tally.runs:,} ")
            sys.stderr.flush()


def _say(line: str) -> None:
    click.echo(line)


def _run_one(plan: Plan, trace: bool, as_json: bool) -> int:
    from lbcore.sim.run import execute

    began = time.monotonic()
    outcome = execute(plan, _say if trace else None)
    if as_json:
        click.echo(json.dumps(_outcome_view(outcome)))
    else:
        seconds = time.monotonic() - began
        text = f"seed {plan.seed}: {outcome.requests:,} requests, {outcome.faults:,} faults, "
        click.echo(text + f"{outcome.virtual_s:.1f} virtual seconds in {seconds:.2f} s")
        click.echo(outcome.violation or "every promise was kept")
    return ExitCode.FAILED if outcome.violation else ExitCode.OK


def _report(tally: Tally, seed: int, as_json: bool) -> int:
    from lbcore.sim.campaign import shrink

    small = [shrink(failed) for failed in tally.failures[:1]]
    if as_json:
        click.echo(json.dumps(_tally_view(tally, seed, small)))
    else:
        _print_report(tally, small)
    return ExitCode.FAILED if tally.failures else ExitCode.OK


def _print_report(tally: Tally, small: Sequence[Outcome]) -> None:
    rate = tally.requests / tally.seconds if tally.seconds else 0.0
    click.echo(
        f"{tally.requests:,} requests and {tally.faults:,} faults in {tally.runs:,} runs: "
        f"{tally.virtual_s:,.0f} virtual seconds in {tally.seconds:.1f} s, {rate:,.0f} requests/s"
    )
    click.echo("answers: " + ", ".join(f"{n:,} {name}" for name, n in _named(tally).items()))
    struck = ", ".join(f"{n:,} {kind}" for kind, n in sorted(tally.kinds.items()))
    click.echo("faults: " + struck)
    if not tally.failures:
        click.echo("every promise was kept")
        return
    click.echo(f"{len(tally.failures)} runs broke a promise:")
    for failed in tally.failures:
        click.echo(f"\n{replay_line(failed.plan)}\n  {failed.violation.strip()}")
    for outcome in small:
        click.echo(f"\nthe first one, shrunk:\n{replay_line(outcome.plan)} --trace")
        click.echo(f"  {outcome.violation.strip()}")


def replay_line(plan: Plan) -> str:
    """The command that runs it again."""
    from lbcore.sim.run import REQUESTS

    parts = [program_name(), "simulate --faults --seed", str(plan.seed)]
    if plan.requests != REQUESTS:
        parts.append(f"--each {plan.requests}")
    if plan.limit is not None:
        parts.append(f"--limit {plan.limit}")
    if plan.keep is not None:
        parts.append("--keep " + (",".join(map(str, plan.keep)) or "''"))
    return " ".join(parts)


def _named(tally: Tally) -> dict[str, int]:
    from lbcore.core.errors import Status

    return {Status(status).name: count for status, count in sorted(tally.answers.items())}


def _outcome_view(outcome: Outcome) -> dict[str, Any]:
    view = outcome._asdict()
    view["plan"] = outcome.plan._asdict()
    view["replay"] = replay_line(outcome.plan)
    return view


def _tally_view(tally: Tally, seed: int, small: Sequence[Outcome]) -> dict[str, Any]:
    return {
        "seed": seed,
        "runs": tally.runs,
        "requests": tally.requests,
        "faults": tally.faults,
        "events": tally.events,
        "virtual_s": tally.virtual_s,
        "seconds": tally.seconds,
        "requests_per_s": tally.requests / tally.seconds if tally.seconds else 0.0,
        "answers": _named(tally),
        "kinds": dict(tally.kinds),
        "failures": [_outcome_view(failed) for failed in tally.failures],
        "shrunk": [_outcome_view(outcome) for outcome in small],
    }
