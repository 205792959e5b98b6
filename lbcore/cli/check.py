"""``lb check``: says all that is wrong with a topology and its tasks, without starting anything."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import click

from .exit_codes import ExitCode
from .options import config_options, json_option
from .render import print_json

if TYPE_CHECKING:
    from lbcore.core.problems import Problem
    from lbcore.core.topology import Address, Topology
    from lbcore.shell.config_file import Examination
    from lbcore.shell.task_check import TaskCheck

WIDTH: Final = 80
LABEL_WIDTH: Final = 11


@click.command(
    "check",
    epilog="""\b
Examples:
  lb check
  lb check -c other.yaml
  lb check --set workers=8 --set policy=random
  lb check --json | jq .problems

\b
Exit codes: 0 it is right; 2 it has mistakes, each is printed with its line.""",
)
@json_option("Print one JSON object: ok, problems, topology, tasks.")
@config_options
def check(as_json: bool, config: str, overrides: tuple[str, ...]) -> int:
    """Check a topology without starting it.

    Reads the YAML, the environment (LB_BROKER__PORT=8001) and --set, reports every mistake at once
    with its line, and imports your task modules and your policy in processes of their own to see
    that they load.
    """
    from lbcore.shell.config_file import examine
    from lbcore.shell.task_check import TaskCheck, check_tasks

    examination = examine(config, overrides)
    tasks = TaskCheck([], [])
    problems = examination.problems
    if examination.topology is not None:
        tasks = check_tasks(examination.topology)
        problems = [
            *_tls_problems(examination),
            *_policy_problems(examination, examination.topology),
            *_task_problems(examination, tasks),
        ]
    if as_json:
        print_json(_as_json(config, examination.topology, problems, tasks))
    elif problems:
        for problem in problems:
            click.echo(str(problem))
        count = len(problems)
        click.echo(f"{config}: {count} mistake{'' if count == 1 else 's'}")
    elif examination.topology is not None:
        click.echo(f"{config}: ok")
        for line in _summary(examination.topology, tasks):
            click.echo(line)
    return ExitCode.USAGE if problems else ExitCode.OK


def _tls_problems(examination: Examination) -> list[Problem]:
    """What is wrong with the broker's certificate and key."""
    from lbcore.core.errors import ConfigError
    from lbcore.core.problems import Problems

    problems = Problems(examination.origins)
    if examination.topology is not None and examination.topology.tls is not None:
        from lbcore.shell.tls import server_context

        try:
            server_context(examination.topology.tls)
        except ConfigError as error:
            problems.add(("broker", "tls"), str(error))
    return problems.found


def _policy_problems(examination: Examination, topology: Topology) -> list[Problem]:
    """What is wrong with a policy of the user's own."""
    from lbcore.core.problems import Problems
    from lbcore.shell.task_check import check_policy

    problems = Problems(examination.origins)
    message = check_policy(topology)
    if message is not None:
        is_long = ("policy", "name") in examination.origins
        problems.add(("policy", "name") if is_long else ("policy",), message)
    return problems.found


def _task_problems(examination: Examination, tasks: TaskCheck) -> list[Problem]:
    """What the import found, each at the entry of the YAML that names the module."""
    from lbcore.core.problems import Problems

    problems = Problems(examination.origins)
    for problem in tasks.problems:
        path = ("tasks",) if problem.index is None else ("tasks", problem.index)
        problems.add(path, problem.message)
    return problems.found


def _as_json(
    config: str, topology: Topology | None, problems: list[Problem], tasks: TaskCheck
) -> dict[str, Any]:
    from lbcore.core.config import describe_topology

    return {
        "ok": not problems,
        "config": config,
        "problems": [problem.to_json() for problem in problems],
        "topology": None if topology is None else describe_topology(topology),
        "tasks": tasks.names,
    }


def _summary(topology: Topology, tasks: TaskCheck) -> list[str]:
    """Three lines: where the broker listens, which workers there are, which tasks of the user."""
    workers = [_worker_text(worker.name, worker.address) for worker in topology.workers]
    own = _shortened(tasks.names, "") if tasks.names else "those built in"
    return [
        f"{'  broker':<{LABEL_WIDTH}}{topology.broker}, policy {topology.policy.label}",
        f"{'  workers':<{LABEL_WIDTH}}{_shortened(workers, f'{len(workers)}: ')}",
        f"{'  tasks':<{LABEL_WIDTH}}{own}",
    ]


def _worker_text(name: str, address: Address) -> str:
    if address.path is not None:
        return f"{name} (Unix socket)"
    return f"{name} (port {address.port or 'free'})"


def _shortened(names: Iterable[str], head: str) -> str:
    """As many names as fit on the line, and how many more there are."""
    words = list(names)
    text = head + ", ".join(words)
    shown = len(words)
    while shown > 1 and len(text) > WIDTH - LABEL_WIDTH:
        shown -= 1
        text = f"{head}{', '.join(words[:shown])} and {len(words) - shown} more"
    return text
