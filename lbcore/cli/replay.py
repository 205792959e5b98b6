"""``lb simulate --replay``: a recorded day with other workers, or another policy."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lbcore.core.errors import LBError

from .exit_codes import ExitCode
from .options import program_name
from .render import print_json, printable
from .study import SEED, Progress, print_figures

if TYPE_CHECKING:
    from lbcore.lab.replay import Recorded
    from lbcore.lab.study import Study


class ReplayError(LBError):
    """A recording cannot be read."""

    exit_code = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What is asked for."""

    file: str
    #: none: the recorded one
    policies: Sequence[str] = ()
    workers: int | None = None
    #: how many times as fast the requests come
    load: float = 1.0
    seed: int = SEED


def run_replay(
    replay: Replay, as_json: bool, save: str | None = None, report: str | None = None
) -> int:
    """Simulate the recorded requests under each policy, and print what came of it.

    ``save`` and ``report`` are files to write it to as well.  Raises ``ReplayError`` and
    ``RunFileError``.
    """
    from lbcore.lab.replay import (
        AS_RECORDED,
        as_recorded,
        read_recording,
        recorded_detail,
        replayed,
    )
    from lbcore.lab.study import REFERENCES, Result, Study, read_policy, run_on

    found = read_recording(_read(replay.file), replay.file)
    scenario, traffic = replayed(
        found, Path(replay.file).stem, workers=replay.workers, load=replay.load
    )
    policies = list(dict.fromkeys(replay.policies or [_known_policy(found)]))
    for policy in policies:
        # a wrong one is told before anything runs
        read_policy(policy)
    study = Study(scenario, policies, [replay.seed])
    recorded = Result(as_recorded(found, traffic), recorded_detail(found, traffic))
    study.add(replay.seed, {AS_RECORDED: recorded})
    progress = Progress(as_json)
    try:
        for done, what in enumerate((REFERENCES, *policies)):
            study.add(replay.seed, run_on(scenario, traffic, what, replay.seed, detailed=True))
            progress.show(done, len(policies))
    finally:
        progress.clear()
    if as_json:
        print_json(_view(study, replay, found))
    else:
        _print(study, replay, found)
    if save is not None or report is not None:
        from .run_files import run_of_study, write_runs

        write_runs([run_of_study(study, _again(study, replay))], save, report)
    lost = any(study.mean(policy).lost for policy in policies)
    return ExitCode.FAILED if lost else ExitCode.OK


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ReplayError(f"cannot read {path}: {error.strerror}") from None


def _known_policy(found: Recorded) -> str:
    """The recorded policy; a user's own class is not simulated."""
    from lbcore.core.policies import POLICIES

    if found.policy in POLICIES:
        return found.policy
    raise ReplayError(
        f"it was recorded with {printable(found.policy)}, which comes from elsewhere; name others "
        f"with --policy"
    )


def _print(study: Study, replay: Replay, found: Recorded) -> None:
    header, scenario = found.header, study.scenario
    click.echo(
        f"recorded of {printable(header.name)} from {printable(header.started)} on, with "
        f"{printable(found.policy)}, {len(found.workers)} workers"
    )
    workers = "the recorded workers"
    if replay.workers is not None:
        workers = f"{replay.workers:,} equal workers of speed 1"
    facts = [f"{scenario.requests:,} requests", f"replayed with {workers}"]
    if replay.load != 1.0:
        facts.append(f"{replay.load:g} times as fast")
    facts.append(f"load {scenario.load:.2f}")
    click.echo(", ".join(facts) + "\n")
    print_figures(study)
    for note in _notes(found):
        click.echo(f"\nnote: {note}")
    click.echo(f"\nagain: {_again(study, replay)}")


def _notes(found: Recorded) -> list[str]:
    notes = []
    if found.lost:
        notes.append(f"{found.lost:,} requests are missing: the disk could not follow")
    if found.is_truncated:
        notes.append("the last line was cut short, and left out")
    failed = sum(record.status != 0 for record in found.records)
    if failed:
        notes.append(f"{failed:,} requests failed; they are replayed as work of the time they took")
    return notes


def _again(study: Study, replay: Replay) -> str:
    parts = [program_name(), "simulate --replay", shlex.quote(replay.file)]
    parts += ["--policy", shlex.quote(",".join(study.policies))]
    if replay.workers is not None:
        parts.append(f"--workers {replay.workers}")
    if replay.load != 1.0:
        parts.append(f"--load {replay.load:g}")
    if replay.seed != SEED:
        parts.append(f"--seed {replay.seed}")
    return " ".join(parts)


def _view(study: Study, replay: Replay, found: Recorded) -> dict[str, Any]:
    """For programs: times in seconds."""
    return {
        "recording": replay.file,
        "recorded": {
            "name": found.header.name,
            "policy": found.policy,
            "started": found.header.started,
            "workers": len(found.workers),
            "lost": found.lost,
            "is_truncated": found.is_truncated,
        },
        "seed": replay.seed,
        "workers": study.scenario.workers_count,
        "requests": study.scenario.requests,
        "speedup": replay.load,
        "load": study.scenario.load,
        "policies": study.view(),
        "again": _again(study, replay),
    }
