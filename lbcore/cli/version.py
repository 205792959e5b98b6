"""``lb version``: lb, the Python it runs on, the machine's kind, and the libraries it uses."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import click

from lbcore import __version__

from .exit_codes import ExitCode
from .options import json_option
from .render import print_json

#: what lb imports when it runs, by the name of the distribution
DEPENDENCIES = ("click", "loguru", "matplotlib", "msgspec", "psutil", "PyYAML", "rich", "uvloop")


@click.command(
    "version",
    epilog="""\b
Examples:
  lb version
  lb version --json
  lb --version          the number alone

\b
Exit code: 0.""",
)
@json_option("Print one JSON object.")
def version(as_json: bool) -> int:
    """Show the versions of lb, Python, the platform and the libraries.

    Copy it into a bug report.
    """
    facts = version_facts()
    if as_json:
        print_json(facts)
        return ExitCode.OK
    click.echo(f"lb {facts['lb']}")
    click.echo(f"Python {facts['python']} on {facts['platform']}")
    for name in DEPENDENCIES:
        click.echo(f"  {name:<8} {_version_of(name) or 'missing'}")
    return ExitCode.OK


def version_facts() -> dict[str, Any]:
    """The versions; None for a library that is not installed."""
    return {
        "lb": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "dependencies": {name: _version_of(name) for name in DEPENDENCIES},
    }


def _version_of(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
