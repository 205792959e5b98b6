"""Options that several commands share, so that they are spelt and explained the same everywhere.

Nothing here opens a socket.  Called by every command module.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from lbcore.core.topology import Topology

CONFIG_DEFAULT = "config.yaml"

_Function = TypeVar("_Function", bound=Callable[..., Any])


def program_name() -> str:
    """How this program was started, as a person would type it again: ``lb``, ``python lb.py``…"""
    script = sys.argv[0] if sys.argv else ""
    name = os.path.basename(script)
    if name == "__main__.py":
        return "python -m lbcore"
    if name.endswith(".py"):
        return f"python {shlex.quote(min(script, os.path.relpath(script), key=len))}"
    return "lb"


class Number(click.ParamType[float]):
    """A finite number above zero and up to ``maximum``."""

    name = "number"

    def __init__(self, maximum: float = 1e12) -> None:
        self._maximum = maximum

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number.  Raises ``click.BadParameter``."""
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if not 0.0 < number <= self._maximum:
            self.fail(f"{value!r} is not a number above 0 (and up to {self._maximum:,.0f})")
        return number


class WholeNumber(click.ParamType[int]):
    """An integer from ``minimum`` to ``maximum``; None means without end."""

    name = "integer"

    def __init__(self, minimum: int, maximum: int | None = None) -> None:
        self._minimum = minimum
        self._maximum = maximum

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The integer.  Raises ``click.BadParameter``."""
        try:
            number = int(value)
        except ValueError:
            number = self._minimum - 1
        if number < self._minimum or (self._maximum is not None and number > self._maximum):
            end = "" if self._maximum is None else f" to {self._maximum:,}"
            self.fail(f"{value!r} is not a whole number from {self._minimum}{end}")
        return number


def config_options(function: _Function) -> _Function:
    """Add ``-c/--config FILE`` and ``--set KEY=VALUE``: arguments ``config`` and ``overrides``."""
    function = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override one key of the topology, such as broker.port=8001; repeatable.",
    )(function)
    return click.option(
        "-c",
        "--config",
        "config",
        default=CONFIG_DEFAULT,
        show_default=True,
        envvar="LB_CONFIG",
        metavar="FILE",
        type=click.Path(dir_okay=False),
        help="The topology.",
    )(function)


def address_options(function: _Function) -> _Function:
    """Add ``--host``, ``--port`` and ``--path``: reach a broker without its topology file."""
    for option in (
        click.option(
            "--path",
            metavar="SOCKET",
            type=click.Path(dir_okay=False),
            help="Reach the broker at this Unix socket; no topology is read.",
        ),
        click.option(
            "--port",
            metavar="PORT",
            type=WholeNumber(1, 65535),
            help="Reach the broker at this port; no topology is read.",
        ),
        click.option(
            "--host", metavar="HOST", help="Reach the broker at this host; no topology is read."
        ),
    ):
        function = option(function)
    return function


def json_option(text: str) -> Callable[[_Function], _Function]:
    """Add ``--json``, argument ``as_json``; ``text`` says what is printed."""

    def decorate(function: _Function) -> _Function:
        return click.option("--json", "as_json", is_flag=True, help=text)(function)

    return decorate


def load_topology(config: str, overrides: Sequence[str] = ()) -> Topology:
    """The checked topology of a YAML file.  Raises ``ConfigError`` with the whole report."""
    from lbcore.shell.config_file import load

    return load(config, overrides)


def load_running(config: str, overrides: Sequence[str] = ()) -> Topology:
    """The topology of a system that runs, for commands that talk to it.

    That of the file; but a file that cannot be used any more, or has another name by now, must not
    keep anybody from what was started from it.  Raises ``ConfigError`` when nothing runs of it.
    """
    from lbcore.core.errors import ConfigError
    from lbcore.shell.state import is_locked, running_topology

    try:
        topology = load_topology(config, overrides)
    except ConfigError:
        running = None if overrides else running_topology(config)
        if running is None:
            raise
        note = f"{config} has mistakes, see `{program_name()} check`; this is what runs"
        click.echo(f"lb: {note}", err=True)
        return running
    if overrides or is_locked(topology):
        return topology
    return running_topology(config) or topology
