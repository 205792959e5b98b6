"""Runs as files: made from what a command measured, written, and read again for a report."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import lbcore
from lbcore.lab.replay import is_recording
from lbcore.lab.runfile import RunFile, RunFileError, plain, read_run

from .options import program_name

if TYPE_CHECKING:
    from lbcore.lab.measures import Detail
    from lbcore.lab.study import Study


def new_run(kind: str, title: str, again: str) -> RunFile:
    """A run of here and now, for the rest to be filled in."""
    from lbcore.shell.cores import usable_cores

    return RunFile(
        kind=kind,
        title=title,
        again=again,
        made_at=datetime.now().astimezone().isoformat(timespec="seconds"),
        lb=lbcore.__version__,
        machine={
            "python": platform.python_version(),
            "platform": f"{platform.system()} {platform.machine()}",
            "cores": round(usable_cores().number, 2),
        },
    )


def run_of_study(study: Study, again: str) -> RunFile:
    """What a comparison in virtual time found."""
    scenario = study.scenario
    run = new_run("simulate", f"{scenario.name}: {scenario.about}", again)
    run.settings = {
        "scenario": scenario.name,
        "workers": scenario.workers_count,
        "load": scenario.load,
        "requests": scenario.requests,
        "seeds": list(study.seeds),
        "arrivals": scenario.arrivals,
        "tasks": [f"{task.name} {task.service_s:g} s ({task.shape})" for task in scenario.tasks],
    }
    speeds = [(shape, each) for shape in scenario.workers for each in range(shape.count)]
    names = [f"worker-{number + 1}" for number in range(len(speeds))]
    run.topology = {
        "policy": study.policies[0] if study.policies else "",
        "mean_service_s": scenario.mean_service_s,
        "workers": [
            {
                "name": name,
                "weight": shape.weight,
                "speed": shape.speed,
                "concurrency": shape.concurrency,
            }
            for name, (shape, _) in zip(names, speeds, strict=True)
        ],
        "tasks": [
            {"name": task.name, "service_s": task.service_s, "share": task.share}
            for task in scenario.tasks
        ],
    }
    run.policies = study.view()
    for name in study.names:
        detail = study.details[name]
        run.quantiles[name] = list(detail.quantiles)
        if len(detail.requests) != len(names):
            # a recorded system that had other workers
            continue
        run.requests[name] = dict(zip(names, detail.requests, strict=True))
        run.shares[name] = dict(zip(names, detail.shares, strict=True))
        if detail.moments:
            run.series[name] = _series_of(detail, names)
    return run


def _series_of(detail: Detail, names: Sequence[str]) -> dict[str, Any]:
    """The samples of a trial, worker by worker."""
    sampled: dict[str, Any] = {"load": detail.load, "pending": detail.pending, "busy": detail.busy}
    sampled = {key: rows for key, rows in sampled.items() if rows}
    columns: dict[str, list[Any]] = {
        key: list(zip(*rows, strict=True)) for key, rows in sampled.items()
    }
    shown = names[: len(columns["pending"])]
    return {
        "moments": detail.moments,
        "workers": {
            worker: {key: list(values[place]) for key, values in columns.items()}
            for place, worker in enumerate(shown)
        },
    }


def write_runs(runs: Sequence[RunFile], save: str | None, report: str | None) -> None:
    """As a file, and as a report, where these are wanted.  Raises ``RunFileError``."""
    if save is not None:
        objects: Any = [plain(run) for run in runs]
        text = json.dumps(objects[0] if len(objects) == 1 else objects, allow_nan=False)
        _write(Path(save), text + "\n")
        click.echo(f"saved: {save}", err=True)
    if report is not None:
        write_report(runs, [report])


def write_report(runs: Sequence[RunFile], targets: Sequence[str]) -> None:
    """As a page or on paper, by the ending of each name.  Raises ``RunFileError``."""
    for target in targets:
        path = Path(target)
        try:
            if path.suffix.lower() == ".pdf":
                from .report_pdf import write_pdf

                write_pdf(runs, path)
            else:
                from .report_page import write_html

                write_html(runs, path)
        except OSError as error:
            raise RunFileError(f"cannot write {target}: {error.strerror or error}") from None
        click.echo(f"report: {target}", err=True)


def read_runs(name: str) -> list[RunFile]:
    """The runs that a file holds.  Raises ``RunFileError``."""
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        if is_recording(data):
            return [run_of_recording(data, name)]
        found = json.loads(data)
    except OSError as error:
        raise RunFileError(f"cannot read {name}: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise RunFileError(f"{name}: it is not JSON; --save writes such a file") from None
    return [read_run(each, name) for each in (found if isinstance(found, list) else [found])]


def run_of_recording(data: bytes, name: str) -> RunFile:
    """What ``lb up --record`` wrote down, as a run.  Raises ``ScenarioError``."""
    from lbcore.lab.replay import (
        AS_RECORDED,
        as_recorded,
        read_recording,
        recorded_detail,
        replayed,
    )

    found = read_recording(data, name)
    scenario, traffic = replayed(found, Path(name).stem)
    title = f"{found.header.name}: recorded from {found.header.started} on"
    run = new_run("recording", title, f"{program_name()} simulate --replay {shlex.quote(name)}")
    run.settings = {
        "requests": scenario.requests,
        "load": scenario.load,
        "transit_s": found.transit_s,
        "missing": found.lost,
    }
    names = [worker.name for _, worker in sorted(found.workers.items())]
    run.topology = {
        "policy": found.policy,
        "mean_service_s": scenario.mean_service_s,
        "workers": [
            {
                "name": name,
                "weight": shape.weight,
                "speed": shape.speed,
                "concurrency": shape.concurrency,
            }
            for name, shape in zip(names, scenario.workers, strict=True)
        ],
        "tasks": [
            {"name": task.name, "service_s": task.service_s, "share": task.share}
            for task in scenario.tasks
        ],
    }
    detail = recorded_detail(found, traffic)
    run.policies = [{"policy": AS_RECORDED, **as_recorded(found, traffic)._asdict()}]
    run.quantiles[AS_RECORDED] = list(detail.quantiles)
    run.requests[AS_RECORDED] = dict(zip(names, detail.requests, strict=True))
    run.shares[AS_RECORDED] = dict(zip(names, detail.shares, strict=True))
    if detail.moments:
        run.series[AS_RECORDED] = _series_of(detail, names)
    return run


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunFileError(f"cannot write {path}: {error.strerror or error}") from None
