"""``lb down``: stop a running topology and wait until nothing of it is left."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import click

from lbcore.core.topology import Topology
from lbcore.shell.state import StateFolder, SystemState, is_locked, read_state

from .detach import StartError
from .exit_codes import ExitCode
from .options import config_options, load_running

#: on top of the time that the topology gives to draining
_GRACE_S: Final = 10.0
#: how long a supervisor that was told to stop at once may take before it is killed
_AT_ONCE_S: Final = 2.0
#: between the lock and the first word of a supervisor that is just starting
_FIRST_WORD_S: Final = 2.0
_POLL_S: Final = 0.02


@click.command(
    "down",
    epilog="""\b
Examples:
  lb down        stop; accepted requests are finished first
  lb down -t 2   but wait no longer than two seconds for them

\b
Exit codes: 0 nothing of it runs any more; 2 wrong option or topology; 3 it
could not be stopped.""",
)
@config_options
@click.option(
    "-t",
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0),
    metavar="SEC",
    help="Stop at once when it takes longer.  [default: limits.drain_s + 10]",
)
def down(config: str, overrides: Sequence[str], timeout_s: float | None) -> int:
    """Stop a running topology; accepted requests are finished first."""
    topology = load_running(config, overrides)
    state = _find(topology)
    if state is None:
        click.echo(f"{topology.name} is not running{_clear_remains(topology)}")
        return ExitCode.OK
    limit_s = topology.limits.drain_s + _GRACE_S if timeout_s is None else timeout_s
    with Stranger(state.pid, lambda: _is_supervisor(topology, state.pid)) as supervisor:
        how = stop(supervisor, limit_s)
    _wait_for_release(topology)
    click.echo(f"{topology.name} {how} (supervisor pid {state.pid}){_clear_remains(topology)}")
    return ExitCode.OK


class Stranger:
    """A process that is not our child, held so that its number cannot become another's."""

    def __init__(self, pid: int, is_meant: Callable[[], bool]) -> None:
        """``is_meant`` says whether the process of this number is the right one, now."""
        self._pid = pid
        self._handle = -1
        try:
            if hasattr(os, "pidfd_open"):
                self._handle = os.pidfd_open(pid)
        except ProcessLookupError:
            self.is_there = False
        else:
            # asked only now: if it still is the one, the handle is that one's
            self.is_there = is_meant()

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle >= 0:
            os.close(self._handle)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; one that has ended is no error.  Raises ``StartError``."""
        if not self.is_there:
            return
        with suppress(ProcessLookupError):
            try:
                if self._handle >= 0:
                    signal.pidfd_send_signal(self._handle, number)
                else:
                    os.kill(self._pid, number)
            except PermissionError:
                raise StartError(f"pid {self._pid} belongs to another user") from None

    def wait(self, timeout_s: float) -> bool:
        """True once it has ended, False when that takes longer."""
        if not self.is_there:
            return True
        give_up_at = time.monotonic() + timeout_s
        if self._handle >= 0:
            # a pidfd becomes readable when its process ends
            return bool(select.select([self._handle], [], [], timeout_s)[0])
        while time.monotonic() < give_up_at:
            try:
                os.kill(self._pid, 0)
            except ProcessLookupError:
                return True
            time.sleep(_POLL_S)
        return False


def stop(supervisor: Stranger, limit_s: float) -> str:
    """Ask, then insist, then kill; returns what happened, for people."""
    started_at = time.monotonic()
    supervisor.signal(signal.SIGTERM)
    if supervisor.wait(limit_s):
        return f"stopped in {time.monotonic() - started_at:.2f} s"
    # not a second SIGTERM: right after the first it would count as the same wish
    supervisor.signal(signal.SIGQUIT)
    if supervisor.wait(_AT_ONCE_S):
        return f"stopped at once, after {limit_s:g} s: requests may have been lost"
    supervisor.signal(signal.SIGKILL)
    supervisor.wait(_AT_ONCE_S)
    return f"was killed, after {limit_s + _AT_ONCE_S:g} s: requests may have been lost"


def _find(topology: Topology) -> SystemState | None:
    """The running system, also when it began to start a moment ago."""
    give_up_at = time.monotonic() + _FIRST_WORD_S
    while (state := read_state(topology)) is None and is_locked(topology):
        if time.monotonic() >= give_up_at:
            raise StartError(
                f"{topology.name} is starting or stopping, but does not say which process it is"
            )
        time.sleep(_POLL_S)
    return state


def _is_supervisor(topology: Topology, pid: int) -> bool:
    """Whether this pid is the supervisor's.

    It is what the holder of the lock wrote down, and the holder is alive: no process can have its
    number.  Start times would say the same, until somebody sets the clock.
    """
    state = read_state(topology)
    return state is not None and state.pid == pid


def _wait_for_release(topology: Topology) -> None:
    """The lock goes with the last process that has it, a moment after the supervisor."""
    give_up_at = time.monotonic() + _AT_ONCE_S
    while is_locked(topology):
        if time.monotonic() >= give_up_at:
            raise StartError(f"{topology.name} still holds its lock; see `lb status`")
        time.sleep(_POLL_S)


def _clear_remains(topology: Topology) -> str:
    """Remove what a killed supervisor left; a word about it, if there was anything."""
    folder = StateFolder.left_behind(topology)
    if folder is None:
        return ""
    folder.remove()
    return "; what a killed supervisor left was removed"
