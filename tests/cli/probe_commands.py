"""Commands that fail in every way a command can; tests put them into the table of ``lb``."""

from __future__ import annotations

import os
import signal
import time

import click

from lbcore.cli.exit_codes import Terminated
from lbcore.core.errors import BrokerUnavailable, ConfigError


@click.command("probe")
@click.argument("way")
def probe(way: str) -> int | None:
    """End in the way that the argument names."""
    match way:
        case "seven":
            return 7
        case "none":
            click.echo("done")
            return None
        case "config":
            raise ConfigError("config.yaml:3: broker.prot: unknown key\nconfig.yaml:5: another")
        case "absent":
            raise BrokerUnavailable("nobody there")
        case "interrupt":
            raise KeyboardInterrupt
        case "terminate":
            raise Terminated
        case "pipe":
            raise BrokenPipeError
        case "bug":
            raise ZeroDivisionError("ours")
        case "flood":
            for _ in range(100_000):
                click.echo("x" * 100)
            return None
        case "wait":
            click.echo("waiting")
            time.sleep(60)
            return None
        case "term-self":
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
            return None
        case _:
            raise click.UsageError(f"no way {way}")
