"""``lb up``: start a topology and, in the foreground, watch it until it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import click

from lbcore.core.errors import ConfigError
from lbcore.core.plan import with_workers
from lbcore.core.topology import Topology
from lbcore.shell.change import Wanted
from lbcore.shell.config_file import line_of
from lbcore.shell.cores import note_of_overcommit, usable_cores
from lbcore.shell.crew import Targets
from lbcore.shell.descriptors import raise_descriptor_limit
from lbcore.shell.listeners import Listeners
from lbcore.shell.logs import check_log_files, setup_logging
from lbcore.shell.state import StateFolder, log_folder
from lbcore.shell.supervisor import Supervisor

from .detach import StartError, run_detached
from .exit_codes import ExitCode
from .live import Terminal, process_table, short_path, start_duration
from .options import config_options, load_topology, program_name

if TYPE_CHECKING:
    from lbcore.core.children import Timing
    from lbcore.shell.observer import Observer


@click.command(
    "up",
    epilog="""\b
Examples:
  lb up                         start what config.yaml describes, Ctrl-C stops
  lb up -d                      start it in the background
  lb up --workers 8             with eight workers, whatever the file says
  lb up --set broker.port=8001  with one key changed
  lb up -d --record today.rec   and write down what arrives

\b
Ctrl-C and SIGTERM finish the accepted requests first; a second one does not.
Exit codes: 2 topology or task module wrong, 3 cannot start, 4 runs already,
130 or 143 stopped by Ctrl-C or SIGTERM.""",
)
@config_options
@click.option("-d", "--detach", is_flag=True, help="Run in the background; return when ready.")
@click.option(
    "--workers",
    type=click.IntRange(1, 4096),
    metavar="N",
    help="How many workers: the first N, or more of them on free ports.",
)
@click.option(
    "--watch", is_flag=True, help="Restart the workers, rolling, when a task module is saved."
)
@click.option(
    "--record",
    metavar="FILE",
    help="Write down what arrives and what it takes, for `lb simulate --replay`.",
)
def up(
    config: str,
    overrides: Sequence[str],
    detach: bool,
    workers: int | None,
    watch: bool,
    record: str | None,
) -> int:
    """Start the broker and the workers of a topology."""
    topology = load_topology(config, overrides)
    if workers is not None:
        topology = with_workers(topology, workers)

    def reload() -> Topology:
        return load_topology(config, overrides)

    wanted = Wanted(topology=topology, load=reload, count=workers, watch=watch)
    if record is None:
        return start(topology, load_targets(), detach=detach, wanted=wanted)
    return _start_recorded(topology, record, detach, wanted)


def _start_recorded(topology: Topology, record: str, detach: bool, wanted: Wanted) -> int:
    """As ``start``, with a recording in that file.  Raises ``RecordError`` as well."""
    from lbcore.shell.recorder import begin_recording, discard_recording, run_recorded_broker

    plan = begin_recording(record)
    targets = replace(load_targets(), run_broker=partial(run_recorded_broker, plan))
    try:
        return start(topology, targets, detach=detach, wanted=wanted)
    except BaseException:
        discard_recording(plan)
        raise


def load_targets() -> Targets:
    """The functions that the real children run."""
    # here and not above: `lb up --help`, and whoever brings targets of his own, need none of this
    from lbcore.shell.broker_process import run_broker
    from lbcore.shell.trial_process import run_trial
    from lbcore.shell.worker_process import run_worker

    return Targets(run_broker=run_broker, run_worker=run_worker, run_trial=run_trial)


def start(
    topology: Topology,
    targets: Targets,
    *,
    detach: bool,
    timing: Timing | None = None,
    wanted: Wanted | None = None,
) -> int:
    """Run the topology with these targets; returns the exit code of ``up``.

    Without ``wanted`` the topology stays as it is.

    Raises ``AlreadyRunning``, ``BindError``, ``LogSetupError`` and ``StartError``.
    """
    logs = log_folder(topology)
    supervisor_log = str(logs / "supervisor.log")
    raise_descriptor_limit(topology)
    if topology.tls is not None:
        # here and not above: few need it, and it takes its time to load
        from lbcore.shell.tls import server_context

        try:
            server_context(topology.tls)
        except ConfigError as error:
            raise ConfigError(f"broker.tls: {error}") from None
    folder = StateFolder(topology)
    try:
        logger = setup_logging(topology.logs, logs, "supervisor")
        check_log_files(logs, ["broker", *(worker.name for worker in topology.workers)])
        listeners = Listeners(topology, line_of)
    except BaseException:
        folder.remove()
        raise

    def run(observer: Observer) -> tuple[int, str]:
        supervisor = Supervisor(
            listeners=listeners,
            folder=folder,
            targets=targets,
            logger=logger,
            observer=observer,
            timing=timing,
            wanted=wanted or Wanted(topology=topology),
        )
        code = supervisor.run()
        reason = supervisor.failure
        return code, f"{reason}\n    more in {short_path(supervisor_log)}" if reason else ""

    def let_go() -> None:
        listeners.release()
        folder.forget()

    notes = _notes(topology)
    if unknown := folder.publish(listeners.topology.broker, tls=topology.tls is not None):
        notes.append(unknown)
    for note in notes:
        logger.warning("{}", note)
    if detach:
        state = run_detached(run, let_go)
        lines = [*process_table(state, supervisor_log), "", *notes]
        lines.append(f"ready{start_duration()}; `{program_name()} down` stops it")
        click.echo("\n".join(lines))
        return ExitCode.OK
    terminal = Terminal(supervisor_log, notes)
    code, failure = run(terminal)
    terminal.finish("" if failure else "stopped")
    if failure:
        raise StartError(failure, code)
    return code


def _notes(topology: Topology) -> list[str]:
    note = note_of_overcommit(topology, usable_cores())
    return [] if note is None else [note]
